"""Compiles a designer's file into the flat table that is evaluated (tiers/policy.py).

A file has sections, one for each archetype and one for all NPCs:

    [villager]
    rows = [{ percept_stance = "hostile", distance_max_m = 20.0, action = "flee", emotion = "afraid" }]

    [default]
    rows = [{ action = "idle", emotion = "calm" }]

A world's table is, from the top: the world's own rows as they come; the sections of archetypes for which the world has
no row of its own; [default]; and, if no row so far always holds, one that does. So there is always an answer. Rows
with words that the world lacks, and rows that can never be reached, are left out.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from core.errors import ConfigError
from core.steps import Steps, at_once
from core.texts import line_fault
from tiers.policy import PolicyRow

DEFAULT = "default"
ROWS_MAX = 512  # of one file
NUMBERS = {"distance_max_m": math.inf, "health_max": 1.0}  # upper bounds of a row's numbers
KEYS = tuple(f.name for f in fields(PolicyRow) if f.name != "archetype_id")


@dataclass(frozen=True, slots=True)
class Section:
    """The rows of one archetype, or of all NPCs (archetype_id empty), and the file that they are in."""

    archetype_id: str
    origin: str
    rows: tuple[PolicyRow, ...]

    def place(self, number: int) -> str:
        """The place of its row with that number (from 0)."""
        return f"{self.origin} [{self.archetype_id or DEFAULT}] row {number + 1}"


Sections = Mapping[str, Section]  # by archetype


@dataclass(frozen=True, slots=True)
class WorldWords:
    """The words that a world's rows may use: archetypes, actions, actions that need a target, and emotions."""

    archetypes: Sequence[str]
    actions: Sequence[str]
    targeted: Sequence[str]
    emotions: Sequence[str]


class Left(NamedTuple):
    """A row that is not in the table."""

    place: str
    reason: str
    unknown_words: bool  # False: it is never reached, or about another archetype


@dataclass(slots=True)
class PolicyTable:
    """The flat table, the origin of each row, and the rows that were left out. The last row always holds."""

    rows: list[PolicyRow] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    left_out: list[Left] = field(default_factory=list)


def read_sections(content: Mapping[str, Any], origin: str) -> dict[str, Section]:
    """The sections of a parsed file. Raises ConfigError naming file, section and row."""
    sections = {}
    for name, given in content.items():
        if not isinstance(given, Mapping):
            raise ConfigError(f"{origin}: '{name}' stands outside a section; write [archetype] or [{DEFAULT}] above it")
        if unknown := set(given) - {"rows"}:
            raise ConfigError(f"{origin}: [{name}]: unknown key '{min(unknown)}'; a section has rows = [...]")
        archetype_id = "" if name == DEFAULT else name
        sections[archetype_id] = Section(
            archetype_id, origin, read_rows(given.get("rows", []), f"{origin}: [{name}]", archetype_id)
        )
    count = sum(len(s.rows) for s in sections.values())
    if count > ROWS_MAX:
        raise ConfigError(f"{origin}: {count} rows, the limit is {ROWS_MAX}")
    return sections


def read_rows(given: Any, place: str, archetype_id: str = "") -> tuple[PolicyRow, ...]:
    """Rows of one archetype. Raises ConfigError naming the place, the row's number (from 1) and its key."""
    if not isinstance(given, list):
        raise ConfigError(f"{place}: rows must be a list of tables: rows = [{{ action = ..., emotion = ... }}]")
    return tuple(read_row(row, f"{place} row {i}", archetype_id) for i, row in enumerate(given, 1))


