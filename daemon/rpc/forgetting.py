"""The rpc Forget: a player is forgotten by one NPC or by all of a world, in every store and in save games.

A wish that the journal does not take, because the disk is full, is owed (daemon/rpc/owed.py). daemon/rpc/upkeep.py
tries it again until it is done.
"""

from __future__ import annotations

import asyncio

from core.errors import StoreFailed
from core.slices import Slicer
from core.words import NpcKey
from daemon.minds.table import Table
from daemon.rpc.changes import SAVES, Changes
from daemon.rpc.owed import Forgotten, Owed
from daemon.rpc.save_games import SaveGames
from daemon.talk.dialogue import Dialogue
from daemon.words import check_id
from daemon.worlds.worlds import Worlds
from memory.memory import Memory
from memory.parked import Parked
from npcd.v1 import npcs_pb2
from scheduler.ticket import Door

FORGOTTEN_WITHIN_S = 1.0  # Redis may take this long to delete parked KV before the answer is sent


class Forgetting:
    """Reaches conversations, minds, memory, parked KV and save games, in this order."""

    def __init__(
        self,
        worlds: Worlds,
        table: Table,
        dialogue: Dialogue,
        door: Door,
        memory: Memory,
        parked: Parked | None,
        save_games: SaveGames,
        owed: Owed,
        changes: Changes,
        slicer: Slicer,
    ) -> None:
        self._worlds = worlds
        self._table = table
        self._dialogue = dialogue
        self._door = door
        self._memory = memory
        self._parked = parked
        self._save_games = save_games
        self._owed = owed
        self._changes = changes
        self._slicer = slicer

    async def forget(self, tenant: str, request: npcs_pb2.ForgetRequest) -> npcs_pb2.ForgetResponse:
        """Forgets a player in every store; the answer names those that have by now, the others do when they are there.

        Raises StoreFailed while the journal or a save cannot be written. Then it is tried again until it is done.
        """
        self._worlds.world(tenant, request.world_id)
        player = check_id("player_id", request.player_id)
        if request.npc_id:
            check_id("npc_id", request.npc_id)
        who = Forgotten(tenant, request.world_id, request.npc_id, player)
        return await self._changes.alone(SAVES, self._forget_or_owe(who))

    async def _forget_or_owe(self, who: Forgotten) -> npcs_pb2.ForgetResponse:
        try:
            answer = await self.forget_now(who, redact=True)
        except StoreFailed as error:
            goes_on = "call Forget again later"
            if self._owed.forget(who):
                goes_on = "npcd goes on trying while it runs; call Forget again to hear that it is done"
            else:
                self._memory.forgotten_at_last(NpcKey(who.tenant, who.world, who.npc), who.player)
            raise StoreFailed(f"the player is not forgotten for good: {error}; {goes_on}") from error
        self._owed.paid(who)
        return answer

    async def forget_now(self, who: Forgotten, redact: bool) -> npcs_pb2.ForgetResponse:
        """Forgets a player, while no other save game changes; `redact` overwrites the journal's records too.

        Raises StoreFailed when it does not stand in the journal, or in a save.
        """
        key = NpcKey(who.tenant, who.world, who.npc)
        sessions, turns = self._dialogue.forget(who.tenant, who.world, who.player, who.npc)
        written = self._memory.forget_here(key, who.player)
        await self._slicer().run(self._table.forgetting(who.tenant, who.world, who.player, who.npc))
        parked = False
        if self._parked is not None:
            await self._door.obeyed()  # the engine thread has let go of the trunks, wherever they were
            parked = await asyncio.to_thread(self._parked.settled, FORGOTTEN_WITHIN_S)
        stores = await self._memory.forget(key, who.player, written, redact)
        stores += ["parked"] if parked else []
        if await self._save_games.forget(who.tenant, who.world, who.player, who.npc):
            stores.append("saves")
        return npcs_pb2.ForgetResponse(sessions=sessions, turns=turns, trunks=sessions, stores=stores)
