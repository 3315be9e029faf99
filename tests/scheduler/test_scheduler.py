"""The scheduler gives every work the tokens that it gets alone, and keeps its laws after every step."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from core.choice import END, stage
from core.clock import MS
from core.words import Finish, Tier, TrunkKey
from core.work import Sampling, Work
from engines.sim import SimCost
from scheduler.placing import KvSettings
from scheduler.window import Closed
from tests.scheduler.simulated import Sim, npc, random_work, words

FEEL = stage("emotions", [(i, words(500 + i).tolist(), END) for i in range(3)])
ACT = stage(
    "actions",
    [(0, words(600).tolist(), FEEL), (1, words(601, 602).tolist(), FEEL), (2, words(601, 603, 604).tolist(), END)],
)
ONLY = stage("actions", [(0, words(600, 601).tolist(), END)])
CHOICES = [ACT, FEEL, ONLY]


@pytest.mark.parametrize("seed", range(4))
def test_isolation_everything_at_once_gives_what_each_gives_alone(seed: int) -> None:
    """Of 400 random works of all tiers, with cancels and superseding, every finished one got exactly its own tokens."""
    rng = random.Random(seed)
    sim = Sim(end_every=30)
    cancelled = set()
    while len(sim.submitted) < 400:
        for _ in range(rng.randrange(1, 20)):
            sim.submit(random_work(rng, 50, CHOICES))
        for _ in range(rng.randrange(6)):
            sim.step()
        if rng.random() < 0.3:
            ticket = rng.choice(list(sim.submitted))
            if ticket not in sim.ended:
                cancelled.add(ticket)
                sim.cancel(ticket)
    sim.run()
    assert set(sim.ended) == set(sim.submitted)
    finishes = [e.finish for e in sim.ended.values()]
    assert finishes.count(Finish.SUPERSEDED) > 0
    for ticket, ended in sim.ended.items():
        work, alone = sim.submitted[ticket], sim.alone(sim.submitted[ticket])
        if ended.finish in (Finish.STOP, Finish.LENGTH):
            assert sim.chunks[ticket] == alone, f"ticket {ticket} of {work.key}"
        elif ended.finish is Finish.CANCELLED:
            assert ticket in cancelled or not work.max_tokens  # it only prepared a trunk, and another work overtook it
            assert sim.chunks[ticket] == alone[: len(sim.chunks[ticket])]
        else:
            assert ended.finish in (Finish.SUPERSEDED, Finish.REFUSED)
            assert not sim.chunks[ticket]
    assert sim.scheduler.placer.lanes.leased == 0
    assert all(not t.users for t in sim.scheduler.placer.homes)
    # There are more trunks than sequences, so some were moved out and came back.
    assert sim.scheduler.placer.moves.loaded > 0


def test_no_sampler_has_seen_the_end_of_an_answer() -> None:
    """The sampler sees no stop id, no end token of the model, and no text that closes an answer. It sees the last
    replies or, without any, the tail.
    """
    sim = Sim()
    given: list[list[int]] = []
    add = sim.engine.add_sampler

    def spy(sampling: Sampling, recent: Sequence[int]) -> int:
        given.append(list(recent))
        return add(sampling, recent)

    sim.engine.add_sampler = spy  # type: ignore[method-assign]
    (end,) = sim.vocab.eog_ids
    a, stop, b, closing, c = words(1, 2, 3, 4, 5).tolist()
    said = (a, end, stop, b, closing, c, end)
    for n, lines in enumerate((said, ())):
        sim.submit(
            Work(
                Tier.SILVER,
                TrunkKey(npc(n), ""),
                trunk=words(9),
                tail=np.asarray(said, np.int32),
                max_tokens=2,
                sampling=Sampling(temperature=0.7),
                said=lines,
                stop_ids=frozenset({stop}),
                closing=frozenset({closing}),
            )
        )
    sim.run()
    assert given == [[a, b, c], [a, b, c]]


def test_same_seed_same_trace() -> None:
    """Two runs with one seed are equal to the last delivery."""

    def trace() -> list[tuple[int, int, str]]:
        rng = random.Random(11)
        sim = Sim(end_every=30)
        for _ in range(120):
            sim.submit(random_work(rng, 30, CHOICES))
            sim.step()
        sim.run()
        return sim.trace

    assert trace() == trace()


def test_failed_steps_are_tried_once_more_and_nothing_is_said_twice() -> None:
    """A step that fails rebuilds the engine. The works go on where they were and get the same tokens."""
    rng = random.Random(12)
    sim = Sim(fail_at=frozenset({3, 40, 90}))
    for _ in range(60):
        sim.submit(random_work(rng, 30, CHOICES))
    sim.run()
    assert sim.scheduler.meter.step_failures == 3
    for ticket, ended in sim.ended.items():
        if ended.finish in (Finish.STOP, Finish.LENGTH):
            assert sim.chunks[ticket] == sim.alone(sim.submitted[ticket])
    assert sum(1 for e in sim.ended.values() if e.finish in (Finish.STOP, Finish.LENGTH)) > 30


def test_a_work_whose_steps_fail_twice_ends_as_failed() -> None:
    """A work's step is retried once; after the second failure the work ends with an error."""
    sim = Sim(fail_at=frozenset(range(50)))
    ticket = sim.submit(Work(Tier.SILVER, TrunkKey(npc(1), "p"), words(1, 2, 3), words(4), 5))
    sim.run()
    assert sim.ended[ticket].finish is Finish.FAILED
    assert "simulated failure" in sim.ended[ticket].reason
    assert sim.engine.steps == 2


