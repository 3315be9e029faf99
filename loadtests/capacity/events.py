"""The events of a simulation by their moments, the earliest first."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from core.clock import S


class Events:
    """`at_ns` is the moment of the event that runs now."""

    def __init__(self) -> None:
        self.at_ns = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0

    def at(self, at_ns: int, what: Callable[[], None]) -> None:
        """Schedules an event at a moment."""
        self._order += 1
        heappush(self._heap, (at_ns, self._order, what))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Schedules an event after so many seconds."""
        self.at(self.at_ns + round(seconds * S), what)

    def happen(self, now_ns: int) -> None:
        """Runs all events until now."""
        while self._heap and self._heap[0][0] <= now_ns:
            self.at_ns, _, what = heappop(self._heap)
            what()
        self.at_ns = now_ns

    @property
    def next_ns(self) -> int | None:
        """The moment of the next event."""
        return self._heap[0][0] if self._heap else None
