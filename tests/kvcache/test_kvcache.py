"""The book of trunks and their sequences keeps its laws under random use."""

import random

import numpy as np
import pytest

from core.choice import common_len
from core.words import NpcKey, Tier, TrunkKey
from kvcache import victims
from kvcache.homes import Homes, Trunk
from kvcache.lanes import Lanes
from kvcache.prefix import Prefixes
from kvcache.verify import Sealed


def key(n: int) -> TrunkKey:
    """A trunk's name."""
    return TrunkKey(NpcKey("", "w", str(n)), "")


def sealed(size: int) -> Sealed:
    """Bytes without a header."""
    return Sealed(b"", b"x" * size)


def test_lanes_are_dense_and_none_is_lost() -> None:
    """free + leased == count after every step, and the lowest free lane is leased first."""
    lanes = Lanes(10, 5)
    held: list[int] = []
    rng = random.Random(3)
    for _ in range(500):
        if held and rng.random() < 0.5:
            lanes.give_back(held.pop(rng.randrange(len(held))))
        else:
            lane = lanes.lease()
            assert (lane is None) == (len(held) == 5)
            if lane is not None:
                assert lane == min(set(range(10, 15)) - set(held))
                held.append(lane)
        assert lanes.free + lanes.leased == lanes.count
    with pytest.raises(KeyError):
        lanes.give_back(99)


def test_homes_lose_no_sequence_and_no_byte() -> None:
    """free + resident == count, and the bytes in RAM are counted right, whatever happens."""
    homes = Homes(3, 4, ram_bytes_max=100)
    rng = random.Random(4)
    for now in range(2000):
        trunk = homes.get(key(rng.randrange(12)))
        act = rng.random()
        if trunk.seq < 0:
            if homes.settle(trunk):
                if trunk.blob is not None and rng.random() < 0.7:
                    homes.loaded(trunk)
                else:
                    homes.take_blob(trunk)
                homes.holds(trunk, np.arange(5, dtype=np.int32), 5)
                trunk.used_ns = now
        elif act < 0.5:
            for gone, _ in homes.vacate(trunk, sealed(rng.randrange(60)) if rng.random() < 0.8 else None):
                homes.lose(gone)
        elif act < 0.7:
            homes.remove(trunk.key)
        elif act < 0.8:
            homes.holds(trunk, trunk.tokens, trunk.held - rng.randrange(2))
        elif act < 0.82:
            assert not homes.forget_sequences()
        resident = [t for t in homes if t.seq >= 0]
        assert homes.free + len(resident) == homes.count
        assert len({t.seq for t in resident}) == len(resident)
        in_ram = [s for t in homes for s in (t.blob, t.copy) if s is not None]
        assert homes.ram_bytes == sum(map(len, in_ram)) <= homes.ram_bytes_max
        for t in homes:
            assert not (t.seq >= 0 and t.blob is not None)
            assert t.held == 0 or t.seq >= 0 or t.blob is not None
            assert t.copy is None or (t.seq >= 0 and t.held)
        assert sum(len(homes.of_npc(key(n).npc)) for n in range(12)) == len(homes)


def test_ram_keeps_the_newest_and_nothing_that_is_larger_than_all_of_it() -> None:
    """The trunk that was used longest ago loses its bytes, and is computed anew later. A trunk larger than all of RAM
    is not kept."""
    homes = Homes(0, 3, ram_bytes_max=100)
    trunks = [homes.get(key(n)) for n in range(3)]
    for now, (trunk, size) in enumerate(zip(trunks, (60, 60, 101), strict=True)):
        homes.settle(trunk)
        trunk.tokens, trunk.held, trunk.used_ns = np.arange(5, dtype=np.int32), 5, now
        for gone, _ in homes.vacate(trunk, sealed(size)):
            homes.lose(gone)
    assert [t.home for t in trunks] == ["none", "ram", "none"]
    assert [t.held for t in trunks] == [0, 5, 0]
    assert (homes.ram_dropped, homes.ram_bytes) == (1, 60)
    assert homes.remove(key(9)) == -1
    assert homes.free == 3


def test_copies_leave_ram_before_what_is_nowhere_else() -> None:
    """The copy of the trunk that was used last is evicted first. A trunk without a sequence keeps its bytes while any
    copy is left."""
    homes = Homes(0, 4, ram_bytes_max=100)
    trunks = [homes.get(key(n)) for n in range(4)]
    for now, trunk in enumerate(trunks):
        homes.settle(trunk)
        homes.holds(trunk, np.arange(5, dtype=np.int32), 5)
        trunk.used_ns = now
    for trunk in trunks[:3]:
        homes.vacate(trunk, sealed(30))
    for trunk in trunks[:2]:
        homes.settle(trunk)
        homes.loaded(trunk)
    assert [t.home for t in trunks] == ["sequence", "sequence", "ram", "sequence"]
    assert homes.ram_bytes == 90
    assert not homes.vacate(trunks[3], sealed(30))
    assert [t.copy is not None for t in trunks] == [True, False, False, False]
    assert [t.home for t in trunks] == ["sequence", "sequence", "ram", "ram"]
    assert [trunk for trunk, _ in homes.put(homes.get(key(9)), sealed(60))] == [trunks[2]]
    assert (homes.ram_bytes, homes.ram_dropped) == (90, 1)


