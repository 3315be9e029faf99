"""A whole daemon in the test's process: real calls, scheduler and engine thread, on the shipped model or the simulated
one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import cast

import pytest

from core.clock import MS, Clock, now_ns
from core.words import NpcKey
from daemon.build import Daemon, build
from daemon.config import Config, MemorySettings
from daemon.model import Model
from daemon.process.keeping import Keeping, revive
from daemon.rpc.status import Lifecycle
from engines.backend import Backend
from engines.base import Geometry, StepPlan, StepResult
from engines.sim import SimEngine, SimVocab, VirtualClock
from memory.hot import Session
from npcd.v1 import dialogue_pb2, intents_pb2, npcs_pb2
from prompts.layout import Trunk
from prompts.marks import MARKS
from tests.patience import PATIENCE_S
from tiers.routing import LLAMA

# The policy waits for the model without a limit, also when the engine's thread gets no turn for a while, so that a
# test's statements about the model hold on a busy machine.
_PATIENCE_MS = round(PATIENCE_S * 1000)
UNHURRIED = replace(Config(), intents=replace(Config().intents, answer_within_ms=_PATIENCE_MS, stall_ms=_PATIENCE_MS))


class Standing:
    """A clock that stands still once a test says so, and that a test can move on: see passes()."""

    def __init__(self) -> None:
        self.at_ns = 0
        self.ahead_ns = 0  # of the real clock, while it runs

    def __call__(self) -> int:
        """Nanoseconds, as the daemon reads them."""
        return self.at_ns or now_ns() + self.ahead_ns


class GatedEngine(SimEngine):
    """A simulated engine whose steps wait at a gate: as slow as a test needs, without a clock."""

    def __init__(self) -> None:
        vocab = SimVocab(list(MARKS.values()))
        super().__init__(Geometry(40, 1024, 512, 128, vocab.size), vocab, VirtualClock())
        self.gate = threading.Semaphore(0)
        self.gated = False
        self.at_gate = False

    def step(self, plan: StepPlan) -> StepResult:
        """Waits for the gate while it is closed."""
        if self.gated:
            self.at_gate = True
            assert self.gate.acquire(timeout=PATIENCE_S), "nobody opened the gate"
            self.at_gate = False
        return super().step(plan)

    async def stand_still(self) -> None:
        """Waits until no step runs, none can run before the gate opens, and the last step's results were delivered."""
        while self.gate.acquire(blocking=False):
            pass
        await until(lambda: self.at_gate, "the engine waits at the gate")
        for _ in range(10):
            await asyncio.sleep(0)

    def close(self) -> None:
        """Lets no further step begin."""
        while self.gate.acquire(blocking=False):
            pass
        self.gated = True

    def open(self) -> None:
        """From now on every step passes."""
        self.gated = False
        self.gate.release(1000)


