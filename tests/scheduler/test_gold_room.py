"""Of the Gold that waits, as many run as are done by the time the rule's answer stands; others can be superseded."""

from __future__ import annotations

import pytest

from core.clock import MS
from core.words import Finish, Tier
from engines.sim import SimCost
from tests.scheduler.simulated import Sim
from tests.scheduler.test_any_model import PROMISES, cost, engine, intent


def gold_running(sim: Sim) -> int:
    """How many Gold works run."""
    return sum(r.work.tier is Tier.GOLD for r in sim.scheduler.running.values())


@pytest.mark.parametrize(("token_ms", "most"), [(0.05, 64), (0.3, 16), (3.0, 2), (12.0, 1), (40.0, 1)])
def test_so_many_run_as_are_done_in_time(token_ms: float, most: int) -> None:
    """An intent of 23 tokens takes 23 times one token's time: so many as that fits into 100 ms run at once, and one
    always does.
    """
    sim = engine(token_ms)
    for n in range(80):
        sim.submit(intent(sim, n, sim.clock()))
    busiest = 0
    while not sim.scheduler.idle:
        sim.step()
        busiest = max(busiest, gold_running(sim))
    assert busiest <= most
    assert busiest >= min(0.5 * most, 64) or most == 1
    assert all(ended.finish is Finish.LENGTH for ended in sim.ended.values())


def test_what_waits_is_replaced_by_the_newer_question() -> None:
    """While one intent runs on a slow model, its neighbours' questions are superseded; none that ran is."""
    sim = engine(12.0)
    first = [sim.submit(intent(sim, n, sim.clock())) for n in range(3)]
    sim.step()
    again = [sim.submit(intent(sim, n, sim.clock())) for n in range(3)]
    sim.run()
    assert [sim.ended[t].finish for t in first] == [Finish.LENGTH, Finish.SUPERSEDED, Finish.SUPERSEDED]
    assert [sim.ended[t].finish for t in again] == [Finish.LENGTH] * 3


def test_intents_of_a_step_that_costs_much_whatever_is_in_it_still_run_together() -> None:
    """On a GPU a pass over the weights costs the same for one intent or thirty, so all of them run at once."""
    sim = Sim(sequences=160, context_len=1024, cost=SimCost(step_us=26_000, micro_us=0, token_us=100, one_pass=True))
    for _ in range(3):  # learn what steps cost
        for n in range(30):
            sim.submit(intent(sim, n, sim.clock()))
        sim.run()
    for n in range(30):
        sim.submit(intent(sim, n, sim.clock()))
    busiest = 0
    while not sim.scheduler.idle:
        sim.step()
        busiest = max(busiest, gold_running(sim))
    assert busiest >= 24


def test_the_rule_answers_by_the_time_that_the_limit_assumes() -> None:
    """The limit is Gold's wait_max_ms, which is when an NPC without an answer has the rule's."""
    assert PROMISES.gold.wait_max_ms * MS == 100 * MS
    assert cost(1.0).token_us == 1000.0
