"""Possible continuations are tried on a fork of a trunk, which is then committed or discarded."""

import random

import numpy as np
import pytest

from core.choice import Tokens
from core.words import Finish, Tier, TrunkKey
from core.work import Work
from kvcache.homes import Trunk
from scheduler.placing import KvSettings
from tests.scheduler.simulated import Sim, npc, words

TRUNK = words(*range(60))
MIRA = TrunkKey(npc(1), "player")
WHAT_IF = MIRA._replace(fork="what if")


def work(key: TrunkKey, trunk: Tokens, *tail: int, tier: Tier = Tier.SILVER, keep: bool = True) -> Work:
    """A work of ten tokens, or of none without a tail."""
    return Work(tier, key, trunk, words(*tail), 10 if tail else 0, 40, keep=keep and bool(tail))


def told(sim: Sim, one: Work) -> Tokens:
    """Runs a work to its end and returns its trunk with all generated tokens."""
    ticket = sim.submit(one)
    sim.run()
    assert sim.ended[ticket].finish in (Finish.STOP, Finish.LENGTH)
    assert sim.chunks[ticket] == (sim.alone(one) if one.max_tokens else [])
    return np.concatenate([one.trunk, one.tail, np.asarray(sim.chunks[ticket], np.int32)])


def trunk_of(sim: Sim, key: TrunkKey) -> Trunk:
    """The trunk of a key. The test fails when there is none."""
    trunk = sim.scheduler.placer.homes.find(key)
    assert trunk is not None
    return trunk


def prefilled(sim: Sim) -> int:
    """The number of tokens that the last ended work had to prefill."""
    return list(sim.ended.values())[-1].timings.prefilled_tokens


@pytest.mark.parametrize("tier", [Tier.GOLD, Tier.SILVER])
def test_a_fork_begins_with_what_its_trunk_holds_and_keeps_what_is_tried(tier: Tier) -> None:
    """Only tails are computed, on Gold's own sequence as on a lane. All generated tokens but the last one stay."""
    sim = Sim()
    told(sim, work(MIRA, TRUNK))
    first = told(sim, work(WHAT_IF, TRUNK, 900, 901, tier=tier))
    assert prefilled(sim) == 2
    told(sim, work(WHAT_IF, first, 902, tier=tier))
    assert prefilled(sim) == 2  # the tail, and the last token of the work before
    assert trunk_of(sim, WHAT_IF).held == len(first) + 10


def test_a_discarded_fork_leaves_its_trunk_and_everything_else_as_it_was() -> None:
    """The trunk has the same sequence and tokens as before, and the fork's sequence is free again."""
    sim = Sim()
    told(sim, work(MIRA, TRUNK))
    before, seq, free = (
        sim.engine.store(trunk_of(sim, MIRA).seq),
        trunk_of(sim, MIRA).seq,
        sim.scheduler.placer.homes.free,
    )
    told(sim, work(WHAT_IF, told(sim, work(WHAT_IF, TRUNK, 900)), 901))
    sim.forget(WHAT_IF)
    homes = sim.scheduler.placer.homes
    assert homes.find(WHAT_IF) is None
    assert not homes.forks
    assert homes.free == free
    assert trunk_of(sim, MIRA).seq == seq
    assert sim.engine.store(seq) == before


def test_a_committed_fork_is_the_trunk() -> None:
    """Nothing is computed again, and the next reply is that of a trunk that got the same tokens directly."""
    sim, direct = Sim(), Sim()
    told(sim, work(MIRA, TRUNK))
    tried = told(sim, work(WHAT_IF, TRUNK, 900))
    sim.scheduler.commit(WHAT_IF)
    sim.check()
    assert sim.scheduler.placer.homes.find(WHAT_IF) is None
    assert np.array_equal(told(sim, work(MIRA, tried, 901)), told(direct, work(MIRA, tried, 901)))
    assert prefilled(sim) == 2
    assert prefilled(direct) == len(tried) + 1


def test_a_commit_waits_for_the_works_on_fork_and_trunk() -> None:
    """The commit happens when the last work has ended, and keeps everything that they compute."""
    sim = Sim()
    told(sim, work(MIRA, TRUNK))
    on_fork, on_trunk = (
        sim.submit(work(WHAT_IF, TRUNK, 900)),
        sim.submit(work(MIRA, TRUNK, 950, tier=Tier.GOLD, keep=False)),
    )
    sim.step()
    sim.scheduler.commit(WHAT_IF)
    assert sim.scheduler.placer.homes.find(WHAT_IF) is not None
    sim.run()
    assert sim.chunks[on_fork] == sim.alone(sim.submitted[on_fork])
    assert sim.chunks[on_trunk] == sim.alone(sim.submitted[on_trunk])
    assert sim.scheduler.placer.homes.find(WHAT_IF) is None
    assert trunk_of(sim, MIRA).held == len(TRUNK) + 1 + 9


