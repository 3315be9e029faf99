"""Trunks are brought into place: ahead of need, when NPCs are registered and there is room, or for one NPC now.

Owns the NPCs that wait for it. All on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from core.clock import Clock
from core.errors import Draining, Overloaded
from core.steps import Steps
from core.work import Ended
from daemon.minds.questions import Questions
from daemon.worlds.world import Npc
from daemon.worlds.worlds import Worlds
from scheduler.ticket import Door

LOADED_AT_ONCE = 16
LOADS_MAX = 64  # trunks on their way into place before anybody is asked


class Loading:
    """Loads in the background. It ends, for those that wait as well, when `roomy` says that there is no room, or
    `in_time` that the engine has no time to compute ahead.
    """

    def __init__(
        self,
        worlds: Worlds,
        questions: Questions,
        door: Door,
        roomy: Callable[[], bool],
        in_time: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self._worlds = worlds
        self._questions = questions
        self._door = door
        self._roomy = roomy
        self._in_time = in_time
        self._clock = clock
        self._waiting: deque[Npc] = deque()
        self._under_way = 0
        self._again = False  # _go_on() will be called

    def ahead(self, npcs: Iterable[Npc]) -> Steps[None]:
        """Brings trunks into place before their NPCs are asked."""
        self._waiting.extend(npcs)
        while self._some():
            yield

    def load(self, npc: Npc, on_end: Callable[[Ended], None]) -> None:
        """Brings one trunk into place now. Raises Draining, and Overloaded, also when computing ahead gives way."""
        if not self._in_time():
            raise Overloaded("computing ahead gives way", 0)
        self._door.submit(self._questions.trunk(npc, self._clock()), on_end)

    def _some(self) -> bool:
        """Begins to load a few; returns whether there may be more to begin now."""
        for _ in range(LOADED_AT_ONCE):
            if not self._waiting or self._under_way >= LOADS_MAX:
                return False
            if not self._roomy():
                self._waiting.clear()
                return False
            npc = self._waiting.popleft()
            if not self._worlds.has(npc):
                continue  # it was removed meanwhile
            try:
                self.load(npc, self._ended)
            except (Overloaded, Draining):
                self._waiting.clear()
                return False
            self._under_way += 1
        return True

    def _ended(self, _: Ended) -> None:
        self._under_way -= 1
        if not self._again:
            self._again = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        """Once for all loads that a step has ended; others have their turn between."""
        self._again = self._some()
        if self._again:
            asyncio.get_running_loop().call_soon(self._go_on)
