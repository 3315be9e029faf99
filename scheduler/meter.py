"""Counts and times of the scheduler while it runs, for Status and metrics.

The engine thread counts; others see it in a Snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from core.clock import S
from core.spread import Spread
from core.words import Finish, Tier

STEPS_WITHIN_NS = 6 * S


@dataclass(slots=True)
class TierMeter:
    """One tier's counts since start. `first` is submitted -> first token, `gap` token -> next token of one work."""

    ended: Mapping[Finish, int] = field(default_factory=lambda: dict.fromkeys(Finish, 0))  # replaced, never changed
    output_tokens: int = 0
    first: Spread = field(default_factory=Spread)
    gap: Spread = field(default_factory=Spread)

    @classmethod
    def of(cls, bounds_ns: Sequence[int]) -> TierMeter:
        """An empty one whose histograms have these bounds."""
        return cls(first=Spread(bounds_ns=bounds_ns), gap=Spread(bounds_ns=bounds_ns))

    def count_end(self, finish: Finish) -> None:
        """Counts a work that ended."""
        self.ended = {**self.ended, finish: self.ended[finish] + 1}


@dataclass(slots=True)
class Meter:
    """All tiers' counts and the steps'. `step` is how long the last seconds' steps took; their amounts are tokens."""

    tiers: list[TierMeter] = field(default_factory=lambda: [TierMeter() for _ in Tier])  # by tier
    steps: int = 0
    busy_ns: int = 0  # spent in steps, since start
    step_failures: int = 0
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    step: Spread = field(default_factory=lambda: Spread(STEPS_WITHIN_NS))

    @classmethod
    def of(cls, bounds_ns: Sequence[int]) -> Meter:
        """An empty one whose histograms have these bounds."""
        return cls(tiers=[TierMeter.of(bounds_ns) for _ in Tier], step=Spread(STEPS_WITHIN_NS, bounds_ns))


def percentile(values: Sequence[int], share: float) -> float:
    """The value below which `share` (0..1) of the values lie (nearest rank); 0.0 if there are none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])
