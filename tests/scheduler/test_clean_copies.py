"""A trunk that was loaded from RAM and has not changed is moved out again without a store."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.words import Tier, TrunkKey
from core.work import Work
from scheduler.placing import KvSettings
from tests.scheduler.simulated import Sim, npc, words

KV = KvSettings(prefixes=1, lanes=6, ram_mib=1)
LEN = 100


class Visits(Sim):
    """Two residents, RAM for all trunks, and a count of the engine's stores."""

    def __init__(self) -> None:
        super().__init__(sequences=9, kv=KV)
        self.stored = 0
        honest = self.engine.store

        def store(seq: int) -> bytes:
            self.stored += 1
            return honest(seq)

        self.engine.store = store  # type: ignore[method-assign]

    def visit(self, n: int, more: int = 0) -> int:
        """Runs an NPC's work on a trunk that is `more` tokens longer than at first. The reply is the one it gives
        alone, and the book is right. Returns the number of loaded tokens.
        """
        trunk = words(*range(n * LEN, n * LEN + LEN), *range(3000, 3000 + more))
        ticket = self.submit(Work(Tier.GOLD, key(n), trunk, words(7), 3, due_ns=self.clock()))
        self.run()
        assert self.chunks[ticket] == self.alone(self.submitted[ticket])
        self.check()
        return self.ended[ticket].timings.loaded_tokens

    def away(self, n: int) -> None:
        """Moves an NPC's trunk out of its sequence."""
        self.scheduler.move_out(npc(n))
        self.check()


def key(n: int) -> TrunkKey:
    """The key of an NPC's intent trunk."""
    return TrunkKey(npc(n), "")


@pytest.fixture
def sim() -> Visits:
    """The trunk of NPC 0 was computed, moved out, and loaded again."""
    sim = Visits()
    sim.visit(0)
    sim.away(0)
    assert sim.visit(0) == LEN
    assert sim.stored == 1
    return sim


def test_each_of_many_npcs_is_stored_once() -> None:
    """Many NPCs that keep evicting each other from the sequences are stored once each."""
    sim = Visits()
    for n in [*range(5)] * 6:
        sim.visit(n)
    placer = sim.scheduler.placer
    assert sim.stored == 5
    assert placer.moves.moved_out > 20
    assert placer.moves.moved_clean == placer.moves.moved_out - 5


def test_its_home_is_the_sequence(sim: Visits) -> None:
    """The copy counts as RAM, and is not the trunk's home."""
    homes = sim.scheduler.placer.homes
    trunk = homes.get(key(0))
    assert trunk.copy is not None
    assert (trunk.home, trunk.bytes_away, homes.ram_bytes) == ("sequence", 0, len(trunk.copy))


def test_a_trunk_that_has_grown_is_stored_anew(sim: Visits) -> None:
    """The longer trunk comes back with its new length."""
    sim.visit(0, more=20)
    assert sim.scheduler.placer.homes.ram_bytes == 0
    sim.away(0)
    assert sim.stored == 2
    assert sim.visit(0, more=20) == LEN + 20


def test_a_forgotten_trunk_leaves_no_copy(sim: Visits) -> None:
    """No copy is left in RAM, at once or when the work on the trunk ends, and the trunk is computed anew."""
    homes = sim.scheduler.placer.homes
    sim.forget(key(0))
    assert (homes.ram_bytes, homes.find(key(0)), homes.copies) == (0, None, 0)
    assert sim.visit(0) == 0
    sim.away(0)
    sim.submit(Work(Tier.GOLD, key(0), words(*range(LEN)), words(7), 3, due_ns=sim.clock()))
    sim.step()
    sim.forget(key(0))
    sim.run()
    assert (homes.ram_bytes, homes.find(key(0)), homes.copies) == (0, None, 0)


def test_a_commit_leaves_no_copy_of_what_was_before(sim: Visits) -> None:
    """The trunk holds the fork's tokens, and these are stored when it leaves."""
    fork = key(0)._replace(fork="what-if")
    trunk = words(*range(LEN))
    sim.submit(Work(Tier.GOLD, fork, trunk, words(900), 8, due_ns=sim.clock(), keep=True))
    sim.run()
    sim.scheduler.commit(fork)
    homes = sim.scheduler.placer.homes
    assert (homes.ram_bytes, homes.get(key(0)).copy) == (0, None)
    assert homes.get(key(0)).held > LEN
    sim.away(0)
    assert sim.stored == 2


def test_a_rebuilt_engine_loads_what_has_a_copy(sim: Visits) -> None:
    """A trunk with a copy is not computed again."""
    sim.scheduler.placer.engine_rebuilt()
    sim.engine.rebuild()
    sim.check()
    assert sim.scheduler.placer.homes.get(key(0)).home == "ram"
    assert sim.visit(0) == LEN


def test_a_copy_that_is_not_what_it_should_be_is_refused(sim: Visits) -> None:
    """A copy is verified as all bytes are when it is loaded the next time."""
    sim.away(0)
    trunk = sim.scheduler.placer.homes.get(key(0))
    assert trunk.blob is not None
    trunk.blob = replace(trunk.blob, payload=trunk.blob.payload[::-1])
    assert sim.visit(0) == 0
    assert sim.scheduler.placer.moves.refused["checksum"] == 1


def test_a_daemon_without_ram_for_kv_keeps_none() -> None:
    """Without RAM for KV, a trunk that leaves its sequence is computed anew."""
    sim = Visits()
    sim.scheduler.placer.homes.ram_bytes_max = 0
    for n in (0, 1, 2, 0):
        assert sim.visit(n) == 0
    assert (sim.scheduler.placer.homes.ram_bytes, sim.scheduler.placer.moves.moved_clean) == (0, 0)
