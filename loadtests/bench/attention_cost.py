"""The cost of a crowd: CPU of all threads but the engine's, and the slowdown by NPCs that no player looks at."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from loadtests.bench.attention_game import Stage
from loadtests.bench.attention_rig import Side, p95, sides
from loadtests.bench.attention_served import ENGINE
from loadtests.bench.figures import Figures

REGISTERED = 10_000
FEW = 1_000
IN_VIEW = 1_000
CPU_S = 20.0
WARM_S = 5.0
SAMPLED = 150  # NPCs in view while idle ones are registered, too
IDLE_S = 5.0
PAIRS = 5


async def cpu(figures: Figures, model: Path, quick: bool) -> None:
    """Ten thousand NPCs are registered, and a thousand of them are observed at 10 Hz. Raises NpcdError."""
    registered, seconds = (2_000, 8.0) if quick else (REGISTERED, CPU_S)
    figures.note(f"-- {registered} registered, {IN_VIEW} observed at 10 Hz for {seconds:g} s")
    async with sides(model, Stage(IN_VIEW, seconds), [()]) as (side,):
        await side.register(registered)
        await side.play(WARM_S)
        await side.late_ms()
        before = await side.spent()
        played = await side.play(seconds)
        cores = (await side.spent()).cores(before)
    others = {name: used for name, used in cores.items() if name != ENGINE}
    figures.add("attention.cpu_cores", sum(others.values()))
    for name, used in sorted(others.items(), key=lambda row: -row[1]):
        figures.note(f"   {name:<20} {used:.3f} cores")
    figures.add("attention.cpu_engine_cores", cores.get(ENGINE, 0.0))
    figures.add("attention.cpu_game_cores", played.cores)
    figures.add("attention.cpu_observations_per_s", played.observations / played.seconds, 0)
    figures.note(
        f"   {played.active:.0f} active on average; {played.confirmed} confirmations, new intents {played.versions}; "
        f"{played.frames_late} frames late; errors {played.errors}"
    )


async def idle(figures: Figures, model: Path, quick: bool) -> None:
    """Plays the same crowd on a daemon with 1,000 NPCs and on one with 10,000, in turns. Raises NpcdError."""
    many, pairs = (3_000, 2) if quick else (REGISTERED, PAIRS)
    figures.note(f"-- {SAMPLED} in view of {FEW} and of {many} registered, {pairs} pairs of {IDLE_S:g} s")
    async with sides(model, Stage(SAMPLED, IDLE_S), [(), ()]) as (few, crowded):
        await few.register(FEW)
        await crowded.register(many)
        for side in (few, crowded):
            await _late(side)
        found: dict[str, list[float]] = {"few": [], "many": []}
        for pair in range(pairs):
            turns = [("few", few), ("many", crowded)]
            for name, side in turns if pair % 2 == 0 else reversed(turns):
                found[name].append(await _late(side))
            figures.note(f"   p95 {found['few'][-1]:.2f} ms of {FEW}, {found['many'][-1]:.2f} ms of {many}")
    few_ms, many_ms = median(found["few"]), median(found["many"])
    figures.add("attention.latency_few_p95_ms", few_ms)
    figures.add("attention.latency_many_p95_ms", many_ms)
    # No game notices two milliseconds more, whatever the ratio.
    figures.add("attention.idle_latency_x", 1.0 if many_ms <= few_ms + 2.0 else many_ms / few_ms)


async def _late(side: Side) -> float:
    await side.late_ms()
    await side.play(IDLE_S)
    return p95(await side.late_ms())
