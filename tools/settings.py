"""Writes docs/SETTINGS.md from the settings classes: names, types, defaults, bounds, and the sentence beside each one.

    python -m tools.settings            # `make settings`: writes the page
    python -m tools.settings --check    # changes nothing; fails when the page is stale or a setting has no sentence

A setting's sentence is the docstring under its field. Bounds at the end of it, "From 0 to 64.", go into a column of
their own. A sentence that begins with "Internal:" keeps its setting off the page. The docstring of a settings class is
the introduction of its section.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import re
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from core.words import AUTO
from daemon.config import Config
from daemon.environment import ENV_PREFIX

ROOT = Path(__file__).resolve().parent.parent
PAGE = "docs/SETTINGS.md"
INTERNAL = "Internal:"
BOUNDS = re.compile(r"\s+From (-?[\d.]+) to (-?[\d.]+)\.$")
# Sections whose members are all of one class, and the placeholder for a member's name.
MEMBERS = {"promises": "TIER", "routes": "KIND"}
# The unit that a name ends with; "_max" and "_min" are no units. The longest ending counts.
UNITS = {
    "_ms": "ms", "_s": "s", "_us": "µs", "_ns": "ns", "_hours": "hours", "_hz": "per second", "_per_s": "per second",
    "_m": "metres", "_mib": "MiB", "_kib": "KiB", "_bytes": "bytes", "_share": "share of 1", "_x": "factor",
    "_len": "tokens", "_tokens": "tokens",
}  # fmt: skip
TYPES = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
# Settings that most readers need first, in this order.
FIRST = (
    "serve.listen", "serve.http", "serve.tokens_file", "engine.model", "engine.sequences", "engine.context_len",
    "engine.threads", "engine.gpu_layers", "memory.folder", "memory.redis", "memory.postgres",
    "intents.answer_within_ms", "intents.activation.active_max", "intents.share.tokens_per_s", "dialogue.max_tokens",
    "worlds.npcs_max",
)  # fmt: skip

HEAD = f"""\
<!-- `make settings` writes this page from the code. Change the sentence beside the setting, not this file. -->

# Settings

This page lists every setting of `npcd serve`. [OPERATING.md](OPERATING.md) explains how to run the daemon.

You can give a setting in four places. A later one wins:

1. The default, which this page shows.
2. A TOML file: `npcd serve --config npcd.toml`. A section's name stands in brackets.
3. An environment variable: `{ENV_PREFIX}`, then the setting's name in capitals, with two underscores for each dot.
4. The command line: `--set section.key=value`, or one of the flags of `npcd serve --help`.

These three set the same thing:

```toml
[scheduler.kv]
ram_mib = 1024
```

    NPCD_SCHEDULER__KV__RAM_MIB=1024 npcd serve
    npcd serve --set scheduler.kv.ram_mib=1024

Values are read as TOML; text needs no quotes on the command line or in the environment. A list is written
`'["gold", "silver"]'`, and one text alone is a list of one. npcd checks all settings at the start. If a name is
unknown or a value is out of its bounds, npcd refuses to start, names the setting and says what would be right. It also
refuses a variable such as `NPCD_ENGINE_MODEL` (one underscore), which would do nothing, and prints the right name.

The end of a name is its unit: `_ms` and `_s` are time, `_mib` and `_kib` are memory, `_m` is metres, `_hz` and `_per_s`
are per second, `_share` is a share (1 is all of it), and `_x` is a factor. A name that ends in `_max` is an upper
bound. The [README](../README.md) explains words such as Gold, trunk and tail.
"""


class Setting(NamedTuple):
    """One field: its dotted name, its type and bounds in words, its default as it is written, and its sentence."""

    name: str
    kind: str
    default: str
    says: str

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return variable(self.name)


class Section(NamedTuple):
    """Settings of one class, those that have a place on the page; `members` are sections of one class below it, by
    their names, with their sentences.
    """

    name: str
    intro: str
    settings: Sequence[Setting]
    members: Mapping[str, str]


def variable(name: str) -> str:
    """The environment variable of a dotted name."""
    return ENV_PREFIX + name.upper().replace(".", "__")


def sections(settings: Any, path: str = "") -> Iterator[Section]:
    """All sections below a settings object, outer before inner."""
    says, hints = sentences(type(settings)), typing.get_type_hints(type(settings), include_extras=True)
    own, below, members = [], [], {}
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{path}.{field.name}" if path else field.name
        if dataclasses.is_dataclass(value):
            below.append((name, value))
            members[field.name] = says.get(field.name, "")
        elif isinstance(value, Mapping):
            below.append((f"{name}.NAME", typing.get_args(hints[field.name])[1]))
        else:
            own.append(_setting(name, hints[field.name], value, says.get(field.name, "")))
    shown = [setting for setting in own if not setting.says.startswith(INTERNAL)]
    intro = " ".join((type(settings).__doc__ or "").split())
    if path:
        yield Section(path, intro, shown, members if path in MEMBERS else {})
    for name, value in below:
        if isinstance(value, type):  # sections of one class, whose names the user chooses
            yield Section(name, " ".join((value.__doc__ or "").split()), [], {})
        else:
            yield from sections(value, name)


def sentences(of: type) -> dict[str, str]:
    """The docstrings under the fields of a class, each on one line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(of))).body[0]
    assert isinstance(tree, ast.ClassDef), of
    found = {}
    for field, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            said = after.value if isinstance(after, ast.Expr) else None
            if isinstance(said, ast.Constant) and isinstance(said.value, str):
                found[field.target.id] = " ".join(said.value.split())
    return found


