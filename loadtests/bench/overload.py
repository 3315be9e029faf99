"""npcd alone at 120 % of its capacity on this machine: the waiting times of players meanwhile.

The work is that of `peer` (its intents, its dialogue turns, its moments), on npcd alone. Callers who never pause
measure the machine's capacity first, so the load follows the machine. A refused line is said again after the retry
time; its latency goes on from when it was due. A line or an intent without an answer when a round is cut off counts
with its age.
"""

from __future__ import annotations

from statistics import median

from core.clock import MS
from loadtests.bench.figures import Figures
from loadtests.bench.options import Options
from loadtests.bench.peer import INTENTS_PER_TURN, Caller, Prompts, Tally, npcd_side
from loadtests.bench.peer import words as words_of
from loadtests.scene import load_scene
from scheduler.meter import percentile

PARTS = ("rounds",)
LOAD = 1.2
CAPACITY_S = 3.0
ROUND_S = 8.0
ROUNDS = 10
QUICK_ROUNDS = 3


async def run(figures: Figures, options: Options) -> None:
    """Measures npcd's capacity, then plays the rounds. Raises NpcdError when the daemon does not start."""
    scene = load_scene()
    prompts = Prompts(options.model, scene)
    lines = [line for situation in scene.player.lines.values() for line in situation]
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    async with npcd_side(options.model, prompts, scene) as side:
        caller = Caller(side, lines, patient=True)
        await caller.meet()
        most = []
        for _ in range(3):
            await caller.busy(1.0)
            most.append(await caller.busy(CAPACITY_S))
        carries = median(most)
        figures.add("overload.intents_per_s", carries, 0)
        rate = LOAD * carries
        figures.note(f"-- 120 %: {rate:.0f} intents/s and {rate / INTENTS_PER_TURN:.1f} turns/s; {rounds} rounds")
        tallies = []
        for number in range(rounds):
            tally = await caller.play(rate, ROUND_S, 100 + number)
            tallies.append(tally)
            figures.note(f"   round {number + 1}: {words_of(tally)}")
    _tell(figures, tallies)


def _tell(figures: Figures, tallies: list[Tally]) -> None:
    figures.add("overload.first_p95_ms_worst", max(t.ttft_p95_ms for t in tallies), 1)
    figures.add("overload.first_p95_ms", median(t.ttft_p95_ms for t in tallies), 1)
    p50 = median(percentile(t.first_ns + t.cut_first_ns, 0.5) / MS for t in tallies)
    figures.add("overload.first_p50_ms", p50, 1)
    figures.add("overload.gold_p95_ms_worst", max(t.gold_p95_ms for t in tallies), 1)
    figures.add("overload.gold_p95_ms", median(t.gold_p95_ms for t in tallies), 1)
    figures.add("overload.done_share", sum(t.done for t in tallies) / max(1, sum(len(t.late_ns) for t in tallies)))
    figures.add("overload.refused", sum(t.refused for t in tallies), 0)
    figures.add("overload.failed", sum(t.failed for t in tallies), 0)
