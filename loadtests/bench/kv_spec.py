"""Speculation: the same text with drafts, their gain, their break-even, and their cost where they are off.

It runs one work after another through the scheduler on this thread, where drafts have room, with and without them in
turns.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from statistics import median

import numpy as np

from core.clock import S, now_ns
from core.words import NpcKey, Tier, TrunkKey
from core.work import GREEDY, Chunk, Sampling, Work
from daemon.model import open_drafter
from engines.base import GREEDY_PICK, Slice, StepEngine, StepPlan, tokens_of
from engines.llama import LlamaEngine, LlamaSettings, send_native_log_to
from engines.tune import tune
from loadtests.bench import kv_spec_big, kv_spec_sim
from loadtests.bench.bare import logits_of_last_step
from loadtests.bench.figures import Figures
from loadtests.bench.options import Options
from scheduler.placing import KvSettings
from scheduler.planner import PlannerSettings
from scheduler.scheduler import Scheduler, SchedulerSettings
from scheduler.speculation import Speculation, SpeculationSettings
from scheduler.warmup import sweep
from tiers.promises import Promises

NAMES = ("Mira", "Greta", "Bran", "Odo", "the count", "a wolf", "the lich", "Anna", "the priest", "a ghoul")
PLACES = ("tavern", "crypt", "forest", "market", "chapel", "mill", "gate", "cellar", "castle", "swamp")
LINES = ("What do you sell here?", "Have you seen the count?", "Tell me about the mill and the road.", "Who are you?")
NEAR_TIE = 0.05  # of two logits, as in tests/scheduler/test_correct_under_load.py
REPLY_LEN, BARK_LEN = 48, 8
REPLY = Sampling(temperature=0.7, unrepeat=1.0)
BARK = Sampling(temperature=0.7)
NGRAM = SpeculationSettings(drafts="ngram")
NEVER_OFF = replace(NGRAM, trial_steps=10**9)
# Long budgets: this does not measure how long a step may take.
PLANNER = PlannerSettings(gold_step_ms=1000.0, step_ms=1000.0)


@dataclass(slots=True)
class Spoken:
    """The works' tokens, by number, and the time of all; `speculation` has the drafts' counts."""

    made: dict[int, list[int]] = field(default_factory=dict)
    took_ns: int = 0
    steps: int = 0
    speculation: Speculation | None = None

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second; prompts are prefilled within the time."""
        return sum(map(len, self.made.values())) / (self.took_ns / S)


class Speakers:
    """An engine, and works that speak on it, a few at a time."""

    def __init__(self, engine: LlamaEngine, drafter: Callable[[SpeculationSettings], Speculation | None]) -> None:
        self.engine = engine
        self._drafter = drafter
        self._warm = Scheduler(engine, Promises(), SchedulerSettings(kv=KV))
        sweep(engine, self._warm.costs, now_ns)

    def speak(self, works: Sequence[Work], settings: SpeculationSettings | None, at_once: int = 1) -> Spoken:
        """Runs the works, `at_once` of them at a time, on emptied sequences."""
        engine = self.engine
        for seq in range(engine.geometry.sequences):
            engine.trim(seq, 0)
        speculation = self._drafter(settings) if settings is not None else None
        promises = Promises()
        promises = replace(promises, silver=replace(promises.silver, running_max=at_once, waiting_max=len(works) + 1))
        scheduler = Scheduler(engine, promises, SchedulerSettings(kv=KV, planner=PLANNER), speculation)
        scheduler.costs = self._warm.costs
        spoken = Spoken({n: [] for n in range(len(works))}, speculation=speculation)
        waiting = list(range(len(works)))[::-1]
        began = now_ns()
        while waiting or not scheduler.idle:
            while waiting and len(scheduler.running) + len(scheduler.admission.queues) < at_once:
                number = waiting.pop()
                scheduler.submit(
                    number, works[number], now_ns() - WINDOW_NS
                )  # the gathering window is not measured here
            planned = scheduler.plan(now_ns())
            if planned.step is not None:
                step_ns = now_ns()
                result = engine.step(planned.step)
                scheduler.apply(planned, result, now_ns() - step_ns, now_ns())
                spoken.steps += 1
            for number, what in scheduler.take_deliveries():
                if isinstance(what, Chunk):
                    spoken.made[number] += what.tokens
        spoken.took_ns = now_ns() - began
        return spoken

    def ratio(
        self, works: Sequence[Work], settings: SpeculationSettings, rounds: int, at_once: int = 1
    ) -> tuple[float, Spoken]:
        """The median of tokens/s with drafts over those without, in turns, and the last run with drafts."""
        ratios = []
        self.speak(works[:2], None, at_once)
        for turn in range(rounds):
            sides: tuple[SpeculationSettings | None, ...] = (settings, None) if turn % 2 else (None, settings)
            spoken = {side is not None: self.speak(works, side, at_once) for side in sides}
            ratios.append(spoken[True].tokens_per_s / spoken[False].tokens_per_s)
        return median(ratios), spoken[True]


