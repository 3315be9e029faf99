"""The journal's records of worlds and NPCs: definitions, registrations, removals. A refused record is owed.

A full disk refuses records. They are owed then (daemon/rpc/owed.py), and daemon/rpc/upkeep.py has them written later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from core.errors import NotFound, StoreFailed
from core.slices import Slicer, Slices
from core.words import NpcKey
from daemon.rpc.owed import Owed
from daemon.worlds.world import World
from daemon.worlds.worlds import Worlds
from memory import saves
from memory.memory import Memory
from memory.records import Body, Kind

NPCS_IN_A_RECORD = 100


class WorldRecords:
    """Writes them. Owns nothing: worlds are in Worlds, and the list of refused records in Owed."""

    def __init__(self, worlds: Worlds, memory: Memory, owed: Owed, slicer: Slicer) -> None:
        self._worlds = worlds
        self._memory = memory
        self._owed = owed
        self._slicer = slicer

    async def keep_defined(self, world: World, changed: bool, slices: Slices) -> bool:
        """Has a definition written if it changed; True when the journal has it. Nobody else may change the world."""
        if changed and not await _keep_world(self._memory, world, slices):
            self._owe(world, definition=True)
        return self._has(world, definition=True)

    async def keep_registered(
        self, world: World, npc_ids: Sequence[str], changed: Sequence[str], slices: Slices
    ) -> bool:
        """Has registrations that changed written; True when the journal has all of them. Nobody else may change the
        world.
        """
        if not await _keep_npcs(self._memory, world, changed, slices):
            self._owe(world, changed)
        return self._has(world, npc_ids, changed)

    async def keep_removed(self, world: World, npc_ids: Sequence[str], removed: Sequence[str]) -> bool:
        """Has it written that NPCs were taken out; True when the journal has it of all that were ever."""
        if removed:
            about = NpcKey(world.tenant, world.world_id, "")
            if not await self._memory.keep(Kind.REMOVED, about, "", {"npcs": list(removed)}):
                self._owe(world, removed)
        return self._has(world, npc_ids, removed)

    async def write_owed(self, tenant: str, world_id: str) -> None:
        """Writes the missing records of a world, as the world is now; nobody else may change it. Raises StoreFailed."""
        owed = self._owed.worlds[tenant, world_id]
        try:
            world = self._worlds.world(tenant, world_id)
        except NotFound:
            self._owed.paid((tenant, world_id))
            return
        self._owed.paid((tenant, world_id))
        removed = [npc for npc in owed.npcs if npc not in world.npcs]
        slices = self._slicer()
        await self.keep_defined(world, owed.definition, slices)
        await self.keep_registered(world, (), [npc for npc in owed.npcs if npc in world.npcs], slices)
        await self.keep_removed(world, (), removed)
        if (tenant, world_id) in self._owed.worlds:
            raise StoreFailed("the journal cannot be written")

    async def carry_on(self, tenant: str, world_id: str) -> None:
        """Writes a world and its NPCs once more, so that a journal that deletes old segments still has them."""
        if self._worlds.has_world(tenant, world_id):
            world, slices = self._worlds.world(tenant, world_id), self._slicer()
            await self.keep_defined(world, True, slices)
            await self.keep_registered(world, (), list(world.npcs), slices)

    def _owe(self, world: World, npc_ids: Sequence[str] = (), definition: bool = False) -> None:
        if self._memory.keeps:
            self._owed.write(world.tenant, world.world_id, npc_ids, definition)

    def _has(self, world: World, *npc_ids: Sequence[str], definition: bool = False) -> bool:
        """True when the journal has this of a world: nothing of it is owed."""
        owed = self._owed.worlds.get((world.tenant, world.world_id))
        known = owed is None or (not (definition and owed.definition) and all(map(owed.npcs.isdisjoint, npc_ids)))
        return self._memory.keeps and known


async def _keep_world(memory: Memory, world: World, slices: Slices) -> bool:
    """Has a world's definition written."""
    definition = await slices.run(saves.encoding(world.definition))
    body: Body = {"definition": definition, "version": world.version, "lease_last": world.lease_last}
    return await memory.keep(Kind.WORLD, NpcKey(world.tenant, world.world_id, ""), "", body)


async def _keep_npcs(memory: Memory, world: World, npc_ids: Sequence[str], slices: Slices) -> bool:
    """Has NPCs' registrations written, some in a record. Nobody else may change the world until this is over."""
    written = []
    for at in range(0, len(npc_ids), NPCS_IN_A_RECORD):
        npcs = [world.npcs[i] for i in npc_ids[at : at + NPCS_IN_A_RECORD] if i in world.npcs]
        body: Body = {"npcs": [[n.key.npc, saves.base64_of(n.spec), n.lease_epoch] for n in npcs]}
        written.append(memory.keep_soon(Kind.NPCS, NpcKey(world.tenant, world.world_id, ""), "", body))
        await slices.rest()
    return all(await asyncio.gather(*written))
