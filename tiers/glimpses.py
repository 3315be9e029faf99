"""Observations that were not looked at, by when they are looked at if no newer one comes first.

Moments are rounded up to the next tenth of a second, so that a glimpse costs one entry of a dict and no heap.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from core.clock import MS
from tiers.phase import Record

Who = TypeVar("Who")

NEXT_WITHIN_NS = 150 * MS  # an observation that comes until then is looked at in place of a glimpse that waits
SWEEP_NS = 100 * MS  # moments are rounded up to this


class Glimpses(Generic[Who]):
    """Records with a glimpse, in the order of their `sweep_ns`."""

    def __init__(self) -> None:
        self._by_moment: dict[int, dict[Record[Who], None]] = {}
        self.next_ns: int | None = None  # when the next are to be looked at

    def __len__(self) -> int:
        return sum(len(records) for records in self._by_moment.values())

    def add(self, record: Record[Who]) -> None:
        """It is to be looked at NEXT_WITHIN_NS after its `look_ns`. Sets its `sweep_ns`."""
        at_ns = record.sweep_ns = -(-(record.look_ns + NEXT_WITHIN_NS) // SWEEP_NS) * SWEEP_NS
        records = self._by_moment.get(at_ns)
        if records is None:
            records = self._by_moment[at_ns] = {}
            self.next_ns = min(self._by_moment)
        records[record] = None

    def remove(self, record: Record[Who]) -> None:
        """It was looked at, or there is nothing to look at any more."""
        records = self._by_moment.get(record.sweep_ns)
        if records is not None:
            records.pop(record, None)
            if not records:
                self._drop(record.sweep_ns)
        record.sweep_ns = 0

    def take(self, now_ns: int, most: int) -> list[Record[Who]]:
        """Up to so many whose moment has come. They are not in here any more."""
        taken: list[Record[Who]] = []
        while self.next_ns is not None and self.next_ns <= now_ns and len(taken) < most:
            records = self._by_moment[self.next_ns]
            while records and len(taken) < most:
                record, _ = records.popitem()
                record.sweep_ns = 0
                taken.append(record)
            if not records:
                self._drop(self.next_ns)
        return taken

    def _drop(self, at_ns: int) -> None:
        del self._by_moment[at_ns]
        self.next_ns = min(self._by_moment, default=None)
