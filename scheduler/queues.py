"""Three bounded queues of waiting works: earliest deadline first, a newer work of the same NPC takes the older one's
place.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from core.words import Tier
from core.work import Work


@dataclass(slots=True, eq=False)
class Waiting:
    """A work in a queue. `gone` marks an entry that was taken, cancelled or superseded and is only skipped later.

    `deadline_ns` is the work's, or that of the work it superseded, whichever is earlier.
    """

    ticket_id: int
    work: Work
    submitted_ns: int
    deadline_ns: int
    gone: bool = False


class Queue:
    """One tier's queue. Invariant: len(self) <= waiting_max, at most one entry per supersede value."""

    def __init__(self, waiting_max: int) -> None:
        self.waiting_max = waiting_max
        self._heap: list[tuple[int, int, Waiting]] = []
        self._by_id: dict[int, Waiting] = {}
        self._by_supersede: dict[Hashable, Waiting] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Waiting]:
        """The waiting works, in no particular order."""
        return iter(self._by_id.values())

    @property
    def first(self) -> Waiting | None:
        """The work with the earliest deadline."""
        while self._heap and self._heap[0][2].gone:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    @property
    def oldest_ns(self) -> int | None:
        """When the longest waiting work was submitted."""
        # Time does not go back, so that is the one that was added first.
        return next((w.submitted_ns for w in self._by_id.values()), None)

    def add(self, ticket_id: int, work: Work, now_ns: int) -> tuple[bool, Waiting | None]:
        """(True if it was taken in, the waiting work that it superseded). It keeps the place of that one.

        At the end of the line, an NPC that changes faster than the line moves would never be served.
        """
        old = self._by_supersede.get(work.supersede) if work.supersede is not None else None
        if old is not None:
            self._forget(old)
        elif len(self._by_id) >= self.waiting_max:
            return False, None
        deadline_ns = work.deadline_ns if old is None else min(work.deadline_ns, old.deadline_ns)
        waiting = Waiting(ticket_id, work, now_ns, deadline_ns)
        heapq.heappush(self._heap, (deadline_ns, ticket_id, waiting))
        self._by_id[ticket_id] = waiting
        if work.supersede is not None:
            self._by_supersede[work.supersede] = waiting
        return True, old

    def in_order(self) -> Iterator[Waiting]:
        """The waiting works, earliest deadline first; take() and cancel() are allowed while iterating."""
        kept: list[tuple[int, int, Waiting]] = []
        try:
            while self._heap:
                entry = heapq.heappop(self._heap)
                if entry[2].gone:
                    continue
                kept.append(entry)
                yield entry[2]
        finally:
            for entry in kept:
                if not entry[2].gone:
                    heapq.heappush(self._heap, entry)

    def take(self, waiting: Waiting) -> None:
        """Removes a work because it starts."""
        self._forget(waiting)

    def cancel(self, ticket_id: int) -> Waiting | None:
        """Removes a work by its ticket; None when it does not wait here."""
        waiting = self._by_id.get(ticket_id)
        if waiting is not None:
            self._forget(waiting)
        return waiting

    def _forget(self, waiting: Waiting) -> None:
        waiting.gone = True
        del self._by_id[waiting.ticket_id]
        if self._by_supersede.get(waiting.work.supersede) is waiting:
            del self._by_supersede[waiting.work.supersede]
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._by_id):
            self._heap = [e for e in self._heap if not e[2].gone]
            heapq.heapify(self._heap)


class Queues:
    """The three queues."""

    def __init__(self, waiting_max: dict[Tier, int]) -> None:
        self.of = {tier: Queue(waiting_max[tier]) for tier in Tier}

    def __len__(self) -> int:
        return sum(len(q) for q in self.of.values())

    def cancel(self, ticket_id: int) -> Waiting | None:
        """Removes a waiting work, whichever queue it is in."""
        for queue in self.of.values():
            found = queue.cancel(ticket_id)
            if found is not None:
                return found
        return None
