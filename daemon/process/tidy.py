"""Garbage collection when no work waits: Python's full collections stop every thread, so npcd chooses the moment.

Owns the collector's settings of this process. Young objects are collected as ever (microseconds), and after each slice
of long work (core/slices.py); the oldest generation only here, when the daemon is idle, or when it has not been idle
for too long. A collection takes time with the number of objects, so large numbers of old objects (NPCs, observations,
memories) are set aside instead. They are freed when nothing refers to them any more, and only a cycle would stay. Our
own calls leave none.
"""

from __future__ import annotations

import gc

from core.clock import Clock, S
from core.slices import collect_young

EVERY_S = 60
LOOK_S = 0.1  # so that little has grown old since
MIDDLE = 3  # young collections between two that also look at their survivors: those take below 1 ms
GROWN_MAX = 10_000  # objects that have grown old since the last freeze: a collection of them takes 1 to 2 ms
BUSY = 10  # younger collections since the last look: counting the objects that grew old would take too long
OLD = 2  # the oldest generation; frozen objects are in none
NEVER = 1_000_000_000  # second-generation collections between two automatic full ones


class Tidy:
    """Collects the oldest generation by hand, `full` times so far."""

    def __init__(self, clock: Clock) -> None:
        self.full = 0
        self._clock = clock
        self._last_ns = clock()
        self._collections = 0  # of the younger generations, as Python counted them at the last look

    def start(self) -> None:
        """Call once all long-lived objects exist: collections no longer look at them."""
        gc.collect()
        gc.freeze()
        young, _, _ = gc.get_threshold()
        gc.set_threshold(young, MIDDLE, NEVER)
        self._last_ns = self._clock()

    def look(self, idle: bool) -> None:
        """Sets aside what has grown old if it is much, and collects when idle and due, or when overdue by ten times.

        Call it each LOOK_S.
        """
        collect_young()
        busy = gc.get_count()[OLD] - self._collections > BUSY
        if busy or len(gc.get_objects(OLD)) > GROWN_MAX:
            gc.freeze()  # takes no time with the number of objects
        self._collections = gc.get_count()[OLD]
        waited_ns = self._clock() - self._last_ns
        if waited_ns < EVERY_S * S or (not idle and waited_ns < 10 * EVERY_S * S):
            return
        gc.collect()
        self.full += 1
        self._last_ns = self._clock()
