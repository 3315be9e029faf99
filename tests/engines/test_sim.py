"""The simulated engine: the next token depends on all tokens of a sequence and on nothing else."""

import random
from dataclasses import replace

import numpy as np
import pytest

from core.errors import EngineFailed
from core.work import Sampling
from engines.base import GREEDY_PICK, Geometry, Pick, Slice, StepPlan, tokens_of
from engines.sim import SimCost, SimEngine, SimVocab, VirtualClock, next_token


def engine(fail_at: frozenset[int] = frozenset()) -> SimEngine:
    """Eight sequences of 64 tokens."""
    vocab = SimVocab(["<|end|>", "<|npc|>"], size=500)
    return SimEngine(Geometry(8, 64, 64, 16, vocab.size), vocab, VirtualClock(), fail_at=fail_at)


def feed(sim: SimEngine, seq: int, values: list[int], pick: Pick | None = GREEDY_PICK) -> int:
    """Appends tokens in one step and returns the picked one."""
    return sim.step(StepPlan([Slice(seq, sim.length(seq), tokens_of(values), pick)])).picked[0]


def test_the_next_token_depends_on_all_tokens_however_they_came() -> None:
    """In one step or in many, copied, cut back, stored and loaded, the same tokens give the same next one."""
    rng = random.Random(3)
    for _ in range(50):
        sim = engine()
        values = [rng.randrange(2, 500) for _ in range(rng.randrange(2, 50))]
        wanted = next_token(values, None, 0, sim.vocab, 0)[0]
        assert feed(sim, 0, values) == wanted
        at = rng.randrange(1, len(values))
        feed(sim, 1, values[:at], None)
        sim.copy(1, 2)
        feed(sim, 1, [5, 6, 7], None)
        sim.trim(1, at)
        blob = sim.store(2)
        assert sim.load(3, blob)
        for seq in (1, 2, 3):
            assert feed(sim, seq, values[at:]) == wanted
            assert sim.tokens(seq) == values
            assert np.array_equal(sim.array(seq), values)
        other = [*values[:-1], values[-1] ^ 1]
        assert next_token(other, None, 0, sim.vocab, 0) != next_token(values, None, 0, sim.vocab, 0)


def test_picks_are_among_the_allowed_and_seeds_make_a_difference() -> None:
    """Allowed ids bind the pick, whose probability is even. A sampler's seed changes the drawn token."""
    sim = engine()
    allowed = tokens_of([7, 11, 13])
    result = sim.step(StepPlan([Slice(0, 0, tokens_of([5]), Pick(allowed=allowed))]))
    assert result.picked[0] in allowed
    assert result.probability[0] == pytest.approx(1 / 3)
    drawn = set()
    for seed in range(20):
        sampler = sim.add_sampler(Sampling(0.7, seed=seed), [])
        sim.trim(1, 0)
        drawn.add(feed(sim, 1, [5], Pick(sampler=sampler)))
        sim.drop_sampler(sampler)
    assert len(drawn) > 10
    assert sim.samplers_open == 0


def test_a_blob_that_was_cut_off_is_refused_and_leaves_nothing() -> None:
    """The native library does the same."""
    sim = engine()
    feed(sim, 0, [5, 6, 7])
    assert not sim.load(0, sim.store(0)[:-1])
    assert sim.length(0) == 0


def test_a_failing_step_costs_its_time_and_rebuild_empties_everything() -> None:
    """The time has passed, and no sequence may be trusted."""
    sim = engine(fail_at=frozenset({1}))
    feed(sim, 0, [5, 6, 7])
    before_ns = sim.clock()
    with pytest.raises(EngineFailed, match="step 1"):
        feed(sim, 0, [8])
    assert sim.clock() > before_ns
    sim.rebuild()
    assert not any(sim.lengths)


@pytest.mark.parametrize(
    "slices",
    [
        [Slice(0, 1, tokens_of([5]))],
        [Slice(0, 0, tokens_of([]))],
        [Slice(1, 0, tokens_of([5])), Slice(0, 0, tokens_of([5]))],
        [Slice(0, 0, tokens_of([5])), Slice(0, 1, tokens_of([5]))],
        [Slice(0, 0, tokens_of([5] * 65))],
        [],
    ],
    ids=["gap", "nothing to take in", "not sorted", "twice", "too long", "empty"],
)
def test_a_plan_that_the_native_library_would_not_survive_is_a_bug_here(slices: list[Slice]) -> None:
    """An assertion makes every simulation find a scheduler with such a plan."""
    with pytest.raises(AssertionError):
        engine().step(StepPlan(slices))


def test_a_step_costs_what_is_stated() -> None:
    """The cost is the fixed part, each micro-batch, each token, and tokens times padded context."""
    cost = SimCost(step_us=100.0, micro_us=10.0, token_us=1.0, kilo_context_us=1.0)
    assert cost.step_ns([(4, 256), (2, 512)]) == round((100 + 20 + 6 + 4 * 0.256 + 2 * 0.512) * 1000)


def test_a_gpu_reads_the_weights_once_for_each_micro_batch_while_it_computes() -> None:
    """The longer of pass and tokens counts. With paged attention all of a step share one pass."""
    cost = SimCost(step_us=0, micro_us=10, token_us=1, kilo_context_us=0, pass_us=100, slice_us=2, kilo_read_us=3)
    assert cost.step_ns([(4, 256), (300, 512)], 3, 2000) == (110 + 310 + 6 + 6) * 1000
    assert replace(cost, one_pass=True).step_ns([(4, 256), (30, 512)], 3, 2000) == (110 + 6 + 6) * 1000


def test_moving_kv_takes_the_time_that_is_stated() -> None:
    """A copy, a store and a load each move the clock by the sequence's length."""
    clock, vocab = VirtualClock(), SimVocab([])
    cost = SimCost(0, 0, 0, 0, copy_us=1, copy_token_us=2, move_us=3, move_token_us=4)
    engine = SimEngine(Geometry(2, 64, 64, 64, vocab.size), vocab, clock, cost)
    engine.step(StepPlan([Slice(0, 0, np.arange(10, dtype=np.int32))]))
    engine.copy(0, 1)
    assert clock() == 21_000
    blob = engine.store(1)
    assert engine.load(0, blob)
    assert clock() == 21_000 + 2 * 43_000


def test_words_are_tokens_and_text_never_yields_a_control_token() -> None:
    """Each word is one token, and the same word the same token. When numbers run out, words share them."""
    vocab = SimVocab(["<|end|>"], size=4)
    assert vocab.encode("a <|end|> a") == [1, 2, 1]
    assert vocab.piece(1) == b" a"
    assert vocab.piece(0) == b""
    assert {*vocab.encode("b c d e f")} <= {1, 2, 3}
    assert (vocab.control("<|end|>"), vocab.control("a")) == (0, -1)
