"""Requests of every rpc, made from the contract's descriptors: plausible, extreme, broken, in any order.

One Fuzz is one daemon behind its gRPC face. After each handful of calls every call has ended with a documented status,
other clients are served, and no ticket, lane, subscriber or turn is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from daemon.config import Config, ServeSettings
from daemon.minds.mind import Mind
from daemon.model import Model
from daemon.rpc.grpc_face import GrpcFace
from npcd.v1 import admin_pb2, dialogue_pb2, intents_pb2, npcs_pb2, story_pb2
from prompts.marks import MARKS
from tests.daemon.rig import Rig, gated, quick, running, specs, until, world
from tests.patience import PATIENCE_S
from tiers.activation import ActivationSettings
from tiers.cadence import CadenceSettings
from tiers.phase import OUTDATED

METHODS: list[MethodDescriptor] = [
    method
    for file in (npcs_pb2, intents_pb2, dialogue_pb2, story_pb2, admin_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
# The allowed statuses of a call. Any other status is a fault of the daemon.
DOCUMENTED = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
ENDED_MEANWHILE = "Internal error from Core"  # grpcio's own error for a write to a stream that has ended
LISTEN_S = 0.02  # time for listening to a stream that never ends
EVENTS_MAX = 20  # events of a stream before the client leaves

INTEGERS = {
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
}
# Values that reach the deeper code, by the field's name.
PLAUSIBLE: dict[str, tuple[Any, ...]] = {
    "world_id": ("vale", "vale", "vale", "new", "elsewhere"),
    "npc_id": ("npc0", "npc1", "npc2", "ghost"),
    "npc_ids": ("npc0", "npc1", "npc2", "ghost"),
    "player_id": ("p1", "p2"),
    "turn_id": ("t1", "t2", ""),
    "player_name": ("Ann", ""),
    "checkpoint_id": ("c1", "c1", "c2"),
    "trust": (-1.0, 0.0, 0.9),
    "affinity": (0.0, 1.0),
    "promises": ("bring the ring",),
    "active": ("find the lantern",),
    "text": ("hello", "who are you?", "".join(MARKS.values())),
    "archetype_id": ("villager", "vampire"),
    "persona_id": ("mira", "count", ""),
    "word": ("idle", "flee", "attack"),
    "action": ("idle", "flee"),
    "emotion": ("calm", "afraid"),
    "emotions": ("calm", "afraid", "angry"),
    "kind": ("wolf", "player"),
    "stance": ("hostile", "friendly"),
    "entity_id": ("w1", "p1"),
    "lease_epoch": (1, 2, 3),
    "tick": (1, 5, 100, 10_000),
    "max_tokens": (0, 1, 5, 40),
    "temperature": (0.0, 0.7, 2.0),
    "distance_m": (1.0, 5.0, 30.0),
    "health": (0.0, 0.5, 1.0),
    "expected_version": (0, 1),
    "interval_ms": (0, 100),
    "time_scale": (0.0, 1.0),
}
TEXTS = st.one_of(
    st.sampled_from(
        ["", " ", "\x00", "\n", "x", "x" * 64, "x" * 65, "é" * 33, "word " * 600, "\u202e\ufeff", "🐺" * 9]
    ),
    st.text(max_size=12),
)
HUGE_TEXTS = st.sampled_from(["y" * 102_400, "y " * 51_200, "🐺" * 2_049])
DOUBLES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e308, -1e308, 5e-324, float("inf"), float("-inf"), float("nan")]),
    st.floats(),
)

# Fields of valid observations: the current lease and the next tick, filled in when they are sent.
PRESENT = 2**63 + 7
SEES = st.builds(
    intents_pb2.Percept,
    entity_id=st.sampled_from(["w1", "w2", "p1", "p2"]),
    kind=st.sampled_from(["wolf", "player", "player"]),
    stance=st.sampled_from(["hostile", "friendly"]),
    distance_m=st.sampled_from([0.0, 1.0, 5.0, 24.0, 30.0, 50.0, 70.0, 120.0, 5000.0]),
    in_sight=st.booleans(),
)
OBSERVATIONS = st.builds(
    intents_pb2.Observation,
    npc_id=st.sampled_from(["npc0", "npc1", "npc2"]),
    lease_epoch=st.just(PRESENT),
    percepts=st.lists(SEES, max_size=4),
    events=st.one_of(st.just([]), st.just([]), st.lists(st.sampled_from(["attacked", "spoken_to"]), max_size=2)),
    has_activation=st.sampled_from([False, False, True]),
    activation=st.sampled_from([1, 2, 3]),
)
FRAMES = st.builds(
    intents_pb2.ObservationFrame,
    world_id=st.just("vale"),
    game_time_ms=st.integers(0, 100_000),
    paused=st.sampled_from([False, False, False, True]),
    time_scale=st.sampled_from([0.0, 0.0, 1.0, 0.5, 30.0, 1e6]),
    observations=st.lists(OBSERVATIONS, max_size=8),
)


def _value(of: FieldDescriptor, depth: int, sensible: bool) -> st.SearchStrategy[Any]:
    if of.type == FieldDescriptor.TYPE_MESSAGE:
        return requests(of.message_type, depth + 1, sensible)
    if sensible and of.name in PLAUSIBLE:
        return st.sampled_from(PLAUSIBLE[of.name])
    if of.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if of.type == FieldDescriptor.TYPE_ENUM:
        return st.sampled_from([0, 1, 2, 77, 2**31 - 1, -1, -(2**31)])
    if of.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=64)
    odd: st.SearchStrategy[Any]
    if of.type == FieldDescriptor.TYPE_STRING:
        odd = st.one_of(TEXTS, TEXTS, TEXTS, HUGE_TEXTS)
    elif of.type in INTEGERS:
        low, high = INTEGERS[of.type]
        odd = st.one_of(st.sampled_from([low, 0, 1, high]), st.integers(low, high))
    else:
        odd = DOUBLES
    plausible = PLAUSIBLE.get(of.name)
    return st.one_of(*[st.sampled_from(plausible)] * 6, odd) if plausible else odd


@st.composite
def requests(draw: st.DrawFn, kind: Any, depth: int = 0, sensible: bool = False) -> Any:
    """A message of this descriptor. At times a field is missing, or one element is there 70 or 1,100 times. Every third
    message is sensible where we know how, so that it reaches the deep code.
    """
    sensible = sensible or (depth == 0 and draw(st.integers(0, 2)) == 0)
    message = GetMessageClass(kind)()
    for of in kind.fields:
        if (draw(st.integers(0, 15)) == 0 and not sensible) or depth > 4:
            continue
        value = _value(of, depth, sensible)
        if of.is_repeated:
            elements = draw(st.lists(value, max_size=3))
            if elements and len(repr(elements[0])) < 500 and draw(st.integers(0, 30)) == 0:
                elements = elements[:1] * draw(st.sampled_from([9, 70, 1100]))
            getattr(message, of.name).extend(elements)
        elif of.type == FieldDescriptor.TYPE_MESSAGE:
            getattr(message, of.name).CopyFrom(draw(value))
        else:
            setattr(message, of.name, draw(value))
    return message


@st.composite
def calls(draw: st.DrawFn) -> tuple[MethodDescriptor, list[bytes]]:
    """One rpc and the bytes that are sent on it; at times they are damaged."""
    method = draw(st.sampled_from(METHODS))
    count = draw(st.integers(0, 4)) if method.client_streaming else 1
    sent = []
    for _ in range(count):
        request: Any
        sound = draw(st.booleans())  # random words alone hardly ever make a valid world
        if sound and method.name == "DefineWorld":
            request = world(world_id=draw(st.sampled_from(["vale", "new"])), lore=draw(TEXTS))
        elif sound and method.name == "Register":
            count = draw(st.integers(1, 6))
            request = npcs_pb2.RegisterRequest(world_id="vale", npcs=specs(count), take_over=draw(st.booleans()))
        elif sound and method.name in ("Observe", "Live"):
            request = draw(FRAMES)
        else:
            request = draw(requests(method.input_type))
            for of in method.input_type.fields if sound else ():
                if of.name in PLAUSIBLE and not of.is_repeated:
                    setattr(request, of.name, PLAUSIBLE[of.name][0])
        data = request.SerializeToString()
        if draw(st.integers(0, 15)) == 15:
            data = data[: draw(st.integers(0, len(data)))] + draw(st.binary(max_size=8))
        sent.append(data)
    return method, sent


@dataclass
class Fuzz:
    """A daemon under test, and the counts of its calls."""

    rig: Rig
    channel: Any
    messages: int = 0
    tick: int = 0
    answered: int = 0
    statuses: dict[str, int] = field(default_factory=dict)

    async def play(self, script: list[tuple[MethodDescriptor, list[bytes]]]) -> None:
        """Makes these calls, some side by side, and checks the daemon afterwards. Raises AssertionError."""
        async with asyncio.timeout(2 * PATIENCE_S):
            for name in ("calm", "vale"):  # an earlier handful may have changed or emptied it
                await self.rig.daemon.calls.define_world("", world(world_id=name))
                await self.rig.daemon.calls.register("", npcs_pb2.RegisterRequest(world_id=name, npcs=specs(3)))
            # All calls end, also after one has failed: a call that is left over would change worlds during the next
            # handful, which would then fail for another reason.
            ended = await asyncio.gather(*(self._call(method, sent) for method, sent in script), return_exceptions=True)
            for failed in ended:
                if failed is not None:
                    raise failed
            await self._look()

    async def _call(self, method: MethodDescriptor, sent: list[bytes]) -> None:
        make = getattr(
            self.channel,
            f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}",
        )(f"/{method.containing_service.full_name}/{method.name}")
        self.messages += len(sent)
        if method.input_type.name == "ObservationFrame":
            sent = [self._present(data) for data in sent]
        code = grpc.StatusCode.OK
        what = ""
        try:
            call = make() if method.client_streaming else make(sent[0])
            if method.client_streaming:
                with contextlib.suppress(asyncio.InvalidStateError):  # the call ended while we sent
                    for data in sent:
                        await call.write(data)
                    await call.done_writing()
            if method.server_streaming:
                await self._listen(call)
            else:
                await call
        except grpc.aio.AioRpcError as error:
            code, what = error.code(), error.details() or ""
            if what == ENDED_MEANWHILE:
                return
        name = f"{method.full_name} {code.name}"
        self.statuses[name] = self.statuses.get(name, 0) + 1
        assert code in DOCUMENTED, f"{method.full_name}: {code.name} {what!r} after {[d[:300] for d in sent]}"

    def _present(self, data: bytes) -> bytes:
        """A frame with current leases, and ticks that grow."""
        try:
            frame = intents_pb2.ObservationFrame.FromString(data)
        except DecodeError:
            return data
        npcs = self.rig.daemon.worlds.world("", "vale").npcs
        if any(said.lease_epoch == PRESENT for said in frame.observations):
            for said in frame.observations:
                self.tick += 1
                said.tick = self.tick
                said.lease_epoch = npcs[said.npc_id].lease_epoch if said.npc_id in npcs else 0
            return frame.SerializeToString()
        return data

    async def _listen(self, call: Any) -> None:
        try:
            for _ in range(EVENTS_MAX):
                async with asyncio.timeout(LISTEN_S):
                    if await call.read() is grpc.aio.EOF:
                        break
        except TimeoutError:
            pass
        finally:
            call.cancel()

    async def _look(self) -> None:
        """Other clients are served as before, and nothing is left behind."""
        daemon, rig = self.rig.daemon, self.rig
        talk = rig.talk("npc0", "hello", "calm", max_tokens=2)
        talk.world_id = "calm"
        events = [e async for e in daemon.calls.talk("", talk)]
        assert events[-1].kind == dialogue_pb2.TALK_EVENT_KIND_END, "a turn elsewhere has no end"
        await until(lambda: not daemon.table.subscribers, "subscribers")
        await until(lambda: not daemon.dialogue.floors, "turns and floors")
        await until(lambda: not daemon.calls.npc_events.watchers, "watchers")
        await until(lambda: not daemon.board.lifecycle.streams, "streams")
        await until(lambda: not daemon.door.open, "tickets")
        await until(lambda: not daemon.step_backend.scheduler.placer.lanes.leased, "lanes")
        await self._nobody_waits()
        known = {n.key for w in daemon.worlds for n in w.npcs.values()}
        assert set(daemon.table.minds) <= known, "minds of NPCs that are gone"
        homes = daemon.step_backend.scheduler.placer.homes
        await until(lambda: {t.key.npc for t in homes} <= known, "trunks of NPCs that are gone")

    async def _nobody_waits(self) -> None:
        """Each NPC has an answer to its newest observation, unless the game is paused, and all places are free."""
        daemon = self.rig.daemon
        intents = daemon.intents

        def waits(mind: Mind) -> bool:
            if mind.seen is None or mind.game.time.paused:
                return False
            if mind.glimpse is not None or mind.intent is None:
                return True
            return mind.intent.state not in (mind.state, OUTDATED)

        minds = daemon.table.minds
        try:
            await until(lambda: not any(waits(mind) for mind in minds.values()), "answers to what NPCs see")
        except AssertionError as error:
            waiting = [mind for mind in minds.values() if waits(mind)]
            records = [intents.asking.record(mind) for mind in waiting]
            raise AssertionError(f"{error}: {waiting}; {intents.asking.held()}, {records}") from None
        await until(lambda: not daemon.door.open and not intents.asking.line.under_way, "places of questions")
        await until(lambda: not daemon.attention.newcomers, "newcomers who are not decided about")
        assert set(daemon.attention.activations.known) <= set(minds.values()), "attention for NPCs that are gone"
        held = intents.asking.held()
        assert held.npcs == len(minds), "NPCs that are gone are asked"
        glimpses = sum(mind.glimpse is not None for mind in minds.values())
        assert held.glimpses == glimpses, "glimpses of NPCs that are gone"
        assert not held.under_way and not intents.under_way, "questions that nobody waits for"
        assert set(daemon.look_ahead.candidates) <= set(minds.values()), "looking ahead for NPCs that are gone"
        assert set(daemon.look_ahead.foresight.expecting) <= set(minds.values()), "books of NPCs that are gone"
        self.answered += sum(mind.intent is not None for mind in minds.values())


@contextlib.contextmanager
def troubled(model: Model | None = None) -> Iterator[tuple[Fuzz, asyncio.Runner]]:
    """A daemon for many handfuls of calls, with small limits so that they are met, and its loop."""

    async def no_drain(_: float) -> None:
        pass

    config = quick(Config())
    config = replace(config, worlds=replace(config.worlds, npcs_max=300, worlds_max=8))
    # Three NPCs are enough to reach all levels, and none waits for long.
    activation = ActivationSettings(active_min=0, active_max=2, warm_min=0, every_ms=50, stay_s=0.0)
    cadence = CadenceSettings(active_hz=20.0, warm_hz=10.0)
    intents = replace(config.intents, activation=activation, cadence=cadence, warm_look_ms=20, ambient_look_ms=40)
    config = replace(config, intents=intents)
    # The folder goes last: until the runner is closed a thread of it may write a save.
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        saves = Path(folder) / "saves"

        async def start() -> Fuzz:
            rig = await stack.enter_async_context(running(model or gated(), config, drain=no_drain, saves=saves))
            face = GrpcFace(ServeSettings(listen=(f"unix:{folder}/npcd.sock",)))
            (address,) = await face.start()
            stack.push_async_callback(face.stop, 0)
            face.calls = rig.daemon.calls
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            return Fuzz(rig, channel)

        fuzz = runner.run(start())
        try:
            yield fuzz, runner
        finally:
            runner.run(stack.aclose())
