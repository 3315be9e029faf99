"""A game server that plays a recording, as a process: `python -m loadtests.bench.attention_game TARGET STAGE`.

It makes the recording of its Stage, then obeys its standard input, a JSON object a line: {"register": 10000} registers
that many NPCs, of which the first are the recorded ones; {"play": 20} plays for so many seconds, and with {"log":
"FILE"} it also writes a Log of the received intents. After each it prints one line of JSON; that of "play" is a Played.
It does as little as possible, because it shares the machine.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import uvloop

from loadtests.board import Board
from loadtests.crowd import record_crowd
from loadtests.recorded_game import SOURCES, RecordedGame
from loadtests.recording import Recording, village_played
from loadtests.report import percentiles_of
from loadtests.scene import CrowdPlan, Scene, load_scene
from loadtests.slots import Slots
from loadtests.village import Village
from npcd_client import Client
from npcd_client.connection import open_channel
from npcd_client.v1 import intents_pb2

FPS = 30
CHANGE_EVERY_S = 1.0
READY_S = 120.0
BATCH = 500
END_S = 2.0
GRACE_MS, GRACE_STEP_MS = 600, 50
SEED = 7
LIVE = "/npcd.v1.Intents/Live"


@dataclass(frozen=True, slots=True)
class Stage:
    """The play: `npcs` NPCs, observed `rate_hz` times a second, for `seconds` at most. With `players` it is a crowd
    among walking players; with `players` 0 it is the demo's village, all of it active.
    """

    npcs: int
    seconds: float
    rate_hz: float = 10.0
    players: int = 5
    spread: float = 4.0

    def record(self, scene: Scene) -> Recording:
        """Makes the recording. Takes seconds."""
        if not self.players:
            return village_played(Village(scene, self.npcs, SEED), self.seconds, self.rate_hz)
        plan = CrowdPlan(self.players, self.spread, CHANGE_EVERY_S)
        return record_crowd(scene, scene.residents(self.npcs), plan, self.seconds, self.rate_hz, SEED)


@dataclass(slots=True)
class Played:
    """The results of one play. `cores` is the CPU time of this process."""

    seconds: float = 0.0
    observations: int = 0
    frames_late: int = 0
    by_source: dict[str, int] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    due: int = 0
    unanswered: int = 0
    confirmed: int = 0
    active: float = 0.0  # active NPCs, on average
    age_ms: dict[str, float] = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    cores: float = 0.0


@dataclass(slots=True)
class Log:
    """The received intents in detail. Times are the machine's monotonic clock in nanoseconds.

    `intents` are (when, source, latency in ms, NPC) of each new version. `actions` are an NPC's action for the
    observation of a tick, and its source, by "npc tick". The source is the policy only where the model never answered.
    """

    frames_ns: list[int] = field(default_factory=list)
    intents: list[tuple[int, str, int, str]] = field(default_factory=list)
    actions: dict[str, tuple[str, str]] = field(default_factory=dict)

    def note(self, npc_id: str, tick: int, action: str, source: str) -> None:
        """Notes an NPC's action, when its intent agrees with a tick."""
        key = f"{npc_id} {tick}"
        if source != "policy" or self.actions.get(key, ("", "policy"))[1] == "policy":
            self.actions[key] = (action, source)

    def write(self, path: Path) -> None:
        """Writes the log as JSON."""
        path.write_text(json.dumps(asdict(self)), "utf-8")

    @classmethod
    def read(cls, path: Path) -> Log:
        """Reads a log that write() wrote."""
        said = json.loads(path.read_text("utf-8"))
        actions = {key: (action, source) for key, (action, source) in said["actions"].items()}
        return cls(
            said["frames_ns"], [(at_ns, source, ms, npc_id) for at_ns, source, ms, npc_id in said["intents"]], actions
        )


