"""Long work on the event loop in slices: after each slice other tasks get a turn.

Deciding code is a generator of steps (core/steps.py); Slices.run() runs it and rests between slices.

After each slice the garbage collector collects young objects. Python itself does that only when many more objects were
made than freed. Work that replaces old objects by new ones would put it off until one long collection.
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
    """Collects objects made since the last time. Takes time with their number: two microseconds without any."""
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
        """True when the slice has lasted long enough."""
        return self._clock() - self._began_ns >= self._slice_ns

    async def rest(self) -> None:
        """Gives other tasks a turn when the slice is over. State may have changed afterwards."""
        if self._clock() - self._began_ns >= self._slice_ns:
            collect_young()
            await asyncio.sleep(0)
            self._began_ns = self._clock()

    async def let_go(self, last: list[Any] | dict[Any, Any]) -> None:
        """Empties a list or dict in slices: freeing many objects takes as long as making them."""
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


class Slicer:
    """The length of a slice, for all work on one event loop: call it for each piece of long work."""

    def __init__(self, slice_ns: int, clock: Clock) -> None:
        self._slice_ns = slice_ns
        self._clock = clock

    def __call__(self) -> Slices:
        """Slices for one piece of work, which begins now."""
        return Slices(self._slice_ns, self._clock)