def _setting(name: str, hint: Any, value: Any, says: str) -> Setting:
    or_auto = typing.get_origin(hint) is typing.Annotated
    if or_auto:
        hint = typing.get_args(hint)[0]
    if isinstance(hint, type) and issubclass(hint, Enum):
        words = [member.lower() for member in hint.__members__]
        kind = f"{', '.join(words[:-1])} or {words[-1]}"
    elif typing.get_origin(hint) is tuple:
        of = typing.get_args(hint)
        kind = "list of texts" if str in of else f"{len(of)} numbers" if float in of else "list of tables"
    else:
        kind = TYPES[hint]
    bare = re.sub(r"_(max|min)$", "", name)
    endings = [ending for ending in UNITS if bare.endswith(ending)] if hint is not bool else []
    if endings:
        kind += f", {UNITS[max(endings, key=len)]}"
    if or_auto:
        kind, value = f"{kind} or auto", "auto" if value == AUTO else value
    bounds = BOUNDS.search(says)
    if bounds:
        says, kind = says[: bounds.start()], f"{kind}, {bounds[1]} to {bounds[2]}"
    return Setting(name, kind, _written(value), says)


def _written(value: Any) -> str:
    """A default as TOML has it; a file of ours by its path in the project."""
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, Path):
        return value.relative_to(ROOT).as_posix() if value.is_relative_to(ROOT) else str(value)
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if not isinstance(value, str) else value or '""'


def page(config: Config) -> str:
    """The page as it should be."""
    every = [s for s in sections(config) if s.settings or s.name in MEMBERS or s.name.endswith(".NAME")]
    inside = {section.name for section in every if section.name.rpartition(".")[0] in MEMBERS}
    known = {setting.name: setting for section in every for setting in section.settings}
    parts = [HEAD, "## Look at these first\n", _table([known[name] for name in FIRST]), "## All sections\n"]
    shown = [section for section in every if section.name not in inside]
    parts.append("".join(f"* [{s.name}](#{s.name.replace('.', '')}): {_first(s.intro)}\n" for s in shown))
    for section in shown:
        parts += [f"## {section.name}\n", f"{_wrapped(section.intro)}\n"]
        if section.name.endswith(".NAME"):
            continue
        if section.name in MEMBERS:
            parts += _of_members(section, [s for s in every if s.name.rpartition(".")[0] == section.name])
        else:
            parts.append(_table(section.settings))
    return "\n".join(parts)


def _first(intro: str) -> str:
    return re.split(r"(?<=[.])\s", intro)[0]


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _table(settings: Sequence[Setting]) -> str:
    rows = [f"| `{s.name}`<br>`{s.variable}` | {_cell(s.default)} | {s.kind} | {s.says} |" for s in settings]
    return "\n".join(["| setting, variable | default | type | meaning |", "|---|---|---|---|", *rows, ""])


def _of_members(section: Section, members: Sequence[Section]) -> Iterator[str]:
    """Two tables: the settings that each member has, and the members with their defaults."""
    stands = MEMBERS[section.name]
    yield f"In these names {stands} stands for one of {', '.join(f'`{name}`' for name in section.members)}.\n"
    rows = []
    for setting in members[0].settings:
        name = f"{section.name}.{stands}.{setting.name.rpartition('.')[2]}"
        rows.append(f"| `{name}`<br>`{variable(name)}` | {setting.kind} | {setting.says} |")
    yield "\n".join(["| setting, variable | type | meaning |", "|---|---|---|", *rows, ""])
    keys = [setting.name.rpartition(".")[2] for setting in members[0].settings]
    rows = []
    for member in members:
        own = member.name.rpartition(".")[2]
        defaults = " | ".join(_cell(setting.default) for setting in member.settings)
        rows.append(f"| `{own}` | {section.members[own]} | {defaults} |")
    heads = " | ".join(f"`{key}`" for key in keys)
    yield "The defaults:\n"
    yield "\n".join([f"| {stands} | | {heads} |", "|---|---|" + "---|" * len(keys), *rows, ""])


def _cell(default: str) -> str:
    return f"`{default}`" if default != '""' else ""


def without_sentence(config: Config) -> list[str]:
    """One complaint for each setting, and each section, without a sentence."""
    missing = []
    for section in sections(config):
        for what, says in [(section.name, section.intro), *((s.name, s.says) for s in section.settings)]:
            if not says.endswith("."):
                missing.append(f"{what}: needs a sentence, in a docstring under its field")
        missing += [f"{section.name}.{n}: needs a sentence" for n, says in section.members.items() if not says]
    return missing


def problems(root: Path = ROOT) -> list[str]:
    """All findings of `--check` about a checkout; empty when it is well. Changes nothing."""
    config, file = Config(), root / PAGE
    found = without_sentence(config)
    if not found and (not file.is_file() or file.read_text(encoding="utf-8") != page(config)):
        found = [f"{PAGE}: stale; run `make settings`"]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.settings", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the page is stale")
    if parser.parse_args(argv).check:
        found = problems()
    else:
        found = without_sentence(Config())
        if not found:
            (ROOT / PAGE).write_text(page(Config()), encoding="utf-8")
    for line in found:
        sys.stderr.write(f"{line}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
