"""A game in its own process that loads a daemon: `python -m loadtests.bench.traffic TARGET`.

Defines the demo's world, registers NPCs, then obeys its standard input: "load" starts 400 intents/s and 8 dialogues,
"rest" ends them, the end of input ends the process. After each it prints one JSON line, so that its parent knows its
state. It is a process of its own, because it must not slow down the one that measures.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import uvloop

from loadtests.bench.sights import sight
from loadtests.scene import Scene, load_scene
from npcd_client import Client, Live, NpcdError

NPCS = 200
DIALOGUES = 8
RATE_HZ = 2.0  # per NPC, as often as npcd's cadence asks
READY_S = 120.0


def npc_ids(scene: Scene, count: int = NPCS) -> list[str]:
    """The village's first NPCs."""
    return [resident.npc_id for resident in scene.residents(count)]


class Traffic:
    """The load, on or off."""

    def __init__(self, client: Client, scene: Scene) -> None:
        self.observed = 0
        self.turns = 0
        self.refused = 0
        self._client = client
        self._lines = [line for lines in scene.player.lines.values() for line in lines]
        self._npcs = npc_ids(scene)
        self._ticks = [0] * len(self._npcs)
        self._tasks: list[asyncio.Task[None]] = []

    async def prepare(self) -> None:
        """Asks for one intent of each NPC, so that all are in the table."""
        async with self._client.live() as live:
            for number in range(len(self._npcs)):
                self._look(live, number)
                await asyncio.sleep(0.005)
            for _ in range(200):
                if all(live.latest(npc) for npc in self._npcs):
                    break
                await asyncio.sleep(0.05)

    def load(self) -> None:
        """Starts the load."""
        self.observed = self.turns = self.refused = 0
        self._tasks = [asyncio.create_task(self._watch())]
        self._tasks += [asyncio.create_task(self._talk(n)) for n in range(DIALOGUES)]

    async def rest(self) -> None:
        """Ends the load."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def _look(self, live: Live, number: int) -> None:
        self._ticks[number] += 1
        live.observe(sight(self._npcs[number], number, self._ticks[number]))
        self.observed += 1

    async def _watch(self) -> None:
        """Observations spread evenly over time, a few NPCs at a time."""
        async with self._client.live() as live:
            began_s, done = time.monotonic(), 0
            while True:
                due = int((time.monotonic() - began_s) * RATE_HZ * len(self._npcs))
                for n in range(done, due):
                    self._look(live, n % len(self._npcs))
                done = due
                await asyncio.sleep(0.01)

    async def _talk(self, number: int) -> None:
        """One player who talks to one NPC after the other, without a pause."""
        turn = 0
        while True:
            npc = self._npcs[(number * 23 + turn // 4 * 8) % len(self._npcs)]
            line = self._lines[(number + turn) % len(self._lines)]
            try:
                async for _ in self._client.talk(npc, f"player-{number}", line, max_tokens=96):
                    pass
                self.turns += 1
            except NpcdError:
                self.refused += 1
                await asyncio.sleep(0.05)
            turn += 1
            if turn % 4 == 0:
                await self._client.end_session(npc, f"player-{number}")


async def main(target: str) -> None:
    """Obeys the lines of standard input until it ends."""
    scene = load_scene()
    async with Client(target) as client:
        await client.wait_ready(READY_S)
        await client.define_world(scene.world)
        await client.register([resident.spec for resident in scene.residents(NPCS)])
        traffic = Traffic(client, scene)
        await traffic.prepare()
        _say(state="ready")
        loop = asyncio.get_running_loop()
        began_s = 0.0
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            if line.strip() == "load":
                traffic.load()
                began_s = time.monotonic()
                _say(state="load")
            elif line.strip() == "rest":
                seconds = time.monotonic() - began_s
                await traffic.rest()
                _say(
                    state="rest",
                    observed_per_s=round(traffic.observed / seconds),
                    turns_per_s=round(traffic.turns / seconds, 1),
                    refused=traffic.refused,
                )
        await traffic.rest()


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