KV = KvSettings(prefixes=2, lanes=32, ram_mib=64)
WINDOW_NS = S


async def run(figures: Figures, options: Options) -> None:
    """Runs all parts on a thread: the simulation, the shipped model, and a larger random one."""
    await asyncio.to_thread(kv_spec_sim.measure, figures)
    await asyncio.to_thread(_shipped, figures, options.model, options.quick)
    with tempfile.TemporaryDirectory(prefix="npcd-bench-") as folder:
        await asyncio.to_thread(_large, figures, options.model, Path(folder), options.quick)


def _shipped(figures: Figures, model: Path, quick: bool) -> None:
    """The model that ships."""
    send_native_log_to(None)
    settings = tune(LlamaSettings(model, sequences=80, context_len=1024), now_ns).settings
    engine = LlamaEngine(settings)
    speakers = Speakers(engine, _with(engine))
    figures.note(f"-- {model.name}, flash attention {settings.flash_attention}, weights {settings.weights}")
    try:
        _same_text(figures, speakers, 60 if quick else 500)
        _break_even(figures, engine, "spec.break_even")
        rounds = 3 if quick else 9
        for name, tier, length, sampling in (
            ("spec.gain_gold_x", Tier.GOLD, BARK_LEN, BARK),
            ("spec.gain_silver_x", Tier.SILVER, REPLY_LEN, REPLY),
        ):
            works = prompts(engine, 30, tier, length, sampling)
            gain, spoken = speakers.ratio(works, NGRAM, rounds)
            figures.add(name, gain)
            figures.note(f"   {_in_words(spoken, tier)}")
            gain, spoken = speakers.ratio(works, NEVER_OFF, rounds)
            figures.add(name.replace("_x", "_forced_x"), gain)
            figures.note(f"   {_in_words(spoken, tier)}")
        _off_cost(figures, speakers, 5 if quick else 21)
        draft = model.with_name(f"{model.stem}-draft.gguf")
        if draft.exists():
            on = replace(NEVER_OFF, drafts="model", draft_model=str(draft))
            gain, spoken = speakers.ratio(prompts(engine, 10, Tier.SILVER, REPLY_LEN, GREEDY), on, rounds)
            figures.add("spec.gain_draft_model_x", gain)
            figures.note(f"   {_in_words(spoken, Tier.SILVER)}")
    finally:
        engine.close()


def _large(figures: Figures, model: Path, folder: Path, quick: bool) -> None:
    """A random model in which a draft has room: the draft is its first layer."""
    target, draft = kv_spec_big.write(model, folder)
    engine = LlamaEngine(LlamaSettings(target, sequences=40, context_len=512, flash_attention="off", weights="file"))
    speakers = Speakers(engine, _with(engine))
    figures.note(f"-- a random model of {engine.card.parameters / 1e6:.0f} M parameters, f16")
    try:
        _break_even(figures, engine, "spec.break_even_large")
        works = prompts(engine, 6, Tier.SILVER, 32, GREEDY)
        on = replace(NEVER_OFF, drafts="model", draft_model=str(draft))
        gain, spoken = speakers.ratio(works, on, 3 if quick else 5)
        figures.add("spec.gain_large_x", gain)
        figures.note(f"   {_in_words(spoken, Tier.SILVER)}")
        plain = speakers.speak(works, None)
        same = sum(plain.made[n] == spoken.made[n] for n in plain.made)
        figures.add("spec.identical_large_share", same / len(works))
    finally:
        engine.close()


def _with(engine: LlamaEngine) -> Callable[[SpeculationSettings], Speculation | None]:
    """Speculation by settings; a draft model is loaded once and then kept."""
    kept: dict[str, Speculation] = {}

    def make(settings: SpeculationSettings) -> Speculation | None:
        known = kept.get(settings.draft_model)
        drafter = known.drafter if known is not None and settings.drafts == "model" else open_drafter(settings, engine)
        if drafter is None:
            return None
        drafter.forget()  # works of the next round have the same numbers
        made = kept[settings.draft_model] = Speculation(settings, drafter, engine.vocab.eog_ids)
        return made

    return make


