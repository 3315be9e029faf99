"""Chooses attention setting, weight type and threads by running them side by side for a moment, not by belief.

Each candidate is a small engine of its own on the same model. The candidates take turns, one shape of a step at a time,
so that a machine that slows down slows all of them. A candidate that is 1.5 times slower than the best one is dropped.
The candidate with the smallest sum of medians wins; if it is not clearly the fastest, the first one that is about as
fast.

A start must not take long, on any model and machine: `engine.tune_s` is a budget of wall-clock time. The speed of the
first candidate decides how much is measured, and how many others. No native call begins that would not be over within
the budget by its prediction.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
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
ROUNDS, ROUNDS_MIN = 4, 2  # of the least amount one is enough
GIVE_UP_X = 1.5
ALIKE_X = 1.1  # where nothing is clearly faster, the first choice of those that are about as fast stands
MARGIN = 1.25  # steps in a measurement against what they were predicted to take
CONVERT_TOKENS = 50  # a conversion to f16 takes about as long as so many single tokens, and
CONVERT_NS = 200 * MS  # as long again for its file

Shape = tuple[int, int, int]


class Ended(Enum):
    """The reason why tuning ended."""

    GIVEN = "nothing to choose"
    LARGE = "the model is too large to try it several times"
    OFF = "engine.tune_s is 0"
    KEPT = "an earlier start measured it"
    CLEAR = "the choice was clear"
    MEASURED = "all rounds were measured"
    TIME = "engine.tune_s was over"


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
        """Tokens of every step: the trunk, and the rounds; the first round has each shape once more, which pages memory
        in.
        """
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
    Amount(1, ((1, 1, 2), (1, 4, 1))),
)
ATTENTION_TRUNK = 256  # tokens, from which on attention settings can be compared
PROBE_LENS, PROBES = (16, 8, 4, 2), 3
PROBE_MAX_NS = 1 * S  # a probe of so many tokens is left out when it would take longer


class Candidate(StepEngine, Protocol):
    """An engine that is measured. `weights` is how it really holds them: there may be no room for them as f16."""

    @property
    def weights(self) -> str:
        """As in LlamaSettings."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One candidate and what a round took (milliseconds, sum of medians) of the `shapes` that it came to: one that was
    dropped did not come to all.
    """

    threads: int
    flash_attention: str
    weights: str
    round_ms: float
    shapes: int


@dataclass(frozen=True, slots=True)
class Tuned:
    """The settings with everything chosen, the candidates that were measured (none, or two and more), and why it
    ended.
    """

    settings: LlamaSettings
    tried: tuple[Tried, ...]
    ended: Ended


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

    def opens_ns(self, settings: LlamaSettings) -> int:
        """The predicted time of opening a candidate."""
        return self.open_ns + (self.single_ns * CONVERT_TOKENS + CONVERT_NS if settings.weights == "f16" else 0)

    def step_ns(self, tokens: int) -> float:
        """The predicted time of a step, with a margin."""
        return MARGIN * max(self.single_ns, tokens * self.token_ns)

    def takes_ns(self, amount: Amount, settings: LlamaSettings, rounds: int) -> int:
        """The predicted time of one candidate, opening included."""
        return self.opens_ns(settings) + round(sum(map(self.step_ns, amount.steps(rounds))))


def affordable(pace: Pace, open_ones: Sequence[LlamaSettings], room_ns: int) -> tuple[Amount, list[LlamaSettings]]:
    """How much to measure, and of which candidates; none when not even two fit.

    All of them on a long trunk if there is time. On a short one attention settings cannot be told apart (what is slower
    on 400 tokens is faster on none), so the first choice stands, and only weights and threads are compared.
    """

    def fits(amount: Amount, some: Sequence[LlamaSettings]) -> bool:
        rounds = 1 if amount in AMOUNTS[-2:] else ROUNDS_MIN
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
    opened: Callable[[LlamaSettings], Candidate] = LlamaEngine,
    moved: Callable[[float], None] = lambda share: None,
) -> Tuned:
    """Measures for about `settings.tune_s` at most, and tells `moved` the share of that time that has passed. For a
    large model, and where there is no time, the first choices stand.

    Raises ConfigError when the model cannot be loaded.
    """
    open_ones = candidates(settings, cores_here().usable)
    if len(open_ones) == 1:
        return Tuned(open_ones[0], (), Ended.GIVEN)
    if settings.tune_s <= 0:
        return Tuned(open_ones[0], (), Ended.OFF)
    if large(settings):
        return Tuned(open_ones[0], (), Ended.LARGE)
    race = _Race(clock, clock() + round(settings.tune_s * S), opened, moved)
    try:
        return race.decide(open_ones)
    finally:
        race.close()


def large(settings: LlamaSettings) -> bool:
    """True for a model that is not tried: several of it would not fit beside each other, or it is not there."""
    try:
        return settings.gpu_layers != 0 or look(settings.model).size > MODEL_BYTES_MAX
    except ConfigError:
        return True  # loading it will say what is wrong


class _OverError(Exception):
    """The next call would not be over in time."""


class _Race:
    """The candidates while they are measured, against the clock."""

    def __init__(
        self, clock: Clock, ends_ns: int, opened: Callable[[LlamaSettings], Candidate], moved: Callable[[float], None]
    ) -> None:
        self._clock = clock
        self._began_ns, self._ends_ns = clock(), ends_ns
        self._opened = opened
        self._moved = moved
        self._runs: list[_Run] = []  # all that are open
        self._left: list[_Run] = []  # those that are not dropped

    def decide(self, open_ones: Sequence[LlamaSettings]) -> Tuned:
        """Opens as many as there is time for, measures them, and chooses."""
        pace = self._probe(open_ones[0])
        amount, some = affordable(pace, open_ones, self._ends_ns - self._clock())
        if len(some) < 2:
            return Tuned(open_ones[0], (), Ended.TIME)
        try:
            for one in some:
                self._open(one, amount, pace)
            ended = self._rounds(amount) if len(self._left) > 1 else Ended.GIVEN
        except _OverError:
            ended = Ended.TIME
        measured = _measured(self._runs)
        if len(measured) < 2:
            return Tuned(open_ones[0], (), ended)
        # A candidate that was dropped is behind by far; only the others have been measured in the same shapes.
        left, shapes = _measured(self._left), _common(self._left)
        best = min(left, key=lambda run: run.ms(shapes))
        if ended is not Ended.CLEAR:
            best = next(run for run in left if run.ms(shapes) <= ALIKE_X * best.ms(shapes))
        return Tuned(best.settings, tuple(run.tried() for run in measured), ended)

    def close(self) -> None:
        """Frees all engines."""
        for run in self._runs:
            run.engine.close()

    def _open(self, settings: LlamaSettings, amount: Amount, pace: Pace) -> None:
        """Opens one candidate, every sequence standing on the trunk. Weights that do not become f16 are another
        candidate's, and are left out.
        """
        self._needs(pace.opens_ns(settings) + pace.step_ns(amount.trunk))
        engine = self._opened(replace(settings, sequences=max(2, amount.sequences), context_len=amount.context_len))
        if engine.weights != settings.weights:
            engine.close()
            return
        run = _Run(settings, amount, engine, pace)
        self._runs.append(run)
        self._left.append(run)
        engine.step(StepPlan([Slice(0, 0, np.full(amount.trunk, 1, np.int32))]))
        for seq in range(1, amount.sequences):
            engine.copy(0, seq)

    def _rounds(self, amount: Amount) -> Ended:
        """Measures shape by shape until the choice is clear. Raises _OverError."""
        rounds = 1 if amount in AMOUNTS[-2:] else ROUNDS
        for number in range(rounds):
            for shape in amount.shapes:
                for _ in range(shape[2] + (number == 0)):
                    for run in self._left:
                        self._needs(run.expects_ns(shape))
                        run.measure(shape, self._clock)
                self._drop()
                if len(self._left) < 2:
                    return Ended.CLEAR
            if number + 1 >= ROUNDS_MIN and self._clear():
                return Ended.CLEAR
        return Ended.MEASURED

    def _drop(self) -> None:
        shapes = _common(self._left)
        best_ms = min((run.ms(shapes) for run in self._left), default=0.0)
        self._left = [run for run in self._left if run.ms(shapes) <= GIVE_UP_X * best_ms]

    def _clear(self) -> bool:
        """True if the slowest the best one was, over all shapes, is faster than the fastest of every other."""
        shapes = _common(self._left)
        first, *others = sorted(self._left, key=lambda run: run.ms(shapes))
        return all(first.ms(shapes, max) < other.ms(shapes, min) for other in others)

    def _needs(self, ns: float) -> None:
        """Raises _OverError when something that takes so long would not be over in time."""
        now = self._clock()
        self._moved(min(1.0, (now - self._began_ns) / max(1, self._ends_ns - self._began_ns)))
        if now + ns > self._ends_ns:
            raise _OverError

    def _probe(self, settings: LlamaSettings) -> Pace:
        """How fast the first choice is, from a few tokens."""
        began_ns = self._clock()
        engine = self._opened(replace(settings, sequences=2, context_len=4 * PROBE_LENS[0]))
        open_ns = self._clock() - began_ns
        try:
            # Of a few the fastest: others may take the processor for a moment, and the first pages memory in.
            single_ns = token_ns = min(_step_ns(engine, 0, 1, 1, self._clock) for _ in range(PROBES))
            length = next((n for n in PROBE_LENS if n * single_ns <= PROBE_MAX_NS), 0)
            if length:
                token_ns = _step_ns(engine, 0, 1, length, self._clock) // length
        finally:
            engine.close()
        return Pace(open_ns, max(1, token_ns), max(1, single_ns))


@dataclass(slots=True)
class _Run:
    """One candidate's small engine, and what its steps took, by shape."""

    settings: LlamaSettings
    amount: Amount
    engine: Candidate
    pace: Pace
    took: dict[Shape, list[int]] = field(default_factory=dict)

    def measure(self, shape: Shape, clock: Clock) -> None:
        """Runs a shape once."""
        count, tokens, _ = shape
        self.took.setdefault(shape, []).append(_step_ns(self.engine, self.amount.trunk, count, tokens, clock))

    def expects_ns(self, shape: Shape) -> float:
        """The predicted time of a shape: as last time, else by the pace of the first candidate."""
        return self.took[shape][-1] if shape in self.took else self.pace.step_ns(shape[0] * shape[1])

    def ms(self, shapes: Sequence[Shape], of: Callable[[list[int]], float] = median) -> float:
        """A round of these shapes. The first time of each pages memory in, and counts only while it is alone."""
        return sum(shape[2] * of(self.took[shape][1:] or self.took[shape]) for shape in shapes) / MS

    def tried(self) -> Tried:
        """The measured result, over all shapes that it came to."""
        s = self.settings
        return Tried(s.threads, s.flash_attention, s.weights, round(self.ms(list(self.took)), 2), len(self.took))


def _measured(runs: Sequence[_Run]) -> list[_Run]:
    return [run for run in runs if run.took]


def _common(runs: Sequence[_Run]) -> list[Shape]:
    """The shapes that every candidate that was measured has run."""
    measured = _measured(runs)
    return [shape for shape in measured[0].took if all(shape in run.took for run in measured)] if measured else []


def _step_ns(engine: StepEngine, trunk: int, count: int, tokens: int, clock: Clock) -> int:
    slices = [Slice(seq, trunk, np.full(tokens, 1, np.int32), GREEDY_PICK) for seq in range(count)]
    began_ns = clock()
    engine.step(StepPlan(slices))
    took_ns = clock() - began_ns
    for seq in range(count):
        engine.trim(seq, trunk)
    return took_ns
