"""KV caches and what is made of them: what speculation gains, and costs where it is off; what adapters cost."""

from __future__ import annotations

from loadtests.bench import kv_adapters, kv_spec
from loadtests.bench.figures import Figures
from loadtests.bench.options import Options

PARTS = ("spec", "adapters")


async def run(figures: Figures, options: Options) -> None:
    """All parts that are wanted. Raises ConfigError when the model cannot be loaded."""
    if options.wants("spec"):
        await kv_spec.run(figures, options)
    if options.wants("adapters"):
        await kv_adapters.run(figures, options.model, options.quick)
