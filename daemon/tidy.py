"""Garbage collection when nobody waits: Python's full collections stop every thread, so they are ours to time.

Owns the collector's settings of this process. Young objects are collected as ever (microseconds); the oldest
generation only here, when the daemon is idle, or when it has not been idle for too long. A collection takes as long as
there are objects to look through, so NPCs, conversations and memories are set aside as they become more: they are freed
when nobody has them any more, as everything is, and a cycle of them would stay. Our own calls leave none.
"""

from __future__ import annotations

import gc

from core.clock import Clock, S

EVERY_S = 60
ASIDE_EVERY = 500  # more things that live long: some 10,000 objects, which take 2 ms to look through
NEVER = 1_000_000_000  # second-generation collections between two automatic full ones


class Tidy:
    """Collects the oldest generation by hand. `pause_ns` is what the last full collection took, `full` how many there
    were.
    """

    def __init__(self, clock: Clock) -> None:
        self.full = 0
        self.pause_ns = 0
        self._clock = clock
        self._last_ns = clock()
        self._aside = 0

    def start(self) -> None:
        """Call once everything that lives long is there: it is no longer looked through at all."""
        gc.collect()
        gc.freeze()
        young, middle, _ = gc.get_threshold()
        gc.set_threshold(young, middle, NEVER)
        self._last_ns = self._clock()

    def look(self, idle: bool, living: int = 0) -> None:
        """Collects when idle and due, or when overdue by ten times. So many things are there that live long."""
        self._aside = min(self._aside, living)
        if living - self._aside >= ASIDE_EVERY:
            gc.freeze()  # takes no time with their number
            self._aside = living
        waited_ns = self._clock() - self._last_ns
        if waited_ns < EVERY_S * S or (not idle and waited_ns < 10 * EVERY_S * S):
            return
        began_ns = self._clock()
        gc.collect()
        ended_ns = self._clock()
        self.full += 1
        self.pause_ns = ended_ns - began_ns
        self._last_ns = ended_ns
