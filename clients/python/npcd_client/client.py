"""The asyncio client: one connection to a daemon, in the game's words."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar

import grpc

from npcd_client import connection, wire
from npcd_client.conversation import Conversation
from npcd_client.errors import CallerError, NpcdError, from_rpc
from npcd_client.live import LIVE_DEFAULTS, Live, LiveProblem, LiveSettings
from npcd_client.perception import GameClock, Intent, Observation
from npcd_client.policy import PolicyAnswer, evaluate
from npcd_client.talking import TalkEvent
from npcd_client.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    dialogue_pb2,
    dialogue_pb2_grpc,
    intents_pb2,
    intents_pb2_grpc,
    npcs_pb2,
    npcs_pb2_grpc,
)
from npcd_client.world import NpcSpec, Policy, World

SERVICES = ("npcd.v1.Npcs", "npcd.v1.Intents", "npcd.v1.Dialogue")
CALL_TIMEOUT_S = 10.0
_CHUNK_BYTES = 512 << 10

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Registration:
    """The answer to Register: a lease epoch per NPC, and the rule policy for when npcd is late."""

    lease_epochs: dict[str, int]
    policy: Policy
    world_version: int
    daemon_epoch: int


@dataclass(slots=True)
class _Known:
    """One world as this client has defined and registered it, so that it can do so again."""

    world: World | None = None
    npcs: dict[str, NpcSpec] = field(default_factory=dict)
    lease_epochs: dict[str, int] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)
    daemon_epoch: int = 0
    number: int = 0  # grows when the world is deleted, and when it is defined anew


class Client:
    """A connection to one npcd. Use it in `async with`; all calls belong to that event loop.

    `target` is "host:port" or "unix:///path". Any certificate means TLS; `token` is sent as a bearer token. Calls
    without a `world_id` are about the world that was defined or named first. Errors are those of npcd_client.errors; an
    unusable `target` or `token` is refused here.
    """

    def __init__(
        self,
        target: str,
        *,
        world_id: str = "",
        token: str = "",
        root_certificates: bytes | None = None,
        certificate_chain: bytes | None = None,
        private_key: bytes | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        connection.check_target(target)
        connection.check_token(token or "")
        self.target = target
        self.world_id = world_id
        self.timeout_s = timeout_s
        self._certificates = (root_certificates, certificate_chain, private_key)
        self._metadata: connection.Metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._known: dict[str, _Known] = {}
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        self._channel = connection.open_channel(self.target, *self._certificates)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every call and the connection."""
        channel, self._channel = self._channel, None
        if channel:
            await channel.close()

    async def wait_ready(self, timeout_s: float | None = None, services: Sequence[str] = SERVICES) -> None:
        """Returns when the daemon serves, which it does once its model is warm.

        With `timeout_s` it raises TooLate after that time. Without, it waits as long as the daemon's start moves: it
        raises TooLate when nothing answers for 30 s, or when the start is stuck for a minute. The reason names the
        stage of the start.
        """
        await connection.wait_serving(self._open(), services, timeout_s, self._metadata)

    # -- worlds and NPCs ---------------------------------------------------------------------------------------

    async def define_world(self, world: World, expected_version: int = 0) -> npcs_pb2.DefineWorldResponse:
        """Defines or updates a world. The same content again changes nothing."""
        stub = npcs_pb2_grpc.NpcsStub(self._open())
        with _sendable():
            request = wire.define_world(world, expected_version)
        answer = await self._unary(stub.DefineWorld(request, timeout=self.timeout_s, metadata=self._metadata))
        known = self._knows(world.world_id)
        known.world = world
        known.number += answer.changed and answer.version == 1
        self.world_id = self.world_id or world.world_id
        return answer

    async def list_worlds(self) -> npcs_pb2.ListWorldsResponse:
        """The worlds that this client's tenant has in the daemon."""
        stub = npcs_pb2_grpc.NpcsStub(self._open())
        return await self._unary(
            stub.ListWorlds(npcs_pb2.ListWorldsRequest(), timeout=self.timeout_s, metadata=self._metadata)
        )

    async def delete_world(self, *, world_id: str = "", expected_version: int = 0) -> npcs_pb2.DeleteWorldResponse:
        """Deletes a world with its NPCs, all their memories, and its checkpoints. Its streams end.

        The client does not define it again by itself: that takes define_world() and register().
        """
        world_id = self._world(world_id)
        stub = npcs_pb2_grpc.NpcsStub(self._open())
        with _sendable():
            request = npcs_pb2.DeleteWorldRequest(world_id=world_id, expected_version=expected_version)
        number = self._knows(world_id).number
        answer = await self._unary(stub.DeleteWorld(request, timeout=self.timeout_s, metadata=self._metadata))
        self._forget_world(world_id, number)
        return answer

    async def register(self, npcs: Iterable[NpcSpec], *, take_over: bool = False, world_id: str = "") -> Registration:
        """Puts NPCs into a world, all or none, and keeps their leases, which observations then carry by themselves."""
        specs = list(npcs)
        world_id = self._world(world_id)
        stub = npcs_pb2_grpc.NpcsStub(self._open())
        with _sendable():
            request = npcs_pb2.RegisterRequest(
                world_id=world_id, npcs=[wire.npc_spec(spec) for spec in specs], take_over=take_over
            )
        answer = await self._unary(stub.Register(request, timeout=self.timeout_s, metadata=self._metadata))
        known = self._knows(world_id)
        known.npcs.update((spec.npc_id, spec) for spec in specs)
        known.lease_epochs.update((lease.npc_id, lease.lease_epoch) for lease in answer.leases)
        known.policy = wire.policy(answer.policy)
        known.daemon_epoch = answer.daemon_epoch
        return Registration(dict(known.lease_epochs), known.policy, answer.world_version, answer.daemon_epoch)

    async def remove(self, npc_ids: Iterable[str], *, world_id: str = "") -> npcs_pb2.RemoveResponse:
        """Takes NPCs out of the world. Their memories stay in the archive."""
        gone = list(npc_ids)
        world_id = self._world(world_id)
        stub = npcs_pb2_grpc.NpcsStub(self._open())
        with _sendable():
            request = npcs_pb2.RemoveRequest(world_id=world_id, npc_ids=gone)
        answer = await self._unary(stub.Remove(request, timeout=self.timeout_s, metadata=self._metadata))
        known = self._knows(world_id)
        for npc_id in gone:
            known.npcs.pop(npc_id, None)
            known.lease_epochs.pop(npc_id, None)
        return answer

    async def describe(
        self, npc_ids: Iterable[str] = (), *, with_history: bool = False, world_id: str = ""
    ) -> npcs_pb2.DescribeResponse:
        """The present state of NPCs, with their newest intents on request; without ids, of all NPCs of the world."""
        stub = npcs_pb2_grpc.NpcsStub(self._open())
        with _sendable():
            request = npcs_pb2.DescribeRequest(
                world_id=self._world(world_id), npc_ids=npc_ids, with_history=with_history
            )
        return await self._unary(stub.Describe(request, timeout=self.timeout_s, metadata=self._metadata))

    async def forget(self, player_id: str, npc_id: str = "", *, world_id: str = "") -> npcs_pb2.ForgetResponse:
        """Forgets everything about a player, towards one NPC or all, in every store."""
        stub = npcs_pb2_grpc.NpcsStub(self._open())
        with _sendable():
            request = npcs_pb2.ForgetRequest(world_id=self._world(world_id), player_id=player_id, npc_id=npc_id)
        return await self._unary(stub.Forget(request, timeout=self.timeout_s, metadata=self._metadata))

    # -- memory ------------------------------------------------------------------------------------------------

    async def set_cards(
        self,
        npc_id: str,
        player_id: str,
        *,
        relationship: npcs_pb2.RelationshipCard | None = None,
        quest: npcs_pb2.QuestCard | None = None,
        world_id: str = "",
    ) -> npcs_pb2.SetCardsResponse:
        """Gives an NPC the game's knowledge between it and a player. A card that is left out stays as it is."""
        stub = npcs_pb2_grpc.NpcsStub(self._open())
        with _sendable():
            request = npcs_pb2.SetCardsRequest(
                world_id=self._world(world_id),
                npc_id=npc_id,
                player_id=player_id,
                relationship=relationship,
                quest=quest,
            )
        return await self._unary(stub.SetCards(request, timeout=self.timeout_s, metadata=self._metadata))

    async def recall(self, npc_id: str, player_id: str, *, world_id: str = "") -> npcs_pb2.RecallResponse:
        """An NPC's memories of a player: cards, facts, summaries, mood."""
        stub = npcs_pb2_grpc.NpcsStub(self._open())
        with _sendable():
            request = npcs_pb2.RecallRequest(world_id=self._world(world_id), npc_id=npc_id, player_id=player_id)
        return await self._unary(stub.Recall(request, timeout=self.timeout_s, metadata=self._metadata))

    async def checkpoint(self, checkpoint_id: str, *, world_id: str = "") -> npcs_pb2.CheckpointResponse:
        """Marks the present memories of the world's NPCs, for a save game on this daemon."""
        stub = npcs_pb2_grpc.NpcsStub(self._open())
        with _sendable():
            request = npcs_pb2.CheckpointRequest(world_id=self._world(world_id), checkpoint_id=checkpoint_id)
        return await self._unary(stub.Checkpoint(request, timeout=self.timeout_s, metadata=self._metadata))

    async def restore(self, checkpoint_id: str, *, world_id: str = "") -> npcs_pb2.RestoreResponse:
        """Goes back to a checkpoint. All memories since then are undone."""
        stub = npcs_pb2_grpc.NpcsStub(self._open())
        with _sendable():
            request = npcs_pb2.RestoreRequest(world_id=self._world(world_id), checkpoint_id=checkpoint_id)
        return await self._unary(stub.Restore(request, timeout=self.timeout_s, metadata=self._metadata))

    async def list_checkpoints(self, *, world_id: str = "") -> npcs_pb2.ListCheckpointsResponse:
        """The world's checkpoints, the newest last."""
        stub = npcs_pb2_grpc.NpcsStub(self._open())
        with _sendable():
            request = npcs_pb2.ListCheckpointsRequest(world_id=self._world(world_id))
        return await self._unary(stub.ListCheckpoints(request, timeout=self.timeout_s, metadata=self._metadata))

    async def delete_checkpoint(self, checkpoint_id: str, *, world_id: str = "") -> npcs_pb2.DeleteCheckpointResponse:
        """Deletes a checkpoint. The NPCs' present memories stay as they are."""
        stub = npcs_pb2_grpc.NpcsStub(self._open())
        with _sendable():
            request = npcs_pb2.DeleteCheckpointRequest(world_id=self._world(world_id), checkpoint_id=checkpoint_id)
        return await self._unary(stub.DeleteCheckpoint(request, timeout=self.timeout_s, metadata=self._metadata))

    async def export_world(self, *, world_id: str = "") -> bytes:
        """The world's memory as the bytes of a save file. Raises ValueError when bytes were lost or changed on the
        way."""
        stub = npcs_pb2_grpc.NpcsStub(self._open())
        with _sendable():
            request = npcs_pb2.ExportRequest(world_id=self._world(world_id))
        call = stub.Export(request, metadata=self._metadata)
        content, digest = bytearray(), ""
        with _typed_errors(call):
            async for chunk in call:
                content += chunk.content
                digest = chunk.content_hash
        if digest != hashlib.sha256(content).hexdigest():
            raise ValueError("the export is not whole")
        return bytes(content)

    async def import_world(self, content: bytes, *, world_id: str = "") -> npcs_pb2.ImportResponse:
        """Reads an export of export_world(): adds the world and NPCs that are missing, and all memories."""
        stub = npcs_pb2_grpc.NpcsStub(self._open())
        parts = [content[at : at + _CHUNK_BYTES] for at in range(0, len(content), _CHUNK_BYTES)] or [b""]
        digest = hashlib.sha256(content).hexdigest()
        with _sendable():
            chunks = [
                npcs_pb2.ImportChunk(
                    world_id=self._world(world_id) if number == 0 else "",
                    sequence=number,
                    content=part,
                    last=number == len(parts) - 1,
                    content_hash=digest if number == len(parts) - 1 else "",
                )
                for number, part in enumerate(parts)
            ]
        return await self._unary(stub.Import(iter(chunks), metadata=self._metadata))

    async def watch_npcs(self, *, world_id: str = "") -> AsyncGenerator[npcs_pb2.NpcEvent, None]:
        """Promotions, demotions, registrations and removals of one world as they happen."""
        stub = npcs_pb2_grpc.NpcsStub(self._open())
        call = stub.Watch(npcs_pb2.WatchNpcsRequest(world_id=self._world(world_id)), metadata=self._metadata)
        with _typed_errors(call):
            async for event in call:
                yield event

    # -- intents -----------------------------------------------------------------------------------------------

    def live(
        self,
        world_id: str = "",
        *,
        settings: LiveSettings = LIVE_DEFAULTS,
        on_intent: Callable[[Intent], None] | None = None,
        on_problem: Callable[[LiveProblem], None] | None = None,
    ) -> Live:
        """The world's one stream of observations and intents; use it in `async with`.

        `on_intent` gets each new version, `on_problem` each problem, both on the client's loop.
        """
        world_id = self._world(world_id)
        stub = intents_pb2_grpc.IntentsStub(self._open())
        known = self._knows(world_id)

        async def announce(daemon_epoch: int) -> None:
            await self._announce(world_id, daemon_epoch)

        return Live(
            world_id,
            lambda: stub.Live(metadata=self._metadata),
            known.lease_epochs,
            announce,
            settings,
            on_intent,
            on_problem,
            lambda: known.daemon_epoch,
            lambda: known.number,
            lambda number: self._forget_world(world_id, number),
        )

    async def observe(
        self,
        observations: Iterable[Observation],
        *,
        frame: int = 0,
        game_time_ms: float = 0.0,
        time_scale: float = 1.0,
        paused: bool = False,
        world_id: str = "",
    ) -> intents_pb2.ObserveResponse:
        """Sends observations in one call, for programs that keep no stream. Pace and pause hold until the next such
        call."""
        world_id = self._world(world_id)
        lease_epochs = self._knows(world_id).lease_epochs
        clock = GameClock()
        with _sendable():
            clock.tell(game_time_ms, time_scale, paused=True)  # the clock stands still until the call is sent
            request = intents_pb2.ObservationFrame(
                world_id=world_id,
                frame=frame,
                game_time_ms=clock.whole_ms(),
                time_scale=time_scale,
                paused=paused,
                observations=[wire.observation(seen, lease_epochs.get(seen.npc_id, 0)) for seen in observations],
            )
        stub = intents_pb2_grpc.IntentsStub(self._open())
        return await self._unary(stub.Observe(request, timeout=self.timeout_s, metadata=self._metadata))

    async def watch_intents(
        self, npc_ids: Iterable[str] = (), *, world_id: str = ""
    ) -> AsyncGenerator[intents_pb2.IntentFrame, None]:
        """Intents of some NPCs as they change, for onlookers; without ids, of the whole world. A snapshot comes
        first."""
        stub = intents_pb2_grpc.IntentsStub(self._open())
        with _sendable():
            request = intents_pb2.WatchIntentsRequest(world_id=self._world(world_id), npc_ids=npc_ids)
        call = stub.Watch(request, metadata=self._metadata)
        with _typed_errors(call):
            async for frame in call:
                yield frame

    async def get_intents(self, npc_ids: Iterable[str] = (), *, world_id: str = "") -> intents_pb2.GetIntentsResponse:
        """The newest intents, at once; without ids, of the whole world."""
        stub = intents_pb2_grpc.IntentsStub(self._open())
        with _sendable():
            request = intents_pb2.GetIntentsRequest(world_id=self._world(world_id), npc_ids=npc_ids)
        return await self._unary(stub.Get(request, timeout=self.timeout_s, metadata=self._metadata))

    def policy_answer(self, observation: Observation, *, world_id: str = "") -> PolicyAnswer | None:
        """The rule policy's answer for a registered NPC, evaluated in the client. None when no rule holds."""
        known = self._knows(self._world(world_id))
        spec = known.npcs.get(observation.npc_id)
        return evaluate(known.policy, observation, spec.archetype_id if spec else "")

    # -- dialogue ----------------------------------------------------------------------------------------------

    async def talk(
        self,
        npc_id: str,
        player_id: str,
        text: str,
        turn_id: str | None = None,
        *,
        player_name: str = "",
        max_tokens: int = 0,
        seed: int | None = None,
        temperature: float | None = None,
        world_id: str = "",
        timeout_s: float | None = None,
    ) -> AsyncGenerator[TalkEvent, None]:
        """Says one line to an NPC. Yields its answer as it is made, and at last an END event with Timings.

        Leaving the iteration cancels the turn. After a failure send the same `turn_id` again: the turn is not said
        twice.
        """
        with _sendable():
            request = wire.talk(
                dialogue_pb2.TalkRequest(
                    world_id=self._world(world_id), npc_id=npc_id, player_id=player_id, player_name=player_name
                ),
                text,
                turn_id or new_turn_id(),
                max_tokens,
                seed,
                temperature,
            )
        stub = dialogue_pb2_grpc.DialogueStub(self._open())
        call = stub.Talk(request, timeout=timeout_s, metadata=self._metadata)
        with _typed_errors(call):
            async for event in call:
                yield wire.talk_event(event)

    def converse(self, npc_id: str, player_id: str, *, player_name: str = "", world_id: str = "") -> Conversation:
        """A conversation on one stream, in which the player may interrupt; use it in `async with`."""
        stub = dialogue_pb2_grpc.DialogueStub(self._open())
        with _sendable():
            first = dialogue_pb2.TalkRequest(
                world_id=self._world(world_id), npc_id=npc_id, player_id=player_id, player_name=player_name
            )
        return Conversation(lambda: stub.Converse(metadata=self._metadata), first)

    async def cancel(self, npc_id: str, player_id: str, turn_id: str = "", *, world_id: str = "") -> bool:
        """Cancels a turn, or without an id the one under way. Returns False when there was none."""
        stub = dialogue_pb2_grpc.DialogueStub(self._open())
        with _sendable():
            request = dialogue_pb2.CancelTurnRequest(
                world_id=self._world(world_id), npc_id=npc_id, player_id=player_id, turn_id=turn_id
            )
        answer = await self._unary(stub.Cancel(request, timeout=self.timeout_s, metadata=self._metadata))
        return answer.cancelled

    async def end_session(self, npc_id: str, player_id: str, *, world_id: str = "") -> dialogue_pb2.EndSessionResponse:
        """Ends a conversation. npcd summarises it in the background."""
        stub = dialogue_pb2_grpc.DialogueStub(self._open())
        with _sendable():
            request = dialogue_pb2.EndSessionRequest(world_id=self._world(world_id), npc_id=npc_id, player_id=player_id)
        return await self._unary(stub.EndSession(request, timeout=self.timeout_s, metadata=self._metadata))

    # -- the daemon --------------------------------------------------------------------------------------------

    async def status(self) -> admin_pb2.StatusResponse:
        """Version, model, queues and lanes at this moment."""
        stub = admin_pb2_grpc.AdminStub(self._open())
        return await self._unary(
            stub.Status(admin_pb2.StatusRequest(), timeout=self.timeout_s, metadata=self._metadata)
        )

    async def drain(self, grace_ms: int = 0) -> admin_pb2.DrainResponse:
        """Ends the daemon: it takes no new work, and cancels all running work after `grace_ms` (0: the daemon's own
        setting)."""
        stub = admin_pb2_grpc.AdminStub(self._open())
        with _sendable():
            request = admin_pb2.DrainRequest(grace_ms=wire.whole("grace_ms", grace_ms, 32))
        return await self._unary(stub.Drain(request, timeout=self.timeout_s, metadata=self._metadata))

    async def watch_status(self, interval_ms: int = 1000) -> AsyncGenerator[admin_pb2.StatusResponse, None]:
        """Status at a steady interval, until the iteration is left."""
        stub = admin_pb2_grpc.AdminStub(self._open())
        with _sendable():
            request = admin_pb2.WatchStatusRequest(interval_ms=wire.whole("interval_ms", interval_ms, 32))
        call = stub.Watch(request, metadata=self._metadata)
        with _typed_errors(call):
            async for status in call:
                yield status

    # -- pieces ------------------------------------------------------------------------------------------------

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            raise connection.closed()
        return self._channel

    def _world(self, world_id: str) -> str:
        if not (world_id or self.world_id):
            raise CallerError("no world: define one, or name one with world_id")
        self.world_id = self.world_id or world_id
        return world_id or self.world_id

    def _knows(self, world_id: str) -> _Known:
        return self._known.setdefault(world_id, _Known())

    def _forget_world(self, world_id: str, number: int) -> None:
        """Forgets a deleted world, so that it is not defined again on a daemon that does not know it. If the world was
        defined anew before the deletion was reported, it stays known.
        """
        known = self._knows(world_id)
        if known.number != number:
            return
        known.number += 1
        known.daemon_epoch = 0
        known.world = None
        known.npcs.clear()
        known.lease_epochs.clear()  # a Live stream reads this very table

    async def _announce(self, world_id: str, daemon_epoch: int) -> None:
        """Defines our world and registers our NPCs again on a daemon that lost its state."""
        known = self._knows(world_id)
        if daemon_epoch and daemon_epoch == known.daemon_epoch:
            return  # this very daemon gave us the leases, so the NPCs were removed on purpose
        if known.world:
            await self.define_world(known.world)
        if known.npcs:
            await self.register(list(known.npcs.values()), world_id=world_id)

    async def _unary(self, call: Awaitable[_Answer]) -> _Answer:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None


@contextlib.contextmanager
def _sendable() -> Iterator[None]:
    """Turns values that no message can carry (half a surrogate pair, a text for a number) into a typed error."""
    try:
        yield
    except NpcdError:
        raise
    except Exception as error:  # a value of another type raises AttributeError, OverflowError and so on
        raise CallerError(f"cannot be sent: {wire.reason(error)}", "INVALID_ARGUMENT") from None


@contextlib.contextmanager
def _typed_errors(call: grpc.aio.RpcContext) -> Iterator[None]:
    """Turns a failed stream into a typed error, and cancels it when its reader leaves early."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from None
    finally:
        call.cancel()


def new_turn_id() -> str:
    """A turn id that no other call makes."""
    return uuid.uuid4().hex
