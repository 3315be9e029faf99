"""The rpcs as async functions of plain messages. Knows nothing of gRPC: faces adapt it to a wire.

Owns the streams that are open. When a stream's consumer goes away its iterator is closed, and everything behind it
ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence, Sized
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import structlog

from core.clock import Clock
from core.errors import CallerError, NotBuilt
from core.slices import Slicer
from core.steps import Steps, every
from daemon.minds.intents import Intents
from daemon.minds.npc_events import NpcEvents
from daemon.minds.table import Table
from daemon.rpc.admin import Admin
from daemon.rpc.changes import Changes
from daemon.rpc.conversing import Conversation
from daemon.rpc.deleting import Deleting
from daemon.rpc.describing import Describing
from daemon.rpc.forgetting import Forgetting
from daemon.rpc.intent_streams import IntentStreams
from daemon.rpc.recalling import Recalling
from daemon.rpc.save_games import SaveGames
from daemon.rpc.status import StatusBoard
from daemon.rpc.world_records import WorldRecords
from daemon.talk.dialogue import Dialogue
from daemon.words import check_id, row_message
from daemon.worlds.world import Npc, World
from daemon.worlds.worlds import Worlds
from memory.memory import Memory
from npcd.v1 import dialogue_pb2, intents_pb2, npcs_pb2

log = structlog.get_logger("npcd")


@dataclass(frozen=True, slots=True)
class CallSettings:
    """Bounds of gRPC calls."""

    frame_ms: int = 5
    """An IntentFrame is sent at most once in this time."""
    slice_ms: float = 1.0
    """A call that takes longer lets others have their turn each time this much has passed."""
    observations_max: int = 1000
    """Observations in one frame at most."""
    get_max: int = 1000
    """NPCs in one Intents.Get at most."""
    ids_max: int = 10_000
    """NPCs in any other call at most."""
    converse_lines_max: int = 8
    """Lines of one Converse stream that may wait."""


class Calls:
    """Every rpc of the contract; those about memory are in `recalling`, `forgetting` and `save_games`, those about the
    daemon in `admin`. `tenant` is the caller's, by its credentials.
    """

    def __init__(
        self,
        worlds: Worlds,
        table: Table,
        intents: Intents,
        streams: IntentStreams,
        describing: Describing,
        npc_events: NpcEvents,
        dialogue: Dialogue,
        board: StatusBoard,
        memory: Memory,
        records: WorldRecords,
        recalling: Recalling,
        forgetting: Forgetting,
        save_games: SaveGames,
        admin: Admin,
        deleting: Deleting,
        settings: CallSettings,
        changes: Changes,
        slicer: Slicer,
        clock: Clock,
    ) -> None:
        self._worlds = worlds
        self._table = table
        self._intents = intents
        self._streams = streams
        self._describing = describing
        self.npc_events = npc_events
        self._dialogue = dialogue
        self._board = board
        self._memory = memory
        self._records = records
        self.recalling = recalling
        self.forgetting = forgetting
        self.save_games = save_games
        self.admin = admin
        self._deleting = deleting
        self._settings = settings
        self._clock = clock
        self._changes = changes
        self.slicer = slicer

    @property
    def epoch(self) -> int:
        """This daemon's epoch."""
        return self._board.about.epoch

    # -- Npcs --------------------------------------------------------------------------------------------------

    async def define_world(self, tenant: str, request: npcs_pb2.DefineWorldRequest) -> npcs_pb2.DefineWorldResponse:
        """Defines or changes a world; one of that name which is being deleted is gone first."""
        await self._deleting.over(tenant, request.world_id)
        if self._worlds.definitions.needs_composing(request):
            await asyncio.to_thread(self._worlds.definitions.compose, request)
            await self._deleting.over(tenant, request.world_id)
        return await self._changes.alone((tenant, request.world_id), self._define_world(tenant, request))

    async def _define_world(self, tenant: str, request: npcs_pb2.DefineWorldRequest) -> npcs_pb2.DefineWorldResponse:
        slices = self.slicer()
        old = self._worlds.find(tenant, request.world_id)
        before: list[object] = [*old.npcs.values(), *old.personas.values()] if old is not None else []
        world, changed = await slices.run(self._worlds.defining(tenant, request))
        del old
        if changed:
            for npc in list(world.npcs.values()):
                self._intents.replaced(npc)
                await slices.rest()
            await slices.let_go(before)
        accepted = await self._records.keep_defined(world, changed, slices)
        response = npcs_pb2.DefineWorldResponse(
            world_id=world.world_id,
            version=world.version,
            content_hash=world.content_hash,
            changed=changed,
            warnings=[*world.warnings, *await slices.run(self._worlds.left_out(world))],
            accepted=accepted,
            accepted_known=self._memory.keeps,
        )
        for name, tokens, most in world.sections:
            response.sections.add(section=name, tokens=tokens, tokens_max=most)
            await slices.rest()
        return response

    async def list_worlds(self, tenant: str, request: npcs_pb2.ListWorldsRequest) -> npcs_pb2.ListWorldsResponse:
        """The caller's worlds."""
        answer = npcs_pb2.ListWorldsResponse(worlds_max=self._worlds.worlds_max)
        for world in self._worlds.of(tenant):
            answer.worlds.add(
                world_id=world.world_id,
                version=world.version,
                content_hash=world.content_hash,
                language=world.language,
                npcs=len(world.npcs),
            )
        for (owner, world_id), why in self._worlds.unusable.items():
            if owner == tenant:
                answer.worlds.add(world_id=world_id, unusable=why)
        answer.worlds.sort(key=lambda world: world.world_id)
        return answer

    async def delete_world(self, tenant: str, request: npcs_pb2.DeleteWorldRequest) -> npcs_pb2.DeleteWorldResponse:
        """Deletes a world, for good."""
        check_id("world_id", request.world_id)
        npcs, checkpoints = await self._deleting.delete(tenant, request.world_id, request.expected_version)
        return npcs_pb2.DeleteWorldResponse(npcs=npcs, checkpoints=checkpoints)

    async def register(self, tenant: str, request: npcs_pb2.RegisterRequest) -> npcs_pb2.RegisterResponse:
        """Registers NPCs, all or none."""
        self._worlds.world(tenant, request.world_id)  # nobody waits for a world that is not there
        return await self._changes.alone((tenant, request.world_id), self._register(tenant, request))

    async def _register(self, tenant: str, request: npcs_pb2.RegisterRequest) -> npcs_pb2.RegisterResponse:
        slices = self.slicer()
        there = self._worlds.world(tenant, request.world_id).npcs
        leases = {}
        for spec in request.npcs:
            if (npc := there.get(spec.npc_id)) is not None:
                leases[spec.npc_id] = npc.lease_epoch
            await slices.rest()
        world, npcs, changed = await slices.run(self._worlds.registering(tenant, request))
        for npc in changed:
            self._intents.replaced(npc)
            taken = leases.get(npc.key.npc, npc.lease_epoch) != npc.lease_epoch
            kind = npcs_pb2.NPC_EVENT_KIND_LEASE_TAKEN if taken else npcs_pb2.NPC_EVENT_KIND_REGISTERED
            self.npc_events.tell(npc.key, npcs_pb2.NpcEvent(kind=kind, npc_id=npc.key.npc, lease_epoch=npc.lease_epoch))
            await slices.rest()
        await slices.let_go(leases)
        names = await slices.run(_ids(npcs))
        accepted = await self._records.keep_registered(world, names, await slices.run(_ids(changed)), slices)
        await slices.run(self._intents.loading_ahead(changed))
        response = npcs_pb2.RegisterResponse(
            policy=npcs_pb2.Policy(),
            world_version=world.version,
            daemon_epoch=self.epoch,
            accepted=accepted,
            accepted_known=self._memory.keeps,
        )
        for row in world.policy:
            response.policy.rows.append(row_message(row))
            await slices.rest()
        for npc in npcs:
            response.leases.add(npc_id=npc.key.npc, lease_epoch=npc.lease_epoch)
            await slices.rest()
        return response

    async def alone(self, world: tuple[str, str], act: Coroutine[Any, Any, None]) -> None:
        """Does something to a world (tenant and id) while nobody else changes it."""
        await self._changes.alone(world, act)

    async def revived(self, world: World) -> None:
        """A world is there again from an earlier life of the daemon; its NPCs' trunks are brought in."""
        slices = self.slicer()
        npcs = list(world.npcs.values())
        for npc in npcs:
            self._intents.replaced(npc)
            await slices.rest()
        await slices.run(self._intents.loading_ahead(npcs))

    async def describe(self, tenant: str, request: npcs_pb2.DescribeRequest) -> npcs_pb2.DescribeResponse:
        """Tells what is known about NPCs right now."""
        self._check_ids(request.npc_ids)
        return await self._describing.describe(self._worlds.world(tenant, request.world_id), request)

    async def watch_npcs(
        self, tenant: str, request: npcs_pb2.WatchNpcsRequest
    ) -> AsyncGenerator[npcs_pb2.NpcEvent, None]:
        """Streams what happens to the NPCs of one world."""
        world = self._worlds.world(tenant, request.world_id)
        async with aclosing(self.npc_events.watch(tenant, world.world_id)) as events:
            async for event in events:
                yield event

    async def remove(self, tenant: str, request: npcs_pb2.RemoveRequest) -> npcs_pb2.RemoveResponse:
        """Takes NPCs out and frees what they held."""
        self._check_ids(request.npc_ids)
        self._worlds.world(tenant, request.world_id)
        return await self._changes.alone((tenant, request.world_id), self._remove(tenant, request))

    async def _remove(self, tenant: str, request: npcs_pb2.RemoveRequest) -> npcs_pb2.RemoveResponse:
        slices = self.slicer()
        world = self._worlds.world(tenant, request.world_id)
        removed, unknown = await slices.run(self._worlds.removing(tenant, request.world_id, request.npc_ids))
        for npc in removed:
            await slices.run(self._dialogue.removing(npc.key))
            self._intents.remove(npc)
            self.npc_events.tell(
                npc.key,
                npcs_pb2.NpcEvent(
                    kind=npcs_pb2.NPC_EVENT_KIND_REMOVED, npc_id=npc.key.npc, lease_epoch=npc.lease_epoch
                ),
            )
            await slices.rest()
        accepted = await self._records.keep_removed(world, request.npc_ids, [npc.key.npc for npc in removed])
        count = len(removed)
        await slices.let_go(removed)
        return npcs_pb2.RemoveResponse(
            removed=count, unknown_npc_ids=unknown, accepted=accepted, accepted_known=self._memory.keeps
        )

    # -- Intents -----------------------------------------------------------------------------------------------

    async def live(
        self, tenant: str, frames: AsyncIterator[intents_pb2.ObservationFrame]
    ) -> AsyncGenerator[intents_pb2.IntentFrame, None]:
        """Observations in, intents out, until the client ends its side or goes away."""
        first = await anext(aiter(frames), None)
        if first is None:
            return
        world = self._worlds.world(tenant, first.world_id)
        subscriber, game = self._table.subscribe(world, ()), self._intents.games.begin()
        reader = asyncio.create_task(self._streams.read(tenant, first, frames, subscriber, game))
        reader.add_done_callback(lambda _: subscriber.woken.set())
        self._board.lifecycle.begin(tenant)
        try:
            async with aclosing(self._streams.frames(subscriber, reader.done)) as out:
                async for frame in out:
                    yield frame
            if reader.done() and not reader.cancelled() and reader.exception() is not None:
                raise reader.exception() or AssertionError("unreachable")
        finally:
            self._board.lifecycle.end(tenant)
            reader.cancel()
            self._intents.ended(game)
            self._table.unsubscribe(world, subscriber)

    async def observe(self, tenant: str, frame: intents_pb2.ObservationFrame) -> intents_pb2.ObserveResponse:
        """One frame of observations."""
        world = self._worlds.world(tenant, frame.world_id)
        self._streams.check(frame)
        errors = await self._streams.take(world, frame, None, None)
        return intents_pb2.ObserveResponse(
            accepted=len(frame.observations) - len(errors), errors=errors, daemon_epoch=self.epoch
        )

    async def watch_intents(
        self, tenant: str, request: intents_pb2.WatchIntentsRequest
    ) -> AsyncGenerator[intents_pb2.IntentFrame, None]:
        """Intents of a world, or of some of its NPCs."""
        self._check_ids(request.npc_ids)
        world = self._worlds.world(tenant, request.world_id)
        subscriber = self._table.subscribe(world, request.npc_ids)
        try:
            async with aclosing(self._streams.frames(subscriber, lambda: False)) as out:
                async for frame in out:
                    yield frame
        finally:
            self._table.unsubscribe(world, subscriber)

    async def get_intents(self, tenant: str, request: intents_pb2.GetIntentsRequest) -> intents_pb2.GetIntentsResponse:
        """The table, at once."""
        if len(request.npc_ids) > self._settings.get_max:
            raise CallerError("npc_ids", f"{len(request.npc_ids)} ids, the limit is {self._settings.get_max}")
        world = self._worlds.world(tenant, request.world_id)
        response = intents_pb2.GetIntentsResponse(daemon_epoch=self.epoch)
        slices = self.slicer()
        for npc_id in request.npc_ids or list(world.npcs):
            npc = world.npcs.get(npc_id)
            mind = self._table.mind(npc.key) if npc is not None else None
            if mind is not None and mind.intent is not None:
                response.intents.append(self._table.message(mind, mind.intent, self._clock()))
            elif npc is None and request.npc_ids:  # or it was removed meanwhile
                response.unknown_npc_ids.append(npc_id)
            await slices.rest()
        return response

    # -- Dialogue ----------------------------------------------------------------------------------------------

    def talk(self, tenant: str, request: dialogue_pb2.TalkRequest) -> AsyncGenerator[dialogue_pb2.TalkEvent, None]:
        """One turn."""
        return self._dialogue.talk(tenant, request)

    async def converse(
        self, tenant: str, requests: AsyncIterator[dialogue_pb2.ConverseRequest]
    ) -> AsyncGenerator[dialogue_pb2.TalkEvent, None]:
        """A conversation on one stream; a new line, or `interrupt`, stops the NPC in the middle of its own."""
        conversation = Conversation(self._dialogue, tenant, self._settings.converse_lines_max)
        async with aclosing(conversation.events(self._deleting.lines(tenant, requests))) as events:
            async for event in events:
                yield event

    async def cancel_turn(
        self, tenant: str, request: dialogue_pb2.CancelTurnRequest
    ) -> dialogue_pb2.CancelTurnResponse:
        """Stops a turn."""
        return dialogue_pb2.CancelTurnResponse(cancelled=self._dialogue.cancel(tenant, request))

    async def end_session(
        self, tenant: str, request: dialogue_pb2.EndSessionRequest
    ) -> dialogue_pb2.EndSessionResponse:
        """Ends a conversation."""
        session = self._dialogue.end_session(tenant, request)
        if session is None:
            return dialogue_pb2.EndSessionResponse(ended=False)
        return dialogue_pb2.EndSessionResponse(ended=True, session_id=session.session_id, turns=session.said)

    # -- in the contract, not built yet ------------------------------------------------------------------------

    async def not_built(self, tenant: str, request: object) -> object:
        """Answers for calls that this version has no code for."""
        raise NotBuilt("this call is part of the contract and not built in this version")

    async def not_built_stream(self, tenant: str, request: object) -> AsyncGenerator[object, None]:
        """The same for streams."""
        raise NotBuilt("this call is part of the contract and not built in this version")
        yield

    # -- pieces ------------------------------------------------------------------------------------------------

    def _check_ids(self, npc_ids: Sized) -> None:
        if len(npc_ids) > self._settings.ids_max:
            raise CallerError("npc_ids", f"{len(npc_ids)} ids, the limit is {self._settings.ids_max}")


def _ids(npcs: Sequence[Npc]) -> Steps[list[str]]:
    """The NPCs' ids."""
    out = []
    for npc, pause in every(64, npcs):
        out.append(npc.key.npc)
        if pause:
            yield
    return out