@pytest.mark.parametrize(
    ("tokens", "held", "kept"), [(5, 5, True), (9, 5, True), (5, 4, False), (9, 6, False), (0, 5, False)]
)
def test_a_copy_lives_while_its_trunk_holds_the_same(tokens: int, held: int, kept: bool) -> None:
    """A copy is dropped when its trunk's tokens become longer, shorter or different. Wanted tokens beyond the held ones
    change nothing."""
    homes = Homes(0, 1, ram_bytes_max=100)
    trunk = homes.get(key(0))
    homes.settle(trunk)
    homes.holds(trunk, np.arange(5, dtype=np.int32), 5)
    homes.vacate(trunk, sealed(30))
    homes.settle(trunk)
    homes.loaded(trunk)
    homes.holds(trunk, np.arange(tokens, dtype=np.int32) if tokens else np.arange(5, 0, -1, dtype=np.int32), held)
    assert (trunk.copy is not None, homes.ram_bytes) == (kept, 30 * kept)


def test_victims_are_idle_low_and_old_first_and_never_in_use() -> None:
    """Victims are chosen by idleness, tier and recency. A trunk that a work uses is never chosen."""
    homes = Homes(0, 4, 0)
    now = 100 * 10**9
    for n, (tier, used_s, users) in enumerate(
        [(Tier.GOLD, 95, 0), (Tier.BRONZE, 99, 0), (Tier.SILVER, 20, 0), (Tier.BRONZE, 1, 1)]
    ):
        trunk = homes.get(key(n))
        homes.settle(trunk)
        trunk.tier, trunk.used_ns, trunk.users = tier, used_s * 10**9, users
    order = []
    while (found := victims.choose(homes.residents, now)) is not None:
        order.append(found[0].key.npc.npc)
        assert found[1]
        homes.vacate(found[0], None)
    assert order == ["2", "1", "0"]


@pytest.mark.parametrize("seed", range(20))
def test_the_victim_is_the_least_by_idle_tier_recency_and_length(seed: int) -> None:
    """The victim agrees with a plain sort, with many ties: of equal trunks it is the first."""
    rng = random.Random(seed)
    now = 60 * 10**9
    trunks = [Trunk(key(n), held=rng.randrange(3), users=int(rng.random() < 0.3)) for n in range(rng.randrange(1, 30))]
    for trunk in trunks:
        trunk.tier = rng.choice(list(Tier))
        trunk.used_ns = now - rng.choice([0, 10, 29, 30, 31, 50]) * 10**9
    found = victims.choose(trunks, now)
    order = [(now - t.used_ns <= victims.IDLE_NS, -t.tier, t.used_ns, t.held, n) for n, t in enumerate(trunks)]
    free = [rank for rank, t in zip(order, trunks, strict=True) if not t.users]
    assert (found[0] if found else None) is (trunks[min(free)[-1]] if free else None)


def test_prefixes_are_shared_and_the_longest_unused_gives_way() -> None:
    """Equal tokens share one prefix. A prefix that is in use is never evicted."""
    prefixes = Prefixes(0, 2)
    a, b, c = (np.arange(n, n + 5, dtype=np.int32) for n in (0, 10, 20))
    first, gone = prefixes.take(a, 1) or pytest.fail("there was room")
    again, _ = prefixes.take(a.copy(), 2) or pytest.fail("it is there")
    assert first is again
    assert gone is None
    second, _ = prefixes.take(b, 3) or pytest.fail("there was room")
    assert second.seq != first.seq
    assert prefixes.take(c, 4) is None
    prefixes.give_back(second)
    third, gone = prefixes.take(c, 5) or pytest.fail("one was unused")
    assert gone is second
    assert third.seq == second.seq
    assert third.held == 0


def test_common_len_against_a_dumb_version() -> None:
    """The number of leading tokens that two sequences share, as a simple loop counts them."""
    rng = random.Random(5)
    for _ in range(500):
        a = np.asarray([rng.randrange(2) for _ in range(rng.randrange(6))], np.int32)
        b = np.asarray([rng.randrange(2) for _ in range(rng.randrange(6))], np.int32)
        dumb = 0
        while dumb < min(len(a), len(b)) and a[dumb] == b[dumb]:
            dumb += 1
        assert common_len(a, b) == dumb


def test_a_trunk_that_is_being_fetched_is_removed_from_the_store_last() -> None:
    """Of three trunks that fill the store, the oldest one that is not being fetched is removed. The fetched one is
    removed when no other is left."""
    homes = Homes(0, 4, 0, 300)
    trunks = [homes.get(TrunkKey(NpcKey("", "w", f"npc{n}"), "")) for n in range(5)]
    for number, trunk in enumerate(trunks[:3], 1):
        assert homes.park(trunk, number, 100) == []
    trunks[0].fetching_ns = 1
    gone = homes.park(trunks[3], 4, 100)
    assert gone == [trunks[1]]
    homes.unpark(trunks[1])
    assert homes.park(trunks[4], 5, 300) == [trunks[2], trunks[3], trunks[0]]
