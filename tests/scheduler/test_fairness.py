"""No tier starves behind another tier, no adapter behind another adapter, no NPC behind itself."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from core.choice import END, stage
from core.clock import MS, S
from core.words import Finish, Tier, TrunkKey
from core.work import Work
from engines.sim import SimCost
from scheduler.placing import KvSettings
from tests.scheduler.simulated import Sim, npc, words
from tiers.promises import Promises

SLOW = SimCost(step_us=500.0, micro_us=500.0, token_us=200.0)
PROMISES = Promises()


def gold(sim: Sim, n: int, supersede: object = None) -> Work:
    """An intent of one NPC that is due now: twelve tokens in, two out."""
    now = sim.clock()
    key = TrunkKey(npc(n), "")
    deadline_ns = PROMISES.deadline_ns(Tier.GOLD, now)
    tail = words(*range(12))
    return Work(Tier.GOLD, key, words(n), tail, 2, due_ns=now, deadline_ns=deadline_ns, supersede=supersede)


def other(sim: Sim, tier: Tier, n: int, max_tokens: int, trunk_len: int = 20, adapter: str = "") -> Work:
    """A dialogue line or a story that is due now."""
    now = sim.clock()
    return Work(
        tier,
        TrunkKey(npc(n), tier.name),
        words(*range(n, n + trunk_len)),
        words(7, 8),
        max_tokens,
        due_ns=now,
        deadline_ns=PROMISES.deadline_ns(tier, now),
        adapter=adapter,
    )


def test_an_npc_that_changes_faster_than_the_queue_moves_is_still_served() -> None:
    """24 NPCs ask anew every 50 ms, and the engine can serve about half: each of them is answered again and again."""
    sim = Sim(cost=SLOW, promises=replace(PROMISES, gold=replace(PROMISES.gold, running_max=4)))
    last = dict.fromkeys(range(24), 0)
    asked: dict[int, int] = {}
    rest_ns = 0
    while sim.clock() < 3 * S:
        slot = sim.clock() // (50 * MS)
        for n in range(24):
            if last[n] < slot:
                last[n] = slot
                asked[sim.submit(gold(sim, n, supersede=n))] = n
        if not sim.step():
            sim.clock.advance(MS)
    answered: dict[int, list[int]] = {n: [0] for n in range(24)}
    for ticket, n in asked.items():
        ended = sim.ended.get(ticket)
        if ended is not None and ended.finish is Finish.LENGTH:
            answered[n].append(ended.timings.last_ns)
    for moments in answered.values():
        moments.append(3 * S)
        rest_ns = max(rest_ns, *(b - a for a, b in pairwise(moments)))
    assert sum(1 for e in sim.ended.values() if e.finish is Finish.SUPERSEDED) > 200
    assert rest_ns < S // 2


def test_an_adapter_does_not_wait_for_the_others_to_have_nothing_to_do() -> None:
    """While Gold of the base model is in every step, a dialogue with an adapter has its first token within 250 ms."""
    sim = Sim()
    sim.submit(gold(sim, 0))
    ticket = sim.submit(other(sim, Tier.SILVER, 99, 8, adapter="vampire"))
    n = 1
    while ticket not in sim.ended and sim.clock() < 5 * S:
        while len(sim.scheduler.running) < 6:
            sim.submit(gold(sim, n % 20))
            n += 1
            sim.scheduler.plan(sim.clock())
        sim.step()
    assert sim.ended[ticket].timings.first_ns < 250 * MS
    assert sim.ended[ticket].timings.gap_max_ns < 50 * MS


def test_bronze_of_another_adapter_has_a_step_within_its_bound() -> None:
    """Bronze gets its step even when no pause would ever make room for its adapter."""
    short = replace(PROMISES, bronze=replace(PROMISES.bronze, wait_max_ms=300))
    sim = Sim(promises=short)
    ticket = sim.submit(other(sim, Tier.BRONZE, 99, 3, adapter="chronicle"))
    talk = sim.submit(other(sim, Tier.SILVER, 1, 400))
    moments = []
    while ticket not in sim.ended:
        if talk in sim.ended:
            talk = sim.submit(other(sim, Tier.SILVER, 1, 400))
        sim.step()
        moments += [sim.clock()] if sim.engine.adapters[-1] == "chronicle" else []
    rests = [b - a for a, b in pairwise([0, *moments])]
    assert max(rests) <= (300 + 20) * MS


def test_a_long_queue_of_overdue_bronze_does_not_stand_before_silver() -> None:
    """While sixteen overdue stories with long trunks run, a dialogue line has its first token as soon as with one
    story."""
    sim = Sim(context_len=2048)
    for n in range(16):
        work = other(sim, Tier.BRONZE, n, 5, trunk_len=900)
        work.due_ns -= 60 * S
        work.deadline_ns -= 60 * S
        sim.submit(work)
    for _ in range(3):
        sim.step()
    line = sim.submit(other(sim, Tier.SILVER, 99, 5))
    came_ns = sim.clock()
    sim.run(until=lambda: line in sim.ended)
    assert sim.ended[line].timings.first_ns - came_ns < 100 * MS
    sim.run()


def test_overdue_bronze_has_a_lane_before_silver_that_never_stops_waiting() -> None:
    """Overdue Bronze gets a lane within its bound and the time until a lane is free."""
    short = replace(PROMISES, bronze=replace(PROMISES.bronze, wait_max_ms=500))
    sim = Sim(promises=short, kv=KvSettings(prefixes=1, lanes=2, ram_mib=1))
    n = 0
    tickets: list[int] = []
    while sum(t not in sim.ended for t in tickets) < 10:
        tickets.append(sim.submit(other(sim, Tier.SILVER, n := n + 1, 30)))
    sim.step()
    story = sim.submit(other(sim, Tier.BRONZE, 999, 30))
    while story not in sim.ended:
        while sum(t not in sim.ended for t in tickets) < 10:
            tickets.append(sim.submit(other(sim, Tier.SILVER, n := n + 1, 30)))
        sim.step()
        assert sim.clock() < 5 * S
    timings = sim.ended[story].timings
    assert timings.taken_ns - timings.submitted_ns < 900 * MS


def test_silver_takes_a_lane_from_bronze_and_bronze_goes_on_afterwards() -> None:
    """A dialogue never waits for a story to end. The story gives exactly the tokens that it gives alone."""
    sim = Sim(kv=KvSettings(prefixes=1, lanes=2, ram_mib=1))
    stories = [sim.submit(other(sim, Tier.BRONZE, n, 200)) for n in range(2)]
    for _ in range(30):
        sim.step()
    lines = [sim.submit(other(sim, Tier.SILVER, 50 + n, 20)) for n in range(2)]
    sim.step()
    assert all(line in sim.taken for line in lines)
    assert len(sim.scheduler.retrying) == 2
    gone = sim.submit(other(sim, Tier.BRONZE, 9, 5))
    sim.cancel(stories[0])
    sim.run()
    assert sim.ended[stories[0]].finish is Finish.CANCELLED
    for ticket in (stories[1], *lines, gone):
        assert sim.ended[ticket].finish is Finish.LENGTH
        assert sim.chunks[ticket] == sim.alone(sim.submitted[ticket])


def test_silver_that_could_not_start_takes_no_lane() -> None:
    """While Gold uses every resident sequence, Silver could not use a lane, so the stories keep theirs."""
    sim = Sim(sequences=5, kv=KvSettings(prefixes=1, lanes=2, ram_mib=1))
    stories = [sim.submit(other(sim, Tier.BRONZE, n, 100)) for n in range(2)]
    sim.run(until=lambda: all(sim.chunks[t] for t in stories))
    intents = [sim.submit(replace(gold(sim, 10 + n), max_tokens=50)) for n in range(2)]
    sim.step()
    line = sim.submit(other(sim, Tier.SILVER, 50, 5))
    while not any(t in sim.ended for t in intents):
        sim.step()
        assert line not in sim.taken
        assert not sim.scheduler.retrying
    sim.run()
    assert sim.ended[line].timings.first_ns < sim.ended[stories[0]].timings.last_ns


def test_the_overdue_bronze_that_is_due_longest_keeps_its_lane() -> None:
    """The one story that counts as Silver is not parked, so that it ends."""
    sim = Sim(kv=KvSettings(prefixes=1, lanes=1, ram_mib=1))
    work = other(sim, Tier.BRONZE, 1, 50)
    work.due_ns = -30 * S
    story = sim.submit(work)
    sim.step()
    line = sim.submit(other(sim, Tier.SILVER, 2, 5))
    sim.run(until=lambda: line in sim.taken)
    assert story in sim.ended


def test_more_works_than_may_run_whose_choice_is_forced_all_end_without_a_step() -> None:
    """A work whose choice is forced needs no step, and no work waits for ever for a place that is free again."""
    sim = Sim()
    only = stage("actions", [(0, words(600, 601).tolist(), END)])
    for n in range(PROMISES.gold.running_max * 2 + 5):
        sim.submit(replace(gold(sim, n), choice=only))
    sim.run()
    assert all(e.finish is Finish.STOP and e.labels == (("actions", 0),) for e in sim.ended.values())
    assert len(sim.ended) == len(sim.submitted)
    assert sim.engine.steps == 0


def test_bytes_that_the_engine_refuses_are_computed_anew() -> None:
    """A blob that was cut off in RAM costs time and nothing else."""
    sim = Sim(sequences=9, kv=KvSettings(prefixes=1, lanes=6, ram_mib=1))
    placer = sim.scheduler.placer
    for n in range(3):
        sim.submit(gold(sim, n))
        sim.run()
    gone = placer.homes.get(TrunkKey(npc(0), ""))
    assert gone.blob is not None
    gone.blob = replace(gone.blob, payload=gone.blob.payload[:-1] + b"?")
    again = sim.submit(gold(sim, 0))
    sim.run()
    assert placer.moves.loads_refused == 1
    assert sim.chunks[again] == sim.alone(sim.submitted[again])


def test_a_forgotten_trunk_does_not_come_back_with_a_work_that_waited() -> None:
    """After forget, a waiting work of the trunk or one that is retried leaves no KV behind when it ends."""
    sim = Sim(fail_at=frozenset({1}))
    key = TrunkKey(npc(1), "p")
    work = Work(Tier.SILVER, key, words(*range(50)), words(3), 4)
    sim.submit(work)
    sim.forget(key)
    sim.step()
    assert len(sim.scheduler.placer.homes) == 1
    sim.step()  # this step fails
    assert sim.scheduler.retrying
    sim.forget(key)
    sim.run()
    assert [e.finish for e in sim.ended.values()] == [Finish.LENGTH]
    assert len(sim.scheduler.placer.homes) == 0


def test_a_trunk_that_is_wanted_again_after_forget_stays() -> None:
    """Forget removes KV that exists, and not KV of later works."""
    sim = Sim()
    key = TrunkKey(npc(1), "p")
    first = sim.submit(Work(Tier.SILVER, key, words(*range(50)), words(3), 4))
    sim.step()
    sim.forget(key)
    again = sim.submit(Work(Tier.SILVER, key, words(*range(50)), words(3), 4))
    sim.run()
    assert {first, again} <= set(sim.ended)
    assert np.array_equal(sim.scheduler.placer.homes.get(key).tokens, words(*range(50)))
