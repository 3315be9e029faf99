"""The cost of asking on the event loop: CPU of an observation, and of a question with its answer, without gRPC.

A daemon in this process on the simulated engine, whose steps cost no time of their own. A game server's stream observes
its NPCs ten times a second; as in a village, an NPC's sight changes about once a second, and players walk about.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import replace

from core.words import Source
from daemon.build import Daemon, build
from daemon.config import Config
from daemon.rpc.status import Lifecycle
from loadtests.bench.figures import Figures
from loadtests.bench.simulated import model
from npcd.v1 import intents_pb2, npcs_pb2
from tiers.routing import LLAMA

NPCS = 1_000
HZ = 10
PLAY_S, WARM_S = 12.0, 4.0
STEP_MS = 2.0
EVENT_SHARE = 0.03
AT_ONCE = 50  # NPCs in one frame


async def asking(figures: Figures, quick: bool) -> None:
    """Plays, and counts the CPU time of the loop's thread."""
    config = Config()
    config = replace(config, intents=replace(config.intents, bark_every_ms=0))
    daemon = build(config, {LLAMA: model(config, STEP_MS)}, Lifecycle(), _no_drain)
    daemon.door.start(lambda error: None)
    try:
        play_s = 4.0 if quick else PLAY_S
        figures.note(
            f"-- {NPCS} NPCs observed at {HZ} Hz for {play_s:g} s, on a simulated engine of {STEP_MS:g} ms a step"
        )
        game = await _Game.begin(daemon)
        await game.play(WARM_S)
        before = game.spent()
        await game.play(play_s)
        observing_ns, others_ns, observations, intents = (b - a for a, b in zip(before, game.spent(), strict=True))
    finally:
        daemon.door.stop(10.0, "the benchmark is over")
    figures.add("attention.observation_us", observing_ns / observations / 1e3)
    figures.add("attention.intent_us", others_ns / intents / 1e3)
    figures.note(f"   {observations} observations, {intents} intents by the model")


class _Game:
    def __init__(self, daemon: Daemon, leases: dict[str, int]) -> None:
        self._calls = daemon.calls
        self._intents = daemon.intents
        self._table = daemon.table
        self._world = daemon.worlds.world("", "town")
        self._view = self._table.subscribe(self._world, ())
        self._game = self._intents.games.begin()
        self._rng = random.Random(1)
        self._observing_ns = self._observations = 0
        self._began_ns = time.thread_time_ns()
        self._making_ns = 0
        self._tick = 0
        self._sights = {npc_id: _sight(self._rng) for npc_id in leases}
        self._leases = leases

    @classmethod
    async def begin(cls, daemon: Daemon) -> _Game:
        words = [npcs_pb2.ActionWord(word=word) for word in ("idle", "flee", "hide")]
        await daemon.calls.define_world(
            "",
            npcs_pb2.DefineWorldRequest(
                world_id="town", lore="A town.", emotions=["calm", "afraid"], actions=words,
                archetypes=[npcs_pb2.Archetype(archetype_id="villager", description="Plain folk.")],
                personas=[npcs_pb2.Persona(persona_id="mira", name="Mira", text="Mira bakes bread.")],
            ),
        )  # fmt: skip
        npcs = [npcs_pb2.NpcSpec(npc_id=f"npc{n}", archetype_id="villager", persona_id="mira") for n in range(NPCS)]
        answer = await daemon.calls.register("", npcs_pb2.RegisterRequest(world_id="town", npcs=npcs))
        await daemon.door.all_ended()
        return cls(daemon, {lease.npc_id: lease.lease_epoch for lease in answer.leases})

    async def play(self, seconds: float) -> None:
        """Frames come when they are due, so that the loop has time to answer between them."""
        frames = NPCS // AT_ONCE
        due_s = time.monotonic()
        for _ in range(round(seconds * HZ)):
            for part in range(frames):
                due_s += 1 / HZ / frames
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                self._frame(part)

    def _frame(self, part: int) -> None:
        began_ns = time.thread_time_ns()
        self._tick += 1
        said = list(self._observe(part))
        made_ns = time.thread_time_ns()
        self._making_ns += made_ns - began_ns
        observe, world, view, game = self._intents.observe, self._world, self._view, self._game
        for one in said:
            observe(world, one, 1, view, game)
        self._observing_ns += time.thread_time_ns() - made_ns
        self._observations += len(said)
        self._intents.pump()

    def _observe(self, part: int) -> Iterator[intents_pb2.Observation]:
        rng = self._rng
        for n in range(part * AT_ONCE, (part + 1) * AT_ONCE):
            npc_id = f"npc{n}"
            events = []
            if rng.random() < 1 / HZ:
                self._sights[npc_id] = _sight(rng)
                events = ["attacked"] if rng.random() < EVENT_SHARE else []
            one = intents_pb2.Observation(
                npc_id=npc_id, tick=self._tick, lease_epoch=self._leases[npc_id], place="market", events=events
            )
            for number, (kind, distance_m) in enumerate(self._sights[npc_id]):
                one.percepts.add(entity_id=f"{kind}{number}", kind=kind, stance="neutral", distance_m=distance_m)
            yield one

    def spent(self) -> tuple[int, int, int, int]:
        """(CPU ns of observing, of all else that the daemon did on the loop, observations, intents by the model)."""
        others_ns = time.thread_time_ns() - self._began_ns - self._making_ns - self._observing_ns
        return self._observing_ns, others_ns, self._observations, self._table.counts.by_tenant["", Source.MODEL]


def _sight(rng: random.Random) -> list[tuple[str, float]]:
    kinds = rng.sample(("wolf", "cart", "cat", "guard", "merchant"), 2)
    return [("player", rng.uniform(1.0, 70.0)), *((kind, rng.uniform(1.0, 40.0)) for kind in kinds)]


async def _no_drain(_: float) -> None:
    pass
