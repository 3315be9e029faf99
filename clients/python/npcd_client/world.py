"""What a game tells npcd about its world before anyone moves: lore, kinds, words, personas, policy. Plain values."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar


@dataclass(frozen=True, slots=True)
class Archetype:
    """A kind of NPC: how it is, how it talks.

    `adapter` names a LoRA of the daemon's adapters.folder by its file name without .gguf; several are joined by "+".
    """

    archetype_id: str
    description: str
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class ActionWord:
    """One thing an NPC can do. `speaks`: a short bark is made as well."""

    word: str
    needs_target: bool = False
    speaks: bool = False


@dataclass(frozen=True, slots=True)
class Persona:
    """Who one NPC is; several NPCs may share one."""

    persona_id: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One rule: what to do when every condition holds. Empty words and zeros are no condition."""

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
    """The rules in order; the first that holds answers."""

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
    missing = [key for key in ("world_id", "lore", "archetypes", "actions", "emotions") if key not in content]
    if missing:
        raise ValueError(f"a world needs {', '.join(missing)}")
    return World(
        world_id=str(content["world_id"]),
        lore=" ".join(str(content["lore"]).split()),
        archetypes=_rows(Archetype, "archetypes", content),
        actions=_rows(ActionWord, "actions", content),
        emotions=tuple(str(word) for word in content["emotions"]),
        personas=_rows(Persona, "personas", content),
        policy=_policy(content),
        language=str(content.get("language", "en")),
    )


def load_world(path: str | Path) -> World:
    """`world_from_toml` of a file in UTF-8, with or without a byte order mark. Raises ValueError naming the file."""
    try:
        return world_from_toml(toml_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error


def toml_text(path: str | Path) -> str:
    """What stands in a TOML file, without the byte order mark that some editors put before it. Raises ValueError for
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
        if any("archetype_id" in row for row in section["rows"]):
            raise ValueError(f"[policy.{name}]: archetype_id is said by the section's name; leave it out")
        read = _rows(PolicyRow, f"policy.{name}", {f"policy.{name}": section["rows"]})
        if name == "default":
            everybody = read
        else:
            rows += [replace(row, archetype_id=name) for row in read]
    return Policy((*rows, *everybody))


_Row = TypeVar("_Row", Archetype, ActionWord, Persona, PolicyRow)


def _rows(row: type[_Row], table: str, content: Mapping[str, Any]) -> tuple[_Row, ...]:
    rows: Sequence[Mapping[str, Any]] = content.get(table, ())
    known = {field.name for field in fields(row)}
    for number, given in enumerate(rows, 1):
        if unknown := set(given) - known:
            raise ValueError(f"[[{table}]] number {number}: unknown key {', '.join(sorted(unknown))}")
    return tuple(row(**given) for given in rows)
