"""Takes snapshots of a scheduler, on the engine thread after each step: numbers, and references to what never changes.

It is paid for with every step, so what moves seldom is looked at only when it has moved.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.clock import MS
from core.words import NpcKey, Tier
from engines.backend import Drafts, KvUse, Snapshot, TierCounts, TrunkPlace, UnitCosts, Windows
from scheduler.costs import FEATURES
from scheduler.scheduler import Scheduler
from scheduler.window import Closed

COUNT_AGAIN_NS = 100 * MS
NO_DRAFTS = tuple(Drafts() for _ in Tier)


class Snapshots:
    """Takes snapshots of one scheduler. Owned by the engine thread, as the scheduler is."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._tiers: list[TierCounts] = []
        self._at_work: list[Tier] = []  # the tiers of which works run
        self._windows = Windows()
        self._kv = KvUse()
        self._changes = -1
        self._away = frozenset[NpcKey]()
        self._parking_changes = 0
        self._counters: dict[str, dict[str, float]] = {}
        self._costs = UnitCosts()
        self._count_again_ns = 0

    def take(self, now_ns: int, anew: bool = True) -> Snapshot:
        """The scheduler's state now. Unless commands came (`anew`), the same works running means the same sequences."""
        scheduler = self._scheduler
        if anew or self._changes != scheduler.changes:
            self._look()
        else:
            drafts = self._drafts()
            for tier in self._at_work:
                m, running = scheduler.meter.tiers[tier], self._tiers[tier].running
                self._tiers[tier] = TierCounts(running, m.ended, m.output_tokens, m.first, m.gap, drafts[tier])
        if now_ns >= self._count_again_ns:
            self._count_again_ns = now_ns + COUNT_AGAIN_NS
            self._counters = self._count()
            self._costs = scheduler.spending.unit_costs(scheduler.costs)
        meter = scheduler.meter
        return Snapshot(
            tuple(self._tiers),
            meter.step,
            meter.steps,
            meter.busy_ns,
            meter.cached_tokens,
            meter.prefilled_tokens,
            self._windows,
            self._kv,
            self._counters,
            tuple(scheduler.spending.by_tier_ns),
            scheduler.spending.trunks_ns,
            scheduler.spending.expected_ns,
            self._costs,
        )

    def _look(self) -> None:
        """Looks at all that starts, ends and commands may have changed."""
        scheduler = self._scheduler
        placer, closed = scheduler.placer, scheduler.admission.window.closed
        homes, lanes, parking = placer.homes, placer.lanes, placer.moves.parking
        self._changes = scheduler.changes
        running = [0 for _ in Tier]
        for runner in scheduler.running.values():
            running[runner.work.tier] += 1
        self._at_work = [tier for tier in Tier if running[tier]]
        drafts = self._drafts()
        self._tiers = [
            TierCounts(running[tier], m.ended, m.output_tokens, m.first, m.gap, drafts[tier])
            for tier, m in zip(Tier, scheduler.meter.tiers, strict=True)
        ]
        self._windows = Windows(closed[Closed.COMPLETE], closed[Closed.FULL], closed[Closed.TIME])
        if self._parking_changes != parking.changes:
            self._parking_changes = parking.changes
            self._away = parking.away()
        self._kv = KvUse(
            lanes.count,
            lanes.leased,
            homes.count,
            homes.count - homes.free,
            homes.ram_bytes,
            homes.ram_bytes_max,
            self._away,
        )
        if scheduler.idle:
            self._count_again_ns = 0

    def places(self, npcs: Sequence[NpcKey]) -> list[TrunkPlace]:
        """Where the trunks of some NPCs are now."""
        placer = self._scheduler.placer
        token_bytes = placer.moves.token_bytes
        return [
            TrunkPlace(t.key, t.home, t.held, t.bytes_away or round(t.held * token_bytes), t.hits, t.used_ns)
            for npc in npcs
            for t in placer.homes.of_npc(npc)
        ]

    def _drafts(self) -> Sequence[Drafts]:
        speculation = self._scheduler.composer.speculation
        if speculation is None:
            return NO_DRAFTS
        return [Drafts(t.on, t.offered, t.accepted, t.gain) for t in speculation.tiers]

    def _count(self) -> dict[str, dict[str, float]]:
        costs = dict(zip(FEATURES, self._scheduler.costs.weights_ns, strict=True))
        return {**self._scheduler.placer.counters(), "step_cost_ns": costs}
