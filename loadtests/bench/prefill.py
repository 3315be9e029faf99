"""Gold beside long prefills: 8 Silver prefills of 1,000 tokens always running, Gold at 50/s, with and without budget.

Open loop: intents arrive at random moments, even while earlier ones wait. Both sides take turns on one engine.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from statistics import median

from core.clock import MS, S, now_ns
from core.words import Finish
from loadtests.bench.figures import Figures
from loadtests.bench.rig import NPCS, OpenLoop, Refill, Rig, Village
from scheduler.meter import percentile
from scheduler.planner import PlannerSettings

PREFILLS = 8
PREFILL_LEN = 1_000
GOLD_PER_S = 50
ROUND_S = 8.0
ROUNDS = 3
SETTLE_S = 1.0
NO_BUDGET_MS = 1_000.0


@dataclass(frozen=True, slots=True)
class _Round:
    """Milliseconds, and prefilled tokens per second."""

    queue_p99: float
    token_p95: float
    first_p95: float
    prefill_per_s: float
    over: float


async def run(figures: Figures, rig: Rig, village: Village, quick: bool) -> None:
    """Measures both sides, in turns."""
    round_s, rounds = (3.0, 1) if quick else (ROUND_S, ROUNDS)
    figures.note(f"-- {PREFILLS} prefills of {PREFILL_LEN} tokens and {GOLD_PER_S} Gold/s; {rounds} rounds of each")
    budget = rig.planner
    none = replace(budget, gold_step_ms=NO_BUDGET_MS, step_ms=NO_BUDGET_MS)
    kept: list[_Round] = []
    free: list[_Round] = []
    for turn in range(rounds):
        for planner, into in ((budget, kept), (none, free)):
            into.append(await _round(rig, village, planner, round_s, seed=turn))
            r = into[-1]
            figures.note(
                f"   round {turn + 1}, budget {planner.gold_step_ms:g} ms: queue p99 {r.queue_p99:.1f} ms, per token "
                f"p95 {r.token_p95:.1f} ms, first p95 {r.first_p95:.1f} ms, prefill {r.prefill_per_s:,.0f} tokens/s, "
                f"{r.over:.1%} of Gold's steps over budget"
            )
    rig.use(budget)
    figures.add("step.budget_ms", budget.gold_step_ms)
    figures.add("gold.queue_p99_ms_under_prefill", median(r.queue_p99 for r in kept))
    figures.add("gold.token_p95_ms_under_prefill", median(r.token_p95 for r in kept))
    figures.add("gold.first_p95_ms_under_prefill", median(r.first_p95 for r in kept))
    figures.add("step.over_budget_share", median(r.over for r in kept))
    figures.add("gold.queue_p99_ms_no_budget", median(r.queue_p99 for r in free))
    figures.add("gold.token_p95_ms_no_budget", median(r.token_p95 for r in free))
    figures.add("gold.prefill_tokens_per_s", median(r.prefill_per_s for r in kept), 0)
    given_up = [1 - a.prefill_per_s / b.prefill_per_s for a, b in zip(kept, free, strict=True)]
    figures.add("gold.prefill_given_up_share", median(given_up))


async def _round(rig: Rig, village: Village, planner: PlannerSettings, round_s: float, seed: int) -> _Round:
    rig.use(planner)
    refill = Refill(rig, PREFILLS, lambda slot: village.fresh(slot, PREFILL_LEN))
    await asyncio.sleep(SETTLE_S)
    rig.steps.clear()
    gold = OpenLoop(rig, village.intent)
    village.chance.seed(seed)
    began_ns = now_ns()
    dues: list[tuple[int, list[int]]] = []
    at_ns = began_ns + 5 * MS
    while at_ns < began_ns + round_s * S:
        # No NPC is asked twice at once, as the daemon's cadence ensures.
        dues.append((at_ns, [len(dues) % NPCS]))
        at_ns += round(village.chance.expovariate(GOLD_PER_S) * S)
    await gold.play(dues)
    ended_ns = now_ns()
    steps = [s for s in rig.steps if began_ns <= s.ended_ns <= ended_ns]
    refill.stop()
    await rig.idle()
    done = [a for a in gold.asked if a.ended is not None and a.ended.finish is Finish.STOP]
    assert len(done) == len(gold.asked), "every intent is answered"
    with_gold = [s for s in steps if s.tokens[0]]
    return _Round(
        percentile([a.queue_ns for a in done], 0.99) / MS,
        percentile([gap for a in done for gap in a.gaps_ns], 0.95) / MS,
        percentile([a.chunks_ns[0] - a.submitted_ns for a in done], 0.95) / MS,
        sum(s.tokens[1] for s in steps) / ((ended_ns - began_ns) / S),
        sum(s.took_ns > s.budget_ns for s in with_gold) / max(1, len(with_gold)),
    )
