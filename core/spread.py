"""How long things took lately, in counts that cost the same however much was put in.

One thread puts in, and any may read.
"""

from __future__ import annotations

import numpy as np

from core.clock import S

FINE = 4  # a bucket is one sixteenth of a power of two wide: what is read is within 3 % of what was put in
LEAST, MOST = 8, 44  # powers of two: below 0.3 us is nothing, above five hours is five hours
BUCKETS = (MOST - LEAST) << FINE
SLOTS = 7


class Spread:
    """How long things took within the last minute or so: counts in buckets, so that reading it takes the same short
    time however much was put in.

    Time is in slots; what is older than `within_ns` goes with its slot, so up to a sixth more than that is looked at.
    One thread puts in; any may read, and what it reads may be one short.
    """

    def __init__(self, within_ns: int = 60 * S) -> None:
        self.within_ns = within_ns
        self._slot_ns = within_ns // (SLOTS - 1)
        self._slots = [-1] * SLOTS
        self._counts = np.zeros((SLOTS, BUCKETS), np.int64)
        self._amounts = [0] * SLOTS

    def add(self, now_ns: int, took_ns: int, amount: int = 0) -> None:
        """Puts in what something took that ended now; `amount` is what came of it."""
        slot = now_ns // self._slot_ns
        row = slot % SLOTS
        if self._slots[row] != slot:
            self._slots[row] = -1  # nobody is to read it half emptied
            self._counts[row] = 0
            self._amounts[row] = 0
            self._slots[row] = slot
        self._counts[row, _bucket(took_ns)] += 1
        self._amounts[row] += amount

    def percentiles(self, now_ns: int, *shares: float) -> list[float]:
        """The values, in nanoseconds, below which these shares (0..1) of what was put in lie; 0.0 of nothing."""
        counts = self._counts[self._rows(now_ns)].sum(axis=0)
        upto = np.cumsum(counts)
        total = int(upto[-1])
        if not total:
            return [0.0] * len(shares)
        ranks = [min(total - 1, int(share * total)) for share in shares]
        return [_middle(int(np.searchsorted(upto, rank, side="right"))) for rank in ranks]

    def amount(self, now_ns: int) -> int:
        """All that came of it."""
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
