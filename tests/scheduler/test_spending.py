"""Engine time is divided among the tiers without a rest, and unit costs are what intents and tokens really cost."""

from __future__ import annotations

import random

import pytest

from core.words import Tier, TrunkKey
from core.work import Work
from engines.sim import SimCost
from tests.scheduler.simulated import Sim, npc, random_work, words
from tests.scheduler.test_scheduler import ACT, CHOICES
from tiers.promises import Promises


def intent(n: int, tail_len: int = 18) -> Work:
    """An intent of an NPC whose trunk is short."""
    return Work(Tier.GOLD, TrunkKey(npc(n), ""), words(*range(20)), words(*range(50, 50 + tail_len)), 8, choice=ACT)


@pytest.mark.parametrize("seed", range(3))
def test_the_tiers_times_add_up_to_the_time_of_all_steps(seed: int) -> None:
    """After every step of random works, the sum over the tiers is the time of the steps, and none of them shrinks."""
    rng, sim = random.Random(seed), Sim(end_every=30)
    spending, before = sim.scheduler.spending, [0, 0, 0]
    for _ in range(60):
        for _ in range(rng.randrange(1, 12)):
            sim.submit(random_work(rng, 50, CHOICES))
        for _ in range(rng.randrange(8)):
            sim.step()
            busy_ns = sim.scheduler.meter.busy_ns
            assert abs(sum(spending.by_tier_ns) + spending.trunks_ns - busy_ns) <= 2 * sim.scheduler.meter.steps
            assert all(now >= then for now, then in zip(spending.by_tier_ns, before, strict=True))
            before = list(spending.by_tier_ns)
    assert sum(map(bool, spending.by_tier_ns)) >= 2


def test_a_tier_alone_bears_all() -> None:
    """While only intents run, Silver and Bronze cost nothing."""
    sim = Sim()
    for n in range(6):
        sim.submit(intent(n))
    sim.run()
    spending = sim.scheduler.spending
    gold_ns, silver_ns, bronze_ns = spending.by_tier_ns
    whole_ns = sim.scheduler.meter.busy_ns
    assert gold_ns + spending.trunks_ns == pytest.approx(whole_ns, abs=100) and not silver_ns and not bronze_ns


@pytest.mark.parametrize("token_ms", [0.3, 3.0, 12.0, 40.0])
def test_unit_costs_are_what_intents_really_cost(token_ms: float) -> None:
    """On a model of that many milliseconds a token, the predicted cost of one intent of a group, and of one by itself,
    is within a third of the measured time.
    """
    cost = SimCost(step_us=200.0, micro_us=250.0, token_us=token_ms * 1000)
    sim = Sim(cost=cost, promises=Promises())
    for n in range(12):
        sim.submit(intent(n))
    sim.run()  # trunks are in place, and the cost model has learned
    for _ in range(40):
        for n in range(4):
            sim.submit(intent(n))
        sim.run()
    sim.scheduler.costs.settle()
    costs = sim.scheduler.spending.unit_costs(sim.scheduler.costs)
    began_ns, busy_ns = sim.clock(), sim.scheduler.meter.busy_ns
    sim.submit(intent(0))
    sim.run()
    assert costs.alone_ns == pytest.approx(sim.scheduler.meter.busy_ns - busy_ns, rel=0.33)
    busy_ns = sim.scheduler.meter.busy_ns
    for n in range(12):
        sim.submit(intent(n))
    sim.run()
    assert costs.intent_ns == pytest.approx((sim.scheduler.meter.busy_ns - busy_ns) / 12, rel=0.33)
    assert costs.token_ns == pytest.approx(token_ms * 1e6, rel=0.33, abs=0.5e6)
    assert sim.clock() > began_ns


def test_expected_is_what_the_cost_model_says() -> None:
    """On an engine that turns out to be twice as slow, the steps take about twice as long as was expected of them."""
    sim = Sim()
    for _ in range(30):
        for n in range(6):
            sim.submit(intent(n))
        sim.run()
    spending, meter = sim.scheduler.spending, sim.scheduler.meter
    assert meter.busy_ns / spending.expected_ns == pytest.approx(1.0, rel=0.5)
    sim.engine.cost = SimCost(step_us=400.0, micro_us=500.0, token_us=90.0)
    busy_ns, expected_ns = meter.busy_ns, spending.expected_ns
    for n in range(6):
        sim.submit(intent(n))
    sim.run()
    slow_x = (meter.busy_ns - busy_ns) / (spending.expected_ns - expected_ns)
    assert 1.5 < slow_x < 2.5, slow_x
