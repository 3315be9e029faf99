"""Values as people give them, in a TOML file, the environment or on the command line, put into settings of their type.

Knows no setting: the types are those of the dataclasses. Decides only.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from core.errors import ConfigError
from core.files import GIVE_A_PATH, from_home
from core.words import AUTO

T = TypeVar("T")

ORIGIN_LEN_MAX = 80
INT_MAX = 2**53
# One underscore at a time: two of them stand for a dot in the names of environment variables.
MEMBER_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text in quotes",
    Path: "a path in quotes",
}


def nest(keys: Sequence[str], text: str) -> dict[str, Any]:
    """{"a": {"b": value}} of ["a", "b"] and a text that is read as TOML, or taken as it is."""
    try:
        value: Any = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text
    for key in reversed(keys):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def merge(
    settings: T, values: Mapping[str, Any], origin: str, origins: dict[str, str], known: Sequence[str], path: str = ""
) -> T:
    """The settings with these values, each checked for its type. `origins` receives `origin` by the name of each value.

    `known` are all settings' names, for a hint. Raises ConfigError naming the origin and the setting.
    """
    hints = typing.get_type_hints(type(settings), include_extras=True)
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{path}.{key}" if path else key
        if key not in hints:
            raise ConfigError(f"{origin}: unknown setting '{name}'{_nearest(key, name, hints, known)}")
        present = getattr(settings, key)
        if dataclasses.is_dataclass(present):
            changes[key] = merge(present, _section(value, name, origin), origin, origins, known, name)
        elif typing.get_origin(hints[key]) is Mapping:
            changes[key] = _members(present, hints[key], _section(value, name, origin), origin, origins, known, name)
        elif row := _row(hints[key]):
            changes[key] = _rows(row, value, origin, known, name)
            origins[name] = origin
        else:
            changes[key] = _typed(value, hints[key], f"{origin}: '{name}'")
            origins[name] = origin
    replaced: T = dataclasses.replace(settings, **changes)  # type: ignore[type-var]
    return replaced


def _section(value: Any, name: str, origin: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{origin}: '{name}' is a section, not a value")
    return value


def _members(
    present: Mapping[str, Any],
    hint: Any,
    value: Mapping[str, Any],
    origin: str,
    origins: dict[str, str],
    known: Sequence[str],
    path: str,
) -> dict[str, Any]:
    """Sections of one class below `path`, under names that the user chooses."""
    of = typing.get_args(hint)[1]
    members = dict(present)
    for name, said in value.items():
        whole = f"{path}.{name}"
        if not MEMBER_NAME.fullmatch(name):
            raise ConfigError(f"{origin}: '{whole}' must be named with small letters, digits and single underscores")
        section = _section(said, whole, origin)
        members[name] = merge(members.get(name) or of(), section, origin, origins, known, whole)
    return members


def _row(hint: Any) -> Any:
    """The class of a list's rows; None when it is no list of rows."""
    first = next(iter(typing.get_args(hint)), None)
    return first if typing.get_origin(hint) is tuple and dataclasses.is_dataclass(first) else None


def _rows(of: Any, value: Any, origin: str, known: Sequence[str], name: str) -> tuple[Any, ...]:
    """A list of tables, each a row of one class. Later sources replace the whole list."""
    listed = [value] if isinstance(value, Mapping) else value
    if not isinstance(listed, list) or not all(isinstance(row, Mapping) for row in listed):
        raise ConfigError(f"{origin}: '{name}' must be a list of tables: [[{name}]]")
    return tuple(merge(of(), row, origin, {}, known, f"{name}[{number}]") for number, row in enumerate(listed, 1))


def _nearest(key: str, name: str, hints: Mapping[str, Any], known: Sequence[str]) -> str:
    """The setting that was probably meant: one of any section with this very name, else one of this section like it."""
    same = [path for path in known if path == key or path.endswith(f".{key}") or path.replace(".", "_") == name]
    if same:
        return f"; did you mean {' or '.join(repr(path) for path in same[:3])}?"
    near = difflib.get_close_matches(key, hints, 1)
    section = name.removesuffix(key)
    return f"; did you mean '{section}{near[0]}'?" if near else f"; there are: {', '.join(sorted(hints))}"


def names(settings: Any, path: str = "") -> list[str]:
    """Every setting's name, as section.key."""
    found = []
    for one in dataclasses.fields(settings):
        value = getattr(settings, one.name)
        if isinstance(value, Mapping):
            continue  # its sections have names that the user chooses
        whole = f"{path}.{one.name}" if path else one.name
        found += names(value, whole) if dataclasses.is_dataclass(value) else [whole]
    return found


def _typed(value: Any, wanted: Any, name: str) -> Any:
    if typing.get_origin(wanted) is typing.Annotated:  # OrAuto
        wanted, word = typing.get_args(wanted)
        if value == word:
            return AUTO
        if isinstance(value, str):
            raise ConfigError(f"{name} must be {KINDS[wanted]} or {word}, not {value!r}")
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise ConfigError(f"{name} must be a finite number, not {str(value)[:ORIGIN_LEN_MAX]}")
        return number
    if wanted is int and isinstance(value, int) and not isinstance(value, bool) and abs(value) > INT_MAX:
        raise ConfigError(f"{name} must be a number up to {INT_MAX}")
    if wanted is Path and isinstance(value, str):
        if not value:
            raise ConfigError(f"{name} is empty; {GIVE_A_PATH}")
        return from_home(value, name)
    if isinstance(wanted, type) and issubclass(wanted, Enum):
        if isinstance(value, str) and value.upper() in wanted.__members__:
            return wanted[value.upper()]
        raise ConfigError(f"{name} must be {', '.join(m.lower() for m in wanted.__members__)}, not {value!r}")
    if isinstance(wanted, types.GenericAlias) and float in typing.get_args(wanted):  # tuple[float, float]
        count = len(typing.get_args(wanted))
        if isinstance(value, list) and len(value) == count:
            return tuple(_typed(number, float, name) for number in value)
        raise ConfigError(f"{name} must be a list of {count} numbers")
    if isinstance(wanted, types.GenericAlias):  # tuple[str, ...]
        listed = [value] if isinstance(value, str) else value
        if isinstance(listed, list) and all(isinstance(v, str) for v in listed):
            return tuple(listed)
        raise ConfigError(f"{name} must be a list of strings")
    if isinstance(wanted, type) and isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool):
        return value
    raise ConfigError(f"{name} must be {KINDS.get(wanted, 'another kind of value')}, not {value!r}")
