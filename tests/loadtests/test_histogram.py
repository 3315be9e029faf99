"""Percentiles from buckets are those of the values, to within a bucket."""

from __future__ import annotations

import random

from loadtests.histogram import Histogram


def test_percentiles_are_right_to_a_bucket() -> None:
    chance = random.Random(1)
    values = [chance.expovariate(0.1) for _ in range(5000)]
    histogram = Histogram(0.25, 1000.0)
    for value in values:
        histogram.add(value)
    ranked = sorted(values)
    for share in (0.01, 0.5, 0.95, 0.99, 1.0):
        exact = ranked[max(0, int(share * len(ranked)) - 1)]
        assert exact - 0.001 <= histogram.percentile(share) <= exact + 0.5, share


def test_nothing_counted_is_zero_and_too_large_counts_in_the_end() -> None:
    histogram = Histogram(1.0, 10.0)
    assert histogram.percentile(0.5) == 0.0
    histogram.add(5_000.0)
    assert histogram.over == 1 and histogram.percentile(0.5) == 5_000.0
    histogram.add(-1.0)
    assert histogram.count == 2 and histogram.percentile(0.5) <= 1.0
