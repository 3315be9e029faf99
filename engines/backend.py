"""The port between the daemon and whatever runs a model: the values that come back through it."""

from __future__ import annotations

from typing import NamedTuple

from core.work import Chunk, Ended


class Taken(NamedTuple):
    """A work left its queue and runs."""

    at_ns: int


class Health(NamedTuple):
    """How the thread of a backend does, as one value that any thread may read: when it last came round, and how long
    what it does since then should take.
    """

    beat_ns: int = 0
    expected_ns: int = 0

    def stalled(self, now_ns: int, least_ns: int, times: float) -> bool:
        """Whether it has not come round for longer than `least_ns` and `times` as long as it should take."""
        return now_ns - self.beat_ns > max(least_ns, times * self.expected_ns)


Delivery = tuple[int, Chunk | Ended | Taken]  # by ticket id
