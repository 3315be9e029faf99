"""The model that ships, asked for 120 % and 200 % of what it carries: how long players wait for words, round by round.

The work is that of `peer` (its intents, its dialogue turns, its moments), on npcd alone. Callers who never pause
measure first what the machine carries. A refused line is said again after the retry time; its latency goes on from when
it was due. A question that the model cannot answer is superseded by a newer one, and the rule policy stands in for it.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from core.words import Tier
from loadtests.bench.figures import Figures
from loadtests.bench.peer import Caller, NpcdSide, Prompts, Tally, npcd_side
from loadtests.bench.peer import words as words_of
from loadtests.scene import load_scene

LOADS = (1.2, 2.0)
CAPACITY_S = 2.0
ROUND_S = 5.0
ROUNDS = 5  # at each load
QUICK_ROUNDS = 1


async def run(figures: Figures, model: Path, quick: bool) -> None:
    """Measures what npcd carries, then plays the rounds. Raises NpcdError when the daemon does not start."""
    scene = load_scene()
    prompts = Prompts(model, scene)
    lines = [line for situation in scene.player.lines.values() for line in situation]
    rounds = QUICK_ROUNDS if quick else ROUNDS
    async with npcd_side(model, prompts, scene) as side:
        caller = Caller(side, lines, patient=True)
        await caller.meet()
        await caller.busy(1.0)
        carries = median([await caller.busy(CAPACITY_S) for _ in range(3)])
        figures.note(f"-- npcd carries {carries:.0f} intents/s beside their dialogues; {rounds} rounds at each load")
        tallies: list[Tally] = []
        for load in LOADS:
            before = await _counts(side)
            mine = []
            for number in range(rounds):
                tally = await caller.play(load * carries, ROUND_S, 100 * round(10 * load) + number)
                mine.append(tally)
                figures.note(f"   {load:.0%}, round {number + 1}: {words_of(tally)}")
            superseded, model_intents, policy = (b - a for a, b in zip(before, await _counts(side), strict=True))
            name = f"real.overload_{load:.0%}".rstrip("%")
            figures.add(f"{name}_superseded_share", superseded / max(1, superseded + model_intents))
            figures.add(f"{name}_rule_share", policy / max(1, policy + model_intents))
            figures.add(f"{name}_refused_lines", sum(t.refused for t in mine), 0)
            tallies += mine
    figures.add("real.overload_first_p95_ms_worst", max(t.ttft_p95_ms for t in tallies), 1)
    figures.add("real.overload_first_p95_ms", median(t.ttft_p95_ms for t in tallies), 1)
    figures.add("real.overload_failed", sum(t.failed for t in tallies), 0)


async def _counts(side: NpcdSide) -> tuple[int, int, int]:
    """Since the daemon's start: Gold superseded while it waited, intents of the model, and of the rule policy."""
    status = await side.status()
    gold = status.tiers[Tier.GOLD]
    return gold.superseded, status.intents_model, status.intents_policy
