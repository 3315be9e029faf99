"""What the command line says to an area."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """`parts` empty: all. `peer_binary` empty: the peer runs from the xllamacpp package of `peer_python`."""

    model: Path
    parts: frozenset[str]
    peer_python: str
    peer_binary: str
    quick: bool

    def wants(self, part: str) -> bool:
        """Whether a part is to run."""
        return not self.parts or part in self.parts
