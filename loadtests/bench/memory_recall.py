"""Memories of a thousand NPCs that only Redis holds: the time until they are in process, while the demo is played.

The memories arrive as a save game is imported; then the daemon is restarted, and has none in process. Half of the bonds
are asked for by Npcs.Recall, as the first turn of a conversation does: the daemon measures that (the recall of
Timings), on the event loop that serves the demo meanwhile. For the other half a player comes into sight: the daemon
measures from the observation to the bond in process.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

from core.clock import MS
from loadtests.bench import memory_children as children
from loadtests.bench.children import target
from loadtests.bench.figures import Figures
from loadtests.bench.memory_hot import bond_of
from loadtests.bench.memory_stores import caught_up, data_folder
from loadtests.bench.sights import sight
from loadtests.scene import load_scene
from memory import saves
from npcd_client import Client, NpcdError, NpcSpec, Percept, World, wire
from scheduler.meter import percentile

NPCS = 1_000
RATE_HZ = 40.0  # of each kind
SETTLE_S, MORE_S = 4.0, 30.0  # the demo has time to register and begin; it is ended with the benchmark
CAUGHT_UP_S = 60.0


async def run(figures: Figures, model: Path, quick: bool) -> None:
    """Fills the stores, restarts the daemon, measures."""
    each = 100 if quick else NPCS // 2
    figures.note(f"-- {NPCS} NPCs of 20 facts in Redis, beside the demo; {each} reads of each kind")
    scene = load_scene()
    world = replace(scene.world, world_id=f"{scene.world.world_id}-of-{NPCS}")
    specs = [resident.spec for resident in scene.residents(NPCS)]
    with data_folder() as data:
        async with children.served(data, model) as daemon, Client(target(daemon)) as client:
            await client.wait_ready(children.READY_S)
            await client.import_world(_save(world, specs), world_id=world.world_id)
            await caught_up(client, CAUGHT_UP_S)
        async with children.served(data, model) as daemon, Client(target(daemon)) as client:
            await client.wait_ready(children.READY_S)
            await client.define_world(world)
            await client.register(specs)
            await children.idle(client)
            async with children.demo(daemon, SETTLE_S + each / RATE_HZ + MORE_S) as demo:
                await asyncio.sleep(SETTLE_S)
                await children.take(daemon)
                before = await client.status()
                await asyncio.gather(_recall(client, each), _see(client, each))
                await asyncio.sleep(0.2)
                seen, after = await children.take(daemon), await client.status()
                if demo.ended:
                    raise NpcdError(f"the demo did not go on: {demo.log}")
    read = [took for took, stores, late in seen.recalls if "recent" in stores or late]
    late = sum(late for _, _, late in seen.recalls)
    if len(read) < each or len(seen.prefetches) < each:
        raise NpcdError(f"only {len(read)} recalls and {len(seen.prefetches)} prefetches of {each} each were seen")
    figures.note(
        f"   meanwhile {after.intents_model - before.intents_model} intents and "
        f"{after.turns_finished - before.turns_finished} turns; {len(read)} recalls asked Redis, {late} were late; "
        f"the event loop was {after.loop_lag_p99_ms:.1f} ms late at p99"
    )
    figures.add("memory.recall_p95_ms", percentile(read, 0.95) / MS)
    figures.add("memory.recall_p50_ms", percentile(read, 0.5) / MS)
    figures.add("memory.recall_p99_ms", percentile(read, 0.99) / MS)
    figures.add("memory.recall_late_share", late / len(read))
    figures.add("memory.prefetch_p95_ms", percentile(seen.prefetches, 0.95) / MS)
    figures.add("memory.prefetch_p50_ms", percentile(seen.prefetches, 0.5) / MS)


def friend(number: int) -> str:
    """The player whom an NPC remembers."""
    return f"friend-{number}"


def _save(world: World, specs: list[NpcSpec]) -> bytes:
    definition = wire.define_world(world, 0).SerializeToString()
    now_ms = time.time_ns() // MS
    save = saves.Save(
        world.world_id, "first", now_ms, definition, 1, NPCS,
        [(wire.npc_spec(spec).SerializeToString(), n + 1) for n, spec in enumerate(specs)],
        {(spec.npc_id, friend(n)): bond_of(n, now_ms) for n, spec in enumerate(specs)},
    )  # fmt: skip
    return b"".join(saves.pack(save))


async def _recall(client: Client, count: int) -> None:
    """Asks for the first bonds, at a steady pace and without waiting for answers. Raises NpcdError."""
    ids = [resident.npc_id for resident in load_scene().residents(count)]
    asked = []
    began_s = time.monotonic()
    for n, npc in enumerate(ids):
        await asyncio.sleep(began_s + n / RATE_HZ - time.monotonic())
        asked.append(asyncio.create_task(client.recall(npc, friend(n))))
    for n, answer in enumerate(await asyncio.gather(*asked)):
        if not answer.late and len(answer.facts) != 20:
            raise NpcdError(f"{ids[n]} remembers {len(answer.facts)} facts of {friend(n)}, and not 20")


async def _see(client: Client, count: int) -> None:
    """Makes the last NPCs see their player, one after the other."""
    residents = load_scene().residents(NPCS)
    async with client.live() as live:
        await live.wait_connected(children.READY_S)
        began_s = time.monotonic()
        for n in range(count):
            await asyncio.sleep(began_s + (n + 0.5) / RATE_HZ - time.monotonic())
            number = NPCS - 1 - n
            one = sight(residents[number].npc_id, number, 1)
            live.observe(replace(one, percepts=(Percept(friend(number), "player", "friendly", 5.0), *one.percepts[1:])))
        await asyncio.sleep(0.5)
