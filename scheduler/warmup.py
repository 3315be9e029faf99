"""A short sweep over an engine before it serves: pages its memory in and teaches the cost model what steps take here.

The cheapest steps are always measured, however slow the model is; the others while there is time for them. The sweep
ends each context with a prefill that makes the next one, so a longer context costs no step of its own; time for the
first of them is set aside. On a model that is too slow for a longer context, an assumption takes its place: without
one, the cost of a sequence and that of its context could not be told apart. Leaves every sequence empty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from core.clock import MS, Clock, S
from engines.base import GREEDY_PICK, PAD_LEN, Slice, StepEngine, StepPlan
from scheduler.costs import Costs, Features, features

# (sequences, tokens for each, gap between sequence numbers): what real steps are made of. The first ones are measured
# in any case: of them the cost of a step, that of a token and that of a sequence can be told apart.
SHAPES = (
    (1, 1, 1),
    (1, 4, 1),
    (2, 1, 1),
    (1, 8, 1),
    (4, 1, 1),
    (1, 16, 1),
    (4, 24, 1),
    (4, 24, 3),
    (8, 1, 1),
    (8, 1, 3),
    (16, 1, 1),
    (1, 64, 1),
    (16, 12, 1),
)
ALWAYS = 3
# A large model reads its weights in each step, and a few tokens more cost nothing: longer pieces are measured in any
# case until one takes twice as long as a single token.
SHOWS_X, SHOWS_LEN_MAX = 2.0, 64
CHEAP_NS = 20 * MS
CONTEXTS = (0, 256, 512, 768)  # contexts of the steps, so that the weight of a context shows
LIMIT_S = 3.0
# Without a longer context: reading and computing 1,000 tokens of context costs a token so much of itself. Small models
# pay about as much as for the token, large ones next to nothing. Only slow ones come here, and those are large.
ASSUMED_CONTEXT, ASSUMED_X = 1024, 0.25


@dataclass(frozen=True, slots=True)
class Swept:
    """The result of a sweep: steps and their tokens, the longest context, and the total time.

    `token_ms` is a single token's step; `prefill_ms` a token of the longest prefill that was measured. `why` says what
    was not measured, and is empty when everything was.
    """

    steps: int
    tokens: int
    context_len: int
    took_ms: float
    token_ms: float
    prefill_ms: float
    why: str = ""


def sweep(
    engine: StepEngine,
    costs: Costs,
    clock: Clock,
    limit_s: float = LIMIT_S,
    moved: Callable[[float], None] = lambda share: None,
) -> Swept:
    """Runs the shapes on longer and longer contexts for at most about `limit_s` seconds, and tells `moved` the share of
    them that has passed. The cheapest shapes are run also when they take longer.
    """
    run = _Sweep(engine, costs, clock, round(limit_s * S), moved)
    _step(engine, [Slice(0, 0, np.full(1, 1, np.int32), GREEDY_PICK)], clock)  # pages memory in
    engine.trim(0, 0)
    reached = 0
    for context in CONTEXTS:
        if context and not run.prefill(reached, context):
            break
        reached = context
        run.shapes(context)
    costs.settle()
    engine.trim(0, 0)
    if not reached:
        run.assume()
    return run.result(reached)


class _Sweep:
    """The steps of a sweep, and what they took."""

    def __init__(
        self, engine: StepEngine, costs: Costs, clock: Clock, limit_ns: int, moved: Callable[[float], None]
    ) -> None:
        self._engine, self._costs, self._clock = engine, costs, clock
        self._began_ns, self._limit_ns = clock(), limit_ns
        self._moved = moved
        self._took: list[tuple[int, int, int]] = []  # sequences, tokens of the step, nanoseconds
        self._left_out = 0
        self._sets_aside: bool | None = None  # time for the first longer context

    def shapes(self, context: int) -> None:
        """Measures the shapes on a context, which the first sequence holds."""
        geometry = self._engine.geometry
        for number, (count, tokens, gap) in enumerate(SHAPES):
            if (count - 1) * gap >= geometry.sequences or count * tokens > geometry.batch_len:
                continue
            if context + tokens > geometry.context_len:
                continue
            used = [i * gap for i in range(count)]
            slices = [Slice(seq, context, np.full(tokens, 1, np.int32), GREEDY_PICK) for seq in used]
            x = features(slices, geometry.micro_len)
            must = not context and (number < ALWAYS or (count == 1 and not self._token_shows(tokens)))
            if not must and self._costs.predict_ns(x) > self._room_ns(context):
                self._left_out += 1
                continue
            # Where a step is cheap its first run only makes room for its graph, and is not counted.
            for counts in (False, True) if self._costs.predict_ns(x) <= CHEAP_NS and not context else (True,):
                for seq in used[1:]:
                    self._engine.copy(0, seq)
                took_ns = _step(self._engine, slices, self._clock)
                for seq in used:
                    self._engine.trim(seq, context if seq == 0 else 0)
                if counts:
                    self._learn(x, count, count * tokens, took_ns)

    def _token_shows(self, tokens: int) -> bool:
        """True if what was measured tells what a token costs; so do pieces longer than any that must be measured."""
        ones = [ns for count, length, ns in self._took if count == length == 1]
        longest_ns = max((ns for count, _, ns in self._took if count == 1), default=0)
        return tokens > SHOWS_LEN_MAX or (bool(ones) and longest_ns >= SHOWS_X * min(ones))

    def prefill(self, held: int, length: int) -> bool:
        """Makes the first sequence `length` tokens long, and measures that; False if there is no room or time."""
        geometry = self._engine.geometry
        if length + 1 > geometry.context_len:
            return False
        steps = [
            [Slice(0, at, np.full(min(geometry.batch_len, length - at), 1, np.int32), GREEDY_PICK)]
            for at in range(held, length, geometry.batch_len)
        ]
        if sum(self._costs.predict_ns(features(step, geometry.micro_len)) for step in steps) > self._left_ns():
            self._left_out += 1
            return False
        for step in steps:
            took_ns = _step(self._engine, step, self._clock)
            self._learn(features(step, geometry.micro_len), 1, len(step[0].tokens), took_ns)
        return True

    def assume(self) -> None:
        """Teaches what longer contexts cost by the assumption: see ASSUMED_X."""
        single_ns = min(ns for _, tokens, ns in self._took if tokens == 1)
        _, tokens, prefill_ns = max((t for t in self._took if t[0] == 1), key=lambda t: t[1])
        more = 1 + ASSUMED_X * ASSUMED_CONTEXT / 1000
        for length, ns in ((1, single_ns), (tokens, prefill_ns)):
            slices = [Slice(0, ASSUMED_CONTEXT - length, np.full(length, 1, np.int32))]
            took_ns = round(more * ns)
            self._costs.add(features(slices, self._engine.geometry.micro_len), took_ns, took_ns)
        self._costs.settle()

    def result(self, context_len: int) -> Swept:
        """The measured result."""
        single_ns = min(ns for _, tokens, ns in self._took if tokens == 1)
        _, tokens, ns = max((t for t in self._took if t[0] == 1), key=lambda t: t[1])
        why = f"{self._left_out} shapes would have taken too long" if self._left_out else ""
        if not context_len:
            why = "; ".join(filter(None, (why, "the cost of longer contexts is assumed")))
        return Swept(
            len(self._took),
            sum(tokens for _, tokens, _ in self._took),
            context_len,
            round((self._clock() - self._began_ns) / MS, 1),
            round(single_ns / MS, 3),
            round(ns / tokens / MS, 3),
            why,
        )

    def _learn(self, x: Features, count: int, tokens: int, took_ns: int) -> None:
        self._costs.add(x, took_ns, took_ns)
        self._took.append((count, tokens, took_ns))
        if len(self._took) <= self._costs.settings.fit_every:
            self._costs.settle()  # the first steps decide what there is time for
        self._moved(min(1.0, (self._clock() - self._began_ns) / self._limit_ns))

    def _left_ns(self) -> float:
        return self._began_ns + self._limit_ns - self._clock()

    def _room_ns(self, context: int) -> float:
        """Time for one more shape. On an empty context that for the first longer one is set aside, if it was not more
        than half of what was left after the cheapest shapes.
        """
        left_ns = self._left_ns()
        if context:
            return left_ns
        slices = [Slice(0, 0, np.full(PAD_LEN, 1, np.int32))]
        prefill_ns = self._costs.predict_ns(features(slices, self._engine.geometry.micro_len))
        if self._sets_aside is None:
            self._sets_aside = prefill_ns <= left_ns / 2
        return left_ns - prefill_ns if self._sets_aside else left_ns


def _step(engine: StepEngine, slices: list[Slice], clock: Clock) -> int:
    began_ns = clock()
    engine.step(StepPlan(slices))
    return clock() - began_ns
