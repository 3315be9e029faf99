"""The time of loading stored KV, learned while running, against the time of computing it again (`costs`).

A load takes a fixed time and a time per MiB; both are fitted to measured loads, and never negative.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.clock import MS
from engines.base import PAD_LEN
from scheduler.costs import Costs

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """`forget` is the weight that older loads keep per new one; a load above `clip_x` times the prediction counts as
    that much. Of those that seem dearer than computing anew every `retry_every`th is loaded all the same.
    """

    forget: float = 0.98
    clip_x: float = 4.0
    retry_every: int = 64
    prior_fixed_ms: float = 0.3
    prior_mib_ms: float = 1.0


class LoadCosts:
    """Predicts the nanoseconds of loads from one kind of home. `add` learns from one."""

    def __init__(self, settings: LoadSettings = LoadSettings()) -> None:
        self.settings = settings
        self.fixed_ns = settings.prior_fixed_ms * MS
        self.mib_ns = settings.prior_mib_ms * MS
        self.learned = 0
        self.turned_down = 0
        # Sums of 1, x, x*x, y and x*y, weighted; begun with a weak belief in the priors at 0.25 and at 4 MiB.
        self._sums = [0.0] * 5
        for mib in (0.25, 4.0):
            self._take(mib, self.fixed_ns + self.mib_ns * mib, 0.1)

    def predict_ns(self, size: int) -> float:
        """The predicted time of loading `size` bytes."""
        return self.fixed_ns + self.mib_ns * size / MIB

    def add(self, size: int, took_ns: int) -> None:
        """Learns from one load."""
        expected = self.predict_ns(size)
        took = min(float(took_ns), self.settings.clip_x * expected)
        self._sums = [self.settings.forget * s for s in self._sums]
        self._take(size / MIB, took, 1.0)
        self.learned += 1
        n, x, xx, y, xy = self._sums
        spread = n * xx - x * x
        slope = (n * xy - x * y) / spread if spread > 1e-9 * n * xx else self.mib_ns
        slope = min(max(0.0, slope), y / x)
        self.mib_ns, self.fixed_ns = slope, max(0.0, (y - slope * x) / n)

    def pays(self, size: int, wait_ns: int, recompute_ns: float) -> bool:
        """True if loading, after `wait_ns` for the bytes, is faster than computing again. Counts refused loads."""
        if wait_ns + self.predict_ns(size) < recompute_ns:
            return True
        self.turned_down += 1
        return self.turned_down % self.settings.retry_every == 0

    def _take(self, mib: float, ns: float, weight: float) -> None:
        for i, value in enumerate((1.0, mib, mib * mib, ns, mib * ns)):
            self._sums[i] += weight * value


def recompute_ns(costs: Costs, start: int, end: int, micro_len: int) -> float:
    """The predicted time of computing the tokens from `start` to `end` of a trunk, a step per micro-batch."""
    total, at = 0.0, start
    while at < end:
        tokens = min(micro_len, end - at)
        at += tokens
        context = -(-at // PAD_LEN) * PAD_LEN / 1000.0
        total += costs.predict_ns((1.0, 1.0, float(tokens), tokens * context, context))
    return total
