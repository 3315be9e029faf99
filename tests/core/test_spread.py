"""Times are counted in buckets, which are cheap to read and close to the exact percentiles."""

import random

import pytest

from core.clock import MS, S
from core.spread import Spread
from scheduler.meter import percentile


def test_percentiles_are_within_three_percent_of_those_of_all_values() -> None:
    """The percentiles are right for times from microseconds to minutes."""
    dice = random.Random(7)
    for scale in (1_000, MS, 40 * MS, S, 300 * S):
        spread, values = Spread(), [round(dice.expovariate(1 / scale)) + 400 for _ in range(5_000)]
        for value in values:
            spread.add(10 * S, value)
        for share, found in zip((0.0, 0.5, 0.95, 0.99), spread.percentiles(10 * S, 0.0, 0.5, 0.95, 0.99), strict=True):
            assert found == pytest.approx(percentile(values, share), rel=0.032), (scale, share)


def test_values_older_than_the_window_are_not_counted() -> None:
    """A value counts until the window ends, and not longer."""
    spread = Spread(60 * S)
    spread.add(5 * S, 900 * MS, 7)
    spread.add(50 * S, 10 * MS, 2)
    assert spread.percentiles(64 * S, 1.0)[0] == pytest.approx(900 * MS, rel=0.032) and spread.amount(64 * S) == 9
    assert spread.percentiles(75 * S, 1.0)[0] == pytest.approx(10 * MS, rel=0.032) and spread.amount(75 * S) == 2
    assert spread.percentiles(500 * S, 0.5, 1.0) == [0.0, 0.0] and spread.amount(500 * S) == 0
    spread.add(500 * S, 20 * MS)
    assert spread.percentiles(500 * S, 0.0)[0] == pytest.approx(20 * MS, rel=0.032), (
        "the row's earlier values are gone"
    )


def test_any_time_has_a_bucket() -> None:
    """None at all, and years."""
    spread = Spread()
    spread.add(S, 0)
    assert spread.percentiles(S, 1.0) == [0.0]
    spread.add(S, 1 << 62)
    assert spread.percentiles(S, 1.0)[0] > 3600 * S
