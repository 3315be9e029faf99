"""Recall reads the recent store within its budget, once for all callers, and never takes an old answer for a new
one."""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from core.clock import now_ns
from core.errors import StoreFailed
from core.words import NpcKey
from memory.bond import Bond
from memory.bonds import Bonds, Held
from memory.recall import FAILED_AGAIN_NS, Recall
from memory.records import Position
from tests.memory.tales import NPC, turn

MIRA = NpcKey(*NPC)
NOW_MS = 1_800_000_000_000


class SlowStore:
    """A store that answers when the test lets it."""

    def __init__(self, bond: Bond | None) -> None:
        self.bond = bond
        self.asked = 0
        self.let = asyncio.Event()
        self.fails = False

    async def recall(self, npc: NpcKey, player: str, now_ms: int) -> Bond | None:
        """The bond, when the test lets it."""
        self.asked += 1
        if self.fails:
            raise StoreFailed("it is away")
        await self.let.wait()
        return self.bond


def recall_of(store: SlowStore, bonds: Bonds, budget_ms: float = 5_000.0) -> Recall:
    """Recall on top of a store."""
    return Recall(bonds, store, budget_ms, 4, now_ns, lambda: NOW_MS)


def lines_of(act: Callable[[], None]) -> int:
    """The number of executed lines of Python."""
    count, before = 0, sys.gettrace()

    def trace(_frame: object, event: str, _arg: object) -> Callable[..., Any]:
        nonlocal count
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


async def test_many_ask_and_the_store_is_asked_once() -> None:
    """All callers get the same bond, and later ones get it from the process."""
    store = SlowStore(Bond(name="Ann"))
    bonds = Bonds(10)
    recall = recall_of(store, bonds)
    asking = [asyncio.create_task(recall.recall(MIRA, "p")) for _ in range(5)]
    await asyncio.sleep(0)
    store.let.set()
    answers = await asyncio.gather(*asking)
    assert {a.bond.name for a in answers} == {"Ann"} and store.asked == 1
    assert {a.stores for a in answers} == {("hot", "recent")} and not any(a.late for a in answers)
    again = await recall.recall(MIRA, "p")
    assert (again.bond.name, again.stores, store.asked) == ("Ann", ("hot",), 1)


async def test_a_late_store_is_not_waited_for_and_its_answer_serves_the_next() -> None:
    """The recall reports that the store is late. When the answer arrives, later recalls have it."""
    store = SlowStore(Bond(name="Ann"))
    recall = recall_of(store, Bonds(10), budget_ms=1.0)
    late = await recall.recall(MIRA, "p")
    assert late.late and late.bond == Bond() and late.stores == ("hot",)
    store.let.set()
    await asyncio.sleep(0)
    while recall._reads:  # noqa: ASYNC110 - the read ends on its own
        await asyncio.sleep(0)
    there = await recall.recall(MIRA, "p")
    assert there.bond.name == "Ann" and not there.late and store.asked == 1
    assert (recall.counts.late, recall.counts.hot) == (1, 1)


async def test_a_store_that_is_away_costs_nothing_but_what_it_knows() -> None:
    """The turn goes on. When the store is back, it is read again."""
    store = SlowStore(Bond(name="Ann"))
    store.fails = True
    recall = recall_of(store, Bonds(10))
    gone = await recall.recall(MIRA, "p")
    assert gone.late and gone.bond == Bond()
    store.fails = False
    store.let.set()
    assert (await recall.recall(MIRA, "p")).bond.name == "Ann"


async def test_records_that_arrive_during_a_read_are_not_lost_to_its_old_answer() -> None:
    """A record that arrived while the store was read is not in its answer, so the bond is read again later."""
    store = SlowStore(Bond(name="Ann"))
    bonds = Bonds(10)
    recall = recall_of(store, bonds)
    asking = asyncio.create_task(recall.recall(MIRA, "p"))
    await asyncio.sleep(0)
    held = bonds.fold(turn(NOW_MS, "I lost my ring.", "Oh.", facts=[["{player} lost the ring.", 0.7]]), complete=False)
    bonds.write(held)
    bonds.written(held, Position(0, 100))
    store.let.set()
    assert [f.text for f in (await asking).bond.facts] == ["{player} lost the ring."]
    store.bond = Bond(name="Ann", facts=held.bond.facts)
    bonds.put_away(Position(0, 99))
    assert (await recall.recall(MIRA, "p")).bond.name == "" and store.asked == 1
    bonds.put_away(Position(0, 100))
    whole = await recall.recall(MIRA, "p")
    assert whole.bond.name == "Ann" and whole.bond.facts and store.asked == 2


