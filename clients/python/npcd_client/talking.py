"""The events of an NPC's turn. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class TalkEventKind(IntEnum):
    """The effect of one event on the turn."""

    UNSPECIFIED = 0
    STARTED = 1
    TEXT = 2
    REPLACE = 3
    END = 4
    DIRECTION = 5


class TalkFinish(IntEnum):
    """How a turn ended."""

    UNSPECIFIED = 0
    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    REPEATED = 4
    FAILED = 5


@dataclass(frozen=True, slots=True)
class Timings:
    """The parts of a turn's time, in microseconds, and its cost in tokens.

    Of the prompt, `cached_tokens` were there already: of these `loaded_tokens` were loaded from RAM or Redis,
    `copied_tokens` were copied from a shared prefix or another trunk of the NPC; the rest was in its place.
    Since the turn before, tokens of the conversation were computed a second time: `recomputed_tokens` because their
    KV was lost or turns are kept in another form, `rebuild_tokens` because the oldest turns left the prompt,
    `guard_tokens` because the reply before had been cut.
    """

    queue_us: int
    window_us: int
    recall_us: int
    prefill_us: int
    decode_us: int
    cached_tokens: int
    prefilled_tokens: int
    output_tokens: int
    stores: tuple[str, ...]
    recall_late: bool
    cut_tokens: int
    loaded_tokens: int = 0
    copied_tokens: int = 0
    recomputed_tokens: int = 0
    rebuild_tokens: int = 0
    guard_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TalkEvent:
    """One piece of a turn. On TEXT, `text` is appended. On REPLACE it replaces all text so far. On DIRECTION it is a
    stage direction ("smiles"), and not part of what was said.

    On TEXT, `sentence_end` says that a sentence ends with it: a voice may speak it. END ends the last one in any case.
    `emotion` is what the NPC feels now, for voice and face; it may be empty.
    `finish`, `timings` and `accepted` are set on END; `accepted` is None while the daemon keeps no journal.
    """

    kind: TalkEventKind
    turn_id: str
    session_id: str
    text: str
    index: int
    flags: tuple[str, ...] = ()
    finish: TalkFinish = TalkFinish.UNSPECIFIED
    timings: Timings | None = None
    accepted: bool | None = None
    sentence_end: bool = False
    emotion: str = ""


class Said:
    """Gathers the events of one turn into the NPC's text so far."""

    def __init__(self) -> None:
        self.text = ""
        self.end: TalkEvent | None = None

    def add(self, event: TalkEvent) -> str:
        """Takes one event and returns all text so far."""
        if event.kind is TalkEventKind.TEXT:
            self.text += event.text
        elif event.kind is TalkEventKind.REPLACE:
            self.text = event.text
        elif event.kind is TalkEventKind.END:
            self.end = event
        return self.text
