"""The cost model learns how long steps take, stays non-negative, and reduces its trust after overruns."""

import random
from pathlib import Path

import numpy as np
import pytest

from engines.base import Slice, micro_batches, tokens_of
from scheduler.costs import Costs, CostSettings, Features, features


def shapes(rng: random.Random) -> Features:
    """Features of a random step."""
    micros = rng.randrange(1, 6)
    tokens = rng.randrange(1, 300)
    context = rng.choice([256, 512, 1024])
    sequences = rng.randrange(micros, micros + 16)
    return (1.0, float(micros), float(tokens), tokens * context / 1000.0, sequences * context / 1000.0)


def test_learns_true_weights_through_noise_and_outliers() -> None:
    """After 2,000 noisy steps with page faults among them, predictions are right within a tenth."""
    rng = random.Random(8)
    truth = (250_000.0, 180_000.0, 40_000.0, 30.0, 25_000.0)
    costs = Costs()
    for _ in range(2000):
        x = shapes(rng)
        took = float(np.dot(truth, x)) * rng.uniform(0.95, 1.05)
        if rng.random() < 0.01:
            took *= 20
        costs.add(x, round(took), 10**12)
        assert all(w >= 0 for w in costs.weights_ns)
    for _ in range(100):
        x = shapes(rng)
        assert costs.predict_ns(x) == pytest.approx(float(np.dot(truth, x)), rel=0.1)


def test_overruns_pull_the_budget_down_at_once_and_it_recovers() -> None:
    """One step of twice its budget costs trust, and steps within their budget restore it."""
    costs = Costs()
    costs.add((1.0, 1.0, 1.0, 0.3, 0.3), 20_000_000, 5_000_000)
    assert costs.trust == pytest.approx(CostSettings().pull_down)
    for _ in range(50):
        costs.add((1.0, 1.0, 1.0, 0.3, 0.3), 1_000_000, 5_000_000)
    assert costs.trust == 1.0


def test_the_number_of_tokens_that_fit_agrees_with_the_prediction() -> None:
    """The stated number of tokens fits into the room and one more does not. Into no room no token fits."""
    costs = Costs(CostSettings(prior_ns=(0.0, 100_000.0, 50_000.0, 0.0, 0.0)))
    assert costs.fit(1_000_000, 0, 500, new_micro=True) == (18, 100_000.0, 50_000.0)
    assert costs.fit(1_000_000, 0, 500, new_micro=False) == (20, 0.0, 50_000.0)
    assert costs.fit(1_000, 0, 500, new_micro=True)[0] == 0
    assert costs.fit(-5, 0, 500, new_micro=True)[0] == 0
    assert costs.fit(1e12, 0, 500, new_micro=True)[0] == 500
    rng = random.Random(9)
    for _ in range(300):
        costs = Costs(CostSettings(prior_ns=(0.0, rng.uniform(0, 1e6), rng.uniform(1, 1e5), rng.uniform(0, 100), 0.0)))
        pos, wanted, room = rng.randrange(1000), rng.randrange(1, 600), rng.uniform(0, 2e7)
        tokens, fixed, each = costs.fit(room, pos, wanted, new_micro=True)
        assert 0 <= tokens <= wanted
        assert not tokens or fixed + tokens * each <= room + 1
        assert tokens == wanted or fixed + (tokens + 1) * each > room


@pytest.mark.parametrize(
    ("slices", "wanted"),
    [
        ([(0, 10, 1), (1, 10, 1), (2, 300, 1)], [(3, 512)]),
        ([(0, 10, 1), (2, 10, 1)], [(1, 256), (1, 256)]),
        ([(0, 10, 1), (1, 10, 12)], [(2, 256), (11, 256)]),
        ([(0, 10, 1), (1, 255, 1), (2, 256, 1), (9, 5, 1)], [(3, 512), (1, 256)]),
        ([(n, 0, 1) for n in range(600)], [(512, 256), (88, 256)]),
        ([(5, 0, 1000)], [(512, 512), (488, 1024)]),
        ([(0, 0, 300), (1, 0, 300)], [(512, 256), (88, 512)]),
    ],
)
def test_micro_batches(slices: list[tuple[int, int, int]], wanted: list[tuple[int, int]]) -> None:
    """Runs of equal lengths share a micro-batch. Each gap and each rest needs one more."""
    made = [Slice(seq, pos, tokens_of([0] * n)) for seq, pos, n in slices]
    assert micro_batches(made, 512) == wanted


def test_predicts_recorded_steps() -> None:
    """Of 500 steps recorded under mixed load, each predicted before it is learned from, half are right within a
    tenth."""
    costs = Costs()
    errors = []
    lines = Path(__file__).with_name("recorded_steps.txt").read_text("ascii").splitlines()
    for line in lines:
        if line.startswith("#"):
            continue
        took_us, *words = line.split()
        took_ns = int(took_us) * 1000
        parts = [tuple(map(int, word.split(":"))) for word in words]
        x = features([Slice(seq, pos, tokens_of([0] * count)) for seq, pos, count in parts], 512)
        errors.append((costs.predict_ns(x) - took_ns) / took_ns)
        costs.add(x, took_ns, 10**12)
    learned = sorted(errors[100:])
    assert len(learned) == 400
    assert abs(learned[200]) < 0.05, "neither too dear nor too cheap"
    assert sorted(map(abs, learned))[200] < 0.1
    assert sorted(map(abs, learned))[360] < 0.3