async def test_until_the_store_was_read_every_answer_says_that_it_is_late() -> None:
    """A bond that began while the store was down is late until the store has it, and is read only then."""
    store, bonds = SlowStore(Bond(name="Ann")), Bonds(10)
    recall = recall_of(store, bonds)
    store.fails = True
    assert (await recall.recall(MIRA, "p")).late
    held = bonds.fold(turn(NOW_MS, "Hello.", "Yes?"), complete=False)
    bonds.write(held)
    bonds.written(held, Position(0, 100))
    asked = store.asked
    for _ in range(3):
        again = await recall.recall(MIRA, "p")
        assert again.late and again.stores == ("hot",) and again.bond.session is not None
    assert not recall.is_whole(MIRA, "p") and store.asked == asked
    store.fails = False
    store.let.set()
    caught_up = asyncio.Event()

    async def catch_up(held: Held) -> None:
        await caught_up.wait()
        bonds.saved(held, Position(0, 100))

    recall.catch_up = catch_up
    asking = asyncio.create_task(recall.recall(MIRA, "p"))
    await asyncio.sleep(0)
    assert not asking.done()
    caught_up.set()
    whole = await asking
    assert (whole.late, whole.stores, whole.bond.name) == (False, ("hot", "recent"), "Ann")
    assert recall.is_whole(MIRA, "p") and recall.counts.away == 4


async def test_a_store_that_failed_is_soon_read_ahead_again() -> None:
    """A player who stays near is read ahead again soon after a short failure of the store, not a minute later."""
    store = SlowStore(Bond(name="Ann"))
    store.fails = True
    now = [0]
    recall = Recall(Bonds(10), store, 1_000.0, 4, lambda: now[0], lambda: NOW_MS)
    for _ in range(5):
        recall.prefetch(MIRA, "p")
        while recall._reads:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert store.asked == 1
    store.fails = False
    store.let.set()
    now[0] += FAILED_AGAIN_NS
    recall.prefetch(MIRA, "p")
    while recall._reads:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert recall.is_whole(MIRA, "p")


async def test_a_bond_that_is_forgotten_while_it_is_read_stays_forgotten() -> None:
    """Neither the waiting callers get it, nor later ones."""
    store = SlowStore(Bond(name="Ann"))
    bonds = Bonds(10)
    recall = recall_of(store, bonds)
    asking = asyncio.create_task(recall.recall(MIRA, "p"))
    await asyncio.sleep(0)
    recall.forget(MIRA, "p")
    assert (await asking).bond == Bond()
    store.let.set()
    assert bonds.find(MIRA, "p") is None


async def test_near_players_are_read_ahead_once_in_a_while() -> None:
    """An observation per frame reads once. Reads above the allowed number are left for later."""
    store = SlowStore(None)
    recall = recall_of(store, Bonds(100))
    for _ in range(50):
        recall.prefetch(MIRA, "p")
    for n in range(10):
        recall.prefetch(MIRA, f"q{n}")
    await asyncio.sleep(0)
    assert store.asked == 4 and recall.counts.prefetched == 4
    store.let.set()
    while recall._reads:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert (await recall.recall(MIRA, "p")).stores == ("hot",)  # the process knows that p has no bond


async def test_a_world_that_is_set_back_is_not_read_until_the_store_is() -> None:
    """Otherwise the store would bring back undone memories."""
    store = SlowStore(Bond(name="undone"))
    store.let.set()
    behind = {"vale"}
    recall = Recall(Bonds(10), store, 1_000.0, 4, now_ns, lambda: NOW_MS, lambda npc: npc.world not in behind)
    assert (await recall.recall(MIRA, "p")).bond == Bond() and store.asked == 0
    behind.clear()
    assert (await recall.recall(MIRA, "p")).bond.name == "undone"


async def test_a_world_that_is_set_back_does_not_cost_another_tenant_its_recall() -> None:
    """Another tenant's read goes on and is answered, even when the worlds have the same name."""
    store = SlowStore(Bond(name="Ann"))
    recall = recall_of(store, Bonds(10))
    other = MIRA._replace(tenant="another")
    own, others = (asyncio.create_task(recall.recall(npc, "p")) for npc in (MIRA, other))
    await asyncio.sleep(0)
    recall.forget_world(MIRA.tenant, MIRA.world)
    store.let.set()
    assert (await others).bond.name == "Ann"
    assert (await own).bond == Bond()


async def test_near_players_are_read_ahead_again_when_their_world_was_set_back() -> None:
    """They are read again at once, however many were read lately. Players of another world are not."""
    store = SlowStore(None)
    store.let.set()
    recall = Recall(Bonds(100), store, 5_000.0, 100, now_ns, lambda: NOW_MS)
    other = MIRA._replace(world="hill")

    async def near() -> int:
        asked = store.asked
        for n in range(10):
            recall.prefetch(MIRA, f"p{n}")
            recall.prefetch(other, f"p{n}")
        while recall._reads:  # noqa: ASYNC110
            await asyncio.sleep(0)
        return store.asked - asked

    assert await near() == 20
    recall._bonds.drop_world(MIRA.tenant, MIRA.world)
    assert await near() == 0
    recall.forget_world(MIRA.tenant, MIRA.world)
    assert await near() == 10
    assert await near() == 0


def test_a_world_is_set_back_in_a_step_however_many_were_asked_for() -> None:
    """No other task has a turn in that step, so the list of recent reads is not searched."""
    recall = Recall(Bonds(100), SlowStore(None), 5_000.0, 0, now_ns, lambda: NOW_MS)
    lines = []
    for count in (10, 1000):
        for n in range(count):
            recall._tried[MIRA, f"p{n}"] = (recall._marks.setdefault(MIRA[:2], object()), n)
        lines.append(lines_of(lambda: recall.forget_world(MIRA.tenant, MIRA.world)))
    assert lines[0] == lines[1]
