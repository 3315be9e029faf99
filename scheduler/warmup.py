"""A short sweep over an engine before it serves: pages its memory in and teaches the cost model what steps take here.

Leaves every sequence empty.
"""

from __future__ import annotations

import numpy as np

from core.clock import Clock, S
from engines.base import GREEDY_PICK, Slice, StepEngine, StepPlan
from scheduler.costs import Costs, features

# (sequences, tokens for each, gap between sequence numbers): what real steps are made of.
SHAPES = (
    (1, 1, 1),
    (1, 16, 1),
    (1, 64, 1),
    (1, 256, 1),
    (4, 24, 1),
    (4, 24, 3),
    (8, 1, 1),
    (8, 1, 3),
    (16, 1, 1),
    (16, 12, 1),
    (1, 1, 1),
)


def sweep(engine: StepEngine, costs: Costs, clock: Clock, limit_s: float = 3.0) -> int:
    """Runs the shapes a few times for at most about `limit_s` seconds; how many steps it measured."""
    geometry = engine.geometry
    ends_ns = clock() + round(limit_s * S)
    measured = 0
    for turn in range(4):
        for count, tokens, gap in SHAPES:
            if clock() > ends_ns:
                break
            if (count - 1) * gap >= geometry.sequences or count * tokens > geometry.batch_len:
                continue
            # Later turns stand on longer contexts, so that their weight shows.
            before = min(turn * 256, geometry.context_len - tokens - 1)
            used = [i * gap for i in range(count)]
            if before:
                _fill(engine, used, before)
            slices = [Slice(seq, before, np.full(tokens, 1, np.int32), GREEDY_PICK) for seq in used]
            began_ns = clock()
            engine.step(StepPlan(slices))
            took_ns = clock() - began_ns
            if turn:  # the first turn pages memory in
                costs.add(features(slices, geometry.micro_len), took_ns, took_ns)
                measured += 1
            for seq in used:
                engine.trim(seq, 0)
    return measured


def _fill(engine: StepEngine, used: list[int], length: int) -> None:
    """Puts `length` tokens into the first sequence and copies it to the others."""
    chunk = engine.geometry.batch_len
    at = 0
    while at < length:
        n = min(chunk, length - at)
        engine.step(StepPlan([Slice(used[0], at, np.full(n, 1, np.int32))]))
        at += n
    for seq in used[1:]:
        engine.copy(used[0], seq)
