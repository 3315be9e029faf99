"""The cost of a registered NPC that does nothing: memory of the serving process beside its KV."""

from __future__ import annotations

import asyncio
from pathlib import Path

from loadtests.bench.children import daemon, target
from loadtests.bench.figures import Figures
from loadtests.scene import load_scene
from npcd_client import Client, NpcdError, NpcSpec, Persona

NPCS = 10_000
BATCH = 500
SETTLED_S = 60.0
# A trunk that leaves its sequence is dropped, so KV does not grow with the NPCs.
SETS = ("scheduler.kv.ram_mib=0", "scheduler.kv.redis_mib=0", "memory.redis=off", "memory.postgres=off")


async def run(figures: Figures, model: Path, quick: bool) -> None:
    """Registers some hundred NPCs, so that every sequence is in use, then ten thousand more. Raises NpcdError."""
    npcs = 2000 if quick else NPCS
    scene = load_scene()
    kinds = scene.residents(BATCH)
    people = {p.persona_id: p for p in scene.world.personas}
    async with daemon(f"engine.model={model}", *SETS) as child, Client(target(child)) as client:
        await _idle(client)
        await client.define_world(scene.world)

        async def register(batch: int) -> None:
            specs = []
            for n, r in enumerate(kinds):
                npc_id, person = f"npc{batch}-{n}", people[r.persona_id]
                # Every NPC has a persona of its own, so no two trunks are equal.
                persona = Persona(npc_id, f"{person.name} {npc_id}", person.text)
                specs.append(NpcSpec(npc_id, r.archetype_id, persona=persona))
            await client.register(specs)
            await _idle(client)

        await register(0)
        before = _resident_bytes(child.pid)
        for batch in range(1, npcs // BATCH + 1):
            await register(batch)
        grown = _resident_bytes(child.pid) - before
    figures.add("npc.idle_bytes", grown / npcs, 0)


async def _idle(client: Client) -> None:
    """Waits until the daemon answers and no work runs or waits."""
    async with asyncio.timeout(SETTLED_S):
        while True:
            try:
                status = await client.status()
                if not any(tier.waiting or tier.running for tier in status.tiers):
                    return
            except NpcdError:
                pass  # it is still starting
            await asyncio.sleep(0.05)


def _resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))
