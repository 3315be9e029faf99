"""The gain of drafts on GPUs, by simulation: the real scheduler on stated costs, with forced acceptance.

This is capacity planning and no measurement: a step on a GPU is one pass over the weights and little per token, so
guesses are nearly free while few works run. The draft model is a tenth of the model. loadtests/capacity/costs.toml
states the times of steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from core.clock import S
from core.words import NpcKey, Tier, TrunkKey
from core.work import Work
from engines.base import Geometry
from engines.sim import ForcedDrafts, SimCost, SimEngine, SimVocab, VirtualClock
from loadtests.bench.figures import Figures
from loadtests.capacity.costs import read, step_cost
from scheduler.placing import KvSettings
from scheduler.planner import PlannerSettings
from scheduler.scheduler import Scheduler, SchedulerSettings
from scheduler.speculation import Speculation, SpeculationSettings
from tiers.promises import Promises

ACCEPTANCES = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9)
BATCHES = (1, 8, 32)
OUTPUT = 384
ON = SpeculationSettings(drafts="model", works_max=64, tokens_max=3, trial_steps=10**9)


@dataclass(frozen=True, slots=True)
class Card:
    """A class of GPU with a model on it, and the time of a step there."""

    name: str
    what: str
    cost: SimCost


def _cards() -> Iterator[Card]:
    stated = read()
    for key, name in (("l4", "llama3_2-3b"), ("h200", "llama3_1-8b")):
        card, model = stated.cards[key], stated.models[name]
        cost = step_cost(stated.host, card, model, stated.weights["f16"], stated.layouts["runs"])
        yield Card(key, f"{card.gb_per_s:,.0f} GB/s, {model.name} in f16", cost)


CARDS = tuple(_cards())


def measure(figures: Figures) -> None:
    """The gain by acceptance and batch, and the acceptance from which drafts pay with one work."""
    for card in CARDS:
        figures.note(f"-- simulated: {card.name.upper()} class, {card.what}, a draft model of a tenth, 3 drafts")
        for works in BATCHES:
            plain_s = _took_s(card, works, None)
            gains = {a: plain_s / _took_s(card, works, a) for a in ACCEPTANCES}
            told = "  ".join(f"{a:.1f}: {gain:.2f}" for a, gain in gains.items())
            figures.note(f"   {works:>2} works, {works * OUTPUT / plain_s:6.0f} tokens/s plain; gain at {told}")
            figures.add(f"spec.{card.name}_gain_{works}_x", gains[0.7])
            if works == 1:
                figures.add(f"spec.{card.name}_break_even", _crossing(gains))


def _took_s(card: Card, works: int, acceptance: float | None) -> float:
    """The time of so many replies side by side, on contexts of 500 tokens."""
    clock, vocab = VirtualClock(), SimVocab(["<|end|>"])
    engine = SimEngine(Geometry(2 * works + 6, 1024, 4096, 4096, vocab.size), vocab, clock, card.cost)
    speculation = None
    if acceptance is not None:
        draft_us = card.cost.pass_us / 10 + card.cost.micro_us
        speculation = Speculation(ON, ForcedDrafts(engine, acceptance, draft_us), frozenset())
    planner = PlannerSettings(gold_step_ms=1000.0, step_ms=1000.0)
    promises = Promises()
    promises = replace(promises, silver=replace(promises.silver, running_max=works, waiting_max=works + 1))
    settings = SchedulerSettings(kv=KvSettings(2, works + 1, 1), planner=planner)
    scheduler = Scheduler(engine, promises, settings, speculation)
    shared = np.arange(500, dtype=np.int32) + 10
    for n in range(works):
        key = TrunkKey(NpcKey("", "bench", f"npc{n}"), "p")
        tail = np.asarray([600 + n], np.int32)
        scheduler.submit(n, Work(Tier.SILVER, key, shared, tail, OUTPUT, len(shared)), clock())
    began_ns = 0
    while not scheduler.idle:
        planned = scheduler.plan(clock())
        if planned.step is None:
            clock.advance(max(1, (planned.wake_ns or 0) - clock()))
            continue
        if not began_ns and all(r.decoding for r in planned.runners):
            began_ns = clock()
        before_ns = clock()
        result = engine.step(planned.step)
        scheduler.apply(planned, result, clock() - before_ns, clock())
    return (clock() - began_ns) / S


def _crossing(gains: dict[float, float]) -> float:
    """The acceptance at which the gain passes 1, between the two measured ones around it."""
    points = sorted(gains.items())
    for (a, low), (b, high) in pairwise(points):
        if low <= 1.0 <= high:
            return a + (b - a) * (1.0 - low) / (high - low)
    return points[0][0] if points[0][1] > 1.0 else 1.0
