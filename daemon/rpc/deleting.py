"""Deleting a world: its streams end, its NPCs go, and nothing of it comes back. On the event loop.

1. At once no caller finds the world any more, and nothing about its players is kept (Worlds, Memory.has_world).
2. The record goes into the journal. If it cannot be written, the world is found again and the caller hears of it.
3. Streams are told, turns stop, NPCs go in slices of the loop's time, then bonds, save games, and the world itself.

It goes on to its end when the caller goes away. Owns who wants to hear of a world's end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import structlog

from core.errors import NotFound, Stale, StoreFailed
from core.slices import Slicer
from daemon.minds.intents import Intents
from daemon.minds.npc_events import NpcEvents
from daemon.minds.table import Table
from daemon.rpc.changes import SAVES, Changes
from daemon.rpc.save_games import SaveGames
from daemon.talk.dialogue import Dialogue
from daemon.worlds.world import World
from daemon.worlds.worlds import Worlds
from memory.memory import Memory
from npcd.v1 import dialogue_pb2

log = structlog.get_logger("npcd")

WorldId = tuple[str, str]


class Deleting:
    """Deletions under way, and the conversations that end with a world."""

    def __init__(
        self,
        worlds: Worlds,
        table: Table,
        intents: Intents,
        dialogue: Dialogue,
        npc_events: NpcEvents,
        memory: Memory,
        save_games: SaveGames,
        changes: Changes,
        slicer: Slicer,
    ) -> None:
        self._worlds = worlds
        self._table = table
        self._intents = intents
        self._dialogue = dialogue
        self._npc_events = npc_events
        self._memory = memory
        self._save_games = save_games
        self._changes = changes
        self._slicer = slicer
        self._leaving: dict[WorldId, asyncio.Event] = {}  # set when it is over
        self._listening: dict[WorldId, set[asyncio.Event]] = {}

    @property
    def listening(self) -> int:
        """How many streams of lines are to hear of the end of their world."""
        return sum(map(len, self._listening.values()))

    async def delete(self, tenant: str, world_id: str, expected_version: int) -> tuple[int, int]:
        """Deletes a world: (NPCs, checkpoints) that were in it. Raises NotFound, Stale and StoreFailed."""

        async def delete() -> tuple[int, int]:
            return await self._changes.alone((tenant, world_id), self._delete(tenant, world_id, expected_version))

        return await self._changes.alone(SAVES, delete())

    async def over(self, tenant: str, world_id: str) -> None:
        """Waits until a world that is being deleted is gone."""
        while (ended := self._leaving.get((tenant, world_id))) is not None:
            await ended.wait()

    async def lines(
        self, tenant: str, requests: AsyncIterator[dialogue_pb2.ConverseRequest]
    ) -> AsyncIterator[dialogue_pb2.ConverseRequest]:
        """A conversation's requests as they come. Raises NotFound when the world that it is in is deleted."""
        requests = aiter(requests)
        world, ended = "", asyncio.Event()
        listening: set[asyncio.Event] = set()
        waiting = asyncio.create_task(ended.wait())
        coming: asyncio.Future[dialogue_pb2.ConverseRequest] | None = None
        try:
            while True:
                coming = asyncio.ensure_future(anext(requests))
                await asyncio.wait((coming, waiting), return_when=asyncio.FIRST_COMPLETED)
                if ended.is_set():
                    raise NotFound("world_id", f"world '{world}' was deleted")
                try:
                    request = coming.result()
                except StopAsyncIteration:
                    return
                if not world and request.talk.world_id:
                    world = request.talk.world_id
                    listening = self._listening.setdefault((tenant, world), set())
                    listening.add(ended)
                yield request
        finally:
            waiting.cancel()
            if coming is not None:
                coming.cancel()
            listening.discard(ended)
            if world and not self._listening.get((tenant, world), {ended}):
                del self._listening[tenant, world]

    async def _delete(self, tenant: str, world_id: str, expected_version: int) -> tuple[int, int]:
        key = (tenant, world_id)
        if key in self._worlds.unusable:
            checkpoints = await self._write(tenant, world_id, 0)
            self._worlds.unusable.pop(key, None)
            await self._memory.drop_world(*key, self._slicer())
            return 0, checkpoints
        world = self._worlds.world(tenant, world_id)
        if expected_version and expected_version != world.version:
            raise Stale("expected_version", f"is {expected_version}, the world has version {world.version}")
        npcs = len(world.npcs)
        ended = self._leaving[key] = asyncio.Event()
        world.leaving = True
        try:
            checkpoints = await self._write(tenant, world_id, world.version)
            await self._take_out(world)
        except StoreFailed:
            world.leaving = False
            raise
        finally:
            del self._leaving[key]
            ended.set()
        log.info("world deleted", world=world_id, npcs=npcs, checkpoints=checkpoints)
        return npcs, checkpoints

    async def _write(self, tenant: str, world_id: str, version: int) -> int:
        """Makes the deletion last; how many checkpoints went with it. Raises StoreFailed, and nothing has changed."""
        journal = self._memory.journal
        trouble = journal.degraded if journal is not None else ""
        if not trouble:
            checkpoints = await self._save_games.put_aside(tenant, world_id)
            if await self._memory.delete_world(tenant, world_id, version):
                await self._save_games.remove_saves(tenant, world_id)
                return checkpoints
            await self._save_games.put_back(tenant, world_id)
            trouble = "the journal cannot be written"
        raise StoreFailed(f"world '{world_id}' is not deleted: {trouble}; call DeleteWorld again later")

    async def _take_out(self, world: World) -> None:
        key = (world.tenant, world.world_id)
        self._table.end_world(*key)
        self._npc_events.end_world(*key)
        for ended in self._listening.get(key, ()):
            ended.set()
        slices = self._slicer()
        await slices.run(self._dialogue.ending_world(*key))
        for npc in self._worlds.take_out(world):
            self._intents.remove(npc)
            await slices.rest()
        self._intents.games.end_world(*key)
        personas = list(world.personas.values())
        world.personas.clear()
        await slices.let_go(personas)
        await self._memory.drop_world(*key, slices)
