"""Moves trunks between their homes: sequences, host RAM, and the store beyond it.

Runs on the engine thread between steps. kvcache keeps the book, the engine has the bytes. Bytes are verified before
they are loaded, and loaded only where that is faster than computing them again.
"""

from __future__ import annotations

from core.choice import Tokens, common_len
from core.words import NpcKey
from core.work import Work
from engines.base import StepEngine
from kvcache import victims
from kvcache.homes import Homes, Trunk
from kvcache.verify import REASONS, Verifier
from scheduler.costs import Costs
from scheduler.loads import LoadCosts, recompute_ns
from scheduler.parking import Fetched, Parking


class Moves:
    """Moves of one engine's trunks, counted. Invariants: those of Homes."""

    def __init__(self, engine: StepEngine, homes: Homes, costs: Costs, fetch_wait_ms: float) -> None:
        self.homes = homes
        self.parking = Parking(homes, fetch_wait_ms)
        self.verifier = Verifier(engine.kv_kind)
        self.loads = LoadCosts()
        self.moved_out = 0
        self.moved_clean = 0  # of these: without storing anything
        self.loaded = 0
        self.turned_down = 0  # loads that would have taken longer than computing anew
        self.refused = dict.fromkeys(REASONS, 0)  # bytes that were not what they should be
        self.token_bytes = 0.0  # of KV, as it was when a trunk was moved out last
        self._costs = costs
        self._engine = engine

    @property
    def loads_refused(self) -> int:
        """Loads that were not made, because the bytes were not what they should be."""
        return sum(self.refused.values())

    def counters(self) -> dict[str, float]:
        """All moves, by name."""
        p = self.parking
        return {
            "moved_out": self.moved_out, "moved_clean": self.moved_clean, "loaded": self.loaded, "parked": p.parked,
            "fetched": p.fetched, "lost": p.lost, "given_up": p.given_up,
            "turned_down": self.turned_down + p.turned_down, "left_ram": self.homes.ram_dropped,
        }  # fmt: skip

    def make_resident(self, trunk: Trunk, near: int, now_ns: int) -> bool:
        """Gives a trunk a sequence, for which another one may have to leave its own; False when all are in use."""
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

    def load(self, trunk: Trunk, wanted: Tokens, shared: int) -> int:
        """Loads a resident trunk's bytes from RAM, if they are valid and loading is faster than computing. Returns the
        number of `wanted` tokens that were loaded. Loaded bytes stay as the clean copy; else the trunk is empty.
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

    def drop(self, trunk: Trunk) -> None:
        """Drops the bytes of a trunk that is in no sequence: it is to hold something else."""
        self.parking.forget(trunk)
        self.homes.take_blob(trunk)
        self.homes.lose(trunk)

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

    def is_here(self, trunk: Trunk, work: Work, now_ns: int) -> bool:
        """True if the work need not wait for a fetch of its trunk. May begin a fetch."""
        if not trunk.parked:
            return True
        useful = common_len(trunk.tokens[: trunk.held], work.trunk)
        anew_ns = recompute_ns(self._costs, min(work.shared, useful), useful, self._engine.geometry.micro_len)
        return self.parking.is_here(trunk, work, anew_ns - self.loads.predict_ns(trunk.parked_bytes), now_ns)
