"""The rpc Describe: NPCs as they are right now, with where their trunks rest."""

from __future__ import annotations

from collections.abc import Sequence

from core.clock import MS, Clock
from core.pseudonym import pseudonym
from core.slices import Slicer
from core.words import NpcKey
from daemon.minds.attention import Attention
from daemon.minds.table import Table, past_message
from daemon.words import activation_message, whole
from daemon.worlds.world import Npc, World
from engines.backend import TrunkPlace
from npcd.v1 import npcs_pb2, words_pb2
from scheduler.ticket import Door

PLACES_AT_ONCE = 128  # NPCs of which the engine thread is asked at once: some 0.1 ms of its time
PLACES_WITHIN_S = 1.0  # an engine that stands still for longer is not waited for: the trunks are left out


class Describing:
    """Asks the table about minds, and the engine about trunks. Partners are named by pseudonyms."""

    def __init__(
        self, table: Table, attention: Attention, door: Door, pseudonym_key: bytes, slicer: Slicer, clock: Clock
    ) -> None:
        self._table = table
        self._attention = attention
        self._door = door
        self._pseudonym_key = pseudonym_key
        self._slicer = slicer
        self._clock = clock

    async def describe(self, world: World, request: npcs_pb2.DescribeRequest) -> npcs_pb2.DescribeResponse:
        """The NPCs of the request, or all of the world."""
        response = npcs_pb2.DescribeResponse()
        slices = self._slicer()
        names = request.npc_ids or list(world.npcs)
        places: dict[NpcKey, list[TrunkPlace]] = {}
        answers = True
        for at in range(0, len(names), PLACES_AT_ONCE):
            some = names[at : at + PLACES_AT_ONCE]
            found = [world.npcs[npc_id].key for npc_id in some if npc_id in world.npcs]
            if found and answers:
                try:
                    places = await self._places(found)
                except TimeoutError:
                    places, answers = {}, False  # an engine that stands still is waited for once
            for npc_id in some:
                npc = world.npcs.get(npc_id)
                if npc is not None:
                    response.npcs.append(self._description(npc, places.get(npc.key, []), request.with_history))
                elif request.npc_ids:  # or it was removed meanwhile
                    response.unknown_npc_ids.append(npc_id)
                await slices.rest()
        return response

    async def _places(self, npcs: Sequence[NpcKey]) -> dict[NpcKey, list[TrunkPlace]]:
        places: dict[NpcKey, list[TrunkPlace]] = {}
        for place in await self._door.places(npcs, PLACES_WITHIN_S):
            places.setdefault(place.key.npc, []).append(place)
        return places

    def _description(self, npc: Npc, places: Sequence[TrunkPlace], with_history: bool) -> npcs_pb2.NpcDescription:
        mind = self._table.mind(npc.key)
        now_ns = self._clock()
        described = npcs_pb2.NpcDescription(
            npc_id=npc.key.npc,
            archetype_id=npc.archetype_id,
            persona_name=npc.name,
            lease_epoch=npc.lease_epoch,
            activation=words_pb2.ACTIVATION_AMBIENT,
            activation_reason="never observed",
        )
        if mind is not None:
            described.activation = activation_message(mind.activation)
            described.activation_reason = self._attention.activations.reason(mind)
            described.observed_tick = mind.seen.tick if mind.seen else 0
            described.observations = mind.observations
            described.observations_dropped = mind.dropped
            described.intent_version = mind.version
            if with_history:
                described.history.extend(past_message(past, now_ns) for past in mind.history)
        for trunk in places:
            described.trunks.append(
                npcs_pb2.TrunkPlace(
                    partner=pseudonym(self._pseudonym_key, npc.key.tenant, trunk.key.partner),
                    home=trunk.home,
                    tokens=whole(trunk.tokens),
                    bytes=whole(trunk.bytes, 64),
                    hits=trunk.hits,
                    idle_ms=whole((now_ns - trunk.used_ns) // MS, 64),
                    engine=trunk.engine,
                )
            )
        return described
