"""Chooses attention setting, weight type and threads by running them side by side for a moment, not by belief.

Each candidate is a small engine of its own on the same model; they take turns, so that a machine that slows down
slows all of them. The candidate with the smallest sum of medians wins, over the shapes of real steps.

A start must not take long, on any model and machine. The speed of the first candidate decides how much is measured,
and how many others. No measurement begins that would not be over in time by its prediction.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Protocol

import numpy as np

from core.clock import MS, Clock, S
from core.errors import ConfigError
from engines.base import GREEDY_PICK, Slice, StepEngine, StepPlan
from engines.llama import LlamaEngine, LlamaSettings, default_threads
from engines.machine import cores_here
from engines.model_file import look

MODEL_BYTES_MAX = 256 << 20  # of larger models several would not fit beside each other
LIMIT_S = 8.0  # the longest planned time: measurements may be wrong by a quarter
ROUNDS, ROUNDS_MIN = 4, 2  # of the least amount one is enough
GIVE_UP_X = 1.5
MARGIN = 1.25  # steps in a measurement against what they were predicted to take
CONVERT_TOKENS = 50  # a conversion to f16 takes about as long as so many single tokens, and
CONVERT_NS = 200 * MS  # as long again for its file

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured: `shapes` are (sequences, tokens for each, times in a round), on a trunk of `trunk` tokens,
    for which attention pays.
    """

    trunk: int
    shapes: tuple[Shape, ...]

    @property
    def sequences(self) -> int:
        """As many as the widest shape needs."""
        return max(count for count, _, _ in self.shapes)

    def steps(self, rounds: int) -> list[int]:
        """Tokens of every step: the trunk, every shape once, which pages memory in, and the rounds."""
        shapes = [count * tokens for count, tokens, times in self.shapes for _ in range(1 + rounds * times)]
        return [self.trunk, *shapes]

    @property
    def context_len(self) -> int:
        """The tokens that a sequence must hold."""
        return self.trunk + max(tokens for _, tokens, _ in self.shapes)


# Single tokens, intents' tails, a piece of a prefill; the less of each, the slower the model is here.
AMOUNTS = (
    Amount(400, ((16, 1, 6), (4, 24, 3), (1, 192, 1))),
    Amount(256, ((8, 1, 4), (4, 16, 2), (1, 96, 1))),
    Amount(64, ((4, 1, 3), (2, 12, 2), (1, 48, 1))),
    Amount(16, ((2, 1, 2), (1, 12, 1))),
)
ATTENTION_TRUNK = 256  # tokens, from which on attention settings can be compared
PROBE_LEN, PROBES = 16, 3
PROBE_MAX_NS = 1 * S  # a probe of so many tokens is left out when it would take longer


class Candidate(StepEngine, Protocol):
    """An engine that is measured. `weights` is how it really holds them: there may be no room for them as f16."""

    @property
    def weights(self) -> str:
        """As in LlamaSettings."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One candidate and what a round of all shapes took (milliseconds, sum of medians)."""

    threads: int
    flash_attention: str
    weights: str
    round_ms: float


