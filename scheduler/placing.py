"""Brings a work's trunk into a sequence and its branch onto a lane, and puts everything back afterwards.

Runs on the engine thread between steps; owns nothing but the counters: the book is kvcache's, the bytes are the
engine's.

A place computes its parts one after another. The next tokens of each part belong to one sequence:

    PREFIX  the shared beginning is computed in the prefix's own sequence (any work that waits for it may carry it)
    TRUNK   the rest of the trunk is computed in the trunk's resident sequence
    BRANCH  the tail and what is generated: Gold on the trunk's own sequence, the others on a lane (a copy)

On cancel the branch is cut off or its lane given back; what was computed of prefix and trunk stays, it is valid.

A fork is a trunk of its own that begins as a copy of its origin. Works run on it as on any other; commit() then makes
what it holds the origin's, and no byte is moved for it; forget() discards it. The origin's KV is only read meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from core.choice import Tokens
from core.words import NpcKey, Tier, TrunkKey
from core.work import Work
from engines.base import NEVER, Geometry, StepEngine
from kvcache import victims
from kvcache.homes import NO_TOKENS, Homes, Trunk, common_len
from kvcache.lanes import Lanes
from kvcache.prefix import Prefix, Prefixes
from kvcache.verify import REASONS, Verifier
from scheduler.costs import Costs
from scheduler.loads import LoadCosts, recompute_ns
from scheduler.parking import Fetched, Parking


@dataclass(frozen=True, slots=True)
class KvSettings:
    """How the engine's sequences are divided; what is not prefixes or lanes holds resident trunks.

    Trunks that leave their sequence rest in `ram_mib` of host RAM, and what has no room there in `redis_mib` of Redis,
    if there is one; they come back through RAM, and a work waits `fetch_wait_ms` at most for that. Beyond `forks_max`
    the fork that is unused longest is discarded for a new one.
    """

    prefixes: int = 12
    lanes: int = 24
    ram_mib: int = 512
    redis_mib: int = 256
    fetch_wait_ms: float = 5.0
    forks_max: int = 64


class Part(Enum):
    """The part of a work that is computed now: where its next tokens go."""

    PREFIX = "prefix"
    TRUNK = "trunk"
    BRANCH = "branch"


@dataclass(slots=True)
class TrunkTokens:
    """How trunk tokens came to where works needed them: they were in the sequence, were loaded from another home,
    copied from a prefix or a sibling, or computed.
    """

    resident: int = 0
    loaded: int = 0
    copied: int = 0
    computed: int = 0

    def add(self, place: Place) -> None:
        """Counts what a place begins with."""
        self.loaded += place.loaded
        self.copied += place.copied
        self.resident += place.cached - place.loaded - place.copied


@dataclass(slots=True, eq=False)
class Place:
    """Where one running work stands. `cached` counts trunk tokens that were there already: `loaded` of them from
    another home, `copied` from a prefix or a sibling. The branch is computed as the trunk is up to `adapter_from`.
    """

    work: Work
    trunk: Trunk
    part: Part
    prefix: Prefix | None = None
    lane: int = -1
    branch_len: int = 0
    cached: int = 0
    loaded: int = 0
    copied: int = 0
    adapter_from: int = 0

    @property
    def seq(self) -> int:
        """The sequence that takes the next tokens."""
        if self.part is Part.PREFIX:
            assert self.prefix is not None
            return self.prefix.seq
        return self.lane if self.part is Part.BRANCH and self.lane >= 0 else self.trunk.seq

    @property
    def pos(self) -> int:
        """How many tokens that sequence holds."""
        if self.part is Part.PREFIX:
            assert self.prefix is not None
            return self.prefix.held
        # A trunk that was copied to a lane may grow meanwhile; the branch stands on the length it had then.
        return len(self.work.trunk) + self.branch_len if self.part is Part.BRANCH else self.trunk.held

    @property
    def stands(self) -> bool:
        """Whether it has its trunk to itself: no other work can stand on that meanwhile."""
        return self.part is not Part.BRANCH or self.lane < 0 or self.work.keep

    @property
    def adapter(self) -> str:
        """What the next tokens are computed with."""
        on = self.part is Part.BRANCH and self.branch_len >= self.adapter_from
        return self.work.adapter if on else self.work.key.adapter

    @property
    def alike_len(self) -> int:
        """So many of the branch's next tokens are computed with the same adapter."""
        off = self.adapter_from - self.branch_len
        return off if off > 0 else NEVER

    @property
    def missing(self) -> Tokens:
        """What prefix or trunk still lack; empty in BRANCH."""
        if self.part is Part.PREFIX:
            assert self.prefix is not None
            return self.prefix.tokens[self.prefix.held :]
        return self.work.trunk[self.trunk.held :] if self.part is Part.TRUNK else NO_TOKENS


