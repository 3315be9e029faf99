"""Recall: an NPC's memory of a player, at once when it is in process, else from the recent store within a budget.

Owns the reads under way: one for each bond, however many callers ask. A read that is late goes on in the background,
and its answer is there for the next caller. While the store has not been read, every answer says that it is late, and
the next call reads again. The archive is never asked.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from core.clock import MS, Clock
from core.errors import StoreFailed
from core.words import NpcKey
from memory.bond import Bond, within
from memory.bonds import Bonds, Held, Pair, WorldKey

PREFETCH_AGAIN_NS = 60_000 * MS  # an unknown player is not asked for with every observation
FAILED_AGAIN_NS = 1_000 * MS  # nor is a store that is away
TRIED_MAX = 20_000


class RecentStore(Protocol):
    """The part of memory.recent.Recent that recall needs."""

    async def recall(self, npc: NpcKey, player: str, now_ms: int) -> Bond | None:
        """The bond, or None when there is none. Raises StoreFailed."""


@dataclass(slots=True)
class RecallCounts:
    """Counted since start."""

    hot: int = 0
    recent: int = 0
    late: int = 0
    away: int = 0
    prefetched: int = 0


@dataclass(frozen=True, slots=True)
class Recalled:
    """A bond, and who gave it: `stores` as Timings name them. `late`: the recent store has more, or may have, and did
    not answer in time.
    """

    bond: Bond
    stores: tuple[str, ...]
    late: bool = False
    took_ns: int = 0


class Recall:
    """Reads bonds. `readable` is True when the store has every record of an NPC's world that must not be missed: that a
    player is forgotten, or that the world went back to a checkpoint.
    """

    def __init__(
        self,
        bonds: Bonds,
        store: RecentStore | None,
        budget_ms: float,
        reads_max: int,
        clock: Clock,
        wall_ms: Callable[[], int],
        readable: Callable[[NpcKey], bool] = lambda _: True,
    ) -> None:
        self.counts = RecallCounts()
        self._bonds = bonds
        self._store = store
        self._budget_s = budget_ms / 1000
        self._reads_max = reads_max
        self._clock = clock
        self._wall_ms = wall_ms
        self.readable = readable
        # Players that are forgotten in this process and not yet in the store: the store is not asked about them.
        self.forgotten: Callable[[NpcKey, str], bool] = lambda *_: False
        # Waits until the store has a bond in full, or raises StoreFailed.
        self.catch_up: Callable[[Held], Awaitable[None]] = _never
        self._reads: dict[Pair, asyncio.Task[None]] = {}
        # The time of the last read of a pair, and the world's mark then. A read before the world went back has an old
        # mark, and does not count.
        self._tried: OrderedDict[Pair, tuple[object, int]] = OrderedDict()
        self._marks: dict[WorldKey, object] = {}

    def at_hand(self, npc: NpcKey, player: str) -> Bond | None:
        """The bond in process, without asking a store; None when there is none."""
        held = self._bonds.find(npc, player)
        return held.bond if held is not None else None

    def is_whole(self, npc: NpcKey, player: str) -> bool:
        """True if the bond in process is all that there is."""
        return not self._misses(npc, player, self._bonds.find(npc, player))

    async def recall(self, npc: NpcKey, player: str) -> Recalled:
        """The bond, within the budget. Never fails: without the store it is the bond in process."""
        began_ns = self._clock()
        held = self._bonds.find(npc, player)
        if not self._misses(npc, player, held):
            self.counts.hot += 1
            return self._recalled(held, ("hot",), False, began_ns)
        away = False
        try:
            async with asyncio.timeout(self._budget_s):
                if held is not None and held.unsaved and self.readable(npc):
                    await self.catch_up(held)
                if self._to_read(npc, player, self._bonds.find(npc, player)):
                    reading = self._read(npc, player)
                    await asyncio.wait((reading,))
                    if not reading.cancelled():  # else the player was forgotten meanwhile
                        reading.result()
        except TimeoutError:
            pass
        except StoreFailed:
            away = True
        held = self._bonds.find(npc, player)
        late = self._misses(npc, player, held)
        self.counts.away += late and away
        self.counts.late += late and not away
        self.counts.recent += not late
        return self._recalled(held, ("hot",) if late else ("hot", "recent"), late, began_ns)

    def prefetch(self, npc: NpcKey, player: str) -> None:
        """A player comes near: has the bond read, if there is time for it and it was not read lately."""
        pair = (npc, player)
        now_ns = self._clock()
        mark = self._marks.get(npc[:2])
        last = self._tried.get(pair)
        if last is not None and last[0] is mark and now_ns - last[1] < PREFETCH_AGAIN_NS:
            return
        if len(self._reads) >= self._reads_max or not self._to_read(npc, player, self._bonds.find(npc, player)):
            return
        if mark is None:
            mark = self._marks[npc[:2]] = object()
        self._tried[pair] = (mark, now_ns)
        self._tried.move_to_end(pair)
        if len(self._tried) > TRIED_MAX:
            self._tried.popitem(last=False)
        self.counts.prefetched += 1
        self._read(npc, player)

    def forget(self, npc: NpcKey, player: str) -> None:
        """Drops reads under way of a player's bond with one NPC, or with its whole world when npc.npc is empty."""
        for key, who in list(self._reads):
            if who == player and key[:2] == npc[:2] and npc.npc in ("", key.npc):
                self._reads.pop((key, who)).cancel()

    def forget_world(self, tenant: str, world: str) -> None:
        """The same for every bond of a world: it went back to an earlier time, or is deleted. Others go on."""
        for pair in [p for p in self._reads if p[0][:2] == (tenant, world)]:
            self._reads.pop(pair).cancel()
        self._marks.pop((tenant, world), None)

    def _misses(self, npc: NpcKey, player: str, held: Held | None) -> bool:
        """True if the store has more than this process, or may have."""
        return self._store is not None and not (held is not None and held.complete) and not self.forgotten(npc, player)

    def _to_read(self, npc: NpcKey, player: str, held: Held | None) -> bool:
        """True if the rest can be read from the store. A bond that it does not have in full yet is not read back."""
        return self._misses(npc, player, held) and not (held is not None and held.unsaved) and self.readable(npc)

    def _read(self, npc: NpcKey, player: str) -> asyncio.Task[None]:
        pair = (npc, player)
        reading = self._reads.get(pair)
        if reading is None:
            reading = self._reads[pair] = asyncio.create_task(self._fetch(npc, player))
            reading.add_done_callback(lambda done: self._over(pair, done))
        return reading

    def _over(self, pair: Pair, done: asyncio.Task[None]) -> None:
        if self._reads.get(pair) is done:
            del self._reads[pair]
        if not done.cancelled() and done.exception() is not None and pair in self._tried:
            # Waiting callers have heard of it. It is soon asked for again.
            self._tried[pair] = (self._tried[pair][0], self._clock() - PREFETCH_AGAIN_NS + FAILED_AGAIN_NS)

    async def _fetch(self, npc: NpcKey, player: str) -> None:
        assert self._store is not None, "asked without a store"
        bond = await self._store.recall(npc, player, self._wall_ms())
        held = self._bonds.find(npc, player)
        # Records of this process since the read began are not in it: it is read again when the store has them.
        if self._to_read(npc, player, held):
            self._bonds.put(npc, player, bond if bond is not None else Bond(), complete=True)

    def _recalled(self, held: Held | None, stores: tuple[str, ...], late: bool, began_ns: int) -> Recalled:
        bond = within(held.bond, self._wall_ms()) if held is not None else Bond()
        return Recalled(bond, stores, late, self._clock() - began_ns)


async def _never(_: Held) -> None:
    raise StoreFailed("it is behind")
