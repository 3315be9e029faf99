"""A game's definition of its world, sent before any NPC acts: lore, kinds, words, personas, policy. Plain values."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar


@dataclass(frozen=True, slots=True)
class Archetype:
    """A kind of NPC: its nature and its way to talk.

    `adapter` names a LoRA of the daemon's adapters.folder by its file name without .gguf; several are joined by "+".
    """

    archetype_id: str
    description: str
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class ActionWord:
    """One thing an NPC can do. With `speaks` npcd makes a short bark as well."""

    word: str
    needs_target: bool = False
    speaks: bool = False


@dataclass(frozen=True, slots=True)
class Persona:
    """The character of an NPC; several NPCs may share one."""

    persona_id: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One rule: the action when every condition holds. Empty words and zeros are no condition."""

    archetype_id: str = ""
    percept_kind: str = ""
    percept_stance: str = ""
    distance_max_m: float = 0.0
    event: str = ""
    health_max: float = 0.0
    time_of_day: str = ""
    action: str = ""
    emotion: str = ""
    bark: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules in order; the first one that holds decides."""

    rows: tuple[PolicyRow, ...] = ()


@dataclass(frozen=True, slots=True)
class NpcSpec:
    """One NPC to register: its kind, and a persona of the world or one given inline."""

    npc_id: str
    archetype_id: str
    persona_id: str = ""
    persona: Persona | None = None


@dataclass(frozen=True, slots=True)
class World:
    """One game's content. Sending the same world again changes nothing."""

    world_id: str
    lore: str
    archetypes: tuple[Archetype, ...]
    actions: tuple[ActionWord, ...]
    emotions: tuple[str, ...]
    personas: tuple[Persona, ...] = ()
    policy: Policy = Policy()
    language: str = "en"


def world_from_toml(text: str) -> World:
    """A world from TOML: keys named as in World; [[archetypes]], [[actions]] and [[personas]] are arrays.

    The policy is an array [[policy]] of rows that name their archetype, or a section for each with its rows, as in
    [policy.villager] rows = [...]; those of [policy.default] are everybody's and come last. Raises ValueError naming
    the table and the key that does not belong there. Other top-level tables are left alone.
    """
    content = tomllib.loads(text.removeprefix("\ufeff"))
    own = [field.name for field in fields(World)]
    for key in sorted(set(content) - set(own)):
        # Another table of the game's own is ignored; one that looks like a misspelling is an error.
        if near := difflib.get_close_matches(key, own, 1, 0.8):
            raise ValueError(f"unknown key {key}; did you mean {near[0]}?")
    missing = [key for key in ("world_id", "lore", "archetypes", "actions", "emotions") if key not in content]
    if missing:
        raise ValueError(f"a world needs {', '.join(missing)}")
    emotions = content["emotions"]
    if not isinstance(emotions, list) or not all(isinstance(word, str) for word in emotions):
        raise ValueError(f'emotions must be a list of words, such as ["calm", "afraid"], not {emotions!r}')
    return World(
        world_id=_text(content, "world_id"),
        lore=" ".join(_text(content, "lore").split()),
        archetypes=_rows(Archetype, "archetypes", content),
        actions=_rows(ActionWord, "actions", content),
        emotions=tuple(emotions),
        personas=_rows(Persona, "personas", content),
        policy=_policy(content),
        language=_text(content, "language", "en"),
    )


def _text(content: Mapping[str, Any], key: str, default: str = "") -> str:
    value = content.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a text in quotes, not {value!r}")
    return value


def load_world(path: str | Path) -> World:
    """`world_from_toml` of a file in UTF-8, with or without a byte order mark. Raises ValueError naming the file."""
    try:
        return world_from_toml(toml_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error


def toml_text(path: str | Path) -> str:
    """The text of a TOML file, without the byte order mark that some editors put before it. Raises ValueError for
    UTF-16 and for binary files, OSError when it cannot be read.
    """
    data = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{path}: is UTF-16 and must be UTF-8; save it as UTF-8")
    if 0 in data[:2000]:
        raise ValueError(f"{path}: is UTF-16 or a binary file, and no TOML in UTF-8; save it as UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}: byte 0x{data[error.start]:02x} in line {line} is not UTF-8; save it as UTF-8"
        ) from error


def _policy(content: Mapping[str, Any]) -> Policy:
    sections = content.get("policy", ())
    if not isinstance(sections, Mapping):
        return Policy(_rows(PolicyRow, "policy", content))
    rows: list[PolicyRow] = []
    everybody: tuple[PolicyRow, ...] = ()
    for name, section in sections.items():
        if not isinstance(section, Mapping) or set(section) != {"rows"}:
            raise ValueError(f"[policy.{name}] has rows = [...] and nothing else")
        if isinstance(section["rows"], list) and any("archetype_id" in row for row in section["rows"]):
            raise ValueError(f"[policy.{name}]: archetype_id is said by the section's name; leave it out")
        read = _rows(PolicyRow, f"policy.{name}", {f"policy.{name}": section["rows"]})
        if name == "default":
            everybody = read
        else:
            rows += [replace(row, archetype_id=name) for row in read]
    return Policy((*rows, *everybody))


_Row = TypeVar("_Row", Archetype, ActionWord, Persona, PolicyRow)


def _rows(row: type[_Row], table: str, content: Mapping[str, Any]) -> tuple[_Row, ...]:
    rows = content.get(table, [])
    known = {field.name: field for field in fields(row)}
    if not isinstance(rows, list):
        raise ValueError(f"{table} must be a list of tables, not {rows!r}")
    for number, given in enumerate(rows, 1):
        place = f"[[{table}]] number {number}"
        if not isinstance(given, Mapping):
            raise ValueError(f"{place}: must be a table such as {_example(row)}, not {given!r}")
        if unknown := set(given) - set(known):
            near = difflib.get_close_matches(min(unknown), known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
            raise ValueError(f"{place}: unknown key {', '.join(sorted(unknown))}{hint}")
        for name, field in known.items():
            if name not in given:
                if field.default is MISSING:
                    raise ValueError(f"{place}: {name} is missing")
                continue
            wanted, value = _WANTED[str(field.type)], given[name]
            if not isinstance(value, wanted.types) or isinstance(value, bool) is not (bool in wanted.types):
                raise ValueError(f"{place}: {name} must be {wanted.words}, not {value!r}")
    return tuple(row(**given) for given in rows)


def _example(row: type[_Row]) -> str:
    needed = [f'{field.name} = "..."' for field in fields(row) if field.default is MISSING]
    return "{ " + ", ".join(needed or ('action = "..."', 'emotion = "..."')) + " }"


class _Wanted(NamedTuple):
    """The TOML type of a key's value, and its name in messages."""

    types: tuple[type, ...]
    words: str


_WANTED = {
    "str": _Wanted((str,), "a text in quotes"),
    "bool": _Wanted((bool,), "true or false"),
    "float": _Wanted((int, float), "a number"),
}