def read_row(given: Any, place: str, archetype_id: str) -> PolicyRow:
    """One row. Raises ConfigError naming the place and the key."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{place}: {given!r} must be a table: {{ action = ..., emotion = ... }}")
    for key, value in given.items():
        if key == "archetype_id":
            raise ConfigError(f"{place}: archetype_id is said by the section's name; leave it out")
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(KEYS)}"
            raise ConfigError(f"{place}: unknown key '{key}'; {hint}")
        most = NUMBERS.get(key)
        if most is None:
            if not isinstance(value, str):
                raise ConfigError(f"{place}: {key} must be a word in quotes, not {value!r}")
            if fault := line_fault(value):
                raise ConfigError(f"{place}: {key} {fault}")
        elif (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most or value == math.inf
        ):
            limit = "0 or more" if most == math.inf else f"0 to {most:g}"
            raise ConfigError(f"{place}: {key} must be a number, {limit}, not {value!r}")
    for key in ("action", "emotion"):
        if not given.get(key):
            raise ConfigError(f"{place}: {key} is missing")
    numbers = {key: float(given.get(key, 0.0)) for key in NUMBERS}
    return PolicyRow(archetype_id=archetype_id, **{**given, **numbers})


def why_not(row: PolicyRow, words: WorldWords) -> tuple[str, str]:
    """(field, reason) if a world cannot have a row; two empty texts if it can."""
    if row.action not in words.actions:
        return "action", f"'{row.action}' is not an action of the world"
    if row.emotion not in words.emotions:
        return "emotion", f"'{row.emotion}' is not an emotion of the world"
    seeks = row.percept_kind or row.percept_stance or row.distance_max_m > 0
    if row.action in words.targeted and not seeks:
        return "", f"'{row.action}' needs a target and the row names no percept"
    return "", ""


def compile_table(own: Sequence[PolicyRow], sections: Sections, words: WorldWords) -> PolicyTable:
    """A world's table: its own rows (all of whose words it has), then the sections for states that those leave open."""
    return at_once(compiling_table(own, sections, words))


def compiling_table(own: Sequence[PolicyRow], sections: Sections, words: WorldWords) -> Steps[PolicyTable]:
    """The same in steps."""
    table = PolicyTable()
    closed: dict[str, str] = {}  # the place of a row that always holds, by archetype; "" closes all
    for i, row in enumerate(own):
        _add(table, closed, row, f"world row {i + 1}")
        yield
    answered = {row.archetype_id for row in own if row.archetype_id}
    for place, row in _below(sections):
        yield
        archetype_id, (_, reason) = row.archetype_id, why_not(row, words)
        if archetype_id and archetype_id not in words.archetypes:
            table.left_out.append(Left(place, f"the world has no archetype '{archetype_id}'", False))
        elif archetype_id in answered:
            table.left_out.append(Left(place, f"the world has rows of its own for '{archetype_id}'", False))
        elif reason:
            table.left_out.append(Left(place, reason, True))
        else:
            _add(table, closed, row, place)
    if "" not in closed:
        # The layout made sure that some action does without a target.
        action = next(a for a in words.actions if a not in words.targeted)
        _add(table, closed, PolicyRow(action=action, emotion=words.emotions[0]), "so that some row holds")
    return table


def _below(sections: Sections) -> Iterator[tuple[str, PolicyRow]]:
    """Rows of archetypes, then rows of all NPCs."""
    ordered = [s for s in sections.values() if s.archetype_id] + [s for s in sections.values() if not s.archetype_id]
    for section in ordered:
        yield from ((section.place(i), row) for i, row in enumerate(section.rows))


def _add(table: PolicyTable, closed: dict[str, str], row: PolicyRow, place: str) -> None:
    before = closed.get("") or closed.get(row.archetype_id)
    if before:
        table.left_out.append(Left(place, f"never reached, {before} holds always", False))
        return
    table.rows.append(row)
    table.places.append(place)
    if row == PolicyRow(row.archetype_id, action=row.action, emotion=row.emotion, bark=row.bark):
        closed[row.archetype_id] = place


def whole(sections: Sections) -> list[PolicyRow]:
    """Every row, those of archetypes first, as if a world had all the words."""
    return [row for _, row in _below(sections)]


def described(row: PolicyRow) -> str:
    """A row's conditions in words; "always" without any."""
    said = []
    if row.event:
        said.append(f"event {row.event}")
    if row.health_max > 0:
        said.append(f"health at most {row.health_max:g}")
    if row.time_of_day:
        said.append(f"at {row.time_of_day}")
    if row.percept_kind or row.percept_stance or row.distance_max_m > 0:
        words = (row.percept_stance, row.percept_kind) if row.percept_kind else ("anything", row.percept_stance)
        what = " ".join(word for word in words if word)
        said.append(f"sees {what}" + (f" within {row.distance_max_m:g} m" if row.distance_max_m > 0 else ""))
    return ", ".join(said) or "always"
