"""Reads a Dockerfile and a .dockerignore, with the syntax that ours use. Decides only; tools/image.py acts on them."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

KNOWN = frozenset(
    "FROM ARG RUN COPY ENV WORKDIR USER VOLUME EXPOSE STOPSIGNAL HEALTHCHECK ENTRYPOINT CMD LABEL".split()
)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its word, its text in one line, and its first line's number."""

    word: str
    text: str
    line: int


@dataclass(slots=True)
class Stage:
    """One FROM and the instructions after it."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def last(self, word: str) -> str:
        """The text of the last such instruction; empty when there is none."""
        return next((i.text for i in reversed(self.instructions) if i.word == word), "")


def read(text: str) -> list[Stage]:
    """The stages of a Dockerfile. Raises ValueError with the line that it does not understand."""
    stages: list[Stage] = []
    for instruction in _instructions(text):
        if instruction.word not in KNOWN:
            raise ValueError(f"line {instruction.line}: {instruction.word} is not understood here")
        if instruction.word == "FROM":
            base, _, name = instruction.text.partition(" AS ")
            stages.append(Stage(base.strip(), name.strip() or str(len(stages))))
        elif not stages:
            raise ValueError(f"line {instruction.line}: {instruction.word} before the first FROM")
        else:
            stages[-1].instructions.append(instruction)
    return stages


def _instructions(text: str) -> Iterable[Instruction]:
    parts: list[str] = []
    began = 0
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        began = began if parts else number
        parts.append(stripped.removesuffix("\\").strip())
        if not stripped.endswith("\\"):
            word, _, rest = " ".join(parts).partition(" ")
            parts = []
            yield Instruction(word.upper(), rest.strip(), began)


def pairs(text: str) -> dict[str, str]:
    """The assignments of an ENV or ARG: a=b c="d e"."""
    return {key: quoted or plain for key, quoted, plain in re.findall(r'(\w+)=(?:"([^"]*)"|(\S*))', text)}


def fill(text: str, values: Mapping[str, str]) -> str:
    """Text with $names and ${names} replaced by their values."""
    return string.Template(text).substitute(values)


def command(text: str) -> list[str]:
    """A RUN, CMD or ENTRYPOINT as arguments: JSON, or a line for the shell."""
    if text.startswith("["):
        listed: list[str] = json.loads(text)
        return listed
    return ["/bin/sh", "-c", text]


def ignored(path: str, patterns: Sequence[str]) -> bool:
    """True when a .dockerignore keeps a path out of the context. The last pattern that fits the path, or a folder that
    holds it, decides."""
    out = False
    parts = PurePosixPath(path).parts
    for pattern in patterns:
        wanted = pattern.removeprefix("!").strip("/")
        if any(_fits("/".join(parts[:n]), wanted) for n in range(1, len(parts) + 1)):
            out = not pattern.startswith("!")
    return out


def _fits(path: str, pattern: str) -> bool:
    # `**/` is any number of folders, `*` and `?` stay inside one name.
    expression = ""
    for part in re.split(r"(\*\*/|\*|\?)", pattern):
        expression += {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
    return re.fullmatch(expression, path) is not None


def patterns(text: str) -> list[str]:
    """The lines of a .dockerignore that are patterns."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
