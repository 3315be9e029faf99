"""The block of neighbouring sequences for works that have no resident sequence of their own."""

from __future__ import annotations

import heapq


class Lanes:
    """Sequences first .. first + count - 1; the lowest free one is leased first, so that leased lanes lie side by side.

    Invariant: free + leased == count.
    """

    def __init__(self, first: int, count: int) -> None:
        self.count = count
        self._free = list(range(first, first + count))
        self._leased: set[int] = set()

    def lease(self) -> int | None:
        """A lane, or None when all are leased."""
        if not self._free:
            return None
        lane = heapq.heappop(self._free)
        self._leased.add(lane)
        return lane

    def give_back(self, lane: int) -> None:
        """Ends a lease."""
        self._leased.remove(lane)
        heapq.heappush(self._free, lane)

    @property
    def leased(self) -> int:
        """The number of leased lanes."""
        return len(self._leased)

    @property
    def free(self) -> int:
        """The number of free lanes."""
        return len(self._free)
