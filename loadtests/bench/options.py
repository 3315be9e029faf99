"""The options of the command line for an area."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError
from tools.fetch_chat_model import MEMBER, cache

NO_CHAT_MODEL = (
    "this area needs a chat model: `python -m tools.fetch_chat_model` fetches one (93 MB) to {place}; or give any "
    "other with --chat-model FILE.gguf"
)


@dataclass(frozen=True, slots=True)
class Options:
    """An empty `parts` means all. With an empty `peer_binary` the peer runs from the xllamacpp package of
    `peer_python`."""

    model: Path
    parts: frozenset[str]
    peer_python: str
    peer_binary: str
    quick: bool
    chat_model: Path | None = None  # None: the one of tools.fetch_chat_model, if it is there

    def chat(self) -> Path:
        """The chat model's file. Raises ConfigError that says how to get one when there is none."""
        place = self.chat_model or cache() / Path(MEMBER).name
        if not place.is_file():
            raise ConfigError(
                f"--chat-model: there is no file {place}" if self.chat_model else NO_CHAT_MODEL.format(place=place)
            )
        return place

    def wants(self, part: str) -> bool:
        """True when a part was selected."""
        return not self.parts or part in self.parts
