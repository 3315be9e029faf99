"""The calls of a load, on gRPC's synchronous API: plain threads, which locust's gevent turns into greenlets.

Games in Python use npcd_client, whose asyncio loop cannot run under gevent. This module uses its messages, intents and
errors.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import cast

import grpc

from npcd_client import (
    Activation,
    GameClock,
    Intent,
    NpcdError,
    NpcSpec,
    Observation,
    Policy,
    TalkEvent,
    TooLate,
    Unavailable,
    World,
    wire,
)
from npcd_client.connection import check_target, check_token, direct
from npcd_client.errors import from_rpc
from npcd_client.table import IntentTable
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
from npcd_client.waiting import Waiting

CALL_TIMEOUT_S = 20.0
LIVE = "/npcd.v1.Intents/Live"
AGAIN_S = 0.2  # pause before the next try to open a stream


def typed(error: grpc.RpcError) -> NpcdError:
    """The client's own error for a failed call."""
    # A synchronous call's error has the same methods as an asyncio one's.
    return from_rpc(cast(grpc.aio.AioRpcError, error))


class SyncClient:
    """One channel to a daemon. Raises NpcdError, and CallerError for a target or a token that cannot be used."""

    def __init__(self, target: str, token: str = "") -> None:
        check_target(target)
        check_token(token)
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        options = (("grpc.max_reconnect_backoff_ms", 1000), *direct(target))
        self._channel = grpc.insecure_channel(target, options=options)
        self.intents = intents_pb2_grpc.IntentsStub(self._channel)
        # The same call for frames that are bytes already.
        self.live_bytes: grpc.StreamStreamMultiCallable[bytes, intents_pb2.IntentFrame] = self._channel.stream_stream(
            LIVE, response_deserializer=intents_pb2.IntentFrame.FromString
        )
        self._npcs = npcs_pb2_grpc.NpcsStub(self._channel)
        self._dialogue = dialogue_pb2_grpc.DialogueStub(self._channel)
        self._admin = admin_pb2_grpc.AdminStub(self._channel)

    def close(self) -> None:
        """Ends every call."""
        self._channel.close()

    def wait_serving(self, nobody_s: float, gone: Callable[[], bool] = lambda: False) -> None:
        """Waits until the daemon serves, which it does once its model is warm, as long as its start moves. Raises
        TooLate when the start is stuck or nobody answers for `nobody_s`, or Unavailable when the daemon does not serve
        and is `gone`.
        """
        waiting = Waiting(time.monotonic(), nobody_s)
        reason = "starting"
        while True:
            try:
                status = self.status()
                reason = status.phase
                if reason == "serving":
                    return
                waiting.hears(status, time.monotonic())
            except NpcdError as error:
                reason = str(error)
            if gone():
                raise Unavailable(f"no daemon serves there: {reason}")
            why = waiting.gives_up(time.monotonic())
            if why:
                raise TooLate(f"the daemon does not serve: {why} ({reason})")
            time.sleep(AGAIN_S)

    def status(self) -> admin_pb2.StatusResponse:
        """The daemon's status."""
        try:
            return self._admin.Status(admin_pb2.StatusRequest(), timeout=CALL_TIMEOUT_S, metadata=self.metadata)
        except grpc.RpcError as error:
            raise typed(error) from None

    def settle_in(self, world: World, npcs: Iterable[NpcSpec]) -> tuple[dict[str, int], Policy]:
        """Defines a world and registers its NPCs, after it removed those of an earlier run. Returns the lease epochs
        and the compiled policy.
        """
        world_id, specs = world.world_id, list(npcs)
        removed = npcs_pb2.RemoveRequest(world_id=world_id, npc_ids=[npc.npc_id for npc in specs])
        added = npcs_pb2.RegisterRequest(world_id=world_id, npcs=[wire.npc_spec(npc) for npc in specs])
        try:
            self._npcs.DefineWorld(wire.define_world(world, 0), timeout=CALL_TIMEOUT_S, metadata=self.metadata)
            self._npcs.Remove(removed, timeout=CALL_TIMEOUT_S, metadata=self.metadata)
            answer = self._npcs.Register(added, timeout=CALL_TIMEOUT_S, metadata=self.metadata)
        except grpc.RpcError as error:
            raise typed(error) from None
        return {lease.npc_id: lease.lease_epoch for lease in answer.leases}, wire.policy(answer.policy)

    def talk(self, request: dialogue_pb2.TalkRequest, timeout_s: float) -> Iterator[TalkEvent]:
        """Says one line to an NPC; yields its answer as it is made."""
        try:
            for event in self._dialogue.Talk(request, timeout=timeout_s, metadata=self.metadata):
                yield wire.talk_event(event)
        except grpc.RpcError as error:
            raise typed(error) from None

    def end_session(self, world_id: str, npc_id: str, player_id: str) -> None:
        """Ends a conversation."""
        request = dialogue_pb2.EndSessionRequest(world_id=world_id, npc_id=npc_id, player_id=player_id)
        try:
            self._dialogue.EndSession(request, timeout=CALL_TIMEOUT_S, metadata=self.metadata)
        except grpc.RpcError as error:
            raise typed(error) from None