def prompts(engine: LlamaEngine, count: int, tier: Tier, length: int, sampling: Sampling) -> list[Work]:
    """Dialogue lines and sentences that end in the middle, of a few dozen tokens; the same for the same count."""
    rng, vocab, works = random.Random(1), engine.vocab, []
    for n in range(count):
        parts = [f"{rng.choice(NAMES)} goes to the {rng.choice(PLACES)} and meets {rng.choice(NAMES)}."]
        parts += [f"Then {rng.choice(NAMES)} comes from the {rng.choice(PLACES)}." for _ in range(rng.randrange(8))]
        text = " ".join(parts)
        if n % 2:
            tokens = tokens_of(vocab.markup(f"<|world|>{text}<|player|>{rng.choice(LINES)}<|say|>"))
        else:
            tokens = tokens_of(vocab.encode(text)[:-6])
        key = TrunkKey(NpcKey("", "bench", f"npc{n}"), "p")
        works.append(Work(tier, key, tokens[:-4], tokens[-4:], length, sampling=replace(sampling, seed=n + 1)))
    return works


def _same_text(figures: Figures, speakers: Speakers, count: int) -> None:
    """Greedy texts with drafts and without. Where they differ, the plain one must have been at a near-tie."""
    works = prompts(speakers.engine, count, Tier.SILVER, 24, GREEDY)
    plain, drafted = speakers.speak(works, None), speakers.speak(works, NEVER_OFF)
    same = far = 0
    for n, work in enumerate(works):
        if plain.made[n] == drafted.made[n]:
            same += 1
            continue
        parting = zip_longest(plain.made[n], drafted.made[n])
        first = next(i for i, (a, b) in enumerate(parting) if a != b)
        far += _gap(speakers.engine, [*work.trunk.tolist(), *work.tail.tolist(), *plain.made[n][:first]]) > NEAR_TIE
    figures.add("spec.identical_share", same / count)
    figures.add("spec.not_near_ties", far, 0)
    figures.note(f"   {count} prompts: {_in_words(drafted, Tier.SILVER)}; {plain.steps} steps without")


def _gap(engine: LlamaEngine, tokens: Sequence[int]) -> float:
    """The logit of the likeliest next token minus that of the second."""
    engine.trim(0, 0)
    engine.step(StepPlan([Slice(0, 0, tokens_of(tokens), GREEDY_PICK)]))
    scores = np.sort(logits_of_last_step(engine, 1)[0])
    return float(scores[-1] - scores[-2])


def _break_even(figures: Figures, engine: StepEngine, key: str) -> None:
    """The acceptance per token from which n-gram drafts of 1 and 3 tokens pay, with 1, 2 and 4 works in the step."""
    for works in (1, 2, 4):
        plain_ns = _step_ns(engine, works, 0)
        told = []
        for drafts in (1, 3):
            share = break_even(_step_ns(engine, works, drafts) / plain_ns, drafts)
            told.append(f"{drafts} drafts: {share:.2f}")
            if works == 1:
                figures.add(f"{key}_{drafts}", share)
        figures.note(f"   {works} works, a step of {plain_ns / 1000:.0f} us; break-even with {', '.join(told)}")


def _step_ns(engine: StepEngine, works: int, drafts: int) -> float:
    """The median time of a step of so many works with so many drafts, on contexts of 200 tokens."""
    tokens = np.full(200, 5, np.int32)
    for seq in range(works):
        engine.trim(seq, 0)
        engine.step(StepPlan([Slice(seq, 0, tokens)]))
    took = []
    for _ in range(40):
        plan = StepPlan([Slice(seq, 200, tokens[: 1 + drafts], GREEDY_PICK, drafts) for seq in range(works)])
        began = now_ns()
        engine.step(plan)
        took.append(now_ns() - began)
        for seq in range(works):
            engine.trim(seq, 200)
    return median(took)


def break_even(dearer_x: float, drafts: int) -> float:
    """The acceptance at which a step that takes `dearer_x` as long yields as many times more: 1 + a + a^2 + ... =
    dearer_x.

    Above 1 it never pays.
    """
    low, high = 0.0, 4.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**n for n in range(drafts + 1)) < dearer_x else (low, middle)
    return high


def _off_cost(figures: Figures, speakers: Speakers, rounds: int) -> None:
    """n-gram drafts that switched themselves off, against none at all: one work at a time, and 32 side by side."""
    never = replace(NGRAM, trial_steps=1, gain_min=1e9, retry_s=1e6)
    costs = []
    for at_once in (1, 32):
        works = prompts(speakers.engine, max(12, at_once), Tier.SILVER, REPLY_LEN, REPLY)
        ratio, _ = speakers.ratio(works, never, rounds, at_once)
        costs.append(1.0 - ratio)
        figures.note(f"   off, {at_once} at once: {costs[-1]:+.1%}")
    figures.add("spec.off_cost_share", max(costs))


def _in_words(spoken: Spoken, tier: Tier) -> str:
    assert spoken.speculation is not None
    t = spoken.speculation.tiers[tier]
    share = t.accepted / t.offered if t.offered else 0.0
    state = "on" if t.on else "off"
    return (
        f"{t.accepted} of {t.offered} drafts right ({share:.0%}), gain by its own book {t.gain:.2f}, {state} at the end"
    )
