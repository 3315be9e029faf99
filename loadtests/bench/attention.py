"""Attention: the cost of a crowd, the cost of idle NPCs for the others, and the gain of asking wisely."""

from __future__ import annotations

from loadtests.bench import attention_asking, attention_cost, attention_wise
from loadtests.bench.figures import Figures
from loadtests.bench.options import Options

PARTS = ("asking", "cpu", "idle", "change", "prediction", "stall")


async def run(figures: Figures, options: Options) -> None:
    """Runs the selected parts. Raises ConfigError when the model cannot be loaded."""
    if options.wants("asking"):
        await attention_asking.asking(figures, options.quick)
    if options.wants("cpu"):
        await attention_cost.cpu(figures, options.model, options.quick)
    if options.wants("idle"):
        await attention_cost.idle(figures, options.model, options.quick)
    if options.wants("change"):
        await attention_wise.change(figures, options.model, options.quick)
    if options.wants("prediction"):
        await attention_wise.prediction(figures, options.model, options.quick)
    if options.wants("stall"):
        await attention_wise.stall(figures, options.model, options.quick)
