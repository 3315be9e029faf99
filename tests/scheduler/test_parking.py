"""A trunk that has no room in RAM goes to the store. It comes back in time or is computed anew, and no work waits
longer."""

from dataclasses import replace

import pytest

from core.clock import MS
from core.words import Tier, TrunkKey
from core.work import Work
from scheduler.parking import Fetched
from scheduler.placing import KvSettings
from tests.scheduler.simulated import Sim, npc, words

KV = KvSettings(prefixes=1, lanes=6, ram_mib=1, redis_mib=1, fetch_wait_ms=5.0)
LEN = 100


class Store:
    """A store that answers when the test says so."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[bytes, bytes]] = {}
        self.asked: list[int] = []
        self.dropped: list[int] = []

    def park(self, number: int, header: bytes, payload: bytes) -> bool:
        """Takes all bytes."""
        self.kept[number] = (header, payload)
        return True

    def fetch(self, number: int) -> None:
        """Notes the request."""
        self.asked.append(number)

    def drop(self, number: int) -> None:
        """Removes bytes."""
        self.dropped.append(number)
        self.kept.pop(number, None)

    def answer(self, sim: Sim, fault: str = "") -> None:
        """Answers the noted requests."""
        for number in self.asked:
            header, payload = self.kept.pop(number, (b"", b""))
            sim.scheduler.arrived(Fetched(sim.clock(), number, header, payload, fault))
        self.asked.clear()


@pytest.fixture
def sim() -> Sim:
    """Two residents, RAM for two trunks, and a store. Five other NPCs have evicted NPC 0's trunk to the store."""
    sim = Sim(sequences=9, kv=KV)
    placer = sim.scheduler.placer
    placer.homes.ram_bytes_max = 2 * 600
    placer.moves.parking.store = Store()
    for n in range(5):
        ask(sim, n)
        sim.run()
    assert trunk_of(sim, 0) == "redis"
    return sim


def ask(sim: Sim, n: int, tier: Tier = Tier.GOLD, tokens_max: int = 3) -> int:
    """A work of an NPC, with a trunk of its own."""
    tail = words(7) if tokens_max else words()
    trunk = words(*range(n * LEN, n * LEN + LEN))
    return sim.submit(Work(tier, TrunkKey(npc(n), ""), trunk, tail, tokens_max, due_ns=sim.clock()))


def trunk_of(sim: Sim, n: int) -> str:
    """An NPC's trunk in the book."""
    return sim.scheduler.placer.homes.get(TrunkKey(npc(n), "")).home


def store_of(sim: Sim) -> Store:
    """The store of a simulation."""
    store = sim.scheduler.placer.moves.parking.store
    assert isinstance(store, Store)
    return store


@pytest.mark.parametrize("tier", Tier)
def test_a_work_waits_a_moment_for_its_trunk(sim: Sim, tier: Tier) -> None:
    """The trunk is fetched when the work arrives. No work runs meanwhile, and then nothing is computed again."""
    ticket = ask(sim, 0, tier)
    computed = sim.scheduler.placer.tokens.computed
    sim.step()
    while not store_of(sim).asked:
        sim.step()
    assert ticket not in sim.taken
    store_of(sim).answer(sim)
    sim.run()
    assert sim.chunks[ticket] == sim.alone(sim.submitted[ticket])
    assert sim.ended[ticket].timings.loaded_tokens == LEN
    assert sim.scheduler.placer.tokens.computed == computed


def test_it_waits_no_longer_than_fetch_wait_ms(sim: Sim) -> None:
    """After that the trunk is computed anew, and a late answer changes nothing."""
    ticket = ask(sim, 0)
    began_ns = sim.clock()
    sim.run(until=lambda: ticket in sim.taken)
    assert sim.taken[ticket] - began_ns <= (KV.fetch_wait_ms + 10) * MS
    late = store_of(sim).asked[0]
    sim.scheduler.arrived(Fetched(sim.clock(), late, b"", b""))
    sim.run()
    assert sim.chunks[ticket] == sim.alone(sim.submitted[ticket])
    assert sim.ended[ticket].timings.loaded_tokens == 0
    assert sim.scheduler.placer.moves.parking.given_up == 1


@pytest.mark.parametrize("fault", ["away", "gone", "signature"])
def test_bytes_that_do_not_come_back_are_computed_anew(sim: Sim, fault: str) -> None:
    """If the bytes are lost, unreachable or signed by another key, the reply is the same, and the fault is counted."""
    ticket = ask(sim, 0)
    sim.run(until=lambda: bool(store_of(sim).asked))
    store_of(sim).answer(sim, fault)
    sim.run()
    assert sim.chunks[ticket] == sim.alone(sim.submitted[ticket])
    placer = sim.scheduler.placer
    assert (placer.moves.parking.lost, placer.moves.refused["signature"]) == (
        (0, 1) if fault == "signature" else (1, 0)
    )


