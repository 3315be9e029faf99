"""Work is put off in a fixed order with a reason, comes back only after calm, and never flaps. Scenarios are in
tests/scenarios/shedding.txt.
"""

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from core.errors import ConfigError
from tiers.shedding import Load, Queued, Sheddable, Shedding, ShedSettings, check_shedding

MS = 1_000_000
IN_ORDER = (Sheddable.PREDICTIONS, Sheddable.BARKS, Sheddable.INTENTS)


def any_load(rng: random.Random) -> Load:
    """Loads with mostly little work, and at times too much of one kind."""

    def queued(waiting_max: int, often_ms: float) -> Queued:
        crowded = rng.random() < 0.2
        waiting = rng.randint(0, waiting_max) if crowded else rng.randint(0, waiting_max // 20)
        return Queued(waiting, waiting_max, rng.expovariate(1 / often_ms) if waiting else 0.0, rng.randint(1, 9000))

    return Load(
        queued(2048, 30),
        queued(64, 300),
        queued(1024, 2000),
        put_off=rng.choice([0, 0, 0, 0, 5]),
        still_ms=rng.choice([0, 0, 0, 0, 80, 300]),
        step_ms=rng.choice([3, 3, 60]),
        draining=rng.random() < 0.01,
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_order_is_kept_and_nothing_comes_back_before_calm(seed: int) -> None:
    """Under any load barks go only after predictions and intents only after barks. Each stays away for calm_ms."""
    rng = random.Random(seed)
    settings = ShedSettings()
    shedding = Shedding(settings)
    now_ns, went_ns, gone_before = 0, dict.fromkeys(Sheddable, 0), set[Sheddable]()
    for _ in range(3000):
        now_ns += rng.choice([1, 10, 50, 400]) * MS
        shedding.look(any_load(rng), now_ns)
        gone = {s.work for s in shedding.shed}
        for earlier, later in pairwise(IN_ORDER):
            assert later not in gone or earlier in gone, (earlier, later)
        for s in shedding.shed:
            assert s.reason
            assert s.retry_ms == 0 or s.work in (Sheddable.DIALOGUE, Sheddable.STORIES)
        for work in gone - gone_before:
            went_ns[work] = now_ns
        for work in gone_before - gone:
            assert now_ns - went_ns[work] >= settings.calm_ms * MS
        gone_before = gone


def test_a_load_that_stays_makes_one_change_each_way() -> None:
    """A load that swings about a bound does not switch work on and off."""
    shedding = Shedding(ShedSettings())
    changes = 0
    was = True
    for n in range(1000):
        waited_ms = 24.0 if n % 2 else 26.0
        shedding.look(Load(gold=Queued(5, 2048, waited_ms)), n * 20 * MS)
        changes += shedding.allows_predictions != was
        was = shedding.allows_predictions
    assert changes == 1
    for n in range(1000, 1050):
        shedding.look(Load(), n * 20 * MS)
        changes += shedding.allows_predictions != was
        was = shedding.allows_predictions
    assert changes == 2 and was


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"barks_gold_ms": 10.0}, "barks_gold_ms (10)"),
        ({"intents_gold_ms": 20.0}, "must be above 0 and grow in this order: predictions go first"),
        ({"predictions_gold_ms": 0.0}, "shedding.predictions_gold_ms (0)"),
        ({"predictions_queue": 0.0}, "shedding.predictions_queue: 0, must be above 0 and at most 1"),
        ({"calm": 1.0}, "shedding.calm: 1, must be between 0 and 1"),
        ({"calm_ms": 0}, "shedding.calm_ms: 0, must be above 0"),
        ({"stalled_ms": float("nan")}, "shedding.stalled_ms: nan, must be above 0"),
    ],
)
def test_wrong_bounds_are_named(change: dict[str, float], said: str) -> None:
    """The error gives the allowed values."""
    check_shedding(ShedSettings())
    with pytest.raises(ConfigError) as caught:
        check_shedding(replace(ShedSettings(), **change))  # type: ignore[arg-type]
    assert said in str(caught.value)