class Placer:
    """Places works on one engine. Invariants: those of Homes, Lanes and Prefixes; one work per trunk until it is on a
    lane.
    """

    def __init__(self, engine: StepEngine, settings: KvSettings, costs: Costs) -> None:
        prefixes_first, lanes_first, residents_first, residents = divide(engine.geometry, settings)
        self.prefixes = Prefixes(prefixes_first, settings.prefixes)
        self.lanes = Lanes(lanes_first, settings.lanes)
        self.homes = Homes(residents_first, residents, settings.ram_mib << 20, settings.redis_mib << 20)
        self.parking = Parking(self.homes, settings.fetch_wait_ms)
        self.moved_out = 0
        self.moved_clean = 0  # of these: without storing anything
        self.token_bytes = 0.0  # of KV, as it was when a trunk was moved out last
        self.loaded = 0
        self.forks_dropped = 0
        self._forks_max = settings.forks_max
        self.turned_down = 0  # loads that would have taken longer than computing anew
        self.refused = dict.fromkeys(REASONS, 0)  # bytes that were not what they should be
        self.tokens = TrunkTokens()
        self.verifier = Verifier(engine.kv_kind)
        self.loads = LoadCosts()
        self._costs = costs
        self._engine = engine

    def place(self, work: Work, now_ns: int) -> Place | None:
        """A place for the work, or None when it must wait: its trunk is in use, or no lane or sequence is free."""
        if work.key.fork and work.key not in self.homes.forks:
            self._bound_forks()
        trunk = self.homes.get(work.key)
        if trunk.users or not self._is_here(trunk, work, now_ns):
            return None
        lane = -1
        if self.needs_lane(work):
            leased = self.lanes.lease()
            if leased is None:
                return None
            lane = leased
        if not self._make_resident(trunk, work.near, now_ns):
            if lane >= 0:
                self.lanes.give_back(lane)
            return None
        trunk.users += 1
        trunk.used_ns, trunk.tier = now_ns, work.tier
        place = Place(work, trunk, Part.TRUNK, lane=lane)
        if work.adapter != work.key.adapter:
            place.adapter_from = self._engine.adapter_from(work.adapter, work.tail)
        place.loaded = self._load(trunk, work.trunk, work.shared)
        self._begin(place, now_ns)
        place.cached = trunk.held
        trunk.hits += place.cached > 0
        self.tokens.add(place)
        self.advance(place)
        return place

    @staticmethod
    def needs_lane(work: Work) -> bool:
        """Whether a work's branch is on a lane."""
        return work.tier is not Tier.GOLD and work.max_tokens > 0

    def counters(self) -> dict[str, dict[str, float]]:
        """All that is counted here and of the engine's adapters, by family and name. Any thread may ask."""
        t, p = self.tokens, self.parking
        moves = {
            "moved_out": self.moved_out, "moved_clean": self.moved_clean, "loaded": self.loaded, "parked": p.parked,
            "fetched": p.fetched, "lost": p.lost, "given_up": p.given_up,
            "turned_down": self.turned_down + p.turned_down, "left_ram": self.homes.ram_dropped,
        }  # fmt: skip
        tokens = {"resident": t.resident, "loaded": t.loaded, "copied": t.copied, "computed": t.computed}
        return {
            "trunk_tokens": dict(tokens), "moves": dict(moves), "refused": dict(self.refused),
            "adapters": dict(self._engine.adapter_counts()),
        }  # fmt: skip

    @property
    def loads_refused(self) -> int:
        """Loads that were not made, because the bytes were not what they should be."""
        return sum(self.refused.values())

    def could_stand(self, key: TrunkKey) -> bool:
        """Whether a work could stand on that trunk now: no other does, and there is a sequence for it."""
        homes = self.homes
        trunk = homes.find(key)
        if trunk is not None and trunk.fetching_ns:
            return False
        if trunk is not None and (trunk.users or trunk.seq >= 0):
            return not trunk.users
        return homes.free > 0 or any(not t.users for t in homes.residents)

    def advance(self, place: Place) -> None:
        """Goes on to the next part while the present one lacks nothing."""
        if place.part is Part.PREFIX:
            prefix = place.prefix
            assert prefix is not None
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
            self.parking.forget(trunk)
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
            self.parking.forget(origin)
        seq = self.homes.commit(fork)
        if seq >= 0:
            self._engine.trim(seq, 0)
        return True

    def engine_rebuilt(self) -> None:
        """Every sequence is empty: corrects the book. Places must be released and made anew."""
        self.prefixes.forget_all()
        self.parking.put_away(self.homes.forget_sequences())

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
                # What a ready prefix holds is there already, so it counts as held (and cached) from here on.
                self.homes.holds(trunk, work.trunk, 0)
                place.part = Part.PREFIX
                self.advance(place)
                place.copied = trunk.held
                return
        self._engine.trim(trunk.seq, keep)
        self.homes.holds(trunk, work.trunk, keep)

    def _fork(self, trunk: Trunk, wanted: Tokens, keep: int, now_ns: int) -> bool:
        """Begins as a copy of what the trunk is a fork of, if that holds more than `keep` of what is wanted."""
        origin = self.homes.find(trunk.key.origin)
        if origin is None or common_len(origin.tokens[: origin.held], wanted) <= keep:
            return False
        if origin.parked or not self._make_resident(origin, -1, now_ns):
            return False
        self._load(origin, wanted, 0)
        shared = common_len(origin.tokens[: origin.held], wanted)  # its bytes may have been refused
        if shared <= keep:
            return False
        self._engine.copy(origin.seq, trunk.seq)
        self._engine.trim(trunk.seq, shared)
        self.homes.holds(trunk, wanted, shared)
        return True

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

    def _make_resident(self, trunk: Trunk, near: int, now_ns: int) -> bool:
        if trunk.seq >= 0:
            return True
        if not self.homes.settle(trunk, near):
            found = victims.choose(self.homes.residents, now_ns)
            if found is None:
                return False
            self.homes.touch(trunk)  # or it might have to leave RAM for whom it drives out of a sequence
            self.move_out(found[0])
            self.parking.forget(trunk)
            settled = self.homes.settle(trunk)
            assert settled, "a sequence was just made free"
        return True

    def _load(self, trunk: Trunk, wanted: Tokens, shared: int) -> int:
        """Loads what RAM has of a resident trunk, when it is what it should be and faster than computing it anew; how
        many of the `wanted` tokens came so. What was loaded stays as the clean copy. The trunk holds nothing otherwise.
        """
        sealed = trunk.blob
        if sealed is None:
            return 0
        useful = common_len(trunk.tokens[: trunk.held], wanted)
        anew_ns = recompute_ns(self._costs, min(shared, useful), useful, self._engine.geometry.micro_len)
        if useful <= shared or not self.loads.pays(len(sealed), 0, anew_ns):
            self.turned_down += 1
        else:
            began_ns = self._engine.clock()
            fault = self.verifier.fault(sealed, trunk.tokens[: trunk.held], trunk.key.adapter)
            if not fault and self._engine.load(trunk.seq, sealed.payload):
                if self._engine.length(trunk.seq) == trunk.held:
                    self.loads.add(len(sealed), self._engine.clock() - began_ns)
                    self.loaded += 1
                    self.homes.loaded(trunk)
                    return useful
                self._engine.trim(trunk.seq, 0)
            self.refused[fault or "engine"] += 1
        self.homes.take_blob(trunk)
        self.homes.lose(trunk)
        return 0

    def move_out(self, trunk: Trunk) -> None:
        """Moves an unused resident trunk to host RAM; nothing is stored when a clean copy of it is there."""
        seq = trunk.seq
        sealed = self.homes.take_copy(trunk)
        if sealed is not None:
            self.moved_clean += 1
        elif trunk.held:
            payload = self._engine.store(seq)
            self.token_bytes = len(payload) / trunk.held
            sealed = self.verifier.seal(payload, trunk.tokens[: trunk.held], trunk.key.adapter)
        evicted = self.homes.vacate(trunk, sealed)
        self._engine.trim(seq, 0)
        self.moved_out += 1
        self.parking.put_away(evicted)

    def move_out_npc(self, npc: NpcKey) -> None:
        """Moves an NPC's trunks to host RAM, except those that works stand on."""
        for trunk in self.homes.of_npc(npc):
            if trunk.seq >= 0 and not trunk.users:
                self.move_out(trunk)

    def load_ahead(self, npc: NpcKey, now_ns: int) -> None:
        """Begins to bring an NPC's trunks back from the store: somebody will need them soon."""
        for trunk in self.homes.of_npc(npc):
            self.parking.fetch(trunk, now_ns)

    def arrived(self, what: Fetched) -> None:
        """Takes in what the store gave."""
        if self.parking.arrived(what) == "signature":
            self.refused["signature"] += 1

    def _is_here(self, trunk: Trunk, work: Work, now_ns: int) -> bool:
        """Whether the work need not wait for a fetch of its trunk, which it may begin."""
        if not trunk.parked:
            return True
        useful = common_len(trunk.tokens[: trunk.held], work.trunk)
        anew_ns = recompute_ns(self._costs, min(work.shared, useful), useful, self._engine.geometry.micro_len)
        return self.parking.is_here(trunk, work, anew_ns - self.loads.predict_ns(trunk.parked_bytes), now_ns)


def divide(geometry: Geometry, settings: KvSettings) -> tuple[int, int, int, int]:
    """(first prefix, first lane, first resident, residents): how the sequences are divided."""
    residents = geometry.sequences - settings.prefixes - settings.lanes
    assert residents > 0, "sequences must exceed prefixes + lanes; daemon.config checks it"
    return 0, settings.prefixes, settings.prefixes + settings.lanes, residents
