"""Changes that take several turns of the event loop: one after the other, each to its end.

Owns the changes under way. A change goes on when the caller who asked for it goes away, so nothing is left half done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Hashable
from typing import Any, TypeVar

T = TypeVar("T")
SAVES = "saves"  # the key of all save games: they change one after the other


class Changes:
    """Changes of things that have a key: of one thing they come in the order in which they were asked for."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[asyncio.Lock, set[asyncio.Task[Any]]]] = {}

    async def alone(self, key: Hashable, act: Coroutine[Any, Any, T]) -> T:
        """Runs `act` when no other change of this thing is under way; its result. Do not ask for another one from
        within.
        """
        lock, tasks = self._locks.setdefault(key, (asyncio.Lock(), set()))

        async def do() -> T:
            async with lock:
                return await act

        def over(done: asyncio.Task[T]) -> None:
            tasks.discard(done)
            if not tasks:
                del self._locks[key]
            if not done.cancelled():
                done.exception()  # a caller that went away does not hear of it

        task = asyncio.create_task(do())
        tasks.add(task)
        task.add_done_callback(over)
        return await asyncio.shield(task)
