"""The rpcs as async functions of plain messages. Knows nothing of gRPC: faces adapt it to a wire.

Owns the streams that are open. When a stream's consumer goes away its iterator is closed, and everything behind it
ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence, Sized
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import structlog

from core.clock import MS, Clock, S
from core.errors import CallerError, NotAllowed, NotBuilt, NotFound
from core.pseudonym import pseudonym
from core.slices import Pace
from core.steps import Steps, every
from core.words import NpcKey
from daemon.minds.attention import Attention
from daemon.minds.intents import Intents
from daemon.minds.mind import Game
from daemon.minds.npc_events import NpcEvents
from daemon.minds.table import Subscriber, Table, past_message
from daemon.rpc.callers import Caller
from daemon.rpc.changes import Changes
from daemon.rpc.conversing import Conversation
from daemon.rpc.deleting import Deleting
from daemon.rpc.forgetting import Forgetting
from daemon.rpc.recalling import Recalling
from daemon.rpc.save_games import SaveGames
from daemon.rpc.status import StatusBoard
from daemon.rpc.world_records import WorldRecords
from daemon.talk.dialogue import Dialogue
from daemon.words import activation_message, check_id, check_number, row_message, whole
from daemon.worlds.world import Npc, World
from daemon.worlds.worlds import Worlds
from engines.backend import TrunkPlace
from memory.memory import Memory
from npcd.v1 import admin_pb2, dialogue_pb2, intents_pb2, npcs_pb2, words_pb2
from scheduler.ticket import Door

log = structlog.get_logger("npcd")

GRACE_MS = 5_000  # for a Drain that says none
GRACE_MAX_MS = 600_000
TIME_SCALE_MAX = 1e6
PLACES_AT_ONCE = 128  # NPCs of which the engine thread is asked at once: some 0.1 ms of its time
PLACES_WITHIN_S = 1.0  # when an engine stands still for longer, Describe leaves trunks out


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
    """Every rpc of the contract; those about memory are in `recalling`, `forgetting` and `save_games`. `tenant` is the
    caller's, by its credentials.
    """

    def __init__(
        self,
        worlds: Worlds,
        table: Table,
        intents: Intents,
        attention: Attention,
        npc_events: NpcEvents,
        dialogue: Dialogue,
        door: Door,
        board: StatusBoard,
        memory: Memory,
        records: WorldRecords,
        recalling: Recalling,
        forgetting: Forgetting,
        save_games: SaveGames,
        deleting: Deleting,
        settings: CallSettings,
        drain: Callable[[float], Awaitable[None]],
        changes: Changes,
        pace: Pace,
        pseudonym_key: bytes,
        clock: Clock,
    ) -> None:
        self._pseudonym_key = pseudonym_key
        self._worlds = worlds
        self._table = table
        self._intents = intents
        self._attention = attention
        self.npc_events = npc_events
        self._dialogue = dialogue
        self._door = door
        self._board = board
        self._memory = memory
        self._records = records
        self.recalling = recalling
        self.forgetting = forgetting
        self.save_games = save_games
        self._deleting = deleting
        self._settings = settings
        self._drain = drain
        self._clock = clock
        self._draining: asyncio.Task[None] | None = None
        self._changes = changes
        self.pace = pace

    @property
    def draining(self) -> bool:
        """True from the moment that a Drain was accepted."""
        return self._draining is not None

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
        slices = self.pace()
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
        slices = self.pace()
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
        slices = self.pace()
        npcs = list(world.npcs.values())
        for npc in npcs:
            self._intents.replaced(npc)
            await slices.rest()
        await slices.run(self._intents.loading_ahead(npcs))

    async def describe(self, tenant: str, request: npcs_pb2.DescribeRequest) -> npcs_pb2.DescribeResponse:
        """Tells what is known about NPCs right now."""
        self._check_ids(request.npc_ids)
        world = self._worlds.world(tenant, request.world_id)
        response = npcs_pb2.DescribeResponse()
        slices = self.pace()
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
        slices = self.pace()
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
        reader = asyncio.create_task(self._read(tenant, first, frames, subscriber, game))
        reader.add_done_callback(lambda _: subscriber.woken.set())
        self._board.lifecycle.begin(tenant)
        try:
            async with aclosing(self._frames(subscriber, reader.done)) as out:
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
        self._check_frame(frame)
        errors = await self._take(world, frame, None, None)
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
            async with aclosing(self._frames(subscriber, lambda: False)) as out:
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
        slices = self.pace()
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

    # -- Admin -------------------------------------------------------------------------------------------------

    async def status(self, caller: Caller, request: admin_pb2.StatusRequest) -> admin_pb2.StatusResponse:
        """How the daemon does. Worlds, NPCs, streams and turns are counted as far as the caller may know of them."""
        return self._board.message(None if caller.sees_all else caller.tenant)

    async def watch_status(
        self, caller: Caller, request: admin_pb2.WatchStatusRequest
    ) -> AsyncGenerator[admin_pb2.StatusResponse, None]:
        """The same, again and again."""
        interval_ms = request.interval_ms or 1000
        if not 100 <= interval_ms <= 60_000:
            raise CallerError("interval_ms", f"is {interval_ms}, must be 100 to 60000")
        while True:
            yield await self.status(caller, admin_pb2.StatusRequest())
            await asyncio.sleep(interval_ms / 1000)

    async def drain(self, caller: Caller, request: admin_pb2.DrainRequest) -> admin_pb2.DrainResponse:
        """Takes the daemon out of service, for everybody; the answer comes before it ends. Raises NotAllowed."""
        if not caller.may_drain:
            raise NotAllowed(
                "Drain ends the daemon for everybody: call it from this machine (loopback or the Unix socket) or with "
                'a token that has role = "operator" in serve.tokens_file'
            )
        if request.grace_ms > GRACE_MAX_MS:
            raise CallerError("grace_ms", f"is {request.grace_ms}, the limit is {GRACE_MAX_MS}")
        works = self._door.open
        if self._draining is None:
            log.info(
                "drain asked for",
                by="this machine" if caller.is_near else "an operator",
                tenant=caller.tenant,
                grace_ms=request.grace_ms or GRACE_MS,
                works=works,
            )
            self._draining = asyncio.create_task(self._drain_soon((request.grace_ms or GRACE_MS) / 1000))
        return admin_pb2.DrainResponse(works_running=works)

    # -- in the contract, not built yet ------------------------------------------------------------------------

    async def not_built(self, tenant: str, request: object) -> object:
        """Answers for calls that this version has no code for."""
        raise NotBuilt("this call is part of the contract and not built in this version")

    async def not_built_stream(self, tenant: str, request: object) -> AsyncGenerator[object, None]:
        """The same for streams."""
        raise NotBuilt("this call is part of the contract and not built in this version")
        yield

    # -- pieces ------------------------------------------------------------------------------------------------

    async def _drain_soon(self, grace_s: float) -> None:
        await asyncio.sleep(0.05)  # the answer to Drain leaves first
        await self._drain(grace_s)

    async def _read(
        self,
        tenant: str,
        first: intents_pb2.ObservationFrame,
        frames: AsyncIterator[intents_pb2.ObservationFrame],
        subscriber: Subscriber,
        game: Game,
    ) -> None:
        world_id = first.world_id
        await self._take_live(tenant, world_id, first, subscriber, game)
        while True:
            try:
                frame = await anext(frames)
            except StopAsyncIteration:
                return
            except CallerError as error:
                # One frame that cannot be read: the stream of a game server survives it.
                subscriber.complain(_whole_frame(error))
                continue
            await self._take_live(tenant, world_id, frame, subscriber, game)

    async def _take_live(
        self, tenant: str, world_id: str, frame: intents_pb2.ObservationFrame, subscriber: Subscriber, game: Game
    ) -> None:
        """One frame of a stream. A frame that is wrong as a whole is dropped and reported; the stream goes on."""
        try:
            if frame.world_id and frame.world_id != world_id:
                raise CallerError("world_id", f"is '{frame.world_id}', this stream began with '{world_id}'")
            self._check_frame(frame)
            world = self._worlds.world(tenant, world_id)
        except CallerError as error:
            subscriber.complain(_whole_frame(error))
            return
        subscriber.last_frame = frame.frame
        try:
            complaints = await self._take(world, frame, subscriber, game)
        except NotFound as error:  # the world was deleted in the middle of it
            complaints = [_whole_frame(error)]
        for complaint in complaints:
            subscriber.complain(complaint)

    def _check_frame(self, frame: intents_pb2.ObservationFrame) -> None:
        limit = self._settings.observations_max
        if len(frame.observations) > limit:
            raise CallerError("observations", f"{len(frame.observations)} in one frame, the limit is {limit}")
        check_number("time_scale", frame.time_scale, 0.0, TIME_SCALE_MAX)

    def _check_ids(self, npc_ids: Sized) -> None:
        if len(npc_ids) > self._settings.ids_max:
            raise CallerError("npc_ids", f"{len(npc_ids)} ids, the limit is {self._settings.ids_max}")

    async def _take(
        self, world: World, frame: intents_pb2.ObservationFrame, subscriber: Subscriber | None, game: Game | None
    ) -> list[intents_pb2.NpcError]:
        """Takes a frame's observations in, in slices, so that nobody else waits longer than a slice. `game` is a
        stream's, and None for a frame that came by a call of its own.
        """
        games = [game] if game is not None else self._intents.games.callers(world, frame.observations)
        self._intents.tell_time(games, frame.time_scale, frame.paused)
        errors = []
        slices = self.pace()
        try:
            for said in frame.observations:
                error = self._intents.observe(world, said, frame.game_time_ms, subscriber, game)
                if error is not None:
                    errors.append(error)
                if slices.over:
                    await slices.rest()
                    world = self._worlds.world(world.tenant, world.world_id)  # it may have been changed meanwhile
        finally:
            self._intents.pump()
        return errors

    async def _frames(
        self, subscriber: Subscriber, over: Callable[[], bool]
    ) -> AsyncGenerator[intents_pb2.IntentFrame, None]:
        """Frames as things change, at most every frame_ms; the snapshot at once. Ends when over() and all is told, or
        the world is deleted.
        """
        sequence, last_ns = 0, 0
        await self.pace().run(self._table.marking(subscriber))
        while True:
            if sequence:
                await subscriber.woken.wait()
                if subscriber.deleted:
                    yield intents_pb2.IntentFrame(
                        daemon_epoch=self.epoch,
                        sequence=sequence + 1,
                        last_frame=subscriber.last_frame,
                        world_deleted=True,
                    )
                    return
                if not subscriber.waiting:
                    if over():
                        return
                    subscriber.woken.clear()  # the last frame had all that it was woken for
                    continue
                wait_ns = last_ns + self._settings.frame_ms * MS - self._clock()
                if wait_ns > 0:
                    await asyncio.sleep(wait_ns / S)
            sequence += 1
            last_ns = self._clock()
            yield await self.pace().run(self._table.framing(subscriber, self.epoch, sequence))
            if over() or subscriber.deleted:  # may have been told before this frame was made, which took it for its own
                subscriber.woken.set()

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
                )
            )
        return described


def _ids(npcs: Sequence[Npc]) -> Steps[list[str]]:
    """The NPCs' ids."""
    out = []
    for npc, pause in every(64, npcs):
        out.append(npc.key.npc)
        if pause:
            yield
    return out


def _whole_frame(error: CallerError) -> intents_pb2.NpcError:
    return intents_pb2.NpcError(code="INVALID_FRAME", field=error.field, message=str(error))
