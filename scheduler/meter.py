"""What the scheduler counts: per tier and per step. Written on the engine thread, read anywhere (plain numbers,
bounded rings).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from core.clock import S
from core.words import Finish, Tier

RING_LEN = 16_384


@dataclass(slots=True)
class TierMeter:
    """`first_ns` and `gap_ns` hold (moment, nanoseconds): submitted -> first token, and token -> next token of one
    work.
    """

    ended: dict[Finish, int] = field(default_factory=lambda: dict.fromkeys(Finish, 0))
    output_tokens: int = 0
    queue_ns: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=RING_LEN))
    first_ns: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=RING_LEN))
    gap_ns: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=RING_LEN))


@dataclass(slots=True)
class Meter:
    """All of it. `step_ns` holds (moment, nanoseconds, tokens) of recent steps."""

    tiers: list[TierMeter] = field(default_factory=lambda: [TierMeter() for _ in Tier])  # by tier
    steps: int = 0
    busy_ns: int = 0  # spent in steps, since start
    step_failures: int = 0
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    retries: int = 0
    step_ns: deque[tuple[int, int, int]] = field(default_factory=lambda: deque(maxlen=RING_LEN))


def recent(ring: Iterable[tuple[int, int]], now_ns: int, within_ns: int = 60 * S) -> list[int]:
    """The values of a ring that are young enough. Safe while the engine thread appends."""
    return [value for at, value in tuple(ring) if now_ns - at <= within_ns]


def percentile(values: Sequence[int], share: float) -> float:
    """The value below which `share` (0..1) of the values lie (nearest rank); 0.0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])
