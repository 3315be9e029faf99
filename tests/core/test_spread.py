"""Times are counted in buckets, which are cheap to read and close to the exact percentiles."""

import random

import pytest

from core.clock import MS, S
from core.spread import Histogram, Spread, added
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
    assert spread.percentiles(500 * S, 0.0)[0] == pytest.approx(20 * MS, rel=0.032), "the row's earlier values are gone"


def test_any_time_has_a_bucket() -> None:
    """Zero has one, and so do years."""
    spread = Spread()
    spread.add(S, 0)
    assert spread.percentiles(S, 1.0) == [0.0]
    spread.add(S, 1 << 62)
    assert spread.percentiles(S, 1.0)[0] > 3600 * S


def test_a_histogram_counts_every_time_at_or_below_its_bound() -> None:
    """It agrees with a count of all the times, for any bounds; a time that equals a bound is within it."""
    dice = random.Random(11)
    for _ in range(50):
        bounds = sorted(dice.sample(range(1, 1000), dice.randint(0, 12)))
        histogram, times = Histogram(bounds), [dice.randint(0, 1100) for _ in range(dice.randint(0, 300))]
        for time in times:
            histogram.add(time)
        found = histogram.cumulative()
        assert found.counts == [sum(t <= bound for t in times) for bound in bounds] + [len(times)]
        assert (found.bounds_ns, found.sum_ns) == (tuple(bounds), sum(times))


def test_histograms_of_the_same_bounds_add_up() -> None:
    """The sum is as if one had counted all times. A histogram with other bounds is left out."""
    parts, whole = [Histogram([10, 20]) for _ in range(3)], Histogram([10, 20])
    for number, time in enumerate((1, 10, 11, 20, 21, 9, 300)):
        parts[number % 3].add(time)
        whole.add(time)
    other = Histogram([10])
    other.add(5)
    assert added([*parts, other], [10, 20]) == whole.cumulative()
    assert added([], [10, 20]) == Histogram([10, 20]).cumulative()


def test_the_count_since_start_does_not_end_with_the_window() -> None:
    """Prometheus' counts only rise."""
    spread = Spread(60 * S, [10 * MS, 100 * MS])
    spread.add(5 * S, 10 * MS)
    spread.add(500 * S, 11 * MS)
    spread.add(900 * S, S)
    assert spread.ever.cumulative().counts == [1, 2, 3]
