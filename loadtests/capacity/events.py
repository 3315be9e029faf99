"""What happens when, in a simulation: events by their moments, the earliest first."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from core.clock import S


class Events:
    """`at_ns` is the moment of the event that happens now."""

    def __init__(self) -> None:
        self.at_ns = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0

    def at(self, at_ns: int, what: Callable[[], None]) -> None:
        """It happens then."""
        self._order += 1
        heappush(self._heap, (at_ns, self._order, what))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """It happens so many seconds from now."""
        self.at(self.at_ns + round(seconds * S), what)

    def happen(self, now_ns: int) -> None:
        """Everything until now happens."""
        while self._heap and self._heap[0][0] <= now_ns:
            self.at_ns, _, what = heappop(self._heap)
            what()
        self.at_ns = now_ns

    @property
    def next_ns(self) -> int | None:
        """When something happens next."""
        return self._heap[0][0] if self._heap else None
