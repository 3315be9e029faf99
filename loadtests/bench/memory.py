"""NPCs' memory: the time until it is at hand, the effect of stores' troubles on players, and any loss."""

from __future__ import annotations

from loadtests.bench import memory_faults, memory_flat, memory_hot, memory_kill9, memory_recall
from loadtests.bench.figures import Figures
from loadtests.bench.options import Options

PARTS = ("hot", "recall", "postgres", "redis", "kill9", "flat")


async def run(figures: Figures, options: Options) -> None:
    """Runs the selected parts; kill9 and flat are longer in `make nightly`. Raises NpcdError when a part cannot run."""
    model, quick = options.model, options.quick
    if options.wants("hot"):
        await memory_hot.run(figures, quick)
    if options.wants("recall"):
        await memory_recall.run(figures, model, quick)
    if options.wants("postgres"):
        await memory_faults.postgres(figures, model, quick)
    if options.wants("redis"):
        await memory_faults.redis(figures, model, quick)
    if options.wants("kill9"):
        await memory_kill9.run(figures, model, 2 if quick else memory_kill9.KILLS)
    if options.wants("flat"):
        await memory_flat.run(figures, model, 20.0 if quick else memory_flat.SECONDS)
