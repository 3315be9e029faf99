"""A finished reply becomes the trunk of its conversation: its tokens are computed once."""

import random
from collections.abc import Callable

import numpy as np
import pytest

from core.choice import Tokens
from core.words import Finish, Tier, TrunkKey
from core.work import Sampling, Work
from kvcache.homes import Trunk
from scheduler.place import Part
from scheduler.placing import KvSettings
from tests.scheduler.simulated import Sim, npc, words

TRUNK = words(*range(60))
MIRA = TrunkKey(npc(1), "player")
CLOSING = (990, 991)  # of a turn: the next work computes them


def reply(trunk: Tokens, *tail: int, key: TrunkKey = MIRA, count: int = 10, seed: int = 0) -> Work:
    """A reply of so many tokens."""
    sampling = Sampling(0.7, seed=seed) if seed else Sampling()
    return Work(Tier.SILVER, key, trunk, words(*tail), count, 40, sampling=sampling, adopt=True)


def finished(sim: Sim, ticket: int) -> Tokens:
    """The trunk after a turn, with the tokens that close it."""
    one = sim.submitted[ticket]
    return np.concatenate([one.trunk, one.tail, np.asarray(sim.chunks[ticket], np.int32), words(*CLOSING)])


def trunk_of(sim: Sim, key: TrunkKey = MIRA) -> Trunk:
    """The trunk of a key. The test fails when there is none."""
    trunk = sim.scheduler.placer.homes.find(key)
    assert trunk is not None
    return trunk


def said(sim: Sim, one: Work) -> int:
    """Runs a reply to its end; its ticket."""
    ticket = sim.submit(one)
    sim.run()
    assert sim.ended[ticket].finish in (Finish.STOP, Finish.LENGTH)
    assert sim.chunks[ticket] == sim.alone(one)
    return ticket


def prefilled(sim: Sim, ticket: int) -> int:
    """The number of tokens that a work had to prefill."""
    return sim.ended[ticket].timings.prefilled_tokens


def test_a_finished_reply_is_the_trunk_already() -> None:
    """The next turn computes what closes the last one, and its own tail. Of a reply that reached its limit the last
    token is missing too, because no step took it in.
    """
    sim = Sim()
    first = said(sim, reply(TRUNK, 900, 901))
    assert sim.ended[first].timings.adopted_tokens == 2 + 9
    assert trunk_of(sim).held == len(TRUNK) + 2 + 9
    second = said(sim, reply(finished(sim, first), 902, 903))
    assert prefilled(sim, second) == 1 + len(CLOSING) + 2


def test_a_reply_that_ended_by_itself_is_there_in_full() -> None:
    """The end was picked after the last token was taken in."""
    sim = Sim(end_every=7)
    tickets = [said(sim, reply(TRUNK, 900 + n, key=MIRA._replace(npc=npc(n)), count=60)) for n in range(8)]
    stopped = [t for t in tickets if sim.ended[t].finish is Finish.STOP and sim.chunks[t]]
    assert stopped
    for ticket in stopped:
        assert sim.ended[ticket].timings.adopted_tokens == 1 + len(sim.chunks[ticket])


def test_a_cancelled_reply_is_the_trunk_as_far_as_it_was_computed() -> None:
    """A line that comes into the middle of a reply finds the words before it."""
    sim = Sim()
    ticket = sim.submit(reply(TRUNK, 900, 901, count=40))
    sim.run(lambda: len(sim.chunks[ticket]) > 5)
    sim.cancel(ticket)
    assert sim.ended[ticket].timings.adopted_tokens == 2 + len(sim.chunks[ticket]) - 1
    heard = np.concatenate([TRUNK, words(900, 901), np.asarray(sim.chunks[ticket][:3], np.int32), words(*CLOSING)])
    second = said(sim, reply(heard, 902))
    assert prefilled(sim, second) == len(CLOSING) + 1


