"""Moments at which an NPC is due, or at which it is looked whether the model is late: the earliest first.

A moment that no longer counts stays in the heap until its time, or until such moments are more than half of it.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from tiers.phase import Phase, Record

Who = TypeVar("Who")
_Entry = tuple[int, int, Record[Who]]  # moment, twice the record's serial and 1 more for a watch

SPARE = 64  # entries that no longer count and are nobody's trouble
_DUE = Phase.DUE


class Moments(Generic[Who]):
    """At most one due moment and one watch of each NPC count: those that stand in its record."""

    def __init__(self) -> None:
        self._heap: list[_Entry[Who]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add_due(self, record: Record[Who], npcs: int) -> None:
        """The record's `due_ns` is its moment from now on. There are so many NPCs."""
        self._push((record.due_ns, 2 * record.serial, record), npcs)

    def add_watch(self, record: Record[Who], npcs: int) -> None:
        """The same for its `watch_ns`."""
        self._push((record.watch_ns, 2 * record.serial + 1, record), npcs)

    def pop(self, now_ns: int) -> tuple[Record[Who], bool, bool] | None:
        """The earliest moment that has come: (whose, whether it is a watch, whether it counts). None: none has come."""
        heap = self._heap
        if not heap or heap[0][0] > now_ns:
            return None
        entry = heappop(heap)
        return entry[2], bool(entry[1] & 1), _counts(entry)

    def next(self, drop_max: int) -> tuple[int | None, bool]:
        """(The earliest moment, whether it is a due one). Drops up to so many before it that no longer count."""
        heap = self._heap
        while heap and drop_max and not _counts(heap[0]):
            heappop(heap)
            drop_max -= 1
        return (heap[0][0], not heap[0][1] & 1) if heap else (None, False)

    def _push(self, entry: _Entry[Who], npcs: int) -> None:
        heappush(self._heap, entry)
        # Invariant: len(heap) <= 4 * NPCs + SPARE, for two moments of each count.
        if len(self._heap) > 4 * npcs + SPARE:
            self._heap = list({entry[1]: entry for entry in self._heap if _counts(entry)}.values())
            heapify(self._heap)


def _counts(entry: _Entry[Who]) -> bool:
    at_ns, key, record = entry
    if key & 1:
        return record.watch_ns == at_ns
    return record.due_ns == at_ns and record.phase is _DUE