def candidates(settings: LlamaSettings, cores: int) -> list[LlamaSettings]:
    """The candidates: every combination of the settings that are "auto" or 0, the first choice first."""
    # All cores at once are never a candidate: threads of the engine spin while they wait, and the event loop needs one.
    threads = [settings.threads] if settings.threads else [*dict.fromkeys((default_threads(), max(1, cores // 2)))]
    attention = ["off", "on"] if settings.flash_attention == "auto" else [settings.flash_attention]
    if settings.kv_type != "f16":
        attention = ["on" if settings.flash_attention == "auto" else settings.flash_attention]
    weights = ["file", "f16"] if settings.weights == "auto" else [settings.weights]
    # Weights differ most and threads least: for what is last there may be no time.
    return [
        replace(settings, threads=t, flash_attention=a, weights=w)
        for t, a, w in itertools.product(threads, attention, weights)
    ]


@dataclass(frozen=True, slots=True)
class Pace:
    """The speed of the first candidate: opening it, one token of a prefill, and one of a single step."""

    open_ns: int
    token_ns: int
    single_ns: int

    def takes_ns(self, amount: Amount, settings: LlamaSettings, rounds: int) -> int:
        """The predicted time of one candidate, opening included."""
        convert = self.single_ns * CONVERT_TOKENS + CONVERT_NS if settings.weights == "f16" else 0
        steps = sum(max(self.single_ns, tokens * self.token_ns) for tokens in amount.steps(rounds))
        return self.open_ns + convert + round(MARGIN * steps)


def affordable(pace: Pace, open_ones: Sequence[LlamaSettings], room_ns: int) -> tuple[Amount, list[LlamaSettings]]:
    """How much to measure, and of which candidates; none when not even two fit.

    All of them on a long trunk if there is time. On a short one attention settings cannot be told apart (what is slower
    on 400 tokens is faster on none), so the first choice stands, and only weights and threads are compared.
    """

    def fits(amount: Amount, some: Sequence[LlamaSettings]) -> bool:
        rounds = 1 if amount is AMOUNTS[-1] else ROUNDS_MIN
        return len(some) > 1 and sum(pace.takes_ns(amount, s, rounds) for s in some) <= room_ns

    alike = [s for s in open_ones if s.flash_attention == open_ones[0].flash_attention]
    tries: list[tuple[Amount, Sequence[LlamaSettings]]] = [
        *((amount, open_ones) for amount in AMOUNTS if amount.trunk >= ATTENTION_TRUNK),
        *((amount, alike) for amount in AMOUNTS),
        *((AMOUNTS[-1], alike[:count]) for count in range(len(alike) - 1, 1, -1)),
    ]
    return next(((amount, list(some)) for amount, some in tries if fits(amount, some)), (AMOUNTS[-1], []))


def tune(
    settings: LlamaSettings,
    clock: Clock,
    limit_s: float = LIMIT_S,
    opened: Callable[[LlamaSettings], Candidate] = LlamaEngine,
) -> tuple[LlamaSettings, list[Tried]]:
    """The settings with everything chosen, and what was tried: nothing for large models or where there is no time, for
    which the first choices stand. Takes about `limit_s` at most, and what it takes to open the model.

    Raises ConfigError when the model cannot be loaded.
    """
    open_ones = candidates(settings, cores_here().usable)
    try:
        large = settings.gpu_layers > 0 or look(settings.model).size > MODEL_BYTES_MAX
    except ConfigError:
        large = True  # loading it will say what is wrong
    if len(open_ones) == 1 or large:
        return open_ones[0], []
    ends_ns = clock() + round(limit_s * S)
    pace = _probe(open_ones[0], clock, opened)
    amount, some = affordable(pace, open_ones, ends_ns - clock())
    runs: list[_Run] = []
    try:
        for one in some:
            if clock() >= ends_ns:
                break  # something else keeps the machine busy
            run = _Run.of(one, amount, opened)
            if run is not None:
                runs.append(run)
        measured = _take_turns(runs, clock, ends_ns)
    finally:
        for run in runs:
            run.engine.close()
    if len(measured) < 2:
        return open_ones[0], []
    tried = [
        Tried(r.settings.threads, r.settings.flash_attention, r.settings.weights, round(r.round_ms, 2))
        for r in measured
    ]
    return min(measured, key=lambda run: run.round_ms).settings, tried


def _probe(settings: LlamaSettings, clock: Clock, opened: Callable[[LlamaSettings], Candidate]) -> Pace:
    """How fast the first choice is, from a few tokens."""
    began_ns = clock()
    engine = opened(replace(settings, sequences=2, context_len=4 * PROBE_LEN))
    open_ns = clock() - began_ns
    try:
        # Of a few the fastest: others may take the processor for a moment, and the first pages memory in.
        single_ns = token_ns = min(_step_ns(engine, 0, 1, 1, clock) for _ in range(PROBES))
        if PROBE_LEN * single_ns <= PROBE_MAX_NS:
            token_ns = _step_ns(engine, 0, 1, PROBE_LEN, clock) // PROBE_LEN
    finally:
        engine.close()
    return Pace(open_ns, max(1, token_ns), max(1, single_ns))


def _take_turns(runs: Sequence[_Run], clock: Clock, ends_ns: int) -> list[_Run]:
    """Rounds in turn while there is time for one more; those that were measured."""
    for _ in range(ROUNDS):
        best_ms = min((run.round_ms for run in runs), default=0.0)
        for run in runs:
            # A candidate that is far behind after a round is not measured again.
            if run.round_ms > GIVE_UP_X * best_ms:
                continue
            if clock() + run.round_ms * MS > ends_ns:
                return [r for r in runs if r.took]
            run.round(clock)
    return [r for r in runs if r.took]


@dataclass(slots=True)
class _Run:
    """One candidate's small engine, every sequence standing on a trunk, and what its rounds took, by shape."""

    settings: LlamaSettings
    amount: Amount
    engine: StepEngine
    took: dict[Shape, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: LlamaSettings, amount: Amount, opened: Callable[[LlamaSettings], Candidate]) -> _Run | None:
        """A candidate; None where there was no room for weights as f16: as they are they are another candidate's."""
        engine = opened(replace(settings, sequences=max(2, amount.sequences), context_len=amount.context_len))
        if engine.weights != settings.weights:
            engine.close()
            return None
        engine.step(StepPlan([Slice(0, 0, np.full(amount.trunk, 1, np.int32))]))
        for seq in range(1, amount.sequences):
            engine.copy(0, seq)
        for count, tokens, _ in amount.shapes:  # pages memory in
            _step_ns(engine, amount.trunk, count, tokens, lambda: 0)
        return cls(settings, amount, engine)

    def round(self, clock: Clock) -> None:
        """Runs all shapes once."""
        for shape in self.amount.shapes:
            count, tokens, times = shape
            self.took.setdefault(shape, []).extend(
                _step_ns(self.engine, self.amount.trunk, count, tokens, clock) for _ in range(times)
            )

    @property
    def round_ms(self) -> float:
        """A round of all shapes by their medians; 0 before the first."""
        return sum(times * median(values) for (_, _, times), values in self.took.items()) / MS


def _step_ns(engine: StepEngine, trunk: int, count: int, tokens: int, clock: Clock) -> int:
    slices = [Slice(seq, trunk, np.full(tokens, 1, np.int32), GREEDY_PICK) for seq in range(count)]
    began_ns = clock()
    engine.step(StepPlan(slices))
    took_ns = clock() - began_ns
    for seq in range(count):
        engine.trim(seq, trunk)
    return took_ns
