"""A scripted daemon: it speaks the contract and decides nothing. Only tests of the clients use it.

python fake_daemon.py unix:///path/to/socket     serves until it is terminated
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import Message

from npcd_client.v1 import admin_pb2, dialogue_pb2, intents_pb2, npcs_pb2, words_pb2

SERVING = b"\x08\x01"
NOT_SERVING = b"\x08\x02"
THINK_EVERY_S = 0.25
WORDS = ("Well", " met", ",", " stranger", ".")

Context = grpc.aio.ServicerContext[Any, Any]


def _bytes(message: Message) -> bytes:
    return message.SerializeToString()


class FakeDaemon:
    """One world of NPCs that a test writes by hand. With `answers` it gives an intent for every observation."""

    def __init__(self, daemon_epoch: int = 1, answers: bool = False) -> None:
        self.daemon_epoch = daemon_epoch
        self.answers = answers
        self.serving = True
        self.worlds: dict[str, npcs_pb2.DefineWorldRequest] = {}
        self.npcs: dict[str, npcs_pb2.NpcSpec] = {}
        self.leases: dict[str, int] = {}
        self.intents: dict[str, intents_pb2.Intent] = {}
        self.frames: asyncio.Queue[intents_pb2.ObservationFrame] = asyncio.Queue()
        self.outs: list[asyncio.Queue[intents_pb2.IntentFrame | None]] = []
        self.talks: list[dialogue_pb2.TalkRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.hold_talk = asyncio.Event()
        self.talk_cancelled = asyncio.Event()
        self.sessions_ended = 0
        self._server: grpc.aio.Server | None = None
        self._thought: dict[str, float] = {}

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self, target: str) -> int:
        """Serves at `target`. Returns the port (0 for a Unix socket)."""
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(name, rpcs) for name, rpcs in self._rpcs().items())
        )
        port = server.add_insecure_port(target)
        await server.start()
        self._server = server
        return port

    async def stop(self) -> None:
        """Stops at once, as a killed daemon does."""
        if self._server:
            await self._server.stop(0)

    def _rpcs(self) -> dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]]:
        one, many = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        both = grpc.stream_stream_rpc_method_handler
        npcs, intents, dialogue, admin = npcs_pb2, intents_pb2, dialogue_pb2, admin_pb2
        return {
            "grpc.health.v1.Health": {"Check": one(self._health)},
            "npcd.v1.Npcs": {
                "DefineWorld": one(self._define_world, npcs.DefineWorldRequest.FromString, _bytes),
                "Register": one(self._register, npcs.RegisterRequest.FromString, _bytes),
                "Remove": one(self._remove, npcs.RemoveRequest.FromString, _bytes),
                "Describe": one(self._describe, npcs.DescribeRequest.FromString, _bytes),
            },
            "npcd.v1.Intents": {"Live": both(self._live, intents.ObservationFrame.FromString, _bytes)},
            "npcd.v1.Dialogue": {
                "Talk": many(self._talk, dialogue.TalkRequest.FromString, _bytes),
                "Converse": both(self._converse, dialogue.ConverseRequest.FromString, _bytes),
                "Cancel": one(self._cancel, dialogue.CancelTurnRequest.FromString, _bytes),
                "EndSession": one(self._end_session, dialogue.EndSessionRequest.FromString, _bytes),
            },
            "npcd.v1.Admin": {
                "Status": one(self._status, admin.StatusRequest.FromString, _bytes),
                "Watch": many(self._watch_status, admin.WatchStatusRequest.FromString, _bytes),
            },
        }

    async def _health(self, request: bytes, context: Context) -> bytes:
        return SERVING if self.serving else NOT_SERVING

    # -- npcs ------------------------------------------------------------------------------------------------------

    async def _define_world(
        self, request: npcs_pb2.DefineWorldRequest, context: Context
    ) -> npcs_pb2.DefineWorldResponse:
        self.metadata.append({str(key): str(value) for key, value in context.invocation_metadata() or ()})
        if not request.archetypes:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "archetypes: at least 1 is needed")
        changed = self.worlds.get(request.world_id) != request
        self.worlds[request.world_id] = request
        return npcs_pb2.DefineWorldResponse(world_id=request.world_id, version=1, changed=changed)

    async def _register(self, request: npcs_pb2.RegisterRequest, context: Context) -> npcs_pb2.RegisterResponse:
        if request.world_id not in self.worlds:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"world_id: no world {request.world_id}")
        for npc in request.npcs:
            self.npcs[npc.npc_id] = npc
            self.leases[npc.npc_id] = self.daemon_epoch * 100 + len(self.leases)
        return npcs_pb2.RegisterResponse(
            leases=[npcs_pb2.NpcLease(npc_id=n.npc_id, lease_epoch=self.leases[n.npc_id]) for n in request.npcs],
            policy=self.worlds[request.world_id].policy,
            world_version=1,
            daemon_epoch=self.daemon_epoch,
        )

    async def _remove(self, request: npcs_pb2.RemoveRequest, context: Context) -> npcs_pb2.RemoveResponse:
        gone = [npc_id for npc_id in request.npc_ids if self.npcs.pop(npc_id, None)]
        return npcs_pb2.RemoveResponse(removed=len(gone))

    async def _describe(self, request: npcs_pb2.DescribeRequest, context: Context) -> npcs_pb2.DescribeResponse:
        return npcs_pb2.DescribeResponse(npcs=[npcs_pb2.NpcDescription(npc_id=npc_id) for npc_id in self.npcs])

    # -- intents ---------------------------------------------------------------------------------------------------

    async def _live(
        self, frames: AsyncIterator[intents_pb2.ObservationFrame], context: Context
    ) -> AsyncIterator[intents_pb2.IntentFrame]:
        out: asyncio.Queue[intents_pb2.IntentFrame | None] = asyncio.Queue()
        first = await anext(frames)
        if first.world_id not in self.worlds:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"world_id: no world {first.world_id}")
        self.outs.append(out)
        active = words_pb2.ACTIVATION_ACTIVE
        everybody = [intents_pb2.ActivationChanged(npc_id=npc_id, activation=active) for npc_id in self.npcs]
        intents = list(self.intents.values())
        out.put_nowait(intents_pb2.IntentFrame(snapshot=True, intents=intents, activations=everybody))
        reading = asyncio.create_task(self.read(first, frames))
        sequence = 0
        try:
            while (frame := await out.get()) is not None:
                sequence += 1
                frame.sequence = sequence
                frame.daemon_epoch = frame.daemon_epoch or self.daemon_epoch
                yield frame
        finally:
            reading.cancel()
            self.outs.remove(out)

    async def read(
        self, first: intents_pb2.ObservationFrame, frames: AsyncIterator[intents_pb2.ObservationFrame]
    ) -> None:
        """Reads everything that one stream sends. A test may replace it by a slower reader."""
        self._take(first)
        async for frame in frames:
            self._take(frame)

    def _take(self, frame: intents_pb2.ObservationFrame) -> None:
        if not self.answers:
            self.frames.put_nowait(frame)
            return
        out = intents_pb2.IntentFrame(last_frame=frame.frame)
        now_s = time.monotonic()
        for seen in frame.observations:
            if seen.npc_id not in self.npcs:
                out.errors.append(intents_pb2.NpcError(npc_id=seen.npc_id, code="UNKNOWN_NPC"))
                continue
            held = self.intents.get(seen.npc_id)
            if held and now_s - self._thought[seen.npc_id] < THINK_EVERY_S:
                held.observed_tick, held.game_time_ms = seen.tick, frame.game_time_ms
                confirmed = intents_pb2.IntentConfirmed(npc_id=seen.npc_id, version=held.version)
                confirmed.observed_tick, confirmed.game_time_ms = seen.tick, frame.game_time_ms
                out.confirmed.append(confirmed)
                continue
            self._thought[seen.npc_id] = now_s
            target = seen.percepts[0].entity_id if seen.percepts else ""
            self.intents[seen.npc_id] = intents_pb2.Intent(
                npc_id=seen.npc_id, version=held.version + 1 if held else 1, action="approach" if target else "wander",
                target_entity_id=target, emotion="calm", source=intents_pb2.INTENT_SOURCE_MODEL,
                observed_tick=seen.tick, game_time_ms=frame.game_time_ms, ttl_ms=3000, latency_ms=20, confidence=0.5,
            )  # fmt: skip
            out.intents.append(self.intents[seen.npc_id])
        self.push(out)

    def push(self, frame: intents_pb2.IntentFrame) -> None:
        """Sends a frame on every open stream."""
        for out in self.outs:
            copy = intents_pb2.IntentFrame()
            copy.CopyFrom(frame)
            out.put_nowait(copy)

    def end_streams(self) -> None:
        """Ends every Live stream with status OK."""
        for out in self.outs:
            out.put_nowait(None)

    # -- dialogue --------------------------------------------------------------------------------------------------

    async def _talk(self, request: dialogue_pb2.TalkRequest, context: Context) -> AsyncIterator[dialogue_pb2.TalkEvent]:
        self.talks.append(request)
        if request.text == "busy":
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "silver is full", (("retry-after-ms", "750"),))
        if request.npc_id not in self.npcs:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"npc_id: no NPC {request.npc_id}")
        async for event in self._answer(request):
            yield event

    async def _answer(self, request: dialogue_pb2.TalkRequest) -> AsyncIterator[dialogue_pb2.TalkEvent]:
        event: dict[str, Any] = {"turn_id": request.turn_id, "session_id": "s1"}
        yield dialogue_pb2.TalkEvent(kind=dialogue_pb2.TALK_EVENT_KIND_STARTED, index=0, **event)
        for index, word in enumerate(WORDS, 1):
            yield dialogue_pb2.TalkEvent(kind=dialogue_pb2.TALK_EVENT_KIND_TEXT, text=word, index=index, **event)
            if request.text == "hold":
                try:
                    await self.hold_talk.wait()
                except asyncio.CancelledError:
                    self.talk_cancelled.set()
                    raise
        timings = words_pb2.Timings(
            queue_us=1,
            prefill_us=2000,
            cached_tokens=90,
            prefilled_tokens=10,
            output_tokens=5,
            loaded_tokens=60,
            copied_tokens=20,
        )
        yield dialogue_pb2.TalkEvent(
            kind=dialogue_pb2.TALK_EVENT_KIND_END, index=9, finish=dialogue_pb2.TALK_FINISH_STOP,
            timings=timings, accepted=True, accepted_known=True, **event,
        )  # fmt: skip

    async def _converse(
        self, requests: AsyncIterator[dialogue_pb2.ConverseRequest], context: Context
    ) -> AsyncIterator[dialogue_pb2.TalkEvent]:
        async for request in requests:
            if request.end_session:
                return
            if request.interrupt:
                yield dialogue_pb2.TalkEvent(
                    kind=dialogue_pb2.TALK_EVENT_KIND_END, finish=dialogue_pb2.TALK_FINISH_CANCELLED
                )
                continue
            async for event in self._answer(request.talk):
                yield event

    async def _cancel(
        self, request: dialogue_pb2.CancelTurnRequest, context: Context
    ) -> dialogue_pb2.CancelTurnResponse:
        return dialogue_pb2.CancelTurnResponse(cancelled=bool(request.turn_id))

    async def _end_session(
        self, request: dialogue_pb2.EndSessionRequest, context: Context
    ) -> dialogue_pb2.EndSessionResponse:
        self.sessions_ended += 1
        return dialogue_pb2.EndSessionResponse(ended=True, turns=3)

    # -- admin -----------------------------------------------------------------------------------------------------

    def status(self) -> admin_pb2.StatusResponse:
        """A status with one number of each kind that reports are made of."""
        gold = admin_pb2.TierLoad(tier="gold", first_p50_ms=8, first_p95_ms=9, first_p99_ms=10, finished=7)
        gold.token_p50_ms, gold.token_p95_ms, gold.token_p99_ms = 5, 6, 7
        silver = admin_pb2.TierLoad(tier="silver", first_p50_ms=20, first_p95_ms=30, first_p99_ms=40)
        return admin_pb2.StatusResponse(
            version="fake", phase="serving", daemon_epoch=self.daemon_epoch, tiers=[gold, silver],
            cached_tokens=90 * len(self.talks), prefilled_tokens=10 * len(self.talks), tokens_per_s=100.0,
        )  # fmt: skip

    async def _status(self, request: admin_pb2.StatusRequest, context: Context) -> admin_pb2.StatusResponse:
        return self.status()

    async def _watch_status(
        self, request: admin_pb2.WatchStatusRequest, context: Context
    ) -> AsyncIterator[admin_pb2.StatusResponse]:
        while True:
            yield self.status()
            await asyncio.sleep(max(0.02, request.interval_ms / 1000))


@contextlib.asynccontextmanager
async def serving(daemon_epoch: int = 1) -> AsyncIterator[tuple[FakeDaemon, str]]:
    """`async with serving() as (daemon, target)`: a fake daemon on the running loop, which grpc.aio needs."""
    daemon = FakeDaemon(daemon_epoch)
    port = await daemon.start("127.0.0.1:0")
    try:
        yield daemon, f"127.0.0.1:{port}"
    finally:
        await daemon.stop()


async def main(target: str) -> None:
    """Serves and gives intents until SIGTERM."""
    daemon = FakeDaemon(answers=True)
    await daemon.start(target)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await daemon.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
