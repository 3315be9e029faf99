"""The measured times decide between loading a trunk and computing it anew."""

import random

from core.clock import MS
from scheduler.costs import Costs
from scheduler.loads import MIB, LoadCosts, recompute_ns


def test_the_time_of_loads_is_learned() -> None:
    """A fixed part and a part per byte are found from noisy loads, and one page fault does not spoil them."""
    loads, rng = LoadCosts(), random.Random(1)
    for n in range(400):
        size = rng.randrange(50_000, 3_000_000)
        took = 0.8 * MS + 2.5 * MS * size / MIB
        loads.add(size, round(took * (rng.uniform(0.95, 1.05) if n % 50 else 30.0)))
    for size in (100_000, 1_000_000, 2_500_000):
        right = 0.8 * MS + 2.5 * MS * size / MIB
        assert 0.8 * right < loads.predict_ns(size) < 1.4 * right


def test_loads_of_one_size_are_learned_too() -> None:
    """From loads of one size the prediction is their time, and no part of it is negative."""
    loads = LoadCosts()
    for _ in range(300):
        loads.add(MIB, 5 * MS)
    assert 4.5 * MS < loads.predict_ns(MIB) < 5.5 * MS
    assert loads.fixed_ns >= 0
    assert loads.mib_ns >= 0


def test_recomputing_costs_what_the_steps_cost() -> None:
    """More tokens cost more and zero tokens cost nothing. A long prefill costs the sum of its micro-batches."""
    costs = Costs()
    assert recompute_ns(costs, 100, 100, 512) == 0
    assert recompute_ns(costs, 0, 1000, 512) > recompute_ns(costs, 200, 1000, 512) > 0
    whole = recompute_ns(costs, 0, 512, 512) + recompute_ns(costs, 512, 1000, 512)
    assert abs(recompute_ns(costs, 0, 1000, 512) - whole) < 1


def test_loads_that_do_not_pay_are_tried_again_now_and_then() -> None:
    """Loads that seem dearer are refused, all but one in `retry_every`, which shows when they have become cheap."""
    loads = LoadCosts()
    assert loads.pays(MIB, 0, 50 * MS)
    assert not loads.pays(MIB, 60 * MS, 50 * MS)
    taken = [loads.pays(MIB, 0, 0.1 * MS) for _ in range(640)]
    assert sum(taken) == 10
    for _ in range(100):
        loads.add(MIB, MS // 50)
    assert loads.pays(MIB, 0, 0.1 * MS)
