"""The cost of the scheduler: 32 works through Scheduler, EngineLoop and Door against bare llama_decode and argmax.

Both sides use the same model, settings, threads and lengths, take turns, and are timed from the first tail to the last
token. Silver's works run on lanes: a copy of the trunk, side by side with the others; Gold's run where the trunk lives.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import median

from core.clock import S
from core.words import Tier
from engines.llama import LlamaSettings
from loadtests.bench.bare import Bare
from loadtests.bench.figures import Figures
from loadtests.bench.rig import CONTEXT_LEN, NPCS, TAIL_LEN, TRUNK_LEN, Rig, Village

COUNT = 32
ROUND_S = 5.0
ROUNDS = 5
SHORT = 96  # tokens of a dialogue's reply, daemon.dialogue's default
NO_BUDGET_MS = 1_000.0


async def run(figures: Figures, rig: Rig, village: Village, settings: LlamaSettings, quick: bool) -> None:
    """Measures the efficiencies and the named costs."""
    round_s, rounds = (1.0, 2) if quick else (ROUND_S, ROUNDS)
    bare = Bare(settings, COUNT)  # the same context: many sequences alone cost a few percent
    with ThreadPoolExecutor(1) as thread:  # the bare side keeps to one thread, as the engine thread does
        steps = _Steps(figures, rig, village, bare, thread)
        rig.lean = True
        try:
            await steps.prepare()
            each_ns = await steps.floor(200) / 200
            # Longer contexts cost more per step than the first 200 did, hence the 0.6.
            most = CONTEXT_LEN - TRUNK_LEN - TAIL_LEN - 8
            await steps.long(min(most, int(0.6 * round_s * S / each_ns)), rounds)
            batches = max(1, round(round_s * S / (each_ns * SHORT)))
            await steps.scattered(batches, rounds)
            await steps.in_place(max(1, batches // 2), min(3, rounds))
        finally:
            rig.lean = False
            await asyncio.get_running_loop().run_in_executor(thread, bare.close)


class _Steps:
    def __init__(self, figures: Figures, rig: Rig, village: Village, bare: Bare, thread: ThreadPoolExecutor) -> None:
        self._figures = figures
        self._rig = rig
        self._village = village
        self._bare = bare
        self._thread = thread

    async def prepare(self) -> None:
        """Puts trunks where both sides need them."""
        trunks = self._village.trunks[:COUNT]
        await asyncio.get_running_loop().run_in_executor(self._thread, self._bare.prepare, trunks)

    async def floor(self, steps: int) -> int:
        """The bare side: 32 tails, then `steps` tokens each. Returns nanoseconds."""
        tails = [self._village.text(TAIL_LEN) for _ in range(COUNT)]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._bare.run, TRUNK_LEN, tails, steps)

    async def whole(self, numbers: list[int], steps: int, tier: Tier = Tier.SILVER) -> int:
        """The scheduler's side of the same."""
        return await self._rig.run([self._village.speech(tier, n, steps) for n in numbers])

    async def long(self, steps: int, rounds: int) -> None:
        """Trunks side by side, outputs as long as a round."""
        figures, stages = self._figures, self._rig.stages
        figures.note(f"-- 32 works of {steps} tokens, trunks of {TRUNK_LEN}, side by side; {rounds} rounds")
        ratios, rates = [], []
        for turn in range(rounds):
            stages.clear()
            self._rig.steps.clear()
            # The second side may find the machine warmer or busier, so they take turns.
            if turn % 2:
                took_ns = await self.whole(list(range(COUNT)), steps)
                floor_ns = await self.floor(steps)
            else:
                floor_ns = await self.floor(steps)
                took_ns = await self.whole(list(range(COUNT)), steps)
            ratios.append(floor_ns / took_ns)
            rates.append(COUNT * steps / (floor_ns / S))
            figures.note(
                f"   round {turn + 1}: bare {COUNT * steps / (floor_ns / S):,.0f} tokens/s, scheduler "
                f"{COUNT * steps / (took_ns / S):,.0f} tokens/s, {floor_ns / took_ns:.3f}; decode "
                f"{median(self._bare.decode_ns) / 1000:.0f} us bare, {stages.median_us('decode'):.0f} us scheduled"
            )
        figures.add("step.efficiency_32", median(ratios))
        figures.add("step.bare_32_tokens_per_s", median(rates), 0)
        self._name_costs(steps)

    async def scattered(self, batches: int, rounds: int) -> None:
        """Works as long as a reply, one batch after another, each on 32 random ones of the 200 trunks."""
        figures, stages = self._figures, self._rig.stages
        figures.note(f"-- {batches} batches of 32 works of {SHORT} tokens on random trunks, on lanes; {rounds} rounds")
        ratios = []
        for turn in range(rounds):
            stages.clear()
            self._rig.steps.clear()
            floor_ns = took_ns = 0
            for batch in range(batches):
                if (batch + turn) % 2:
                    took_ns += await self.whole(self._anybody(), SHORT)
                    floor_ns += await self.floor(SHORT)
                else:
                    floor_ns += await self.floor(SHORT)
                    took_ns += await self.whole(self._anybody(), SHORT)
            ratios.append(floor_ns / took_ns)
            figures.note(
                f"   round {turn + 1}: {ratios[-1]:.3f}; {self._micro_batches():.2f} micro-batches per step, "
                f"{stages.count('copy') / batches:.0f} copies per batch of {stages.median_us('copy'):.0f} us"
            )
        figures.add("step.efficiency_32_scattered", median(ratios))
        self._table("scattered")

    async def in_place(self, batches: int, rounds: int) -> None:
        """The same as Gold, which runs where its trunk lives: the cost of scattering itself."""
        figures = self._figures
        figures.note(f"-- the same as Gold without a budget, in the trunks' own sequences; {rounds} rounds")
        kept = self._rig.planner
        self._rig.use(replace(kept, gold_step_ms=NO_BUDGET_MS, step_ms=NO_BUDGET_MS))
        ratios = []
        for turn in range(rounds):
            self._rig.stages.clear()
            self._rig.steps.clear()
            floor_ns = took_ns = 0
            for _ in range(batches):
                floor_ns += await self.floor(SHORT)
                took_ns += await self.whole(self._anybody(), SHORT, Tier.GOLD)
            ratios.append(floor_ns / took_ns)
            figures.note(f"   round {turn + 1}: {ratios[-1]:.3f}; {self._micro_batches():.2f} micro-batches per step")
        figures.add("step.efficiency_32_in_place", median(ratios))
        self._rig.use(kept)

    def _anybody(self) -> list[int]:
        return self._village.chance.sample(range(NPCS), COUNT)

    def _micro_batches(self) -> float:
        steps = self._rig.steps
        return sum(s.micro_batches for s in steps) / max(1, len(steps))

    def _name_costs(self, steps: int) -> None:
        """The parts of a step's time in the last round."""
        figures, stages = self._figures, self._rig.stages
        decode_us = stages.median_us("decode")
        step_us = median(b.ended_ns - a.ended_ns for a, b in zip(self._rig.steps, self._rig.steps[1:], strict=False))
        figures.add("step.overhead_us", step_us / 1000 - decode_us, 0)
        figures.add("step.plan_us", stages.median_us("plan"), 0)
        figures.add("step.sample_us", stages.median_us("sample"), 0)
        figures.add("step.apply_us", stages.median_us("apply"), 0)
        figures.add("step.handover_us", stages.median_us("handover"), 0)
        figures.add("step.deliver_us", stages.median_us("deliver"), 0)
        figures.note(
            f"   bare argmax {median(self._bare.argmax_ns) / 1000:.0f} us; {self._micro_batches():.2f} micro-batches, "
            f"{stages.count('copy')} copies of {stages.median_us('copy'):.0f} us in {steps} steps"
        )
        self._table("side by side")

    def _table(self, name: str) -> None:
        stages = self._rig.stages
        each = "  ".join(f"{stage} {stages.median_us(stage):.0f}" for stage in stages.ns)
        self._figures.note(f"   medians in us, {name}: {each}")
