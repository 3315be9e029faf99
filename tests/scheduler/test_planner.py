"""A step is composed inside its budget, in the order of the design, and no work starves."""

import random
from dataclasses import replace

from core.words import Tier
from engines.base import Slice, tokens_of
from scheduler.costs import Costs, CostSettings, features
from scheduler.filling import Candidate
from scheduler.planner import PlannerSettings, compose, rank

COSTS = CostSettings(prior_ns=(200_000.0, 200_000.0, 50_000.0, 20.0, 5_000.0))
SETTINGS = PlannerSettings(gold_step_ms=5.0, step_ms=20.0)
FAR = 10**15


def candidate(number: int, tier: Tier, *, decode: bool = False, seq: int | None = None, wanted: int = 1) -> Candidate:
    """A candidate whose sequence is twice its number, so that no two sequences are neighbours. Nothing is urgent."""
    seq, prefill = number * 2 if seq is None else seq, 0 if decode else wanted
    return Candidate(number, tier, decode, seq, 100, wanted, FAR + number, FAR, number, FAR, prefill=prefill)


def portions(candidates: list[Candidate], now_ns: int = 0, gold_waits: bool = False) -> dict[int, int]:
    """Tokens by candidate number."""
    composed = compose(candidates, Costs(COSTS), SETTINGS, now_ns, gold_waits, 2048)
    return {s.number: s.tokens for s in composed.portions}


def test_decodes_come_before_prefills_and_gold_before_silver() -> None:
    """With room for all, all works are in; with little room the ranks decide."""
    few = [
        candidate(0, Tier.SILVER, wanted=500),
        candidate(1, Tier.SILVER, decode=True),
        candidate(2, Tier.GOLD, decode=True),
        candidate(3, Tier.BRONZE, wanted=500),
    ]
    got = portions(few)
    assert got[1] == got[2] == 1
    assert 16 <= got[0] < 500
    assert 3 not in got


def test_silver_prefill_keeps_its_share_against_gold() -> None:
    """With any amount of Gold, Silver's prefill moves in every step."""
    many = [candidate(n, Tier.GOLD, wanted=24) for n in range(40)] + [candidate(90, Tier.SILVER, wanted=1000)]
    got = portions(many)
    assert got[90] >= 16
    assert sum(1 for n in got if n < 40) >= 1


def test_the_first_candidate_always_gets_something() -> None:
    """The first candidate gets tokens even when the budget is smaller than a step costs."""
    dear = Costs(replace(COSTS, prior_ns=(50e6, 0.0, 1e6, 0.0, 0.0)))
    composed = compose([candidate(0, Tier.BRONZE, wanted=900)], dear, SETTINGS, 0, False, 2048)
    assert [s.tokens for s in composed.portions] == [SETTINGS.chunk_min]


def test_a_step_over_its_budget_takes_along_works_that_add_little() -> None:
    """On a large GPU model a step is 26 ms for one sequence and little more for twenty, so a step over its budget takes
    the others along."""
    free = Costs(replace(COSTS, prior_ns=(26e6, 0.0, 100_000.0, 0.0, 0.0)))
    many = [candidate(n, Tier.GOLD, decode=True) for n in range(20)] + [candidate(50, Tier.SILVER, wanted=100)]
    composed = compose(many, free, SETTINGS, 0, False, 2048)
    assert {s.number for s in composed.portions} == {*range(20), 50}
    # 15 % of 26.1 ms are 39 tokens beside the first one.
    assert sum(s.tokens for s in composed.portions) == 1 + 39
    # Where each sequence costs a pass of its own, no work is taken along.
    dear = Costs(replace(COSTS, prior_ns=(0.0, 26e6, 100_000.0, 0.0, 0.0)))
    assert [s.number for s in compose(many, dear, SETTINGS, 0, False, 2048).portions] == [0]


def test_overdue_work_counts_one_tier_higher() -> None:
    """An overdue Bronze prefill ranks like Silver's, an overdue Silver one like Gold's."""
    bronze = replace(candidate(0, Tier.BRONZE, wanted=10), overdue_ns=50)
    silver = candidate(1, Tier.SILVER, wanted=10)
    assert rank(bronze, 49) > rank(silver, 49)
    assert rank(bronze, 50) == rank(silver, 50)


def test_a_step_has_one_adapter_and_decodes_of_both_take_turns() -> None:
    """Works with different adapters never share a step. The work that waited longer is next."""
    many = [replace(candidate(n, Tier.SILVER, decode=True), adapter="ab"[n % 2], last_step_ns=n) for n in range(10)]
    first = compose(many, Costs(COSTS), SETTINGS, 0, False, 512)
    assert first.adapter == "a"
    assert {many[s.number].adapter for s in first.portions} == {"a"}
    served = {s.number for s in first.portions}
    later = [replace(c, last_step_ns=100) if c.number in served else c for c in many]
    assert compose(later, Costs(COSTS), SETTINGS, 0, False, 512).adapter == "b"


def test_laws_on_random_candidates() -> None:
    """Slices are sorted by sequence, none is there twice or longer than wanted, and they fit budget and batch. The most
    urgent work is in."""
    rng = random.Random(7)
    for _ in range(300):
        many = []
        for n in range(rng.randrange(1, 60)):
            decode = rng.random() < 0.4
            tier = rng.choice(list(Tier))
            wanted = 1 if decode else rng.randrange(1, 800)
            c = candidate(n, tier, decode=decode, seq=rng.randrange(70), wanted=wanted)
            many.append(replace(c, pos=rng.randrange(1000), last_step_ns=rng.randrange(100)))
        costs = Costs(COSTS)
        composed = compose(many, costs, SETTINGS, 0, False, 512)
        numbers = [s.seq for s in composed.portions]
        assert numbers == sorted(set(numbers))
        assert 0 < sum(s.tokens for s in composed.portions) <= 512
        slices = []
        for s in composed.portions:
            assert 0 < s.tokens <= many[s.number].wanted
            slices.append(Slice(s.seq, many[s.number].pos, tokens_of([0] * s.tokens)))
        first = min(many, key=lambda c: (rank(c, 0), c.last_step_ns if c.decode else c.deadline_ns, c.number))
        assert first.seq in numbers
        if len(slices) > 1:
            # The planner adds costs up one by one. The real step may have a few micro-batches more or fewer.
            assert costs.predict_ns(features(slices, 512)) <= composed.budget_ns * 1.35
