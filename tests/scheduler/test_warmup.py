"""The warm-up measures on any machine, in a bounded time, and reports its measurements."""

import pytest

from core.clock import US, S
from engines.base import Geometry, Slice, tokens_of
from engines.sim import SimCost, SimEngine, SimVocab, VirtualClock
from prompts.marks import MARKS
from scheduler.costs import Costs, features
from scheduler.warmup import ALWAYS, SHAPES, Swept, sweep


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
    """Every shape is measured on every context."""
    found, _ = swept(20.0)
    assert found.context_len == 768 and found.steps == 4 * len(SHAPES)
    assert found.took_ms < 3 * S / 1e6


@pytest.mark.parametrize(("context_len", "sequences"), [(64, 2), (256, 3), (300, 24)])
def test_a_small_engine_is_measured_as_far_as_it_goes(context_len: int, sequences: int) -> None:
    """Shapes for which the engine has no room are left out."""
    found, _ = swept(20.0, context_len, sequences)
    assert ALWAYS <= found.steps <= 2 * len(SHAPES)