@pytest.mark.parametrize("steps", range(12))
def test_cancel_from_every_state_frees_everything_at_once(steps: int) -> None:
    """A work may be cancelled while it waits, in its prefix, trunk or tail, or while it decodes. Then its lane is free
    and its trunk is sound.
    """
    sim = Sim(sequences=20)
    trunk = words(*range(300))
    work = Work(Tier.SILVER, TrunkKey(npc(1), "p"), trunk, words(7, 8, 9), 6, 100, sampling=Sampling(0.7, seed=5))
    ticket = sim.submit(work)
    for _ in range(steps):
        sim.step()
    sim.cancel(ticket)
    if sim.ended[ticket].finish is Finish.CANCELLED:
        assert sim.chunks[ticket] == sim.alone(work)[: len(sim.chunks[ticket])]
    assert sim.scheduler.placer.lanes.leased == 0
    assert sim.engine.samplers_open == 0
    again = sim.submit(work)
    sim.run()
    assert sim.chunks[again] == sim.alone(work)


def test_a_shared_prefix_is_computed_once() -> None:
    """For twenty NPCs of one archetype its tokens are prefilled once, and the other NPCs have cache hits."""
    sim = Sim()
    shared = words(*range(200))
    for n in range(20):
        trunk = np.concatenate([shared, words(1000 + n)])
        sim.submit(Work(Tier.GOLD, TrunkKey(npc(n), ""), trunk, words(5), 2, 200))
    sim.run()
    assert sim.scheduler.meter.prefilled_tokens == 200 + 20 * (1 + 1)
    for ticket, work in sim.submitted.items():
        assert sim.chunks[ticket] == sim.alone(work)


def test_the_world_is_computed_once_for_all_archetypes() -> None:
    """Prefixes of one world begin alike. The others copy what one has computed. So a slow model computes
    the world once, and every NPC answers as it does alone."""
    kinds = 5
    sim = Sim(kv=KvSettings(prefixes=kinds, lanes=6, ram_mib=1), cost=SimCost(token_us=3_000))
    world = words(*range(200))
    for n in range(20):
        prefix = np.concatenate([world, words(*[500 + 10 * (n % kinds) + i for i in range(10)])])
        trunk = np.concatenate([prefix, words(1000 + n)])
        sim.submit(Work(Tier.GOLD, TrunkKey(npc(n), ""), trunk, words(5), 2, len(prefix)))
    sim.run()
    own = kinds * 10 + 20 * (1 + 1)
    beside = kinds * 32  # they may begin beside the first, in one step
    assert own + len(world) <= sim.scheduler.meter.prefilled_tokens <= own + len(world) + beside
    for ticket, work in sim.submitted.items():
        assert sim.chunks[ticket] == sim.alone(work)


