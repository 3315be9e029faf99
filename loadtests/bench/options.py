"""The options of the command line for an area."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """An empty `parts` means all. With an empty `peer_binary` the peer runs from the xllamacpp package of
    `peer_python`."""

    model: Path
    parts: frozenset[str]
    peer_python: str
    peer_binary: str
    quick: bool

    def wants(self, part: str) -> bool:
        """True when a part was selected."""
        return not self.parts or part in self.parts
