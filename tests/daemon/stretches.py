"""The work of a call on the event loop without a turn for others, in function calls: no clock, no luck."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any

from daemon.process.tidy import OLD, Tidy
from engines.sim import VirtualClock


class Counted:
    """The number of functions that each callback and each step of a coroutine calls, Python's own included."""

    def __init__(self) -> None:
        self.longest = 0
        self.stretches = 0

    def _count(self, run: Any, handle: Any) -> None:
        calls = 0

        def called(_frame: object, event: str, _arg: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(called)
        try:
            run(handle)
        finally:
            sys.setprofile(before)
            self.stretches += 1
            self.longest = max(self.longest, calls)


@contextmanager
def counted() -> Iterator[Counted]:
    """Counts on asyncio's loops until the block ends."""
    run, found = asyncio.Handle._run, Counted()

    def counting(handle: Any) -> None:
        found._count(run, handle)

    setattr(asyncio.Handle, "_run", counting)  # noqa: B010  # mypy knows it as a method
    try:
        yield found
    finally:
        setattr(asyncio.Handle, "_run", run)  # noqa: B010


@contextmanager
def largest_collection() -> Iterator[list[int]]:
    """The number of objects in each collection of young ones, with Tidy's settings of the collector, until the block
    ends.
    """
    before, found = gc.get_threshold(), [0]

    def begins(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] < OLD:
            found.append(sum(len(gc.get_objects(generation)) for generation in range(info["generation"] + 1)))

    Tidy(VirtualClock()).start()
    gc.callbacks.append(begins)
    try:
        yield found
    finally:
        gc.callbacks.remove(begins)
        gc.unfreeze()
        gc.set_threshold(*before)


async def longest(act: Awaitable[object]) -> int:
    """The longest stretch until the call ends: of it, and of all other work meanwhile."""
    await asyncio.sleep(0)
    gc.collect()  # leftovers of another daemon of this process are not this call's
    with counted() as found:
        await asyncio.sleep(0)  # this step was begun before
        await act
        await asyncio.sleep(0)  # the step that ended it counts, too
    return found.longest