def test_a_dialogue_starts_from_its_npcs_intent_trunk() -> None:
    """The intents have paid for prefix and persona, so the first line prefills only its new tokens."""
    sim = Sim()
    trunk = words(*range(120))
    sim.submit(Work(Tier.GOLD, TrunkKey(npc(1), ""), trunk, words(5), 2, 100))
    sim.run()
    talk = sim.submit(Work(Tier.SILVER, TrunkKey(npc(1), "p"), np.concatenate([trunk, words(9, 9)]), words(5), 3, 100))
    sim.run()
    assert sim.ended[talk].timings.cached_tokens == 120
    assert sim.ended[talk].timings.prefilled_tokens == 2 + 1


def test_a_full_queue_refuses_and_the_ticket_ends() -> None:
    """The bound is kept, and the refused ticket gets an end."""
    sim = Sim()
    bound = sim.promises.silver.waiting_max
    for n in range(bound + 3):
        sim.submit(Work(Tier.SILVER, TrunkKey(npc(n), "p"), words(1, 2), words(3), 2))
    assert [e.finish for e in sim.ended.values()] == [Finish.REFUSED] * 3
    sim.run()
    assert len(sim.ended) == bound + 3


def test_gold_is_never_behind_more_than_one_step() -> None:
    """While long prefills run, a Gold work that arrives is in the very next step."""
    sim = Sim(sequences=40, context_len=2048)
    for n in range(6):
        sim.submit(Work(Tier.SILVER, TrunkKey(npc(n), "p"), words(*range(n, 1500 + n)), words(3), 2))
    for _ in range(5):
        sim.step()
    for n in range(20):
        gold = sim.submit(
            Work(Tier.GOLD, TrunkKey(npc(100 + n), ""), words(1, 2, n), words(3, 4), 1, due_ns=sim.clock())
        )
        sim.step()
        assert gold in sim.taken
        steps = sim.run(until=lambda: gold in sim.ended)  # noqa: B023
        assert steps <= 2
    sim.run()


def test_sixty_npcs_in_one_window_are_spread_over_steps() -> None:
    """All that are due together start together, no step is over its budget, and the earliest due are answered first."""
    sim = Sim(sequences=80, context_len=512)
    for n in range(60):
        sim.submit(Work(Tier.GOLD, TrunkKey(npc(n), ""), words(1, 2, n), words(3), 1))
    sim.run()
    moment = sim.clock()
    group = [
        sim.submit(
            Work(Tier.GOLD, TrunkKey(npc(n), ""), words(1, 2, n), words(*range(20)), 3, deadline_ns=moment + 60 - n)
        )
        for n in range(60)
    ]
    before_ns, steps = moment, 0
    while any(ticket not in sim.ended for ticket in group):
        sim.step()
        steps += 1
        assert sim.clock() - before_ns <= 5 * MS * 1.05
        before_ns = sim.clock()
    assert {sim.taken[ticket] for ticket in group} == {moment}
    assert sim.scheduler.admission.window.closed[Closed.COMPLETE] == 2
    assert steps > 10
    firsts = [sim.ended[ticket].timings.first_ns for ticket in group]
    assert firsts == sorted(firsts, reverse=True)


def test_a_work_that_only_prepares_a_trunk_is_overtaken_by_one_that_needs_it() -> None:
    """Gold does not wait behind Bronze for its own trunk, and it uses the tokens that Bronze has computed."""
    sim = Sim(sequences=40, context_len=2048)
    trunk = words(*range(1500))
    bronze = sim.submit(Work(Tier.BRONZE, TrunkKey(npc(1), ""), trunk, words(), 0))
    for _ in range(2):
        sim.step()
    done = sim.scheduler.running[bronze].place.trunk.held
    assert 0 < done < 1500
    gold = sim.submit(Work(Tier.GOLD, TrunkKey(npc(1), ""), trunk, words(3), 1))
    sim.run()
    assert sim.ended[bronze].finish is Finish.CANCELLED
    assert sim.chunks[gold] == sim.alone(sim.submitted[gold])
    assert sim.ended[gold].timings.cached_tokens == done


