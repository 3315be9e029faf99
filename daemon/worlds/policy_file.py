"""Reads rule policies: the one that comes with npcd, the operator's, and a world's TOML as designers have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from core.files import from_home, read_toml
from daemon.worlds.language import texts_of
from tiers.policy import PolicyRow
from tiers.policy_table import DEFAULT, Section, Sections, WorldWords, read_row, read_sections

BUILT_IN = Path(__file__).with_name("policy.toml")
BUILT_IN_NAME = "built in"


@dataclass(frozen=True, slots=True)
class WorldFile:
    """The parts of a world's TOML that the daemon's commands need. `texts` are its prose, by the name of the part."""

    world_id: str
    words: WorldWords
    rows: tuple[PolicyRow, ...]
    language: str = ""
    texts: Mapping[str, str] = field(default_factory=dict)


def load_policy(file: str = "") -> Sections:
    """The sections that hold for all worlds: npcd's own, and over them those of `file`. Raises ConfigError."""
    sections = read_sections(_read(BUILT_IN), BUILT_IN_NAME)
    if file:
        try:
            sections |= load_sections(from_home(file, "the file"))
        except ConfigError as error:
            raise ConfigError(f"worlds.policy_file: {error}") from error
    return sections


def load_sections(path: Path) -> dict[str, Section]:
    """The sections of one file. Raises ConfigError."""
    return read_sections(_read(path), str(path))


def load_world(path: Path) -> WorldFile:
    """A world as the Python client's world_from_toml takes it. Raises ConfigError naming what is wrong."""
    content = _read(path)
    for key in ("world_id", "archetypes", "actions", "emotions"):
        if key not in content:
            raise ConfigError(f"{path}: {key} is missing; a world has world_id, archetypes, actions and emotions")
    actions = _tables(content, "actions", "word", path)
    archetypes = _tables(content, "archetypes", "archetype_id", path)
    emotions = content["emotions"]
    if not isinstance(emotions, list) or not all(isinstance(word, str) for word in emotions):
        raise ConfigError(f'{path}: emotions must be a list of words, such as ["calm", "afraid"], not {emotions!r}')
    words = WorldWords(
        archetypes=[a["archetype_id"] for a in archetypes],
        actions=[a["word"] for a in actions],
        targeted=[a["word"] for a in actions if a.get("needs_target")],
        emotions=emotions,
    )
    world_id = str(content["world_id"])
    descriptions = [str(a.get("description", "")) for a in archetypes]
    personas = _tables(content, "personas", "persona_id", path)
    texts = texts_of(str(content.get("lore", "")), descriptions, [str(p.get("text", "")) for p in personas])
    if not words.emotions or set(words.actions) <= set(words.targeted):
        raise ConfigError(f"{path}: a world has an emotion, and an action that does without a target")
    rows = _own_rows(content.get("policy", []), str(path))
    return WorldFile(world_id, words, rows, str(content.get("language", "")), texts)


def _tables(content: Mapping[str, Any], key: str, name: str, path: Path) -> list[Mapping[str, Any]]:
    """The tables of one key, each of which has a name. Raises ConfigError naming the file, the table and its number."""
    given = content.get(key, [])
    if not isinstance(given, list):
        raise ConfigError(f'{path}: {key} must be a list of tables, such as [{{ {name} = "..." }}], not {given!r}')
    for number, table in enumerate(given, 1):
        if not isinstance(table, Mapping) or not isinstance(table.get(name), str):
            raise ConfigError(f'{path}: [[{key}]] number {number} must be a table with {name} = "..."')
    return given


def _own_rows(given: Any, origin: str) -> tuple[PolicyRow, ...]:
    """[[policy]] rows that name their archetype, or [policy.villager] sections."""
    if isinstance(given, Mapping):
        sections = read_sections(given, origin)
        default = sections.pop("", None)
        rows = [row for section in sections.values() for row in section.rows]
        return (*rows, *(default.rows if default else ()))
    if not isinstance(given, list):
        raise ConfigError(f"{origin}: policy must be [[policy]] rows, or sections like [policy.{DEFAULT}]")
    out = []
    for i, row in enumerate(given, 1):
        place = f"{origin}: [[policy]] number {i}"
        if not isinstance(row, Mapping):
            raise ConfigError(f"{place}: must be a table")
        plain = {key: value for key, value in row.items() if key != "archetype_id"}
        out.append(read_row(plain, place, str(row.get("archetype_id", ""))))
    return tuple(out)


def _read(path: Path) -> dict[str, Any]:
    return read_toml(path, str(path))
