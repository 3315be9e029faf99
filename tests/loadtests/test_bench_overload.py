"""The overload benchmark counts a player's whole waiting time."""

import asyncio
from collections.abc import Callable

from core.clock import MS, now_ns
from loadtests.bench.peer import Caller, Tally
from npcd_client import Overloaded


class Refusing:
    """A side that refuses a line `times` times, or never answers."""

    name = "refusing"

    def __init__(self, times: int) -> None:
        self.times = times

    async def computed_tokens(self) -> int:
        """Always zero."""
        return 0

    async def intend(self, number: int, tick: int) -> tuple[str, str, str]:
        """Answers at once."""
        return "wait", "", "calm"

    async def say(self, number: int, line: str, fresh: bool, on_first: Callable[[], None]) -> tuple[str, int]:
        """Refuses, then speaks; with `times` below 0 it never answers."""
        if self.times < 0:
            await asyncio.Event().wait()
        if self.times:
            self.times -= 1
            raise Overloaded("full", retry_ms=20)
        on_first()
        return "Yes.", 2


async def test_a_line_that_is_refused_is_said_again_and_its_time_goes_on() -> None:
    """The time counts from the moment when the line was due, with retry times."""
    tally, caller = Tally(), Caller(Refusing(2), ["Hello."], patient=True)
    await caller.turn(tally, now_ns())
    assert (tally.turns, tally.refused, tally.failed) == (1, 2, 0)
    assert tally.first_ns[0] >= 40 * MS


async def test_a_line_that_was_never_answered_counts_with_its_age() -> None:
    """The line is not left out of the percentiles."""
    tally, caller = Tally(), Caller(Refusing(-1), ["Hello."], patient=True)
    task = asyncio.create_task(caller.turn(tally, now_ns() - 5_000 * MS))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not tally.first_ns
    assert tally.ttft_p95_ms >= 5_000
