"""How long a step may take follows from what steps cost, and from who waits."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from core.clock import MS, S
from core.words import Tier
from engines.base import PAD_LEN
from scheduler.budget import TalkShare, budget, first_text_ns, latest_start_ns
from scheduler.costs import Costs, CostSettings, Features
from scheduler.filling import Candidate
from scheduler.planner import PlannerSettings

SETTINGS = PlannerSettings()


def costs(step_ms: float, token_ms: float, micro_ms: float = 0.0, kilo_ms: float = 0.0) -> Costs:
    """A cost model with these weights."""
    prior: Features = (step_ms * MS, micro_ms * MS, token_ms * MS, kilo_ms * MS, 0.0)
    return Costs(CostSettings(prior_ns=prior))


def work(tier: Tier, wanted: int = 20, decode: bool = False, pos: int = 100) -> Candidate:
    """A work that could use a step."""
    wanted = 1 if decode else wanted
    return Candidate(0, tier, decode, 0, pos, wanted, 0, 0, 0, 0, prefill=0 if decode else wanted)


def by_the_book(
    first: Candidate, waiting: list[Candidate], speaks: bool, c: Costs, s: PlannerSettings, settings_ns: float
) -> float:
    """The budget in ns as the documentation says it, computed from whole predictions."""

    def step_ns(pos: int, tokens: int) -> float:
        padded = -(-(pos + tokens) // PAD_LEN) * PAD_LEN
        return c.predict_ns((1.0, 1.0, float(tokens), tokens * padded / 1000.0, padded / 1000.0))

    one_ns = step_ns(first.pos, 1)
    may_ns = settings_ns
    if s.few_tokens_x * one_ns > settings_ns:
        may_ns = max(may_ns, min(s.few_tokens_x * one_ns, step_ns(first.pos, s.chunk_min)))
        if first.tier is Tier.SILVER and not first.decode:
            may_ns = max(may_ns, min(step_ns(first.pos, first.wanted), s.first_step_ms * MS))
        if first.tier is Tier.GOLD and first.decode:
            may_ns = max(settings_ns, min(may_ns, s.gold_token_ms * MS))
        if speaks:
            may_ns = min(may_ns, s.read_ms * MS)
    if s.few_tokens_x * one_ns > settings_ns or settings_ns > s.gold_step_ms * MS:
        for w in waiting:
            if w is not first:
                may_ns = min(may_ns, s.first_text_share * (step_ns(w.pos, w.prefill) + step_ns(w.pos + w.prefill, 1)))
    return max(may_ns, one_ns, min(settings_ns, s.gold_step_ms * MS))


def test_the_budget_is_what_the_book_says() -> None:
    """On models of any speed, with any works, the budget is that of a plain twin; its laws hold."""
    rng = random.Random(5)
    seen = set()
    for _ in range(2000):
        fixed_ms, token_ms = (rng.choice([0.0, 0.2, 1.0, 9.0, 30.0]) * rng.random() for _ in range(2))
        c = costs(fixed_ms, token_ms, rng.random(), rng.random())
        first = work(rng.choice(list(Tier)), rng.randrange(1, 200), rng.random() < 0.5, rng.randrange(600))
        talks = [work(Tier.SILVER, rng.randrange(1, 200), pos=rng.randrange(600)) for _ in range(rng.randrange(3))]
        waiting = [first, *talks] if rng.random() < 0.3 else talks
        speaks, settings_ns = rng.random() < 0.3, rng.choice([5.0, 20.0]) * MS
        made = budget(first, waiting, speaks, c, SETTINGS, settings_ns)
        assert made.step_ns == pytest.approx(by_the_book(first, waiting, speaks, c, SETTINGS, settings_ns))
        assert made.join_ns >= made.step_ns >= min(settings_ns, SETTINGS.gold_step_ms * MS)
        assert made.step_ns >= made.one_ns
        seen.add((made.step_ns == settings_ns, made.join_ns > made.step_ns, made.step_ns == made.one_ns))
    assert len(seen) > 3, "the cases were all alike"


@pytest.mark.parametrize("fixed", [0.0, 0.1, 0.5, 1.0, 3.0, 20.0])
def test_at_most_a_quarter_of_a_slow_step_is_fixed_cost_or_it_holds_a_piece(fixed: float) -> None:
    """For any fixed part of one token's step, the budget spends three quarters on tokens, or holds 16."""
    c = costs(30.0 * fixed, 30.0)
    made = budget(work(Tier.GOLD), [], False, c, SETTINGS, 5.0 * MS)
    tokens = int((made.step_ns - c.base_ns) / (30.0 * MS) + 1e-6)
    assert tokens >= 16 or c.base_ns <= made.step_ns / 4.0


def test_a_small_model_keeps_the_budgets_of_the_settings() -> None:
    """While a few tokens fit into 5 ms, nothing here changes it, whoever waits."""
    c = costs(0.5, 0.05)
    talk = work(Tier.SILVER, 40)
    for first in (work(Tier.GOLD), work(Tier.GOLD, decode=True), talk):
        assert budget(first, [talk, work(Tier.SILVER, 3)], True, c, SETTINGS, 5.0 * MS).step_ns == 5.0 * MS


def test_a_waiting_first_text_is_cut_by_no_step_longer_than_a_quarter_of_it() -> None:
    """The step of others lasts a quarter of the first text alone at most; its own takes all of its prefill."""
    c = costs(9.0, 6.0)
    talk, other = work(Tier.SILVER, 10), work(Tier.GOLD)
    alone_ns = first_text_ns(c, talk)
    assert budget(other, [talk], False, c, SETTINGS, 5.0 * MS).step_ns == pytest.approx(alone_ns / 4.0)
    assert budget(talk, [talk], False, c, SETTINGS, 5.0 * MS).step_ns == pytest.approx((9.0 + 10 * 6.0) * MS)
    off = replace(SETTINGS, first_text_share=100.0)
    assert budget(other, [talk], False, c, off, 5.0 * MS).step_ns == pytest.approx(60.0 * MS)


def test_those_due_together_must_start_so_early_that_the_last_is_in_time() -> None:
    """The latest start is the earliest of each deadline less all that is due until then, times the hurry."""
    assert latest_start_ns([], 3.0) == float("inf")
    assert latest_start_ns([(250, 10.0)], 3.0) == 220.0
    rng = random.Random(6)
    for _ in range(200):
        talks = sorted((rng.randrange(1000), rng.random() * 50) for _ in range(rng.randrange(1, 8)))
        starts = [due - 3.0 * sum(ns for other, ns in talks[: n + 1]) for n, (due, _) in enumerate(talks)]
        assert latest_start_ns(talks, 3.0) == pytest.approx(min(starts))


def test_the_share_of_conversations_forgets_within_a_second() -> None:
    """The share is near that of the last second's steps, whatever was before, and is never outside 0 to 1."""
    rng = random.Random(7)
    for talked in (0.0, 0.3, 1.0):
        share, now = TalkShare(), 0
        for until_ns, part in ((3 * S, rng.random()), (7 * S, talked)):
            while now < until_ns:
                took_ns = rng.randrange(1, 60 * MS)
                now += took_ns
                share.add(took_ns, part, now)
                assert 0.0 <= share.share <= 1.0
        assert share.look(now) == pytest.approx(talked, abs=0.03)
        assert share.look(now + S) == 0.0
