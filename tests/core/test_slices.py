"""Long work runs in slices, and all other tasks get their turn between two slices."""

import asyncio

import pytest

from core.slices import Slicer, Slices
from core.steps import Steps, at_once, every
from engines.sim import VirtualClock


def counting(count: int, clock: VirtualClock | None = None, closed: list[int] | None = None) -> Steps[int]:
    """Steps that take a millisecond each."""
    done = 0
    try:
        while done < count:
            done += 1
            if clock is not None:
                clock.advance(1_000_000)
            yield
    finally:
        if closed is not None:
            closed.append(done)
    return count


async def turns(taken: list[int]) -> None:
    """Counts the turns that others get."""
    while True:
        taken[0] += 1
        await asyncio.sleep(0)


async def test_others_get_a_turn_after_each_slice() -> None:
    """While 100 steps of one millisecond run in slices of five, the others get twenty turns."""
    clock, taken = VirtualClock(), [0]
    other = asyncio.create_task(turns(taken))
    assert await Slicer(5_000_000, clock)().run(counting(100, clock)) == 100
    other.cancel()
    assert taken[0] == 20


async def test_work_that_ends_within_a_slice_does_not_rest() -> None:
    """Work that fits into one slice ends in the loop's turn in which it began."""
    taken = [0]
    other = asyncio.create_task(turns(taken))
    slices = Slices(5_000_000, VirtualClock())
    assert await slices.run(counting(100)) == 100
    await slices.rest()
    other.cancel()
    assert taken == [0]


async def test_steps_of_a_cancelled_caller_are_closed() -> None:
    """The steps of a cancelled caller are closed, so they undo what they began. An exception of a step reaches the
    caller."""
    clock, closed = VirtualClock(), list[int]()
    task = asyncio.create_task(Slices(0, clock).run(counting(100, clock, closed)))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(closed) == 1 and closed[0] < 10

    def failing() -> Steps[None]:
        yield
        raise ValueError("as asked")

    with pytest.raises(ValueError, match="as asked"):
        await Slices(0, clock).run(failing())


@pytest.mark.parametrize("last", [list(range(100)), dict.fromkeys(range(100))], ids=["list", "dict"])
async def test_a_list_or_dict_is_let_go_a_few_at_a_time(last: list[int] | dict[int, None]) -> None:
    """The list or dict is emptied to the last entry."""
    taken = [0]
    other = asyncio.create_task(turns(taken))
    await Slices(0, VirtualClock()).let_go(last)
    other.cancel()
    assert not last and taken[0] >= 5


def test_steps_can_be_done_at_once() -> None:
    """Steps run to their end without an event loop."""
    assert at_once(counting(7)) == 7
    assert [pause for _, pause in every(3, range(7))] == [False, False, True, False, False, True, False]
