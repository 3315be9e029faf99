"""Long work on the event loop in slices: after each slice everybody else gets a turn.

Code that decides is a generator of steps (core/steps.py); Slices.run() goes through it and rests.

After each slice young objects are collected. Python itself does that when so many more were made than freed, so work
that replaces old objects by new ones puts it off, until a collection has to look through all of them in one go.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Any, TypeVar

from core.clock import Clock
from core.steps import Steps

T = TypeVar("T")
LET_GO = 16  # things that are freed in one step
YOUNG = 1  # the generations that are collected after a slice: this one and the one below


def collect_young() -> None:
    """Collects what was made since the last time. Takes as long as there is of it: two microseconds when nothing is."""
    gc.collect(YOUNG)


class Slices:
    """One piece of long work: a slice lasts `slice_ns`, and begins when the work does, or after a rest."""

    __slots__ = ("_began_ns", "_clock", "_slice_ns")

    def __init__(self, slice_ns: int, clock: Clock) -> None:
        self._slice_ns = slice_ns
        self._clock = clock
        self._began_ns = clock()

    @property
    def over(self) -> bool:
        """Whether the slice has lasted long enough."""
        return self._clock() - self._began_ns >= self._slice_ns

    async def rest(self) -> None:
        """Gives everybody else a turn, when the slice is over. What was true before may not be true afterwards."""
        if self._clock() - self._began_ns >= self._slice_ns:
            collect_young()
            await asyncio.sleep(0)
            self._began_ns = self._clock()

    async def let_go(self, last: list[Any] | dict[Any, Any]) -> None:
        """Empties a list or a dict of things that nobody else has: to free many takes as long as to make them."""
        while last:
            if isinstance(last, dict):
                for _ in range(min(LET_GO, len(last))):
                    last.popitem()
            else:
                del last[-LET_GO:]
            await self.rest()

    async def run(self, steps: Steps[T]) -> T:
        """The result of the steps, with rests between them. The steps are closed when we are cancelled."""
        clock, slice_ns = self._clock, self._slice_ns
        try:
            while True:
                next(steps)
                if clock() - self._began_ns >= slice_ns:
                    collect_young()
                    await asyncio.sleep(0)
                    self._began_ns = clock()
        except StopIteration as over:
            result: T = over.value
            return result
        finally:
            steps.close()


class Pace:
    """How long a slice is, for all who work on one event loop: call it for each piece of long work."""

    def __init__(self, slice_ns: int, clock: Clock) -> None:
        self._slice_ns = slice_ns
        self._clock = clock

    def __call__(self) -> Slices:
        """Slices for one piece of work, which begins now."""
        return Slices(self._slice_ns, self._clock)
