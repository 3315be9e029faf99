"""KV caches and their uses: the time until a trunk is ready, the gain and cost of speculation, and adapters."""

from __future__ import annotations

from loadtests.bench import kv_adapters, kv_homes, kv_idle, kv_isolation, kv_spec
from loadtests.bench.figures import Figures
from loadtests.bench.options import Options

PARTS = ("loads", "ladder", "isolation", "idle", "spec", "adapters")


async def run(figures: Figures, options: Options) -> None:
    """Runs the selected parts. Raises ConfigError when the model cannot be loaded."""
    homes = frozenset(part for part in ("loads", "ladder") if options.wants(part))
    if homes:
        await kv_homes.run(figures, options.model, options.quick, homes)
    if options.wants("isolation"):
        await kv_isolation.run(figures, options.model, options.quick)
    if options.wants("idle"):
        await kv_idle.run(figures, options.model, options.quick)
    if options.wants("spec"):
        await kv_spec.run(figures, options)
    if options.wants("adapters"):
        await kv_adapters.run(figures, options.model, options.quick)
