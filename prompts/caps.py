"""How long texts may be, in tokens of the model that reads them."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import CallerError

TOKEN_BYTES_MAX = 64  # of prose, in any vocabulary


@dataclass(frozen=True, slots=True)
class Caps:
    """Token limits of each part of a prompt. npcd refuses definitions that are longer; parts that grow while playing
    are cut.
    """

    lore: int = 320
    """Tokens of a world's lore."""
    words: int = 160
    """Tokens of a world's list of actions and emotions."""
    archetype: int = 160
    """Tokens of an archetype's description."""
    examples: int = 0
    """Tokens of the worked examples that a model not made for npcd is shown, for each archetype; examples beyond that
    are left out. 0: no examples. They are rows of the world's policy; 192 tokens hold about eight.
    """
    persona: int = 160
    """Tokens of a persona."""
    summary: int = 160
    """Tokens of the summary of earlier conversations."""
    card: int = 96
    """Tokens of one card (relationship, quest and so on)."""
    player_line: int = 128
    """Tokens of a player's line."""
    reply: int = 160
    """Tokens of an NPC's own reply that stay in the conversation."""
    intent_tail: int = 32
    """Tokens that describe what an NPC sees when it is asked for an intent."""
    talk_tail: int = 192
    """Tokens of the tail that asks for a reply: memory, what the NPC sees, and the player's line."""
    bark: int = 8
    """Internal: give it as `routes.bark.output_max`."""
    percepts: int = 5
    """Percepts that are described to the model; the most notable ones come first."""


class TooLong(CallerError):
    """A text of a world that is longer than its cap; `size` says how long it is."""

    def __init__(self, field: str, size: str, limit: str) -> None:
        super().__init__(field, f"{size}, {limit}; shorten it")
        self.size = size