class SyncLive:
    """One world's Live stream for one game loop. `on_intent(intent, at_ns)` gets each new version as it arrives,
    `on_confirmed(npc_id, tick)` each confirmation, `on_problem` each fault of an NPC or of the stream.
    """

    def __init__(
        self,
        client: SyncClient,
        world_id: str,
        lease_epochs: dict[str, int],
        on_intent: Callable[[Intent, int], None],
        on_confirmed: Callable[[str, int], None],
        on_problem: Callable[[str], None],
    ) -> None:
        self._client = client
        self._world_id = world_id
        self._lease_epochs = lease_epochs
        self._on_intent = on_intent
        self._on_confirmed = on_confirmed
        self._on_problem = on_problem
        self._clock = GameClock()
        self._table = IntentTable(self._clock)
        self._newest: dict[str, tuple[Observation, int]] = {}
        self._unsent = threading.Event()
        self._closed = False
        self._frame = 0
        self._call: grpc.Call | None = None
        self._reader = threading.Thread(target=self._keep_up, name=f"load-live-{world_id}", daemon=True)
        self._reader.start()

    def observe(self, observation: Observation) -> None:
        """Sends an observation; for each NPC the newest one goes out."""
        self._newest[observation.npc_id] = (observation, time.monotonic_ns())
        self._unsent.set()

    def latest(self, npc_id: str) -> Intent | None:
        """The newest intent, without waiting."""
        return self._table.rows.get(npc_id)

    def activation(self, npc_id: str) -> Activation:
        """The attention that an NPC gets."""
        return self._table.activations.get(npc_id, Activation.AMBIENT)

    def tell_time(self, game_time_ms: float) -> None:
        """Reports game time."""
        self._clock.tell(game_time_ms)

    def close(self) -> None:
        """Ends the stream."""
        self._closed = True
        self._unsent.set()
        if self._call:
            self._call.cancel()
        self._reader.join(CALL_TIMEOUT_S)

    def _keep_up(self) -> None:
        while not self._closed:
            try:
                frames = self._client.intents.Live(self._frames(), metadata=self._client.metadata)
                self._call = cast(grpc.Call, frames)
                for frame in frames:
                    self._take(frame)
                reason = "the daemon ended it"
            except grpc.RpcError as error:
                reason = f"{error.code().name} {error.details()}"
            if not self._closed:
                self._on_problem(f"Live: {reason}")
                time.sleep(AGAIN_S)

    def _frames(self) -> Iterator[intents_pb2.ObservationFrame]:
        yield self._message([])  # names the world; the daemon answers with the snapshot
        while not self._closed:
            self._unsent.wait()
            self._unsent.clear()
            if self._newest:
                taken, self._newest = self._newest, {}
                yield self._message(list(taken.values()))

    def _message(self, taken: list[tuple[Observation, int]]) -> intents_pb2.ObservationFrame:
        self._frame += 1
        for observation, at_ns in taken:
            npc_id = observation.npc_id
            self._table.sent(npc_id, observation.tick, at_ns, self._lease_epochs[npc_id])
        return intents_pb2.ObservationFrame(
            world_id=self._world_id,
            frame=self._frame,
            game_time_ms=int(self._clock.game_time_ms()),
            observations=[wire.observation(seen, self._lease_epochs[seen.npc_id]) for seen, _ in taken],
        )

    def _take(self, frame: intents_pb2.IntentFrame) -> None:
        now_ns = time.monotonic_ns()
        for intent in self._table.apply(frame, now_ns):
            self._on_intent(intent, now_ns)
        for confirmed in frame.confirmed:
            self._on_confirmed(confirmed.npc_id, confirmed.observed_tick)
        for error in frame.errors:
            self._on_problem(f"Live {error.code}: {error.npc_id} {error.field} {error.message}")


class BytesLive:
    """A Live stream whose frames come as bytes and go out in order. Received frames are kept until they are taken:
    (frame, time)."""

    def __init__(self, client: SyncClient, hello: bytes, on_problem: Callable[[str], None]) -> None:
        self.heard: deque[tuple[intents_pb2.IntentFrame, int]] = deque()
        self._client = client
        self._on_problem = on_problem
        self._unsent: SimpleQueue[bytes | None] = SimpleQueue()
        self._unsent.put(hello)
        self._closed = False
        self._call = cast(grpc.Call, client.live_bytes(iter(self._unsent.get, None), metadata=client.metadata))
        self._reader = threading.Thread(target=self._read, name="load-live-bytes", daemon=True)
        self._reader.start()

    def send(self, frame: bytes) -> None:
        """Sends a frame."""
        self._unsent.put(frame)

    def close(self) -> None:
        """Ends the stream."""
        self._closed = True
        self._unsent.put(None)
        self._call.cancel()
        self._reader.join(CALL_TIMEOUT_S)

    def _read(self) -> None:
        try:
            for frame in cast(Iterable[intents_pb2.IntentFrame], self._call):
                self.heard.append((frame, time.monotonic_ns()))
                for error in frame.errors:
                    self._on_problem(f"Live {error.code}: {error.npc_id} {error.field} {error.message}")
            reason = "the daemon ended it"
        except grpc.RpcError as error:
            reason = f"{error.code().name} {error.details()}"
        if not self._closed:
            self._on_problem(f"Live: {reason}")
