"""The scheduler against bare llama.cpp and under pressure, and the daemon's answers while its engine is busy."""

from __future__ import annotations

from loadtests.bench import cancel, flood, get, prefill, steps
from loadtests.bench.figures import Figures
from loadtests.bench.options import Options
from loadtests.bench.rig import NPCS, Rig, Village, tuned

PARTS = ("steps", "prefill", "flood", "get", "cancel")


async def run(figures: Figures, options: Options) -> None:
    """Runs the selected parts. Raises ConfigError when the model cannot be loaded."""
    if any(options.wants(part) for part in PARTS[:3]):
        settings = tuned(options.model, figures.note)
        async with Rig(settings) as rig:
            village = Village(rig.engine.vocab)
            await rig.run([village.trunk_only(n) for n in range(NPCS)])
            if options.wants("steps"):
                await steps.run(figures, rig, village, settings, options.quick)
            if options.wants("prefill"):
                await prefill.run(figures, rig, village, options.quick)
            if options.wants("flood"):
                await flood.run(figures, rig, village, options.quick)
    if options.wants("get"):
        await get.run(figures, str(options.model), options.quick)
    if options.wants("cancel"):
        await cancel.run(figures, options.model, options.quick)
