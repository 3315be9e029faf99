"""The settings of conversations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DialogueSettings:
    """Conversations with players."""

    max_tokens: int = 96
    """Tokens of a reply when the request names none, `routes.reply.output_max` at most; a longer reply is cut (`finish`
    LENGTH); at least 1.
    """
    temperature: float = 0.7
    """Sampling temperature when the request names none."""
    unrepeat: float = 1.0
    """Strength with which models made for npcd are kept from saying the same sentence again; 0: not at all."""
    chunks_max: int = 64
    """Chunks that may pile up unread before `dialogue.slow_reader_s` begins to count."""
    slow_reader_s: float = 5.0
    """A reader that leaves its chunks, or the end of its turn, unread for this time loses the turn."""
    waiting_max: int = 8
    """Players who may wait for one NPC that is talking to somebody else."""
