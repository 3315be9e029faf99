"""What each tier is promised, as settings."""

from __future__ import annotations

from dataclasses import dataclass

from core.clock import MS, S
from core.words import Tier


@dataclass(frozen=True, slots=True)
class Promise:
    """Bounds of one tier. `first_ms` is the aim for the first token; `wait_max_ms` bounds how long ageing may be put
    off.

    `waiting_max` is the length of its queue, `running_max` how many run at once.
    """

    first_ms: int
    wait_max_ms: int
    tail_max: int
    output_max: int
    waiting_max: int
    running_max: int


@dataclass(frozen=True, slots=True)
class Promises:
    """One promise per tier."""

    gold: Promise = Promise(first_ms=16, wait_max_ms=100, tail_max=32, output_max=8, waiting_max=2048, running_max=64)
    silver: Promise = Promise(
        first_ms=250, wait_max_ms=2_000, tail_max=192, output_max=512, waiting_max=64, running_max=24
    )
    bronze: Promise = Promise(
        first_ms=5_000, wait_max_ms=20_000, tail_max=1024, output_max=1024, waiting_max=1024, running_max=16
    )

    def of(self, tier: Tier) -> Promise:
        """The promise of one tier."""
        return (self.gold, self.silver, self.bronze)[tier]

    def deadline_ns(self, tier: Tier, due_ns: int) -> int:
        """When the first token of a work that was due at `due_ns` should be there."""
        return due_ns + self.of(tier).first_ms * MS

    def overdue_ns(self, tier: Tier, due_ns: int) -> int:
        """From when on a work that was due at `due_ns` counts as one tier higher."""
        return due_ns + self.of(tier).wait_max_ms * MS


RETRY_MAX_NS = 30 * S
