"""The time in which due work is gathered before an idle engine steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from core.clock import MS


class Closed(Enum):
    """The rule that closed a window."""

    COMPLETE = "complete"  # nobody else is due soon
    FULL = "full"
    TIME = "time"
    BUSY = "busy"  # a running engine gathers for free: there was no window


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """How long an idle engine waits for more requests before it starts a step. A busy engine waits for none: a request
    joins the next step (docs/decisions/0005).
    """

    window_ms: int = 10
    """An idle engine waits this long at most. From 1 to 10."""
    full: int = 64
    """If this many requests wait, an idle engine starts at once."""
    gather_ms: float = 2.0
    """An idle engine waits only for requests that are expected within this time."""


@dataclass(slots=True)
class Window:
    """Decides when waiting works may start. Law: idle, a work waits at most window_ms; busy, not at all."""

    settings: WindowSettings = field(default_factory=WindowSettings)
    closed: dict[Closed, int] = field(default_factory=lambda: dict.fromkeys(Closed, 0))

    def close(
        self, now_ns: int, waiting: int, oldest_ns: int, busy: bool, next_due_ns: int | None
    ) -> tuple[Closed | None, int]:
        """(the rule that closes it now, or None and the time to look again).

        `oldest_ns` is when the longest waiting work came, `next_due_ns` when the next work is expected (None: none is).
        """
        assert waiting > 0, "an empty window is not asked"
        if busy:
            return self._count(Closed.BUSY), now_ns
        end_ns = oldest_ns + self.settings.window_ms * MS
        if waiting >= self.settings.full:
            return self._count(Closed.FULL), now_ns
        if now_ns >= end_ns:
            return self._count(Closed.TIME), now_ns
        gather_ns = round(self.settings.gather_ms * MS)
        # One that should be here for that long will not come.
        if next_due_ns is None or not now_ns - gather_ns < next_due_ns <= now_ns + gather_ns:
            return self._count(Closed.COMPLETE), now_ns
        return None, min(end_ns, next_due_ns + gather_ns)

    def _count(self, rule: Closed) -> Closed:
        self.closed[rule] += 1
        return rule