def test_a_cancelled_work_is_not_kept() -> None:
    """A cancelled work leaves the fork as it was."""
    sim = Sim()
    told(sim, work(WHAT_IF, TRUNK))
    ticket = sim.submit(work(WHAT_IF, TRUNK, 900))
    sim.run(lambda: len(sim.chunks[ticket]) > 3)
    sim.cancel(ticket)
    assert trunk_of(sim, WHAT_IF).held == len(TRUNK)
    assert sim.scheduler.idle


def test_forgetting_a_trunk_forgets_its_forks() -> None:
    """KV that running works bring back, and a commit that waits for them, are forgotten as well."""
    sim = Sim()
    told(sim, work(MIRA, TRUNK))
    ticket = sim.submit(work(WHAT_IF, TRUNK, 900))
    sim.step()
    sim.scheduler.commit(WHAT_IF)
    sim.forget(MIRA)
    sim.run()
    assert sim.chunks[ticket] == sim.alone(sim.submitted[ticket])
    assert len(sim.scheduler.placer.homes) == 0


def test_a_fork_of_a_trunk_in_ram_brings_it_back() -> None:
    """The trunk in RAM is loaded and not computed again."""
    sim = Sim()
    told(sim, work(MIRA, TRUNK))
    sim.scheduler.placer.moves.move_out(trunk_of(sim, MIRA))
    told(sim, work(WHAT_IF, TRUNK, 900))
    assert prefilled(sim) == 1


def test_there_are_never_more_forks_than_may_be() -> None:
    """The fork that was unused longest is evicted. It can be used again, with the same results."""
    sim = Sim(kv=KvSettings(prefixes=2, lanes=6, ram_mib=1, forks_max=5))
    tried = {n: told(sim, work(MIRA._replace(fork=f"f{n}"), TRUNK, 900 + n)) for n in range(12)}
    assert sorted(k.fork for k in sim.scheduler.placer.homes.forks) == ["f10", "f11", "f7", "f8", "f9"]
    assert sim.scheduler.placer.forks_dropped == 7
    told(sim, work(MIRA._replace(fork="f0"), tried[0], 950))


def test_forks_that_lost_their_kv_commit_nothing() -> None:
    """The trunk keeps its tokens."""
    sim = Sim()
    told(sim, work(MIRA, TRUNK))
    told(sim, work(WHAT_IF, TRUNK, 900))
    placer = sim.scheduler.placer
    placer.engine_rebuilt()
    sim.engine.rebuild()
    told(sim, work(MIRA, TRUNK))
    sim.scheduler.commit(WHAT_IF)
    assert trunk_of(sim, MIRA).held == len(TRUNK)
    sim.check()


@pytest.mark.parametrize("seed", range(4))
def test_forks_in_any_order_change_no_reply(seed: int) -> None:
    """With few sequences and many forks in any order, every work gets the tokens that it gets alone, and no fork is
    left."""
    rng = random.Random(seed)
    sim = Sim(sequences=20, fail_at=frozenset({40, 41, 200}), kv=KvSettings(2, 6, 1, forks_max=9))
    tokens = {MIRA._replace(npc=npc(n)): words(*range(40), *range(100 + n, 120 + n)) for n in range(12)}
    forks: dict[TrunkKey, Tokens] = {}
    open_now: dict[int, TrunkKey] = {}
    for n in range(400):
        key = rng.choice([*tokens, *forks])
        held = forks.get(key) if key.fork else tokens[key]
        if rng.random() < 0.3 and not key.fork:
            key = key._replace(fork=f"f{n}")
        if key not in open_now.values():
            assert held is not None
            tail = [900 + rng.randrange(50) for _ in range(rng.randrange(1, 9))]
            keep = bool(key.fork) and rng.random() < 0.8
            forks |= {key: held} if key.fork else {}
            open_now[sim.submit(work(key, held, *tail, tier=rng.choice(list(Tier)), keep=keep))] = key
        for _ in range(rng.randrange(8)):
            sim.step()
        for ticket in [t for t in open_now if t in sim.ended]:
            key, done = open_now.pop(ticket), sim.submitted[ticket]
            if key in forks and done.keep and sim.ended[ticket].finish in (Finish.STOP, Finish.LENGTH):
                forks[key] = np.concatenate([done.trunk, done.tail, np.asarray(sim.chunks[ticket], np.int32)])
        for fork in [f for f in forks if rng.random() < 0.1]:
            held = forks.pop(fork)
            if rng.random() < 0.5 and len(held) < 300:
                tokens[fork.origin] = held
                sim.scheduler.commit(fork)
            else:
                sim.forget(fork)
            sim.check()
    for fork in forks:
        sim.forget(fork)
    sim.run()
    for ticket, ended in sim.ended.items():
        own = sim.alone(sim.submitted[ticket])
        if ended.finish in (Finish.STOP, Finish.LENGTH):
            assert sim.chunks[ticket] == own
        else:
            assert sim.chunks[ticket] == own[: len(sim.chunks[ticket])]
    assert not sim.scheduler.placer.homes.forks
    assert all(not t.users for t in sim.scheduler.placer.homes)