def test_a_reply_that_said_nothing_leaves_the_trunk_as_it_was() -> None:
    """A cancel before the first token, or while the trunk is computed, adopts nothing."""
    for trunk, part in ((words(*range(400)), Part.TRUNK), (TRUNK, Part.BRANCH)):
        sim = Sim(context_len=1024)
        sim.submit(Work(Tier.SILVER, MIRA, TRUNK, words(), 0, 40))
        sim.run()
        ticket = sim.submit(reply(trunk, *range(500, 900)))
        while not (ticket in sim.taken and sim.scheduler.running[ticket].place.part is part):
            sim.step()
        assert not sim.chunks[ticket]
        sim.cancel(ticket)
        assert not sim.ended[ticket].timings.adopted_tokens
        assert len(TRUNK) <= trunk_of(sim).held <= len(trunk)


def moved_out(sim: Sim) -> None:
    sim.scheduler.placer.moves.move_out(trunk_of(sim))


def lost(sim: Sim) -> None:
    moved_out(sim)
    sim.scheduler.placer.moves.drop(trunk_of(sim))


@pytest.mark.parametrize("evicted", [moved_out, lost])
def test_a_trunk_that_was_evicted_during_the_reply_comes_back_with_it(evicted: Callable[[Sim], None]) -> None:
    """The lane has all of it, so nothing is loaded and nothing is computed again."""
    sim = Sim()
    ticket = sim.submit(reply(TRUNK, 900, 901))
    sim.run(lambda: bool(sim.chunks[ticket]))
    evicted(sim)
    sim.run()
    assert sim.ended[ticket].timings.adopted_tokens == 2 + 9
    assert trunk_of(sim).seq >= 0 and trunk_of(sim).blob is None
    second = said(sim, reply(finished(sim, ticket), 902))
    assert prefilled(sim, second) == 1 + len(CLOSING) + 1


def test_a_forgotten_trunk_stays_forgotten() -> None:
    """A conversation that is forgotten while the NPC speaks leaves nothing, also when the next one has begun."""
    sim = Sim()
    ticket = sim.submit(reply(TRUNK, 900, 901))
    sim.run(lambda: bool(sim.chunks[ticket]))
    sim.forget(MIRA)
    sim.run()
    assert sim.scheduler.placer.homes.find(MIRA) is None
    ticket = sim.submit(reply(TRUNK, 900, 901, count=30))
    sim.run(lambda: bool(sim.chunks[ticket]))
    sim.forget(MIRA)
    other = words(*range(40), *range(500, 520))
    sim.submit(Work(Tier.SILVER, MIRA, other, words(), 0, 40))
    sim.run()
    assert not sim.ended[ticket].timings.adopted_tokens
    assert trunk_of(sim).tokens.tolist() == other.tolist()


def test_a_trunk_that_another_work_stands_on_is_not_replaced() -> None:
    """Gold asks on the trunk while the reply ends: both get their own tokens, and the trunk keeps its own."""
    sim = Sim()
    ticket = sim.submit(reply(TRUNK, 900, 901, count=6))
    sim.run(lambda: len(sim.chunks[ticket]) > 2)
    gold = sim.submit(Work(Tier.GOLD, MIRA, TRUNK, words(950), 30, 40))
    sim.run()
    assert sim.chunks[gold] == sim.alone(sim.submitted[gold])
    assert sim.chunks[ticket] == sim.alone(sim.submitted[ticket])
    assert not sim.ended[ticket].timings.adopted_tokens
    assert trunk_of(sim).held == len(TRUNK)


def test_a_trunk_that_grew_meanwhile_is_not_replaced() -> None:
    """Two replies begin on the same trunk. The one that ends first is the trunk."""
    sim = Sim()
    slow = sim.submit(reply(TRUNK, 900, count=30))
    sim.run(lambda: bool(sim.chunks[slow]))
    fast = sim.submit(reply(TRUNK, 901, count=5))
    sim.run()
    assert sim.ended[fast].timings.adopted_tokens == 1 + 4
    assert not sim.ended[slow].timings.adopted_tokens
    assert trunk_of(sim).held == len(TRUNK) + 1 + 4


