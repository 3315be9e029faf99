"""The promise of each tier, as settings."""

from __future__ import annotations

from dataclasses import dataclass

from core.clock import MS, S
from core.words import Tier


@dataclass(frozen=True, slots=True)
class Promise:
    """Bounds of one tier."""

    first_ms: int
    """Aim for the first token, counted from when the request is due."""
    wait_max_ms: int
    """A request that has waited this long counts as one tier higher (ageing), so nothing starves."""
    tail_max: int
    """Tokens of a request's tail, the part of its prompt that is not in an NPC's KV, at most."""
    output_max: int
    """Tokens that a request makes at most."""
    waiting_max: int
    """Length of the tier's queue; beyond it requests are refused with a retry time."""
    running_max: int
    """Requests of the tier that run at the same time."""


@dataclass(frozen=True, slots=True)
class Promises:
    """One promise for each tier: Gold (intents and barks), Silver (dialogue), Bronze (summaries, preparation and
    guesses).
    """

    gold: Promise = Promise(first_ms=16, wait_max_ms=100, tail_max=32, output_max=8, waiting_max=2048, running_max=64)
    """Intents and barks: few tokens, at once."""
    silver: Promise = Promise(
        first_ms=250, wait_max_ms=2_000, tail_max=192, output_max=512, waiting_max=64, running_max=24
    )
    """Dialogue: a player waits for the words."""
    bronze: Promise = Promise(
        first_ms=5_000, wait_max_ms=20_000, tail_max=1024, output_max=1024, waiting_max=1024, running_max=16
    )
    """Summaries, preparation and guesses: nobody waits."""

    def of(self, tier: Tier) -> Promise:
        """The promise of one tier."""
        return (self.gold, self.silver, self.bronze)[tier]

    def bounds_ns(self) -> tuple[int, ...]:
        """The upper bounds of the buckets that times are counted in, ascending. For each tier: half, once and twice
        its promised time to the first token, and its longest wait. For Gold also a quarter and an eighth.

        All histograms have the same bounds, so that those of several tiers and daemons can be added up.
        """
        found = {self.gold.first_ms * MS // part for part in (4, 8)}
        for promise in (self.gold, self.silver, self.bronze):
            first_ns = promise.first_ms * MS
            found |= {first_ns // 2, first_ns, 2 * first_ns, promise.wait_max_ms * MS}
        return tuple(sorted(found - {0}))

    def deadline_ns(self, tier: Tier, due_ns: int) -> int:
        """The moment by which a work that was due at `due_ns` should have its first token."""
        return due_ns + self.of(tier).first_ms * MS

    def overdue_ns(self, tier: Tier, due_ns: int) -> int:
        """The moment from which a work that was due at `due_ns` counts as one tier higher."""
        return due_ns + self.of(tier).wait_max_ms * MS


RETRY_MAX_NS = 30 * S