def test_works_of_different_adapters_take_turns_in_steps_of_their_own() -> None:
    """Both works finish with the tokens that they get alone, and no step mixes them."""
    sim = Sim()
    for n in range(8):
        work = Work(Tier.SILVER, TrunkKey(npc(n), "p"), words(1, 2, n), words(3), 6, adapter="ab"[n % 2])
        sim.submit(work)
    sim.run()
    assert set(sim.engine.adapters) == {"", "a", "b"}  # the base model computed the trunks
    for ticket, work in sim.submitted.items():
        assert sim.chunks[ticket] == sim.alone(work)


@pytest.mark.parametrize("fail_at", [frozenset(), frozenset({3, 9})], ids=["", "failing steps"])
def test_an_invoked_adapter_is_on_from_where_the_tail_says_so(fail_at: frozenset[int]) -> None:
    """The last invocation counts; without one the whole tail is the base model's. Each work gets the tokens that it
    gets alone."""
    sim = Sim(fail_at=fail_at)
    sim.engine.invocations = {"a": tuple(words(60, 61).tolist()), "b": tuple(words(62).tolist())}
    tails = ([1, 2, 60, 61], [60, 61, 1, 2], [60, 61, 3, 60, 61, 4], [60, 60, 61], [61, 60], [62, 1])
    for n, tail in enumerate(tails):
        for adapter in "ab":
            tier = (Tier.GOLD, Tier.SILVER, Tier.BRONZE)[n % 3]
            key = TrunkKey(npc(2 * n + (adapter == "b")), "p")
            sim.submit(Work(tier, key, words(1, 2, n), words(*tail), 6, adapter=adapter))
    sim.run()
    for ticket, work in sim.submitted.items():
        assert sim.chunks[ticket] == sim.alone(work), f"{work.adapter} after {work.tail}"
        assert sim.ended[ticket].finish is Finish.LENGTH
    used = [sim.alone(work) for work in sim.submitted.values()]
    base = [sim.alone(replace(work, adapter="")) for work in sim.submitted.values()]
    on = [said != other for said, other in zip(used, base, strict=True)]
    assert on == [True, False, True, False, True, False, True, False, False, False, False, True]


def test_forget_empties_a_trunk_now_or_when_its_work_ends() -> None:
    """After forget no KV of the trunk is left, also when a work was using it."""
    sim = Sim()
    key = TrunkKey(npc(1), "p")
    sim.submit(Work(Tier.SILVER, key, words(*range(50)), words(3), 4))
    sim.step()
    sim.forget(key)
    sim.run()
    assert len(sim.scheduler.placer.homes.of_npc(npc(1))) == 0
    sim.submit(Work(Tier.SILVER, key, words(*range(50)), words(), 0))
    sim.forget(key)
    sim.run()
    assert [e.finish for e in sim.ended.values()][-1] is Finish.CANCELLED
    assert len(sim.scheduler.placer.homes.of_npc(npc(1))) == 0


def test_more_npcs_than_sequences_move_out_and_come_back_whole() -> None:
    """In a thousand visits to 60 NPCs on 10 resident sequences every answer is right, and most trunks are loaded."""
    sim = Sim(sequences=15, kv=KvSettings(prefixes=1, lanes=4, ram_mib=4))
    rng = random.Random(13)
    for _ in range(1000):
        n = rng.randrange(60)
        sim.submit(Work(Tier.GOLD, TrunkKey(npc(n), ""), words(*range(n, n + 30)), words(rng.randrange(99)), 1))
        sim.run()
    placer = sim.scheduler.placer
    assert placer.moves.loaded > 500
    for ticket, work in sim.submitted.items():
        assert sim.chunks[ticket] == sim.alone(work)
