"""`npcd policy check`: the table that a rule policy compiles to, alone or for a world, and the rows that are left out.
Gives lines to print.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from core.observation import STANCES, TIMES_OF_DAY
from daemon.worlds.policy_file import BUILT_IN_NAME, WorldFile, load_policy, load_sections, load_world
from tiers.policy import PolicyRow
from tiers.policy_table import Left, PolicyTable, Section, Sections, compile_table, described, whole, why_not


@dataclass(frozen=True, slots=True)
class Checked:
    """A policy's table, for a world if one was given. `wrong` are rows of the files given that cannot be meant so."""

    title: str
    table: PolicyTable
    left_out: list[Left]
    wrong: list[Left]


def check(file: Path | None, world: Path | None, policy_file: str) -> Checked:
    """Reads, compiles, and looks. Raises ConfigError naming file, section and row."""
    own = load_sections(file) if file is not None else {}
    sections = {**load_policy("" if file is not None else policy_file), **own}
    name = str(file) if file is not None else policy_file or BUILT_IN_NAME
    if world is None:
        count = sum(len(s.rows) for s in own.values()) or len(whole(sections))
        return Checked(
            f"{name}: {count} rows; no world was given", _as_written(sections), [], list(_never(_placed(sections)))
        )
    definition = load_world(world)
    table = compile_table(definition.rows, sections, definition.words)
    given = {section.origin for section in own.values()}
    left_out = [left for left in table.left_out if left.place.startswith("world row") or _of(left, given)]
    wrong = [left for left in left_out if left.unknown_words or _slip(left, own, definition)]
    wrong += list(_strangers(definition))
    wrong += _never(
        [(f"world row {i}", row) for i, row in enumerate(definition.rows, 1)]
        + [(place, row) for place, row in _placed(sections) if any(place.startswith(f"{o} [") for o in given)]
    )
    return Checked(f"world '{definition.world_id}' with {name}: {len(table.rows)} rows", table, left_out, wrong)


def as_text(checked: Checked) -> Iterator[str]:
    """The table, a row a line, and the rows that are not in it."""
    yield checked.title
    cells = [(r.archetype_id or "everybody", described(r), _answer(r), p) for r, p in _rows(checked.table)]
    wide = [max(len(c[i]) for c in cells) for i in range(3)]
    for i, (who, when, then, place) in enumerate(cells, 1):
        yield f"{i:>3}  {who:<{wide[0]}}  {when:<{wide[1]}}  {then:<{wide[2]}}  {place}"
    quietly = [left for left in checked.left_out if left not in checked.wrong]
    if quietly:
        yield "left out:"
    yield from (f"  {left.place}: {left.reason}" for left in quietly)
    yield from (f"! {left.place}: {left.reason}" for left in checked.wrong)


def as_json(checked: Checked) -> str:
    """The same for programs."""
    rows = [{**dataclasses.asdict(row), "from": place} for row, place in _rows(checked.table)]
    left = [{"from": x.place, "reason": x.reason, "wrong": x in checked.wrong} for x in checked.left_out]
    left += [{"from": x.place, "reason": x.reason, "wrong": True} for x in checked.wrong if x not in checked.left_out]
    return json.dumps({"title": checked.title, "rows": rows, "left_out": left}, indent=2)


def _as_written(sections: Sections) -> PolicyTable:
    ordered = sorted(sections.values(), key=lambda s: not s.archetype_id)
    return PolicyTable(whole(sections), [s.place(i) for s in ordered for i in range(len(s.rows))])


def _rows(table: PolicyTable) -> Iterator[tuple[PolicyRow, str]]:
    return zip(table.rows, table.places, strict=True)


def _answer(row: PolicyRow) -> str:
    return f"{row.action}, {row.emotion}" + (f': "{row.bark}"' if row.bark else "")


def _of(left: Left, origins: set[str]) -> bool:
    return any(left.place.startswith(f"{origin} [") for origin in origins)


def _placed(sections: Sections) -> list[tuple[str, PolicyRow]]:
    return [(section.place(i), row) for section in sections.values() for i, row in enumerate(section.rows)]


def _never(rows: Iterable[tuple[str, PolicyRow]]) -> Iterator[Left]:
    """Rows whose condition no observation can meet, because the contract has no such word."""
    for place, row in rows:
        for key, word, words in (
            ("percept_stance", row.percept_stance, STANCES),
            ("time_of_day", row.time_of_day, TIMES_OF_DAY),
        ):
            if word and word not in words:
                yield Left(place, f"{key} '{word}' is never observed; there are {', '.join(words)}", True)


def _slip(left: Left, own: Mapping[str, Section], world: WorldFile) -> bool:
    """True if a section was left out whose name is nearly that of an archetype of the world."""
    return any(
        left.place.startswith(f"{section.origin} [{section.archetype_id}]")
        and section.archetype_id not in world.words.archetypes
        and bool(difflib.get_close_matches(section.archetype_id, world.words.archetypes, 1, 0.8))
        for section in own.values()
        if section.archetype_id
    )


def _strangers(world: WorldFile) -> Iterator[Left]:
    """A world's rows about archetypes, actions or emotions that it does not have."""
    for i, row in enumerate(world.rows, 1):
        _, reason = why_not(row, world.words)
        if row.archetype_id and row.archetype_id not in world.words.archetypes:
            reason = f"the world has no archetype '{row.archetype_id}'"
        if reason:
            yield Left(f"world row {i}", reason, True)