@dataclass
class Rig:
    """A running daemon, the epochs of its NPCs' leases, and a tick that grows."""

    daemon: Daemon
    leases: dict[str, int]
    tick: int = 0

    def frame(self, *observations: intents_pb2.Observation, paused: bool = False) -> intents_pb2.ObservationFrame:
        """A frame of observations."""
        return intents_pb2.ObservationFrame(
            world_id="vale", frame=self.tick, game_time_ms=self.tick * 100, paused=paused, observations=observations
        )

    def sees(self, npc_id: str, *percepts: tuple[str, str, str, float], **more: object) -> intents_pb2.Observation:
        """The observation of an NPC at the next tick: (entity, kind, stance, distance) of each visible thing."""
        self.tick += 1
        return intents_pb2.Observation(
            npc_id=npc_id,
            lease_epoch=self.leases.get(npc_id, 0),
            tick=self.tick,
            percepts=[
                intents_pb2.Percept(entity_id=e, kind=k, stance=s, distance_m=d, in_sight=True)
                for e, k, s, d in percepts
            ],
            **more,  # type: ignore[arg-type]
        )

    def trunk(self, npc_id: str, session: Session | None = None) -> Trunk:
        """The NPC's trunk for intents, or the one that it has in a conversation, as the model reads it."""
        script = self.daemon.worlds.npc("", "vale", npc_id).script
        layout = self.daemon.dialogue.layout
        return layout.trunk(script.goes_on(session.sections) if session is not None else script)

    async def intent(self, npc_id: str, wanted: Callable[[intents_pb2.Intent], bool]) -> intents_pb2.Intent:
        """Waits for the NPC's intent with the wanted fields, on the stream and without polling."""
        request = intents_pb2.WatchIntentsRequest(world_id="vale", npc_ids=[npc_id])
        async with asyncio.timeout(PATIENCE_S):
            async for frame in self.daemon.calls.watch_intents("", request):
                for intent in frame.intents:
                    if wanted(intent):
                        return intent
        raise AssertionError("the stream ended")

    def talk(self, npc_id: str, text: str, player: str = "p1", **more: object) -> dialogue_pb2.TalkRequest:
        """A player's line."""
        return dialogue_pb2.TalkRequest(world_id="vale", npc_id=npc_id, player_id=player, text=text, **more)  # type: ignore[arg-type]

    async def say(self, npc_id: str, text: str, player: str = "p1", **more: object) -> list[dialogue_pb2.TalkEvent]:
        """All events of one turn."""
        async with asyncio.timeout(PATIENCE_S):
            return [e async for e in self.daemon.calls.talk("", self.talk(npc_id, text, player, **more))]


async def until(condition: Callable[[], bool], what: str = "it") -> None:
    """Lets the loop run until a condition is true."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - what it waits for happens on the engine thread
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"{what}: not so after {PATIENCE_S:g} s") from None


async def move_out(rig: Rig, npc: str) -> None:
    """Moves an NPC's trunks out of their sequences, whether or not those are short."""
    for backend in [engine.backend for engine in rig.daemon.engines.values()]:
        backend.obeyed(partial(backend.scheduler.move_out, NpcKey("", "vale", npc)))
    await rig.daemon.door.obeyed()


