"""How long things took, lately and since start, as counts in buckets: a read takes the same short time after any load.

One thread writes; any thread may read, and may miss the last time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from core.clock import S

FINE = 4  # a bucket is one sixteenth of a power of two wide: a percentile is within 3 % of the true value
LEAST, MOST = 8, 44  # powers of two: below 0.3 us counts as 0, above five hours counts as five hours
BUCKETS = (MOST - LEAST) << FINE
SLOTS = 7


class Cumulative(NamedTuple):
    """How many times were at most each bound, and last how many there were; and their sum."""

    bounds_ns: tuple[int, ...]
    counts: list[int]
    sum_ns: int


class Histogram:
    """How long things took since start: a count for each bucket, and the sum. Prometheus' histograms are made of it.

    `bounds_ns` are the buckets' upper bounds, ascending; a time that equals a bound is in that bound's bucket.
    """

    __slots__ = ("_counts", "_sum_ns", "bounds_ns")

    def __init__(self, bounds_ns: Sequence[int] = ()) -> None:
        self.bounds_ns = tuple(bounds_ns)
        self._counts = [0] * (len(self.bounds_ns) + 1)
        self._sum_ns = 0

    def add(self, took_ns: int) -> None:
        """Counts one time."""
        self._counts[bisect_left(self.bounds_ns, took_ns)] += 1
        self._sum_ns += took_ns

    def cumulative(self) -> Cumulative:
        """The counts up to each bound."""
        # Invariant: the counts never fall from bound to bound, and no later reading has a smaller one.
        return Cumulative(self.bounds_ns, list(accumulate(tuple(self._counts))), self._sum_ns)


def added(histograms: Iterable[Histogram], bounds_ns: Sequence[int]) -> Cumulative:
    """The sum of the histograms that have these bounds; others cannot be added and are left out."""
    bounds = tuple(bounds_ns)
    those = [h.cumulative() for h in histograms if h.bounds_ns == bounds]
    counts = [sum(at_bound) for at_bound in zip([0] * (len(bounds) + 1), *(c.counts for c in those), strict=True)]
    return Cumulative(bounds, counts, sum(c.sum_ns for c in those))


class Spread:
    """How long things took within the last minute or so. `ever` counts the same times since start.

    Time is cut into slots. A slot is emptied as a whole, so a read covers `within_ns` and up to a sixth more.
    """

    def __init__(self, within_ns: int = 60 * S, bounds_ns: Sequence[int] = ()) -> None:
        self.within_ns = within_ns
        self.ever = Histogram(bounds_ns)
        self._slot_ns = within_ns // (SLOTS - 1)
        self._slots = [-1] * SLOTS
        self._counts = np.zeros((SLOTS, BUCKETS), np.int64)
        self._amounts = [0] * SLOTS

    def add(self, now_ns: int, took_ns: int, amount: int = 0) -> None:
        """Counts a thing that ended now and took this long; `amount` is what it made (a step: tokens)."""
        slot = now_ns // self._slot_ns
        row = slot % SLOTS
        if self._slots[row] != slot:
            self._slots[row] = -1  # a reader skips a row that is half emptied
            self._counts[row] = 0
            self._amounts[row] = 0
            self._slots[row] = slot
        self._counts[row, _bucket(took_ns)] += 1
        self._amounts[row] += amount
        self.ever.add(took_ns)

    def percentiles(self, now_ns: int, *shares: float) -> list[float]:
        """The values, in nanoseconds, below which these shares (0..1) of the times lie; 0.0 if there are none.

        Each is the middle of its bucket, so it is within 3 % of the true value.
        """
        counts = self._counts[self._rows(now_ns)].sum(axis=0)
        upto = np.cumsum(counts)
        total = int(upto[-1])
        if not total:
            return [0.0] * len(shares)
        ranks = [min(total - 1, int(share * total)) for share in shares]
        return [_middle(int(np.searchsorted(upto, rank, side="right"))) for rank in ranks]

    def amount(self, now_ns: int) -> int:
        """The sum of the amounts within the same time."""
        return sum(self._amounts[row] for row in self._rows(now_ns))

    def _rows(self, now_ns: int) -> list[int]:
        present = now_ns // self._slot_ns
        return [row for row, slot in enumerate(self._slots) if 0 <= present - slot < SLOTS and slot >= 0]


def _bucket(took_ns: int) -> int:
    power = took_ns.bit_length() - 1
    if power < LEAST:
        return 0
    if power >= MOST:
        return BUCKETS - 1
    return ((power - LEAST) << FINE) + ((took_ns >> (power - FINE)) & ((1 << FINE) - 1))


def _middle(bucket: int) -> float:
    if not bucket:
        return 0.0
    power = (bucket >> FINE) + LEAST
    return float(((1 << FINE) + (bucket & ((1 << FINE) - 1)) + 0.5) * (1 << (power - FINE)))
