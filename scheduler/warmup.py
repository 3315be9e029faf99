"""A short sweep over an engine before it serves: pages its memory in and teaches the cost model what steps take here.

The cheapest steps are always measured, however slow the model is; the others while there is time for them. Leaves every
sequence empty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.clock import MS, Clock, S
from engines.base import GREEDY_PICK, Slice, StepEngine, StepPlan
from scheduler.costs import Costs, features

# (sequences, tokens for each, gap between sequence numbers): what real steps are made of. The first ones are measured
# in any case: of them the cost of a step and that of a token can be told apart.
SHAPES = (
    (1, 1, 1),
    (1, 8, 1),
    (1, 1, 1),
    (2, 1, 1),
    (1, 16, 1),
    (4, 24, 1),
    (4, 24, 3),
    (8, 1, 1),
    (8, 1, 3),
    (16, 1, 1),
    (1, 64, 1),
    (16, 12, 1),
    (1, 256, 1),
)
ALWAYS = 4
CHEAP_NS = 20 * MS
CONTEXTS = (0, 256, 512, 768)  # contexts of the steps, so that the weight of a context shows


@dataclass(frozen=True, slots=True)
class Swept:
    """The result of a sweep: steps and their tokens, the longest context, and the total time.

    `token_ms` is a single token's step; `prefill_ms` a token of the longest prefill that was measured.
    """

    steps: int
    tokens: int
    context_len: int
    took_ms: float
    token_ms: float
    prefill_ms: float


def sweep(engine: StepEngine, costs: Costs, clock: Clock, limit_s: float = 3.0) -> Swept:
    """Runs the shapes on longer and longer contexts for at most about `limit_s` seconds."""
    geometry = engine.geometry
    began_ns = clock()
    ends_ns = began_ns + round(limit_s * S)
    took: list[tuple[int, int, int]] = []  # sequences, tokens of the step, nanoseconds
    _step(engine, [Slice(0, 0, np.full(1, 1, np.int32), GREEDY_PICK)], clock)  # pages memory in
    engine.trim(0, 0)
    context_len = 0
    for context in CONTEXTS:
        before = max(0, min(context, geometry.context_len - max(tokens for _, tokens, _ in SHAPES) - 1))
        if context and (before <= context_len or clock() + _fill_ns(costs, before) > ends_ns):
            break
        _fill(engine, before, context_len)
        context_len = before
        for number, (count, tokens, gap) in enumerate(SHAPES):
            if (count - 1) * gap >= geometry.sequences or count * tokens > geometry.batch_len:
                continue
            if before + tokens > geometry.context_len:
                continue
            used = [i * gap for i in range(count)]
            slices = [Slice(seq, before, np.full(tokens, 1, np.int32), GREEDY_PICK) for seq in used]
            x = features(slices, geometry.micro_len)
            if (context or number >= ALWAYS) and clock() + costs.predict_ns(x) > ends_ns:
                continue
            # Where a step is cheap its first run only makes room for its graph, and is not counted.
            for counts in (False, True) if costs.predict_ns(x) <= CHEAP_NS and not context else (True,):
                for seq in used[1:]:
                    engine.copy(0, seq)
                took_ns = _step(engine, slices, clock)
                for seq in used:
                    engine.trim(seq, before if seq == 0 else 0)
                if counts:
                    costs.add(x, took_ns, took_ns)
                    took.append((count, count * tokens, took_ns))
            if len(took) <= costs.settings.fit_every:
                costs.settle()  # the first steps decide what there is time for
    costs.settle()
    engine.trim(0, 0)
    single_ns = min(ns for count, tokens, ns in took if tokens == 1)
    _, tokens, ns = max((t for t in took if t[0] == 1), key=lambda t: t[1])
    return Swept(
        len(took),
        sum(tokens for _, tokens, _ in took),
        context_len,
        round((clock() - began_ns) / MS, 1),
        round(single_ns / MS, 3),
        round(ns / tokens / MS, 3),
    )


def _step(engine: StepEngine, slices: list[Slice], clock: Clock) -> int:
    began_ns = clock()
    engine.step(StepPlan(slices))
    return clock() - began_ns


def _fill_ns(costs: Costs, length: int) -> float:
    """The predicted time of bringing the first sequence to this length."""
    return costs.predict_ns(features([Slice(0, 0, np.full(length, 1, np.int32))], length)) if length > 0 else 0.0


def _fill(engine: StepEngine, length: int, held: int) -> None:
    """Makes the first sequence `length` tokens long; it holds `held`."""
    chunk = engine.geometry.batch_len
    at = held
    while at < length:
        n = min(chunk, length - at)
        engine.step(StepPlan([Slice(0, at, np.full(n, 1, np.int32))]))
        at += n
