"""The demo's village as a load in its own process: `python -m loadtests.bench.memory_game TARGET`.

A hundred NPCs are observed ten times a second, as in the demo, and ten players talk with one NPC after the other, each
conversation as a player whom the NPC has not met. It obeys its standard input: "load" begins, always with the same
village and the same lines at the same moments; "rest" ends it after the last answers. After each it prints one line of
JSON; that of "rest" is a Played.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from random import Random

import uvloop

from loadtests.patter import Patter
from loadtests.scene import Scene, load_scene
from loadtests.village import Village
from npcd_client import Client, Live, LiveProblem, NpcdError, TalkEvent, TalkEventKind, TalkFinish

NPCS = 100
PLAYERS = 10
LINE_EVERY_S = 2.0
FPS = 30
RATE_HZ = 10
SEED = 7
READY_S = 120.0
TURN_S = 20.0
ERRORS_KEPT = 5


@dataclass(slots=True)
class Turn:
    """One answered line. `sent_s` is the machine's monotonic clock; `first` is True when it began a conversation."""

    turn_id: str
    sent_s: float
    recall_us: int
    recall_late: bool
    stores: list[str]
    accepted: bool
    first: bool

    @classmethod
    def of(cls, end: TalkEvent, sent_s: float, first: bool) -> Turn:
        """The turn that ended with this event."""
        t = end.timings
        assert t is not None, "END has Timings"
        stores = list(t.stores)
        return cls(end.turn_id, round(sent_s, 3), t.recall_us, t.recall_late, stores, bool(end.accepted), first)


@dataclass(slots=True)
class Played:
    """The counts between "load" and "rest"."""

    state: str = "rest"
    seconds: float = 0.0
    observations: int = 0
    turns: list[Turn] = field(default_factory=list)
    errors: int = 0
    messages: list[str] = field(default_factory=list)

    def failed(self, what: str) -> None:
        """Notes an error."""
        self.errors += 1
        if len(self.messages) < ERRORS_KEPT:
            self.messages.append(what)


def played(said: dict[str, object]) -> Played:
    """The Played of a line that the game printed."""
    known = dict(said)
    turns = known.pop("turns")
    assert isinstance(turns, list)
    return Played(**known, turns=[Turn(**turn) for turn in turns])  # type: ignore[arg-type]


class Game:
    """The load, on or off."""

    def __init__(self, client: Client, scene: Scene) -> None:
        self.live: Live | None = None
        self._client = client
        self._scene = scene
        self._npcs = [resident.npc_id for resident in scene.residents(NPCS)]
        self._ticks = [0] * NPCS
        self._rounds = 0
        self._played = Played()
        self._over = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def failed(self, problem: LiveProblem) -> None:
        """Notes a problem of the stream."""
        self._played.failed(f"Live {problem.code} {problem.npc_id}: {problem.message}")

    def load(self) -> None:
        """Begins the load."""
        self._rounds += 1
        self._played = Played(seconds=-time.monotonic())
        self._over = asyncio.Event()
        village = Village(self._scene, NPCS, SEED)
        free = list(self._npcs)
        self._tasks = [asyncio.create_task(self._frames(village))]
        self._tasks += [asyncio.create_task(self._talk(number, village, free)) for number in range(PLAYERS)]

    async def rest(self) -> Played:
        """Ends the load and returns its counts."""
        self._over.set()
        done = await asyncio.gather(*self._tasks, return_exceptions=True)
        for error in done:
            if isinstance(error, BaseException):
                self._played.failed(repr(error))
        self._played.seconds += time.monotonic()
        return self._played

    async def _frames(self, village: Village) -> None:
        """The village moves; all NPCs are observed in turns, and follow their intents."""
        assert self.live is not None
        began_s, frame, every = time.monotonic(), 0, FPS // RATE_HZ
        while not self._over.is_set():
            now_ms = frame * 1000 / FPS
            village.step(now_ms)
            self.live.tell_time(now_ms)
            for number in range(frame % every, NPCS, every):
                self._ticks[number] += 1
                self.live.observe(village.observe(number, self._ticks[number]))
                self._played.observations += 1
                intent = self.live.latest(self._npcs[number])
                if intent is not None:
                    village.intend(number, intent.action, intent.target_entity_id, intent.emotion)
            frame = max(frame + 1, int((time.monotonic() - began_s) * FPS))
            await asyncio.sleep(max(0.0, began_s + frame / FPS - time.monotonic()))

    async def _talk(self, number: int, village: Village, free: list[str]) -> None:
        """One player after the other, as the same client."""
        chance = Random(f"{SEED}/{number}")
        patter = Patter(self._scene.player, chance)
        due_s = time.monotonic() + chance.uniform(0, LINE_EVERY_S)
        conversation = 0
        while not self._over.is_set():
            conversation += 1
            player = f"player-{self._rounds}-{number}-{conversation}"
            npc = free.pop(chance.randrange(len(free)))
            patter.begin()
            first = True
            while not patter.over and await self._goes_on_until(due_s):
                line, event = patter.next()
                village.tell(npc, event)
                await self._say(npc, player, line, first)
                first = False
                due_s = max(time.monotonic(), due_s + chance.expovariate(1 / LINE_EVERY_S))
            free.append(npc)
            if not first:
                try:
                    await self._client.end_session(npc, player)
                except NpcdError as error:
                    self._played.failed(f"EndSession {error.code}: {error}")

    async def _goes_on_until(self, due_s: float) -> bool:
        """Waits for a line's moment. Returns True when the line should still be said then."""
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + due_s - time.monotonic()):
                await self._over.wait()
        except TimeoutError:
            return True
        return False

    async def _say(self, npc: str, player: str, line: str, first: bool) -> None:
        sent_s, name = time.monotonic(), self._scene.player.name
        try:
            async for event in self._client.talk(npc, player, line, player_name=name, timeout_s=TURN_S):
                if event.finish is TalkFinish.FAILED:
                    self._played.failed("Talk: failed after text had been sent")
                if event.kind is TalkEventKind.END:
                    self._played.turns.append(Turn.of(event, sent_s, first))
        except NpcdError as error:
            self._played.failed(f"Talk {error.code}: {error}")


async def main(target: str) -> None:
    """Obeys the lines of standard input until it ends."""
    scene = load_scene()
    async with Client(target) as client:
        await client.wait_ready(READY_S)
        await client.define_world(scene.world)
        await client.register([resident.spec for resident in scene.residents(NPCS)])
        game = Game(client, scene)
        async with client.live(on_problem=game.failed) as game.live:
            await game.live.wait_connected(READY_S)
            _say({"state": "ready"})
            loop = asyncio.get_running_loop()
            while line := await loop.run_in_executor(None, sys.stdin.readline):
                if line.strip() == "load":
                    game.load()
                    _say({"state": "load"})
                elif line.strip() == "rest":
                    _say(asdict(await game.rest()))


def _say(what: dict[str, object]) -> None:
    print(json.dumps(what, separators=(",", ":")), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