def test_without_a_sequence_the_trunk_stays_where_it_is() -> None:
    """All sequences are in use by Gold when a reply ends, so its trunk stays in RAM as it was."""
    sim = Sim(sequences=11)
    ticket = sim.submit(reply(TRUNK, 900, count=20))
    sim.run(lambda: bool(sim.chunks[ticket]))
    moved_out(sim)
    for n in range(2, 5):
        sim.submit(Work(Tier.GOLD, TrunkKey(npc(n), ""), words(*range(40), 70 + n), words(950), 60, 40))
    sim.run(lambda: ticket in sim.ended)
    assert not sim.ended[ticket].timings.adopted_tokens
    assert trunk_of(sim).home == "ram" and trunk_of(sim).held == len(TRUNK)
    sim.run()
    said(sim, reply(finished(sim, ticket), 902))


def test_what_an_activated_adapter_computed_is_not_adopted() -> None:
    """The trunk is the base model's: it takes the part of the tail before the adapter was on, and no more."""
    sim = Sim()
    sim.engine.invocations["lich"] = (int(words(901)[0]),)
    one = reply(TRUNK, 900, 902, 901, 903)
    one.adapter = "lich"
    first = said(sim, one)
    assert sim.ended[first].timings.adopted_tokens == 2
    sim.check()
    one = reply(finished(sim, first), 900)
    one.adapter = "lich"
    assert prefilled(sim, said(sim, one)) == 2 + 10 + len(CLOSING) + 1


@pytest.mark.parametrize("seed", range(6))
def test_conversations_in_any_order_change_no_reply(seed: int) -> None:
    """With few sequences, failures, cancels, Gold and evictions in any order, every work gets the tokens that it gets
    alone, and most turns compute nothing twice.
    """
    rng = random.Random(seed)
    sim = Sim(sequences=16, fail_at=frozenset({60, 61, 300}), kv=KvSettings(2, 6, 1), end_every=12)
    tokens = {TrunkKey(npc(n), "p"): words(*range(40), *range(100 + n, 120 + n)) for n in range(12)}
    own = dict(tokens)
    open_now: dict[TrunkKey, int] = {}
    once = turns = 0
    while turns < 150:
        key = rng.choice(list(tokens))
        if key not in open_now:
            tail = [900 + rng.randrange(50) for _ in range(rng.randrange(1, 9))]
            one = reply(tokens[key], *tail, key=key, count=rng.randrange(2, 25), seed=rng.randrange(1, 99))
            open_now[key] = sim.submit(one)
        elif rng.random() < 0.05:
            sim.cancel(open_now[key])
        if rng.random() < 0.3:
            n = rng.randrange(12)
            at = TrunkKey(npc(n), "") if rng.random() < 0.5 else TrunkKey(npc(n), "p")
            sim.submit(Work(Tier.GOLD, at, own[TrunkKey(npc(n), "p")], words(950), rng.randrange(1, 5), 40))
        for _ in range(rng.randrange(6)):
            sim.step()
        for key, ticket in list(open_now.items()):
            if ticket not in sim.ended:
                continue
            del open_now[key]
            turns += 1
            once += sim.ended[ticket].timings.adopted_tokens > 0
            tokens[key] = finished(sim, ticket) if len(tokens[key]) < 300 else own[key]
    sim.run()
    for ticket, ended in sim.ended.items():
        alone, well = sim.alone(sim.submitted[ticket]), ended.finish in (Finish.STOP, Finish.LENGTH)
        assert sim.chunks[ticket] == (alone if well else alone[: len(sim.chunks[ticket])])
    assert once > turns / 2
    assert all(not t.users for t in sim.scheduler.placer.homes)
