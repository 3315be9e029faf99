"""A crowd's game server as a process: `python -m loadtests.bench.attention_game TARGET NPCS SECONDS PLAYERS SPREAD`.

Makes the recording, then obeys its standard input, a JSON object a line: {"register": 10000} registers so many NPCs, of
whom the first NPCS are the crowd; {"play": 20} observes the crowd ten times a second for so many seconds. After each it
prints one line of JSON; that of "play" is a Played. It does as little as can be, because it shares the machine.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc
import uvloop

from loadtests.board import Board
from loadtests.crowd import Crowd
from loadtests.crowd_game import CrowdGame
from loadtests.report import percentiles_of
from loadtests.scene import CrowdPlan, Scene, load_scene
from loadtests.slots import Slots
from npcd_client import Client
from npcd_client.v1 import intents_pb2

FPS = 30
EVERY = 3  # frames from one observation of an NPC to the next
CHANGE_EVERY_S = 1.0
READY_S = 120.0
BATCH = 500
SEED = 7
LIVE = "/npcd.v1.Intents/Live"


@dataclass(slots=True)
class Played:
    """What became of one play. `cores` is what this process used."""

    seconds: float = 0.0
    observations: int = 0
    frames_late: int = 0
    by_source: dict[str, int] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    due: int = 0
    confirmed: int = 0
    active: float = 0.0  # NPCs, on average
    age_ms: dict[str, float] = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    cores: float = 0.0


class Game:
    """The process's side of one daemon."""

    def __init__(self, target: str, client: Client, scene: Scene, crowd: Crowd) -> None:
        self._target = target
        self._client = client
        self._scene = scene
        self._crowd = crowd
        self._leases: dict[str, int] = {}
        self._tick = 0

    async def register(self, npcs: int) -> None:
        """Defines the world and registers so many."""
        await self._client.wait_ready(READY_S)
        await self._client.define_world(self._scene.world)
        specs = [resident.spec for resident in self._scene.residents(npcs)]
        for at in range(0, npcs, BATCH):
            registered = await self._client.register(specs[at : at + BATCH])
            self._leases.update(registered.lease_epochs)

    async def play(self, seconds: float) -> Played:
        """One stream for so long."""
        world_id = self._scene.world.world_id
        board = Board(len(self._crowd.residents), Slots(len(self._crowd.residents)))
        game = CrowdGame(self._crowd, world_id, self._leases, board, FPS, EVERY, self._tick)
        played = Played()
        cpu_ns, began_ns = time.process_time_ns(), time.monotonic_ns()
        async with grpc.aio.insecure_channel(self._target) as channel:
            live: Any = channel.stream_stream(LIVE, response_deserializer=intents_pb2.IntentFrame.FromString)
            call = live()
            reader = asyncio.create_task(self._read(call, game, played))
            await call.write(game.hello())
            for number in range(round(seconds * FPS)):
                due_ns = began_ns + number * 1_000_000_000 // FPS
                left_ns = due_ns - time.monotonic_ns()
                if left_ns > 0:
                    await asyncio.sleep(left_ns * 1e-9)
                elif left_ns < -1_000_000_000 // FPS:
                    played.frames_late += 1
                now_ns = time.monotonic_ns()
                await call.write(game.frame(number, now_ns))
                game.sample(number, now_ns)
            played.cores = (time.process_time_ns() - cpu_ns) / (time.monotonic_ns() - began_ns)
            played.seconds = (time.monotonic_ns() - began_ns) * 1e-9
            await call.done_writing()
            call.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        self._tick = game.tick
        played.observations = board.observations
        played.by_source, played.versions, played.due = (
            dict(board.slots.by_source),
            dict(board.versions),
            board.slots.due,
        )
        played.active = board.active.mean
        played.age_ms, played.latency_ms = percentiles_of(board.intent_age), percentiles_of(board.intent_latency)
        return played

    async def _read(self, call: Any, game: CrowdGame, played: Played) -> None:
        async for frame in call:
            game.take(frame, time.monotonic_ns())
            played.confirmed += len(frame.confirmed)
            played.errors += [f"{e.code} {e.npc_id} {e.field}" for e in frame.errors[: 5 - len(played.errors)]]


async def main(target: str, npcs: int, seconds: float, players: int, spread: float) -> None:
    """Obeys the lines of standard input until it ends."""
    scene = load_scene()
    plan = CrowdPlan(players, spread, CHANGE_EVERY_S)
    crowd = Crowd(scene, scene.residents(npcs), plan, seconds, FPS / EVERY, SEED)
    gc.collect()
    gc.freeze()
    async with Client(target) as client:
        game = Game(target, client, scene, crowd)
        _say({"state": "ready"})
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            asked = json.loads(line)
            if "register" in asked:
                await game.register(asked["register"])
                _say({"state": "registered"})
            elif "play" in asked:
                _say(asdict(await game.play(asked["play"])))


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what, separators=(",", ":")), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])))
