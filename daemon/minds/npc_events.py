"""Npcs.Watch: what happens to the NPCs of each world, for whoever looks on. Bounded: the oldest go first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from core.words import NpcKey
from npcd.v1 import npcs_pb2

NPC_EVENTS_MAX = 1000


class _Watcher:
    """One stream's events; the oldest go when it does not read."""

    def __init__(self) -> None:
        self.events: deque[npcs_pb2.NpcEvent] = deque()
        self.dropped = 0
        self.woken = asyncio.Event()

    def add(self, event: npcs_pb2.NpcEvent) -> None:
        if len(self.events) >= NPC_EVENTS_MAX:
            self.events.popleft()
            self.dropped += 1
        self.events.append(event)
        self.woken.set()


class NpcEvents:
    """The watchers of all worlds."""

    def __init__(self) -> None:
        self._watchers: dict[tuple[str, str], set[_Watcher]] = {}

    @property
    def watchers(self) -> int:
        """How many streams watch."""
        return sum(map(len, self._watchers.values()))

    def tell(self, npc: NpcKey, event: npcs_pb2.NpcEvent) -> None:
        """Hands an event to all who watch the NPC's world; each gets a copy."""
        for watcher in self._watchers.get((npc.tenant, npc.world), ()):
            own = npcs_pb2.NpcEvent()
            own.CopyFrom(event)
            watcher.add(own)

    def end_world(self, tenant: str, world_id: str) -> None:
        """Tells all who watch a world that it is deleted; it is their last event."""
        for watcher in self._watchers.get((tenant, world_id), ()):
            watcher.add(npcs_pb2.NpcEvent(kind=npcs_pb2.NPC_EVENT_KIND_WORLD_DELETED))

    async def watch(self, tenant: str, world_id: str) -> AsyncGenerator[npcs_pb2.NpcEvent, None]:
        """The events of one world from now on, until the consumer goes away or the world is deleted."""
        watcher = _Watcher()
        watchers = self._watchers.setdefault((tenant, world_id), set())
        watchers.add(watcher)
        try:
            while True:
                await watcher.woken.wait()
                watcher.woken.clear()
                while watcher.events:
                    event = watcher.events.popleft()
                    event.dropped_before, watcher.dropped = watcher.dropped, 0
                    yield event
                    if event.kind == npcs_pb2.NPC_EVENT_KIND_WORLD_DELETED:
                        return
        finally:
            watchers.discard(watcher)
            if not watchers:
                self._watchers.pop((tenant, world_id), None)