async def passes(rig: Rig, ms: int) -> None:
    """Moves the daemon's Standing clock on, at once, in steps of 10 ms. After each all that is due is done."""
    clock = rig.daemon.clock
    assert isinstance(clock, Standing)
    for _ in range(ms // 10):
        if clock.at_ns:
            clock.at_ns += 10 * MS
        else:
            clock.ahead_ns += 10 * MS
        rig.daemon.intents.pump()
        await asyncio.sleep(0)


def world(**more: object) -> npcs_pb2.DefineWorldRequest:
    """A small world."""
    request = npcs_pb2.DefineWorldRequest(
        world_id="vale",
        lore="Ravenmere is a village by the old road. Mayor Greta rules here.",
        archetypes=[
            npcs_pb2.Archetype(archetype_id="villager", description="Plain folk who fear the night."),
            npcs_pb2.Archetype(archetype_id="vampire", description="Proud undead, hunts after dusk."),
        ],
        actions=[
            npcs_pb2.ActionWord(word="idle"),
            npcs_pb2.ActionWord(word="flee"),
            npcs_pb2.ActionWord(word="attack", needs_target=True, speaks=True),
            npcs_pb2.ActionWord(word="greet", needs_target=True, speaks=True),
        ],
        emotions=["calm", "happy", "afraid", "angry"],
        personas=[
            npcs_pb2.Persona(persona_id="mira", name="Mira", text="Mira bakes bread at the mill."),
            npcs_pb2.Persona(persona_id="count", name="Count Veil", text="Lord of the castle."),
        ],
    )
    request.MergeFrom(npcs_pb2.DefineWorldRequest(**more))  # type: ignore[arg-type]
    return request


def specs(count: int) -> list[npcs_pb2.NpcSpec]:
    """NPCs npc0, npc1, ... of both archetypes."""
    kinds = (("villager", "mira"), ("vampire", "count"))
    return [
        npcs_pb2.NpcSpec(npc_id=f"npc{n}", archetype_id=kinds[n % 2][0], persona_id=kinds[n % 2][1])
        for n in range(count)
    ]


async def _no_drain(_: float) -> None:
    raise AssertionError("nobody asked for a drain")


@asynccontextmanager
async def running(
    model: Model,
    config: Config = UNHURRIED,
    npcs: int = 4,
    drain: Callable[[float], Awaitable[None]] = _no_drain,
    saves: Path | None = None,
    keeping: Keeping | None = None,
    clock: Clock = now_ns,
    others: Mapping[str, Backend] = MappingProxyType({}),
    further: Mapping[str, Model] = MappingProxyType({}),
) -> AsyncIterator[Rig]:
    """A daemon that serves one world with some NPCs until the block ends. A dead engine thread fails the test.

    With `npcs` 0 no world is defined: the daemon has only the worlds that it takes up from `keeping`. `others` are
    backends beside the model's own, `further` the models of further engines.
    """
    models = {LLAMA: model, **further}
    # A busy machine is no reason to refuse a test's conversations.
    config = replace(config, pace=replace(config.pace, conversations_min=4096))
    died: list[BaseException] = []
    lifecycle = Lifecycle()
    if keeping is None:
        daemon = build(config, models, lifecycle, drain, clock, saves=saves, others=others)
    else:
        memory, saves, ill = keeping.memory, keeping.folder.saves, keeping.ill
        key = keeping.folder.pseudonym_key
        daemon = build(config, models, lifecycle, drain, clock, memory, saves, ill, keeping.parked, key)
    daemon.door.start(died.append)
    lifecycle.phase = "serving"
    try:
        if keeping is not None:
            await revive(keeping, daemon)
        if npcs:
            await daemon.calls.define_world("", world())
            await daemon.calls.register("", npcs_pb2.RegisterRequest(world_id="vale", npcs=specs(npcs)))
        await daemon.door.all_ended()  # the trunks are in place
        yield Rig(daemon, {npc.key.npc: npc.lease_epoch for w in daemon.worlds for npc in w.npcs.values()})
    finally:
        for one in models.values():
            getattr(one, "let_go", lambda: None)()
        assert daemon.door.stop(PATIENCE_S, "the test is over")
    assert not died, died


@dataclass(slots=True)
class Gated(Model):
    """A gated simulated engine as a model."""

    engine: GatedEngine

    def let_go(self) -> None:
        """Opens the gate for the last time: its thread is to end."""
        self.engine.open()


def gated() -> Gated:
    """A gated simulated engine as a model."""
    return Gated(GatedEngine(), "sim", "")


def gate_of(rig: Rig) -> GatedEngine:
    """The gated engine of a daemon that runs on one."""
    return cast(GatedEngine, rig.daemon.step_backend.scheduler.engine)


def patient(memory: MemorySettings) -> MemorySettings:
    """The settings with time for all work of the stores: a running store is never late, even on a busy machine."""
    return replace(
        memory,
        journal=replace(memory.journal, accept_ms=round(PATIENCE_S * 1000)),
        recent=replace(memory.recent, recall_ms=PATIENCE_S * 1000, connect_s=PATIENCE_S, op_s=PATIENCE_S),
        archive=replace(memory.archive, connect_s=PATIENCE_S, op_s=PATIENCE_S),
    )


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for code that waits a fixed time for stores."""
    monkeypatch.setattr("memory.memory.FORGET_WITHIN_S", PATIENCE_S)
    monkeypatch.setattr("memory.memory.SETTLED_WITHIN_S", PATIENCE_S)
    monkeypatch.setattr("daemon.process.own_servers.READY_S", PATIENCE_S)
    monkeypatch.setattr("daemon.process.keeping.CAUGHT_UP_WITHIN_S", PATIENCE_S)
    monkeypatch.setattr("daemon.rpc.forgetting.FORGOTTEN_WITHIN_S", PATIENCE_S)


def quick(config: Config) -> Config:
    """The configuration with a fast cadence, so that tests with many questions do not wait for slots."""
    cadence = replace(config.intents.cadence, active_hz=20.0)
    return replace(config, intents=replace(config.intents, cadence=cadence))