def test_a_trunk_too_large_for_ram_is_not_fetched(sim: Sim) -> None:
    """Such a trunk would go back to the store at once and make its works wait in vain, so it is computed anew."""
    homes = sim.scheduler.placer.homes
    for key in [trunk.key for trunk in homes if trunk.blob is not None]:
        sim.forget(key)
    homes.ram_bytes_max = 0
    sim.scheduler.load_ahead(npc(0), sim.clock())
    ticket = ask(sim, 0)
    sim.run()
    assert sim.chunks[ticket] == sim.alone(sim.submitted[ticket])
    assert not store_of(sim).asked
    assert sim.scheduler.placer.moves.parking.turned_down == 1


def test_load_ahead_brings_it_to_ram_before_it_is_asked(sim: Sim) -> None:
    """The trunk is fetched once, however often the hint comes. The work then waits for nothing."""
    for _ in range(3):
        sim.scheduler.load_ahead(npc(0), sim.clock())
    assert len(store_of(sim).asked) == 1
    store_of(sim).answer(sim)
    assert trunk_of(sim, 0) == "ram"
    ticket = ask(sim, 0)
    sim.run()
    assert sim.ended[ticket].timings.loaded_tokens == LEN
    assert not store_of(sim).asked


def test_move_out_frees_trunks_that_no_work_uses(sim: Sim) -> None:
    """An NPC's trunk leaves its sequence at once, and gives the same reply when it comes back."""
    assert trunk_of(sim, 4) == "sequence"
    free = sim.scheduler.placer.homes.free
    sim.scheduler.move_out(npc(4))
    assert (trunk_of(sim, 4), sim.scheduler.placer.homes.free) == ("ram", free + 1)
    ticket = ask(sim, 4)
    sim.step()
    sim.scheduler.move_out(npc(4))
    assert trunk_of(sim, 4) == "sequence"
    sim.run()
    assert sim.chunks[ticket] == sim.alone(sim.submitted[ticket])


def test_forgotten_bytes_are_removed(sim: Sim) -> None:
    """Bytes are removed wherever they are, also while they move. No part of the trunk is left in the book or in the
    store."""
    homes, store = sim.scheduler.placer.homes, store_of(sim)
    number = homes.get(TrunkKey(npc(0), "")).parked
    sim.scheduler.load_ahead(npc(0), sim.clock())
    sim.forget(TrunkKey(npc(0), ""))
    assert number in store.dropped
    assert homes.find(TrunkKey(npc(0), "")) is None
    store.answer(sim)
    assert homes.find(TrunkKey(npc(0), "")) is None


def test_the_store_s_bound_is_kept_by_dropping_the_oldest(sim: Sim) -> None:
    """redis_mib is never exceeded, and dropped trunks are computed anew."""
    placer, store = sim.scheduler.placer, store_of(sim)
    placer.homes.parked_bytes_max = 2 * 600
    for n in range(5, 12):
        ask(sim, n)
        sim.run()
        assert placer.homes.parked_bytes <= placer.homes.parked_bytes_max
        assert sum(len(h) + len(p) for h, p in store.kept.values()) == placer.homes.parked_bytes
    assert trunk_of(sim, 0) == "none"


def test_a_fetch_that_would_take_longer_than_computing_is_not_made(sim: Sim) -> None:
    """When the store is known to be slow, no work waits for it, and the bytes are dropped."""
    sim.scheduler.placer.moves.parking.costs.fixed_ns = 1e12
    ticket = ask(sim, 0)
    sim.run()
    assert not store_of(sim).asked
    assert sim.scheduler.placer.moves.parking.turned_down == 1
    assert sim.chunks[ticket] == sim.alone(sim.submitted[ticket])


def test_a_cancelled_work_ends_the_wait_for_its_fetch(sim: Sim) -> None:
    """When the only work that waits for a fetch is cancelled, the scheduler is idle."""
    ticket = ask(sim, 0)
    sim.run(until=lambda: bool(store_of(sim).asked))
    sim.cancel(ticket)
    assert sim.scheduler.idle
    store_of(sim).answer(sim)
    again = ask(sim, 0)
    sim.run()
    assert sim.chunks[again] == sim.alone(sim.submitted[again])


def test_without_a_store_a_trunk_without_room_is_lost() -> None:
    """Without a store such a trunk is computed anew."""
    sim = Sim(sequences=9, kv=replace(KV, redis_mib=0))
    sim.scheduler.placer.homes.ram_bytes_max = 600
    for n in (0, 1, 2, 3, 0):
        ticket = ask(sim, n)
        sim.run()
        assert sim.chunks[ticket] == sim.alone(sim.submitted[ticket])
    assert sim.scheduler.placer.moves.parking.parked == 0
