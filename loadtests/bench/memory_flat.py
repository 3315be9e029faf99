"""Two hundred NPCs in conversation: does the serving process grow after its warm-up?

`npcd serve` runs unchanged, in one process. Each player says a line every few seconds, tells a fact now and then, ends
the conversation after some lines and begins the next. After the warm-up every NPC has had whole conversations.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from random import Random
from statistics import median

from loadtests.bench import memory_children as children
from loadtests.bench import memory_stores as stores
from loadtests.bench.children import target
from loadtests.bench.figures import Figures
from loadtests.bench.memory_facts import told
from loadtests.patter import Patter
from loadtests.scene import load_scene
from npcd_client import Client, NpcdError

NPCS = 200
SECONDS = 60.0
WARM_S = 30.0
LINE_EVERY_S = 8.0
SAMPLE_S = 5.0
MAX_TOKENS = 24
TURN_S = 30.0
SEED = 5
MIB = 1 << 20


class _Village:
    """The players, and their counts."""

    def __init__(self, client: Client) -> None:
        self.turns = 0
        self.errors: list[str] = []
        self._client = client
        self._script = load_scene().player

    async def talk(self, npc: str, number: int, over: asyncio.Event) -> None:
        """One player talks with one NPC, without end."""
        chance = Random(f"{SEED}/{number}")
        patter = Patter(self._script, chance)
        await asyncio.sleep(chance.uniform(0, LINE_EVERY_S))
        while not over.is_set():
            patter.begin()
            fact = told(chance)
            lines = [fact.line]
            while not patter.over:
                lines.append(patter.next()[0])
            for line in lines:
                began_s = time.monotonic()
                try:
                    talk = self._client.talk(
                        npc, f"player-{number}", line,
                        player_name=fact.player_name, max_tokens=MAX_TOKENS, timeout_s=TURN_S,
                    )  # fmt: skip
                    async for _ in talk:
                        pass
                    self.turns += 1
                except NpcdError as error:
                    self.errors.append(f"{error.code}: {error}")
                if over.is_set():
                    return
                pause_s = chance.uniform(0.5, 1.5) * LINE_EVERY_S
                await asyncio.sleep(max(0.0, began_s + pause_s - time.monotonic()))
            await self._client.end_session(npc, f"player-{number}")


async def run(figures: Figures, model: Path, seconds: float) -> None:
    """Runs the warm-up, then so many seconds."""
    figures.note(f"-- {NPCS} NPCs in conversation for {seconds:g} s after {WARM_S:g} s of warm-up")
    scene = load_scene()
    with stores.data_folder() as data:
        async with children.plain(data, model) as daemon, Client(target(daemon)) as client:
            await client.wait_ready(children.READY_S)
            await client.define_world(scene.world)
            residents = scene.residents(NPCS)
            await client.register([resident.spec for resident in residents])
            await children.idle(client)
            village, over = _Village(client), asyncio.Event()
            players = [asyncio.create_task(village.talk(r.npc_id, n, over)) for n, r in enumerate(residents)]
            began_s = time.monotonic()
            series: list[tuple[float, float]] = []
            for number in range(1, int((WARM_S + seconds) / SAMPLE_S) + 1):
                at_s = number * SAMPLE_S
                await asyncio.sleep(began_s + at_s - time.monotonic())
                series.append((at_s, resident_mib(daemon.pid)))
            status = await client.status()
            over.set()
            for player in players:
                player.cancel()
            await asyncio.gather(*players, return_exceptions=True)
    figures.note(f"   MiB every {SAMPLE_S:g} s: {' '.join(f'{mib:.1f}' for _, mib in series)}")
    figures.note(
        f"   {village.turns / (WARM_S + seconds):.1f} turns/s, {status.bonds} bonds, {status.ram_bytes / MIB:.0f} MiB "
        f"of KV in host RAM, {status.summaries_model + status.summaries_rule} conversations summed up"
    )
    if village.errors:
        figures.note(f"   {len(village.errors)} errors: {village.errors[:3]}")
    warm = [mib for at_s, mib in series if WARM_S - SAMPLE_S < at_s < WARM_S + 2 * SAMPLE_S]
    figures.add("memory.flat_mib", median([mib for _, mib in series[-3:]]) - median(warm), 1)
    half = [mib for at_s, mib in series if at_s >= WARM_S + seconds / 2]
    before, after = half[: len(half) // 2], half[len(half) // 2 :]
    figures.add("memory.flat_second_half_mib", median(after) - median(before), 1)
    figures.add("memory.flat_seconds", seconds, 0)
    figures.add("memory.flat_resident_mib", series[-1][1], 1)
    figures.add("memory.flat_errors", len(village.errors), 0)


def resident_mib(pid: int) -> float:
    """Resident memory of a process that it does not share with files. Linux."""
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise NpcdError(f"/proc/{pid}/status does not say how much memory it has")
