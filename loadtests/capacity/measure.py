"""Fits the cost model of this machine to measured steps: `python -m loadtests.capacity.measure [--model FILE.gguf]`.

Prints the table for costs.toml. It times steps of the shapes that serving has, on an engine with a daemon's settings.
Then it runs works through the scheduler: the time beyond the engine's is Python's. With one computing thread it
measures the processor's time, which other processes hardly change; with more threads it measures the clock's, on an
idle machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from core.clock import US, Clock, now_ns
from core.words import Tier
from engines.base import GREEDY_PICK, Slice, StepPlan, micro_batches
from engines.llama import LlamaEngine
from loadtests.bench.figures import ROOT
from loadtests.bench.rig import Village, tuned
from scheduler.planner import PlannerSettings
from scheduler.scheduler import Scheduler, SchedulerSettings
from tiers.promises import Promises

TERMS = ("step_us", "micro_us", "token_us", "kilo_context_us", "kilo_read_us")
CONTEXTS = (16, 270, 700, 1400)
# (sequences, tokens for each, gap between sequence numbers)
SHAPES = (
    (1, 1, 1), (4, 1, 1), (8, 1, 1), (16, 1, 1), (32, 1, 1), (4, 1, 3), (8, 1, 3), (16, 1, 3),
    (1, 12, 1), (4, 12, 1), (4, 12, 3), (8, 12, 3), (1, 24, 1), (4, 24, 1), (4, 24, 3), (8, 24, 1), (1, 64, 1),
    (1, 256, 1),
)  # fmt: skip
TIMES = 15
WORKS = (4, 24)  # works through the scheduler, all on lanes
OUTPUT = 150
# A budget so large that all works are in each step even on a busy machine.
PLANNER = PlannerSettings(gold_step_ms=10_000.0, step_ms=10_000.0)


@dataclass(frozen=True, slots=True)
class Point:
    """One shape: its features (of TERMS) and its step's time in microseconds."""

    features: tuple[float, ...]
    took_us: float


def points(engine: LlamaEngine, clock: Clock) -> Iterator[Point]:
    """Measures every shape on every context, as the median of a few. Leaves the sequences empty."""
    for context in CONTEXTS:
        filled = np.full(context, 5, np.int32)
        engine.step(StepPlan([Slice(0, 0, filled)]))
        for seq in range(1, 64):
            engine.copy(0, seq)
        for count, tokens, gap in SHAPES:
            fed = np.full(tokens, 7, np.int32)
            slices = [Slice(i * gap, context, fed, GREEDY_PICK) for i in range(count)]
            took_ns = []
            for _ in range(TIMES):
                began = clock()
                engine.step(StepPlan(slices))
                took_ns.append(clock() - began)
                for s in slices:
                    engine.trim(s.seq, context)
            micros = micro_batches(slices, engine.geometry.micro_len)
            product = sum(t * c for t, c in micros) / 1000.0
            read = count * (context + tokens) / 1000.0
            features = (1.0, float(len(micros)), float(count * tokens), product, read)
            yield Point(features, median(took_ns[2:]) / US)
        for seq in range(64):
            engine.trim(seq, 0)


def fit(found: list[Point]) -> NDArray[np.float64]:
    """Non-negative least squares of the relative error, by coordinate descent, in the order of TERMS."""
    x = np.asarray([p.features for p in found]) / np.asarray([[p.took_us] for p in found])
    y = np.ones(len(found))
    weights = np.zeros(x.shape[1])
    for _ in range(20_000):
        for j in range(x.shape[1]):
            rest = y - x @ weights + x[:, j] * weights[j]
            weights[j] = max(0.0, float(x[:, j] @ rest / (x[:, j] @ x[:, j])))
    return weights


def host(engine: LlamaEngine, clock: Clock) -> tuple[float, float]:
    """Python's time in a step beyond the engine's call, in microseconds: a fixed part, and one for each sequence."""
    beyond = []
    village = Village(engine.vocab)
    for works in WORKS:
        scheduler = Scheduler(engine, Promises(), SchedulerSettings(planner=PLANNER))
        for number in range(works):
            scheduler.submit(
                number, village.speech(Tier.BRONZE if number % 2 else Tier.SILVER, number, OUTPUT), now_ns()
            )
        took_ns = []
        while not scheduler.idle:
            began = clock()
            planned = scheduler.plan(now_ns())
            if planned.step is None:
                continue
            planned_ns = clock() - began
            at_ns = now_ns()
            result = engine.step(planned.step)
            spent_ns = now_ns() - at_ns
            began = clock()
            scheduler.apply(planned, result, spent_ns, now_ns())
            scheduler.take_deliveries()
            if len(planned.runners) == works and planned.step.tokens == works:
                took_ns.append(planned_ns + clock() - began)
        beyond.append(median(took_ns) / US)
        for seq in range(engine.geometry.sequences):
            engine.trim(seq, 0)
    each_us = max(0.0, (beyond[1] - beyond[0]) / (WORKS[1] - WORKS[0]))
    return max(0.0, beyond[0] - WORKS[0] * each_us), each_us


def moves(engine: LlamaEngine, clock: Clock) -> tuple[float, float, float, float]:
    """Microseconds of a copy and of a load, fixed and per token, each from a short and a long sequence."""
    short, long = 64, 1024
    took: dict[tuple[str, int], float] = {}
    for length in (short, long):
        engine.step(StepPlan([Slice(0, 0, np.full(length, 5, np.int32))]))
        copies, loads = [], []
        one = [Slice(1, length, np.full(1, 5, np.int32))]
        for _ in range(TIMES):
            began = clock()
            engine.copy(0, 1)
            engine.step(StepPlan(one))  # the next decode moves the bytes of a copy
            copied = clock()
            engine.trim(1, length)
            again = clock()
            engine.step(StepPlan(one))
            copies.append(copied - began - (clock() - again))
            blob = engine.store(0)
            began = clock()
            engine.load(2, blob)
            loads.append(clock() - began)
        took["copy", length], took["load", length] = median(copies) / US, median(loads) / US
        for seq in range(3):
            engine.trim(seq, 0)
    out = []
    for what in ("copy", "load"):
        each = max(0.0, (took[what, long] - took[what, short]) / (long - short))
        out += [max(0.0, took[what, short] - short * each), each]
    return out[0], out[1], out[2], out[3]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.capacity.measure", description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "npcd-demo.gguf", metavar="FILE.gguf")
    settings = tuned(parser.parse_args().model, print)
    clock = time.thread_time_ns if settings.threads == 1 else now_ns
    engine = LlamaEngine(settings)
    engine.vocab.eog_ids = frozenset()  # every output has the requested length
    found = list(points(engine, clock))
    copy_us, copy_token_us, move_us, move_token_us = moves(engine, clock)
    step_us, slice_us = host(engine, clock)
    engine.close()
    weights = fit(found)
    off = [abs(float(np.dot(p.features, weights)) / p.took_us - 1.0) for p in found]
    values = dict(zip(TERMS, weights.tolist(), strict=True))
    print(f"# {len(found)} shapes; of the fit's errors half are below {median(off):.0%}, the worst is {max(off):.0%}")
    print(f"# {values['step_us']:.0f} us of a step are the engine's, {step_us:.0f} us Python's beside it")
    values["step_us"] += step_us
    values |= {"slice_us": slice_us, "copy_us": copy_us, "copy_token_us": copy_token_us}
    values |= {"move_us": move_us, "move_token_us": move_token_us}
    for name, value in values.items():
        print(f"{name} = {value:.4g}")


if __name__ == "__main__":
    main()
