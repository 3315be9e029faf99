"""The warm-up measures on any machine, in a bounded time, and reports its measurements."""

from dataclasses import replace

import numpy as np
import pytest

from core.clock import US, S
from engines.base import Geometry, Slice, micro_batches, tokens_of
from engines.sim import SimCost, SimEngine, SimVocab, VirtualClock
from prompts.marks import MARKS
from scheduler.costs import Costs, features
from scheduler.warmup import ALWAYS, CONTEXTS, LIMIT_S, SHAPES, Swept, sweep


def swept(token_us: float, context_len: int = 2048, sequences: int = 24, limit_s: float = 3.0) -> tuple[Swept, Costs]:
    """A sweep over an engine with a fixed time per token."""
    vocab = SimVocab(list(MARKS.values()))
    clock = VirtualClock()
    cost = SimCost(step_us=token_us / 4, micro_us=0.0, token_us=token_us)
    engine = SimEngine(Geometry(sequences, context_len, 512, 512, vocab.size), vocab, clock, cost)
    costs = Costs()
    found = sweep(engine, costs, clock, limit_s)
    assert engine.lengths == [0] * sequences
    assert found.took_ms == pytest.approx(clock() / 1e6, abs=0.1)
    return found, costs


@pytest.mark.parametrize("token_ms", [0.02, 1.0, 6.0, 15.0, 50.0, 200.0, 1000.0])
def test_the_warm_up_always_measures_something(token_ms: float) -> None:
    """Even with a very slow model the cheapest steps are measured, and the learned times are those of the steps."""
    found, costs = swept(token_ms * 1000)
    assert found.steps >= ALWAYS and found.tokens >= found.steps
    assert found.token_ms == pytest.approx(1.25 * token_ms, rel=0.1)
    always_ms = sum(count * tokens for count, tokens, _ in SHAPES[: ALWAYS + 1]) * token_ms * 2
    assert found.took_ms <= max(3000 * 1.1, always_ms)
    took_ns = costs.predict_ns(features([Slice(0, 0, tokens_of([1] * 8))], 512))
    assert took_ns == pytest.approx(8.25 * token_ms * 1000 * US, rel=0.25)


def test_a_fast_model_is_measured_in_full() -> None:
    """Every shape is measured on every context, and the prefills between the contexts are, too."""
    found, _ = swept(20.0)
    assert found.context_len == 768 and found.steps == 4 * len(SHAPES) + 3
    assert found.took_ms < 3 * S / 1e6 and not found.why


@pytest.mark.parametrize("token_us", [3000.0, 4000.0, 5000.0])
def test_time_for_a_longer_context_is_set_aside(token_us: float) -> None:
    """Where 256 tokens take less than half of the time, they are computed, whatever the other shapes would take."""
    assert swept(token_us)[0].context_len >= 256


@pytest.mark.parametrize(("context_len", "sequences"), [(64, 2), (256, 3), (300, 24)])
def test_a_small_engine_is_measured_as_far_as_it_goes(context_len: int, sequences: int) -> None:
    """Shapes for which the engine has no room are left out."""
    found, _ = swept(20.0, context_len, sequences)
    assert ALWAYS <= found.steps <= 2 * len(SHAPES)


def test_a_share_of_its_time_is_told_and_what_was_left_out() -> None:
    """The share grows to 1. A model that is too slow for longer contexts is said to be."""
    shares: list[float] = []
    vocab, clock = SimVocab(list(MARKS.values())), VirtualClock()
    engine = SimEngine(Geometry(24, 2048, 512, 512, vocab.size), vocab, clock, SimCost(token_us=40_000.0))
    found = sweep(engine, Costs(), clock, moved=shares.append)
    assert shares == sorted(shares) and len(shares) == found.steps and 0.5 < shares[-1] <= 1
    assert "longer contexts is assumed" in found.why and "would have taken too long" in found.why


# Engines by what a single token's step is made of, in shares of its time: the fixed part, the micro-batch, the token,
# the sequence, and what 1,000 tokens of context cost in computing and in reading.
KINDS = {
    "tokens": {"step_us": 0.2, "micro_us": 0.2, "token_us": 0.6, "kilo_context_us": 0.0002},
    "steps": {"step_us": 0.3, "micro_us": 0.5, "token_us": 0.15, "kilo_context_us": 0.05, "kilo_read_us": 0.3},
    "weights": {
        "step_us": 0.05, "micro_us": 0.0, "pass_us": 0.9, "token_us": 0.15, "kilo_context_us": 0.02, "kilo_read_us": 0.1
    },
    "sequences": {
        "step_us": 0.1, "micro_us": 0.3, "token_us": 0.1, "slice_us": 0.45, "kilo_context_us": 0.02, "kilo_read_us": 0.1
    },
}  # fmt: skip
# (sequences, tokens for each, context): the steps of intents and of conversations.
STEPS = (
    *((count, 1, context) for count in (1, 2, 4, 8, 16, 32) for context in (0, 200, 500, 1000)),
    *((count, 24, context) for count in (1, 4, 8) for context in (200, 500, 1000)),
    *((1, tokens, context) for tokens in (16, 64, 256) for context in (0, 500, 1000)),
)
ANY_X, SINGLE_X = 3.0, 1.75


@pytest.mark.parametrize("token_ms", [0.5, 2.0, 8.0, 32.0, 100.0, 200.0, 500.0])
@pytest.mark.parametrize("kind", KINDS)
def test_after_the_warm_up_costs_are_near_the_truth_however_slow_the_engine_is(kind: str, token_ms: float) -> None:
    """From 0.5 to 500 ms a token and whatever the time goes into, every step is predicted within a factor of 3 of what
    it takes, a single token and an intent's tail within 1.75. The warm-up ends within its time, or within
    twelve tokens' time of a model that is slower."""
    vocab, clock = SimVocab(list(MARKS.values())), VirtualClock()
    cost = replace(SimCost(), **{name: share * token_ms * 1000 for name, share in KINDS[kind].items()})  # type: ignore[arg-type]
    engine = SimEngine(Geometry(64, 2048, 2048, 512, vocab.size), vocab, clock, cost)
    costs = Costs()
    found = sweep(engine, costs, clock)
    for count, tokens, context in STEPS:
        slices = [Slice(i, context, np.full(tokens, 1, np.int32)) for i in range(count)]
        takes_ns = cost.step_ns(micro_batches(slices, 512), count, count * (context + tokens))
        x = costs.predict_ns(features(slices, 512)) / takes_ns
        bound = SINGLE_X if (count, tokens) in ((1, 1), (1, 24)) else ANY_X
        assert 1 / bound <= x <= bound, (count, tokens, context, x)
    assert found.context_len in CONTEXTS and (found.context_len > 0) == ("assumed" not in found.why)
    assert found.took_ms <= max(LIMIT_S * 1000 * 1.3, 12 * token_ms)
