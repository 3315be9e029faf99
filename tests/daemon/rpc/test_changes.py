"""Changes of one thing run one after the other, and each runs to its end."""

import asyncio

import pytest

from daemon.rpc.changes import Changes


async def test_changes_of_one_thing_wait_for_each_other_and_others_do_not() -> None:
    """They run in the order of their requests."""
    changes, done, gate = Changes(), list[str](), asyncio.Event()

    async def change(name: str, waits: bool) -> str:
        if waits:
            await gate.wait()
        done.append(name)
        return name

    first = asyncio.create_task(changes.alone("a", change("first", True)))
    await asyncio.sleep(0)
    second = asyncio.create_task(changes.alone("a", change("second", False)))
    assert await changes.alone("b", change("other", False)) == "other"
    assert done == ["other"]
    gate.set()
    assert (await first, await second) == ("first", "second") and done == ["other", "first", "second"]
    await asyncio.sleep(0)
    assert not changes._locks, "nothing is kept of what is over"


async def test_a_change_goes_on_when_its_caller_goes_away() -> None:
    """It is completed, and the next one follows. Its exception needs no listener."""
    changes, done, gate = Changes(), list[str](), asyncio.Event()

    async def change() -> None:
        done.append("begun")
        await gate.wait()
        done.append("ended")
        raise ValueError("nobody waits for this")

    caller = asyncio.create_task(changes.alone("a", change()))
    for _ in range(3):
        await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    gate.set()

    async def after() -> list[str]:
        return list(done)

    assert await changes.alone("a", after()) == ["begun", "ended"]


async def test_an_exception_of_a_change_goes_to_its_caller() -> None:
    """The caller gets the exception as if it had awaited the change."""

    async def wrong() -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        await Changes().alone("a", wrong())
