"""Brings a work's trunk into a sequence and its branch onto a lane, and puts everything back afterwards.

Runs on the engine thread between steps; owns nothing but the counters: the book is kvcache's, the bytes are the
engine's.

On cancel the branch is cut off or its lane given back; computed tokens of prefix and trunk stay, they are valid.

A fork is a trunk of its own that begins as a copy of its origin. Works run on it as on any other; commit() then gives
its KV to the origin without moving a byte; forget() discards it. The origin's KV is only read meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.choice import Tokens, common_len
from core.words import AUTO, OrAuto, Tier, TrunkKey
from core.work import Work
from engines.base import Geometry, StepEngine
from kvcache import victims
from kvcache.homes import Homes, Trunk
from kvcache.lanes import Lanes
from kvcache.prefix import Prefix, Prefixes
from scheduler.costs import Costs
from scheduler.moving import Moves
from scheduler.place import Part, Place, TrunkTokens

FOLLOWS_FROM = 16  # tokens; fewer are computed sooner than copied
RAM_MIB = 512  # where nobody looked what fits


@dataclass(frozen=True, slots=True)
class KvSettings:
    """How KV is divided. Of `engine.sequences`, those that are not prefixes or lanes hold the trunks of NPCs and
    conversations.
    """

    prefixes: int = 12
    """Sequences that hold prefixes which NPCs share (world and archetype)."""
    lanes: int = 24
    """Sequences for replies and summaries while they are generated; so many Silver and Bronze requests decode at the
    same time.
    """
    ram_mib: OrAuto = AUTO
    """Host RAM for KV that was evicted from device memory, with copies of KV that came back while there is room. It is
    taken as it is needed. `auto`: 512, and for models with large KV as much as 256 trunks take, but at most an
    eighth of the memory that is free.
    """
    redis_mib: int = 256
    """Redis memory for KV that has no room in host RAM, if there is a Redis."""
    fetch_wait_ms: float = 5.0
    """A request waits this long for KV that comes back from Redis; then its prefill is computed."""
    forks_max: int = 64
    """Forks (KV that continues another trunk) that are kept; beyond that the one that is unused longest is discarded.
    """


class Placer:
    """Places works on one engine. Invariants: those of Homes, Lanes and Prefixes; one work per trunk until it is on a
    lane.
    """

    def __init__(self, engine: StepEngine, settings: KvSettings, costs: Costs) -> None:
        prefixes_first, lanes_first, residents_first, residents = divide(engine.geometry, settings)
        self.prefixes = Prefixes(prefixes_first, settings.prefixes)
        self.lanes = Lanes(lanes_first, settings.lanes)
        ram_mib = RAM_MIB if settings.ram_mib == AUTO else settings.ram_mib
        self.homes = Homes(residents_first, residents, ram_mib << 20, settings.redis_mib << 20)
        self.moves = Moves(engine, self.homes, costs, settings.fetch_wait_ms)
        self.forks_dropped = 0
        self._forks_max = settings.forks_max
        self.tokens = TrunkTokens()
        self._engine = engine

    def place(self, work: Work, now_ns: int) -> Place | None:
        """A place for the work, or None when it must wait: its trunk is in use, or no lane or sequence is free."""
        if work.key.fork and work.key not in self.homes.forks:
            self._bound_forks()
        trunk = self.homes.get(work.key)
        if trunk.users or not self.moves.is_here(trunk, work, now_ns):
            return None
        lane = -1
        if self.needs_lane(work):
            leased = self.lanes.lease()
            if leased is None:
                return None
            lane = leased
        if not self.moves.make_resident(trunk, work.near, now_ns):
            if lane >= 0:
                self.lanes.give_back(lane)
            return None
        trunk.users += 1
        trunk.used_ns, trunk.tier = now_ns, work.tier
        place = Place(work, trunk, Part.TRUNK, lane=lane)
        if work.adapter != work.key.adapter:
            place.adapter_from = self._engine.adapter_from(work.adapter, work.tail)
        place.loaded = self.moves.load(trunk, work.trunk, work.shared)
        self._begin(place, now_ns)
        place.cached = trunk.held
        trunk.hits += place.cached > 0
        self.tokens.add(place)
        self.advance(place)
        return place

    @staticmethod
    def needs_lane(work: Work) -> bool:
        """True if a work's branch is on a lane."""
        return work.tier is not Tier.GOLD and work.max_tokens > 0

    def counters(self) -> dict[str, dict[str, float]]:
        """All that is counted here and of the engine's adapters, by family and name. Any thread may ask."""
        t = self.tokens
        tokens = {"resident": t.resident, "loaded": t.loaded, "copied": t.copied, "computed": t.computed}
        return {
            "trunk_tokens": dict(tokens), "moves": self.moves.counters(), "refused": dict(self.moves.refused),
            "adapters": dict(self._engine.adapter_counts()),
        }  # fmt: skip

    def could_stand(self, key: TrunkKey) -> bool:
        """True if a work could stand on that trunk now: no other does, and there is a sequence for it."""
        homes = self.homes
        trunk = homes.find(key)
        if trunk is not None and trunk.fetching_ns:
            return False
        if trunk is not None and (trunk.users or trunk.seq >= 0):
            return not trunk.users
        return homes.free > 0 or any(not t.users for t in homes.residents)

    def advance(self, place: Place, follow: bool = True) -> None:
        """Goes on to the next part while the present one lacks nothing. `follow`: a prefix may take from another."""
        if place.part is Part.PREFIX:
            prefix = place.prefix
            assert prefix is not None
            if follow and not prefix.ready:
                self._follow(place, prefix)
            if not prefix.ready:
                return
            self._engine.copy(prefix.seq, place.trunk.seq)
            self.homes.holds(place.trunk, place.work.trunk, len(prefix.tokens))
            self.prefixes.give_back(prefix)
            place.prefix = None
            place.part = Part.TRUNK
        if place.part is Part.TRUNK and place.trunk.held == len(place.work.trunk):
            place.part = Part.BRANCH
            if place.lane >= 0:
                self._engine.copy(place.trunk.seq, place.lane)
                if not place.work.keep:
                    place.trunk.users -= 1
            else:
                place.trunk.branched = True

    def grown(self, place: Place, count: int) -> None:
        """`count` tokens were added where the place stands."""
        if place.part is Part.BRANCH:
            place.branch_len += count
            return
        self.tokens.computed += count
        if place.part is Part.TRUNK:
            self.homes.holds(place.trunk, place.trunk.tokens, place.trunk.held + count)
        else:
            assert place.prefix is not None
            place.prefix.held += count

    def keep(self, place: Place, made: Sequence[int]) -> None:
        """Makes the branch of a `keep` work part of its trunk, as far as it is computed; release() it then."""
        trunk, work = place.trunk, place.work
        if place.part is not Part.BRANCH:
            return  # its choice was forced to its end before anything was computed
        tokens = np.concatenate([work.trunk, work.tail, np.asarray(made, np.int32)])
        if place.lane >= 0:
            self._engine.copy(place.lane, trunk.seq)
        # Drafts that came true behind its last token are not part of it.
        held = min(place.pos, len(tokens))
        self.homes.holds(trunk, tokens[:held], held)
        self._engine.trim(trunk.seq, held)

    def adopt(self, place: Place, made: Sequence[int], now_ns: int) -> int:
        """Makes the branch of an `adopt` work the trunk, and returns how many of its tokens that now holds beyond what
        the work began with. 0, and nothing has changed, where another work stands on the trunk, where it was forgotten
        or has grown meanwhile, or where there is no sequence for it. Call release() then.
        """
        work, trunk = place.work, place.trunk
        if place.part is not Part.BRANCH or place.lane < 0 or self.homes.find(work.key) is not trunk or trunk.users:
            return 0
        held = len(trunk.tokens[: trunk.held])
        if common_len(trunk.tokens[: trunk.held], work.trunk) < trunk.held:
            return 0
        if not self._comes_back(trunk, work.near, now_ns):
            return 0
        tokens = np.concatenate([work.trunk, work.tail, np.asarray(made, np.int32)])
        held = min(place.pos, len(tokens))
        if work.adapter != work.key.adapter:
            # The trunk is the base model's: what the adapter computed is not part of it.
            held = min(held, len(work.trunk) + place.adapter_from)
        self._engine.copy(place.lane, trunk.seq)
        self._engine.trim(trunk.seq, held)
        self.homes.holds(trunk, tokens[:held], held)
        trunk.used_ns, trunk.tier = max(trunk.used_ns, now_ns), work.tier
        return held - len(work.trunk)

    def release(self, place: Place, now_ns: int) -> None:
        """Ends a place, whichever part it computes."""
        trunk = place.trunk
        if place.prefix is not None:
            self.prefixes.give_back(place.prefix)
            place.prefix = None
        trunk.users -= place.stands
        if place.lane >= 0:
            self._engine.trim(place.lane, 0)
            self.lanes.give_back(place.lane)
        elif place.part is Part.BRANCH:
            self._engine.trim(trunk.seq, trunk.held)
            trunk.branched = False
        trunk.used_ns = max(trunk.used_ns, now_ns)

    def forget(self, key: TrunkKey) -> bool:
        """Forgets a trunk and empties its sequence; False while a work stands on it."""
        trunk = self.homes.find(key)
        if trunk is not None and trunk.users:
            return False
        if trunk is not None:
            self.moves.parking.forget(trunk)
        seq = self.homes.remove(key)
        if seq >= 0:
            self._engine.trim(seq, 0)
        return True

    def commit(self, key: TrunkKey) -> bool:
        """Makes what a fork holds its origin's, and forgets the fork; False while a work stands on either."""
        fork, origin = self.homes.find(key), self.homes.find(key.origin)
        if fork is None:
            return True
        if fork.users or (origin is not None and origin.users):
            return False
        if origin is not None:
            self.moves.parking.forget(origin)
        seq = self.homes.commit(fork)
        if seq >= 0:
            self._engine.trim(seq, 0)
        return True

    def engine_rebuilt(self) -> None:
        """Every sequence is empty: corrects the book. Places must be released and made anew."""
        self.prefixes.forget_all()
        self.moves.parking.put_away(self.homes.forget_sequences())

    def _begin(self, place: Place, now_ns: int) -> None:
        """Finds the cheapest beginning: what the trunk holds, a sibling's trunk, the shared prefix."""
        work, trunk = place.work, place.trunk
        keep = common_len(trunk.tokens[: trunk.held], work.trunk)
        if work.key.fork and self._fork(trunk, work.trunk, keep, now_ns):
            place.copied, place.loaded = trunk.held, 0
            return
        if keep < work.shared:
            sibling, shared = self._best_sibling(trunk, work.trunk)
            if sibling is not None and shared > keep and shared >= work.shared:
                self._engine.copy(sibling.seq, trunk.seq)
                self._engine.trim(trunk.seq, shared)
                self.homes.holds(trunk, work.trunk, shared)
                place.copied = shared
                return
            taken = self.prefixes.take(work.trunk[: work.shared], now_ns, work.key.adapter)
            if taken is not None:
                place.prefix, gone = taken
                if gone is not None:
                    self._engine.trim(gone.seq, 0)
                self._engine.trim(trunk.seq, 0)
                # Tokens of a ready prefix are there already, so they count as held (and cached) from here on.
                self.homes.holds(trunk, work.trunk, 0)
                place.part = Part.PREFIX
                self.advance(place, follow=False)
                place.copied = trunk.held
                return
        self._engine.trim(trunk.seq, keep)
        self.homes.holds(trunk, work.trunk, keep)

    def _follow(self, place: Place, prefix: Prefix) -> None:
        """Copies the beginning of a prefix from another one, if that has come a good deal further with the same tokens.
        They count as copied for the work that stands there.
        """
        other, alike = self.prefixes.furthest(prefix)
        more = alike - prefix.held
        if other is not None and more >= FOLLOWS_FROM:
            self._engine.copy(other.seq, prefix.seq)
            self._engine.trim(prefix.seq, alike)
            prefix.held = alike
            place.cached += more
            place.copied += more
            self.tokens.copied += more

    def _fork(self, trunk: Trunk, wanted: Tokens, keep: int, now_ns: int) -> bool:
        """Begins as a copy of what the trunk is a fork of, if that holds more than `keep` of what is wanted."""
        origin = self.homes.find(trunk.key.origin)
        if origin is None or common_len(origin.tokens[: origin.held], wanted) <= keep:
            return False
        if origin.parked or not self.moves.make_resident(origin, -1, now_ns):
            return False
        self.moves.load(origin, wanted, 0)
        shared = common_len(origin.tokens[: origin.held], wanted)  # its bytes may have been refused
        if shared <= keep:
            return False
        self._engine.copy(origin.seq, trunk.seq)
        self._engine.trim(trunk.seq, shared)
        self.homes.holds(trunk, wanted, shared)
        return True

    def _comes_back(self, trunk: Trunk, near: int, now_ns: int) -> bool:
        """Gives an unused trunk a sequence for other content than it has; False when there is none."""
        if trunk.seq >= 0:
            return True
        if not self.homes.free and victims.choose(self.homes.residents, now_ns) is None:
            return False
        self.moves.drop(trunk)
        return self.moves.make_resident(trunk, near, now_ns)

    def _bound_forks(self) -> None:
        """Makes room for one more fork; those in use stay, so there may be more of them."""
        forks = self.homes.forks
        while len(forks) >= self._forks_max:
            oldest = min((f for f in forks.values() if not f.users), key=lambda f: f.used_ns, default=None)
            if oldest is None:
                return
            self.forget(oldest.key)
            self.forks_dropped += 1

    def _best_sibling(self, trunk: Trunk, wanted: Tokens) -> tuple[Trunk | None, int]:
        best: Trunk | None = None
        best_len = 0
        for other in self.homes.of_npc(trunk.key.npc):
            if other is trunk or other.seq < 0 or other.key.adapter != trunk.key.adapter:
                continue
            shared = common_len(other.tokens[: other.held], wanted)
            if shared > best_len:
                best, best_len = other, shared
        return best, best_len


def divide(geometry: Geometry, settings: KvSettings) -> tuple[int, int, int, int]:
    """(first prefix, first lane, first resident, residents): how the sequences are divided."""
    residents = geometry.sequences - settings.prefixes - settings.lanes
    assert residents > 0, "sequences must exceed prefixes + lanes; daemon.config checks it"
    return 0, settings.prefixes, settings.prefixes + settings.lanes, residents
