"""Takes snapshots of a scheduler, on the engine thread after each step: numbers, and references to what never changes.

It is paid for with every step, so what moves seldom is looked at only when it has moved.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.clock import MS
from core.words import NpcKey, Tier
from engines.backend import Drafts, KvUse, Snapshot, TierCounts, TrunkPlace, Windows
from scheduler.costs import FEATURES
from scheduler.scheduler import Scheduler
from scheduler.window import Closed

COUNT_AGAIN_NS = 100 * MS
NO_DRAFTS = tuple(Drafts() for _ in Tier)


class Snapshots:
    """Takes snapshots of one scheduler. Owned by the engine thread, as the scheduler is."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._running = [0 for _ in Tier]
        self._windows = Windows()
        self._changes = -1
        self._away = frozenset[NpcKey]()
        self._parking_changes = 0
        self._counters: dict[str, dict[str, float]] = {}
        self._counted_ns: int | None = None

    def take(self, now_ns: int) -> Snapshot:
        """How the scheduler stands now."""
        scheduler = self._scheduler
        meter, placer = scheduler.meter, scheduler.placer
        homes, lanes = placer.homes, placer.lanes
        if self._changes != scheduler.changes:
            self._changes = scheduler.changes
            self._running = [0 for _ in Tier]
            for runner in scheduler.running.values():
                self._running[runner.work.tier] += 1
            closed = scheduler.admission.window.closed
            self._windows = Windows(closed[Closed.COMPLETE], closed[Closed.FULL], closed[Closed.TIME])
        if self._parking_changes != placer.moves.parking.changes:
            self._parking_changes = placer.moves.parking.changes
            self._away = placer.moves.parking.away()
        if scheduler.idle or self._counted_ns is None or now_ns - self._counted_ns >= COUNT_AGAIN_NS:
            self._counted_ns = now_ns
            self._counters = self._count()
        gold, silver, bronze = meter.tiers
        n, d = self._running, self._drafts()
        return Snapshot(
            (
                TierCounts(n[0], gold.ended, gold.output_tokens, gold.first, gold.gap, d[0]),
                TierCounts(n[1], silver.ended, silver.output_tokens, silver.first, silver.gap, d[1]),
                TierCounts(n[2], bronze.ended, bronze.output_tokens, bronze.first, bronze.gap, d[2]),
            ),
            meter.step,
            meter.steps,
            meter.busy_ns,
            meter.cached_tokens,
            meter.prefilled_tokens,
            self._windows,
            KvUse(
                lanes.count,
                lanes.leased,
                homes.count,
                homes.count - homes.free,
                homes.ram_bytes,
                homes.ram_bytes_max,
                self._away,
            ),
            self._counters,
        )

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
