"""Chooses attention setting, weight type and threads by running them side by side for a moment, not by belief.

Each candidate is a small engine of its own on the same model; they take turns, so that a machine that slows down
slows all of them. What wins is the smallest sum of medians over the shapes that real steps have.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from core.clock import MS, Clock
from engines.base import GREEDY_PICK, Slice, StepPlan
from engines.llama import LlamaEngine, LlamaSettings, default_threads
from engines.machine import cores_here

MODEL_BYTES_MAX = 256 << 20  # larger models take too long to open several times
ROUNDS = 4
GIVE_UP_X = 1.5
SEQUENCES = 16
CONTEXT_LEN = 768
TRUNK_LEN = 400  # what steps stand on: attention pays for it
# (sequences, tokens for each, times in a round): single tokens, intents' tails, a piece of a prefill.
SHAPES = ((16, 1, 6), (4, 24, 3), (1, 192, 1))


@dataclass(frozen=True, slots=True)
class Tried:
    """One candidate and what a round of all shapes took (milliseconds, sum of medians)."""

    threads: int
    flash_attention: str
    weights: str
    round_ms: float


def candidates(settings: LlamaSettings, cores: int) -> list[LlamaSettings]:
    """What is left to choose: every combination of the settings that are "auto" or 0."""
    # All cores at once are never a candidate: threads of the engine spin while they wait, and the event loop needs one.
    threads = [settings.threads] if settings.threads else sorted({default_threads(), max(1, cores // 2)})
    attention = ["off", "on"] if settings.flash_attention == "auto" else [settings.flash_attention]
    if settings.kv_type != "f16":
        attention = ["on" if settings.flash_attention == "auto" else settings.flash_attention]
    weights = ["file", "f16"] if settings.weights == "auto" else [settings.weights]
    return [
        replace(settings, threads=t, flash_attention=a, weights=w)
        for t, a, w in itertools.product(threads, attention, weights)
    ]


def tune(settings: LlamaSettings, clock: Clock) -> tuple[LlamaSettings, list[Tried]]:
    """The settings with everything chosen, and what was tried (nothing for large models: the first choices).

    Raises ConfigError when the model cannot be loaded.
    """
    open_ones = candidates(settings, cores_here().usable)
    try:
        large = settings.model.stat().st_size > MODEL_BYTES_MAX or settings.gpu_layers > 0
    except OSError:
        large = True  # loading it will say what is wrong
    if len(open_ones) == 1 or large:
        return open_ones[0], []
    runs = [run for s in open_ones if (run := _Run(s)).is_as_asked]
    for _ in range(ROUNDS):
        best_ms = min(run.round_ms for run in runs)
        for run in runs:
            # Whoever is far behind after a round is not asked again: a start must not take long.
            if run.round_ms <= GIVE_UP_X * best_ms:
                run.round(clock)
    for run in runs:
        run.engine.close()
    best = min(runs, key=lambda run: run.round_ms)
    return best.settings, [
        Tried(r.settings.threads, r.settings.flash_attention, r.settings.weights, round(r.round_ms, 2)) for r in runs
    ]


class _Run:
    """One candidate's small engine, every sequence standing on a trunk, and what its steps took."""

    def __init__(self, settings: LlamaSettings) -> None:
        self.settings = settings
        self.engine = LlamaEngine(replace(settings, sequences=SEQUENCES, context_len=CONTEXT_LEN))
        self._took: list[list[int]] = [[] for _ in SHAPES]
        self.engine.step(StepPlan([Slice(0, 0, np.full(TRUNK_LEN, 1, np.int32))]))
        for seq in range(1, SEQUENCES):
            self.engine.copy(0, seq)
        for count, tokens, _ in SHAPES:  # pages memory in
            _step_ns(self.engine, count, tokens, lambda: 0)

    @property
    def is_as_asked(self) -> bool:
        """False, and it is closed, where there was no room for weights as f16: that is another candidate's."""
        if self.engine.settings.weights != self.settings.weights:
            self.engine.close()
            return False
        return True

    def round(self, clock: Clock) -> None:
        """Runs all shapes once."""
        for (count, tokens, times), values in zip(SHAPES, self._took, strict=True):
            values += [_step_ns(self.engine, count, tokens, clock) for _ in range(times)]

    @property
    def round_ms(self) -> float:
        """A round of all shapes by their medians; 0 before the first."""
        pairs = zip(SHAPES, self._took, strict=True)
        return sum(times * median(values) for (_, _, times), values in pairs if values) / MS


def _step_ns(engine: LlamaEngine, count: int, tokens: int, clock: Clock) -> int:
    slices = [Slice(seq, TRUNK_LEN, np.full(tokens, 1, np.int32), GREEDY_PICK) for seq in range(count)]
    began_ns = clock()
    engine.step(StepPlan(slices))
    took_ns = clock() - began_ns
    for seq in range(count):
        engine.trim(seq, TRUNK_LEN)
    return took_ns
