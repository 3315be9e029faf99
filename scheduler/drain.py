"""How fast a tier's works come to their end, while there are any. Decides nothing else; the caller brings the time.

Law: time in which a tier has no work counts for nothing, however long it is.
"""

from __future__ import annotations

from collections import deque

from core.clock import MS

SAMPLES = 64  # the last ends that are looked at


class Drain:
    """One tier's works, and the time spent on them: the nanoseconds of all works that run, added up. While works only
    wait, it goes on as if one ran.
    """

    def __init__(self) -> None:
        self._open = 0
        self._running = 0
        self._spent_ns = 0
        self._at_ns = 0
        self._ends_ns: deque[int] = deque(maxlen=SAMPLES)  # the time spent when a work ended

    def submitted(self, now_ns: int) -> None:
        """A work begins to wait."""
        self._go_on(now_ns)
        self._open += 1

    def taken(self, now_ns: int) -> None:
        """A work that waited runs."""
        self._go_on(now_ns)
        self._running += 1

    def ended(self, ran: bool, counts: bool, now_ns: int) -> None:
        """A work is over, that ran or only waited. An end that `counts` shows how fast works end."""
        self._go_on(now_ns)
        self._open -= 1
        self._running -= ran
        if counts:
            self._ends_ns.append(self._spent_ns)

    def each_ns(self, now_ns: int) -> float | None:
        """The time from one end to the next with as many works running as do now; None while too few have ended."""
        if len(self._ends_ns) < 2:
            return None
        spent_ns = self._spent(now_ns) - self._ends_ns[0]
        return max(spent_ns, MS) / len(self._ends_ns) / max(1, self._running)

    def _spent(self, now_ns: int) -> int:
        return self._spent_ns + (now_ns - self._at_ns) * max(min(1, self._open), self._running)

    def _go_on(self, now_ns: int) -> None:
        self._spent_ns, self._at_ns = self._spent(now_ns), now_ns
