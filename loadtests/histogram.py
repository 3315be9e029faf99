"""Counting values in fine buckets: adding costs one list increment, whatever the run's length."""

from __future__ import annotations


class Histogram:
    """Values from 0 up in buckets of `width`. A value beyond the last bucket counts in that bucket, and in `over`."""

    __slots__ = ("_buckets", "_last", "_per_unit", "count", "largest", "over", "total", "width")

    def __init__(self, width: float, largest: float) -> None:
        self.width = width
        self._per_unit = 1.0 / width
        self._buckets = [0] * (int(largest / width) + 1)
        self._last = len(self._buckets) - 1
        self.count = 0
        self.over = 0
        self.total = 0.0
        self.largest = 0.0

    def add(self, value: float) -> None:
        """Counts one value."""
        bucket = int(value * self._per_unit)
        if bucket > self._last:
            bucket = self._last
            self.over += 1
        self._buckets[bucket if bucket > 0 else 0] += 1
        self.count += 1
        self.total += value
        if value > self.largest:
            self.largest = value

    def include(self, other: Histogram) -> None:
        """Adds another histogram's counts; its buckets must be the same."""
        assert (self.width, self._last) == (other.width, other._last), "the buckets differ"
        for bucket, number in enumerate(other._buckets):
            self._buckets[bucket] += number
        self.count += other.count
        self.over += other.over
        self.total += other.total
        self.largest = max(self.largest, other.largest)

    @property
    def mean(self) -> float:
        """The mean of all exact values, or 0 when there are none."""
        return self.total / self.count if self.count else 0.0

    def percentile(self, share: float) -> float:
        """The upper edge of the bucket that holds this share (0..1) of all values, or 0 when there are none."""
        if not self.count:
            return 0.0
        wanted = share * self.count
        seen = 0
        for bucket, number in enumerate(self._buckets):
            seen += number
            if seen >= wanted and number:
                return min((bucket + 1) * self.width, self.largest) if bucket < self._last else self.largest
        return self.largest

    def percentiles(self, **shares: float) -> dict[str, float]:
        """Named percentiles, rounded to three digits: percentiles(p50=0.5, p99=0.99)."""
        return {name: round(self.percentile(share), 3) for name, share in shares.items()}