class Game:
    """The process's side of one daemon."""

    def __init__(self, channel: grpc.aio.Channel, client: Client, scene: Scene, recording: Recording) -> None:
        self._live: Any = channel.stream_stream(LIVE, response_deserializer=intents_pb2.IntentFrame.FromString)
        self._client = client
        self._scene = scene
        self._recording = recording
        self._leases: dict[str, int] = {}
        self._tick = 0

    async def register(self, npcs: int) -> None:
        """Defines the world and registers so many NPCs."""
        await self._client.wait_ready(READY_S)
        await self._client.define_world(self._scene.world)
        specs = [resident.spec for resident in self._scene.residents(npcs)]
        for at in range(0, npcs, BATCH):
            registered = await self._client.register(specs[at : at + BATCH])
            self._leases.update(registered.lease_epochs)

    async def play(self, seconds: float, log: Log | None) -> Played:
        """Plays one stream for so long."""
        board = Board(len(self._recording.residents), Slots(len(self._recording.residents)))
        world_id = self._scene.world.world_id
        game = RecordedGame(self._recording, world_id, self._leases, board, FPS, self._tick)
        played = Played()
        cpu_ns, began_ns = time.process_time_ns(), time.monotonic_ns()
        call = self._live()
        reader = asyncio.create_task(self._read(call, game, played, log))
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
        last_ms = round(seconds * FPS) * 1000 / FPS
        for waited_ms in range(0, GRACE_MS, GRACE_STEP_MS):  # for pending answers
            await asyncio.sleep(GRACE_STEP_MS / 1000)
            game.answered(last_ms + waited_ms)
        await call.done_writing()
        await asyncio.wait({reader}, timeout=END_S)  # the daemon ends its side after its last frame
        call.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        self._tick = game.tick
        board.slots.close()
        slots = board.slots
        played.observations = board.observations
        played.by_source, played.due, played.unanswered = dict(slots.by_source), slots.due, slots.unanswered
        played.versions, played.active = dict(board.versions), board.active.mean
        played.age_ms, played.latency_ms = percentiles_of(board.intent_age), percentiles_of(board.intent_latency)
        return played

    async def _read(self, call: Any, game: RecordedGame, played: Played, log: Log | None) -> None:
        async for frame in call:
            now_ns = time.monotonic_ns()
            game.take(frame, now_ns)
            played.confirmed += len(frame.confirmed)
            played.errors += [f"{e.code} {e.npc_id} {e.field}" for e in frame.errors[: 5 - len(played.errors)]]
            if log is not None:
                self._note(frame, game, log, now_ns)

    def _note(self, frame: intents_pb2.IntentFrame, game: RecordedGame, log: Log, now_ns: int) -> None:
        log.frames_ns.append(now_ns)
        rows = game.table.rows
        for said in frame.intents:
            source = SOURCES.get(rows[said.npc_id].source, "policy")
            log.note(said.npc_id, said.observed_tick - game.first_tick, said.action, source)
            if not frame.snapshot:
                log.intents.append((now_ns, source, said.latency_ms, said.npc_id))
        for confirmed in frame.confirmed:
            held = rows.get(confirmed.npc_id)
            if held is not None and held.version == confirmed.version:
                source = SOURCES.get(held.source, "policy")
                log.note(held.npc_id, confirmed.observed_tick - game.first_tick, held.action, source)


async def main(target: str, stage: Stage) -> None:
    """Obeys the lines of standard input until it ends."""
    scene = load_scene()
    recording = stage.record(scene)
    gc.collect()
    gc.freeze()
    # The options are the client's, so that both share its connection.
    async with Client(target) as client, open_channel(target, None, None, None) as channel:
        game = Game(channel, client, scene, recording)
        _say({"state": "ready"})
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            asked = json.loads(line)
            if "register" in asked:
                await game.register(asked["register"])
                _say({"state": "registered"})
            elif "play" in asked:
                log = Log() if "log" in asked else None
                played = await game.play(asked["play"], log)
                if log is not None:
                    log.write(Path(asked["log"]))
                _say(asdict(played))


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what, separators=(",", ":")), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], Stage(**json.loads(sys.argv[2]))))
