"""A flood of Gold beside saturating Bronze: 400 intents/s on 200 trunks, 16 Bronze works that never run out.

Gold alone, Bronze alone and both take turns on one engine. Gold is open loop and arrives as the daemon's cadence makes
it: four neighbours together, the groups spread evenly over half a second.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from statistics import median

from core.clock import MS, S, now_ns
from core.words import Finish, Tier
from loadtests.bench.figures import Figures
from loadtests.bench.rig import NPCS, OpenLoop, Refill, Rig, Village
from scheduler.meter import percentile
from tiers.cadence import TOGETHER, CadenceSettings, offset_ns

BRONZE = 16
BRONZE_TOKENS = 200
ROUND_S = 6.0
ROUNDS = 3
SETTLE_S = 1.0


@dataclass(frozen=True, slots=True)
class _Round:
    """Milliseconds, shares and tokens per second; zeros where a tier did not run."""

    gold_p95: float
    token_p95: float
    lost: float
    busy: float
    bronze_per_s: float
    note: str


async def run(figures: Figures, rig: Rig, village: Village, quick: bool) -> None:
    """Measures all three, in turns."""
    round_s, rounds = (2.0, 1) if quick else (ROUND_S, ROUNDS)
    rate = NPCS * CadenceSettings().active_hz
    figures.note(f"-- {rate:.0f} Gold/s on {NPCS} trunks, {BRONZE} Bronze works; {rounds} rounds of each")
    rig.use(rig.planner)
    alone: list[_Round] = []
    bronze: list[_Round] = []
    both: list[_Round] = []
    for turn in range(rounds):
        for name, into, gold_runs, bronze_runs in (
            ("Gold alone", alone, True, False),
            ("Bronze alone", bronze, False, True),
            ("both", both, True, True),
        ):
            into.append(await _round(rig, village, gold_runs, bronze_runs, round_s))
            figures.note(f"   round {turn + 1}, {name}: {into[-1].note}")
    budget_ms = rig.planner.gold_step_ms
    gold_p95, alone_p95 = median(r.gold_p95 for r in both), median(r.gold_p95 for r in alone)
    figures.add("flood.gold_p95_ms", gold_p95)
    figures.add("flood.gold_alone_p95_ms", alone_p95)
    figures.add("flood.gold_x", median(b.gold_p95 / a.gold_p95 for a, b in zip(alone, both, strict=True)))
    figures.add("flood.gold_token_p95_ms", median(r.token_p95 for r in both))
    added = [(b.token_p95 - a.token_p95) / budget_ms for a, b in zip(alone, both, strict=True)]
    figures.add("flood.gold_added_budgets", median(added))
    figures.add("flood.gold_lost_share", median(r.lost for r in both))
    figures.add("flood.gold_busy_share", median(r.busy for r in alone))
    figures.add("flood.bronze_tokens_per_s", median(r.bronze_per_s for r in both), 0)
    figures.add("flood.bronze_alone_tokens_per_s", median(r.bronze_per_s for r in bronze), 0)
    shares = [
        m.bronze_per_s / max(1e-9, b.bronze_per_s * (1 - g.busy)) for g, b, m in zip(alone, bronze, both, strict=True)
    ]
    figures.add("flood.bronze_share", median(shares))


async def _round(rig: Rig, village: Village, gold_runs: bool, bronze_runs: bool, round_s: float) -> _Round:
    refill = None
    if bronze_runs:
        # Bronze uses NPCs' trunks too: it copies them to lanes and leaves them to Gold.
        refill = Refill(rig, BRONZE, lambda slot: village.speech(Tier.BRONZE, 12 * slot, BRONZE_TOKENS))
        await asyncio.sleep(SETTLE_S)
    rig.steps.clear()
    rig.stages.clear()
    gold = OpenLoop(rig, village.intent)
    before = rig.scheduler.meter.tiers[Tier.BRONZE].output_tokens
    began_ns = now_ns()
    if gold_runs:
        await gold.play(_dues(began_ns + 5 * MS, round_s))
    else:
        await asyncio.sleep(round_s)
    ended_ns = now_ns()
    bronze_tokens = rig.scheduler.meter.tiers[Tier.BRONZE].output_tokens - before
    steps = [s for s in rig.steps if began_ns <= s.ended_ns <= ended_ns]
    if refill is not None:
        refill.stop()
    await rig.idle()
    seconds = (ended_ns - began_ns) / S
    done = [a for a in gold.asked if a.ended is not None and a.ended.finish is Finish.STOP]
    busy = sum(s.took_ns for s in steps) / (ended_ns - began_ns)
    gold_p95 = percentile([a.ended_ns - a.due_ns for a in done], 0.95) / MS
    token_p95 = percentile([gap for a in done for gap in a.gaps_ns], 0.95) / MS
    micros = sum(s.micro_batches for s in steps) / max(1, len(steps))
    note = f"engine busy {busy:.0%}, {len(steps) / seconds:.0f} steps/s of {micros:.1f} micro-batches"
    if done:
        p50, p99 = (percentile([a.ended_ns - a.due_ns for a in done], share) / MS for share in (0.5, 0.99))
        queue = percentile([a.queue_ns for a in done], 0.95) / MS
        handed = percentile([a.submitted_ns - a.due_ns for a in done], 0.95) / MS
        note += (
            f"; Gold p50/p95/p99 {p50:.1f}/{gold_p95:.1f}/{p99:.1f} ms, per token p95 {token_p95:.1f} ms, handed in "
            f"{handed:.1f} ms late, queue p95 {queue:.1f} ms, {len(done) / seconds:.0f}/s"
        )
    if bronze_runs:
        note += f"; Bronze {bronze_tokens / seconds:,.0f} tokens/s"
    return _Round(gold_p95, token_p95, 1 - len(done) / max(1, len(gold.asked)), busy, bronze_tokens / seconds, note)


def _dues(first_ns: int, round_s: float) -> list[tuple[int, list[int]]]:
    """Every NPC once per slot of the cadence, with its neighbours."""
    slot_ns = CadenceSettings().slot_ns
    groups = [list(range(n, min(n + TOGETHER, NPCS))) for n in range(0, NPCS, TOGETHER)]
    slots = int(round_s * S / slot_ns)
    return sorted(
        (first_ns + slot * slot_ns + offset_ns(group[0], slot_ns), group) for slot in range(slots) for group in groups
    )
