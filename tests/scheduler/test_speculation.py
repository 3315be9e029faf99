"""Drafts in the scheduler: the tokens stay the same, budgets are kept, and drafts that do not pay are switched off."""

import random
from dataclasses import replace

import pytest

from core.choice import END, stage
from core.clock import MS, S
from core.words import Finish, Tier, TrunkKey
from core.work import Ended, Sampling, Work
from engines.sim import ForcedDrafts, SimCost
from scheduler.place import Part
from scheduler.speculation import PLAIN_EVERY, Speculation, SpeculationSettings
from tests.scheduler.simulated import FIRST_WORD, Sim, npc, random_work, words

ON = SpeculationSettings(drafts="ngram", tokens_max=4, works_max=100, trial_steps=10**9)
# Steps that read their weights take long and tokens are cheap, as on a GPU.
WEIGHTY = SimCost(step_us=100.0, micro_us=3000.0, token_us=20.0)


def speculate(
    sim: Sim, acceptance: float = 0.7, settings: SpeculationSettings = ON, token_us: float = 0.0
) -> Speculation:
    """Gives the simulation's scheduler drafts that are right with the stated probability."""
    drafter = ForcedDrafts(sim.engine, acceptance, token_us, sim.end_every)
    speculation = Speculation(settings, drafter, sim.vocab.eog_ids)
    sim.scheduler.composer.speculation = speculation
    return speculation


def speech(n: int = 1, max_tokens: int = 40, tier: Tier = Tier.SILVER, **more: object) -> Work:
    """A reply of one NPC."""
    return replace_work(Work(tier, TrunkKey(npc(n), "p"), words(*range(20)), words(50 + n, 51), max_tokens), **more)


def replace_work(work: Work, **more: object) -> Work:
    """The work with some fields changed."""
    return replace(work, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("acceptance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, seed=9)])
def test_drafts_change_the_times_and_not_the_tokens(acceptance: float, sampling: Sampling) -> None:
    """For greedy and drawn works, with right and wrong guesses, the tokens are those of the work alone."""
    sim = Sim()
    speculation = speculate(sim, acceptance)
    work = speech(sampling=sampling)
    ticket = sim.submit(work)
    steps = sim.run()
    assert sim.chunks[ticket] == sim.alone(work)
    assert sim.ended[ticket].finish is Finish.LENGTH
    t = speculation.tiers[Tier.SILVER]
    assert t.accepted == pytest.approx(acceptance * t.offered, abs=0.3 * t.offered)
    assert (steps < 16) == (acceptance == 1.0), f"{steps} steps"
    assert sim.ended[ticket].timings.output_tokens == 40


def test_a_thousand_random_works_get_the_tokens_that_they_get_alone() -> None:
    """With all tiers, choices, cancels, failures and drafts throughout, each ticket ends once and gets its own
    tokens."""
    rng = random.Random(4)
    choices = [stage("act", [(i, [FIRST_WORD + i % 3, FIRST_WORD + 10 + i], END) for i in range(9)])]
    sim = Sim(end_every=25, fail_at=frozenset(range(40, 4000, 97)))
    speculation = speculate(sim, 0.6, token_us=30.0)
    open_now: list[int] = []
    for _ in range(1000):
        open_now.append(sim.submit(random_work(rng, 30, choices)))
        if rng.random() < 0.1:
            sim.cancel(rng.choice(open_now))
        for _ in range(rng.randrange(6)):
            sim.step()
    sim.run()
    assert sorted(sim.ended) == sorted(sim.submitted)
    for ticket, work in sim.submitted.items():
        said, own = sim.chunks[ticket], sim.alone(work) if work.max_tokens else []
        if sim.ended[ticket].finish in (Finish.STOP, Finish.LENGTH):
            assert said == own, f"ticket {ticket}"
        else:
            assert said == own[: len(said)], f"ticket {ticket}"
    assert sum(t.accepted for t in speculation.tiers) > 300


def test_a_token_limit_inside_right_guesses_is_kept() -> None:
    """With any limit exactly that many tokens are generated, and the sequence never outgrows its room."""
    for limit in range(1, 12):
        work = speech(max_tokens=limit)
        sim = Sim(context_len=len(work.trunk) + len(work.tail) + limit - 1)
        speculate(sim, 1.0)
        ticket = sim.submit(work)
        sim.run()
        assert len(sim.chunks[ticket]) == limit
        assert sim.ended[ticket].finish is Finish.LENGTH


def test_a_stop_inside_right_guesses_ends_the_work_there() -> None:
    """Neither the stop token nor a guess behind it is delivered."""
    for at in range(1, 12):
        sim = Sim()
        speculate(sim, 1.0)
        own = sim.alone(speech())
        ticket = sim.submit(speech(stop_ids=frozenset({own[at]})))
        sim.run()
        assert sim.chunks[ticket] == own[: own.index(own[at])]
        assert sim.ended[ticket].finish is Finish.STOP


def test_the_tokens_of_one_step_end_where_the_work_ends() -> None:
    """With any drafter no token behind a stop token or the limit is delivered, and the tokens before it are one
    chunk."""
    for limit, stops, wanted in ((9, {7}, ((5, 6), Finish.STOP)), (2, set(), ((5, 6), Finish.LENGTH)), (9, {5}, None)):
        sim = Sim()
        sim.submit(speech(max_tokens=limit, stop_ids=frozenset(stops)))
        sim.run(until=lambda: bool(sim.scheduler.running))  # noqa: B023 - it is called here and now
        runner = next(iter(sim.scheduler.running.values()))
        chunk, finish = runner.all_picked([5, 6, 7, 8], frozenset(), 1)
        if wanted is None:
            assert chunk is None and finish is Finish.STOP
        else:
            assert chunk is not None and (chunk.tokens, finish) == wanted


def test_a_cancel_in_the_middle_of_a_drafted_step_leaves_nothing_behind() -> None:
    """While the step has guesses in it, the cancelled work's lane is emptied and freed."""
    sim = Sim()
    speculate(sim, 1.0)
    ticket = sim.submit(speech())
    while not sim.scheduler.idle:
        planned = sim.scheduler.plan(sim.clock())
        assert planned.step is not None or planned.wake_ns is not None
        if planned.step is None:
            sim.clock.advance(planned.wake_ns - sim.clock())  # type: ignore[operator]
            continue
        result = sim.engine.step(planned.step)
        sim.scheduler.apply(planned, result, 1000, sim.clock())
        if result.verified:
            break
    sim.cancel(ticket)  # this also checks the book
    assert sim.ended[ticket].finish is Finish.CANCELLED
    assert sim.scheduler.placer.lanes.leased == 0
    assert all(r.place.part is Part.BRANCH for r in sim.scheduler.running.values())


def test_guesses_count_in_the_budget() -> None:
    """A step with guesses, and the time to make them, is never predicted to take longer than its budget."""
    sim = Sim(cost=SimCost(step_us=200.0, micro_us=200.0, token_us=900.0))
    speculation = speculate(sim, 0.9, token_us=100.0)
    for n in range(5):
        sim.submit(speech(n, tier=Tier.GOLD, max_tokens=30))
    over = with_guesses = without = spent = longest_ns = 0
    while not sim.scheduler.idle:
        planned = sim.scheduler.plan(sim.clock())
        if planned.step is None:
            sim.clock.advance(max(1, (planned.wake_ns or 0) - sim.clock()))
            continue
        trusted = planned.budget_ns * sim.scheduler.costs.trust
        drafted = sum(s.drafts for s in planned.step.slices)
        if speculation.measuring:
            longest_ns = max(longest_ns, planned.budget_ns + speculation.spent_ns)
            spent += speculation.spent_ns > 0
        over += drafted > 0 and sim.scheduler.costs.predict_ns(planned.features) > 1.01 * trusted
        with_guesses += drafted > 0
        without += not drafted and all(r.decoding for r in planned.runners)
        began = sim.clock()
        result = sim.engine.step(planned.step)
        sim.scheduler.apply(planned, result, sim.clock() - began, sim.clock())
    assert not over
    assert spent and 5 * MS <= longest_ns <= 1.01 * 5 * MS
    assert with_guesses and without
    assert speculation.tiers[Tier.GOLD].offered > 0


def test_guesses_are_given_to_few_works_only() -> None:
    """Above works_max no work gets guesses. In any case one step in so many goes without."""
    sim = Sim()
    speculation = speculate(sim, 1.0, replace(ON, works_max=2))
    for n in range(3):
        sim.submit(speech(n))
    sim.run(until=lambda: len(sim.ended) > 0)
    assert not speculation.tiers[Tier.SILVER].offered
    sim.submit(speech(8, max_tokens=400))
    sim.run()
    assert speculation.tiers[Tier.SILVER].offered > 0
    plain = sim.scheduler.meter.steps - speculation.tiers[Tier.SILVER].steps
    assert plain >= speculation.tiers[Tier.SILVER].steps / PLAIN_EVERY


def test_a_tier_that_is_not_named_has_no_drafts() -> None:
    """Only works of the tiers in the settings get guesses."""
    sim = Sim()
    speculation = speculate(sim, 1.0, replace(ON, tiers=("bronze",)))
    sim.submit(speech(1))
    sim.submit(speech(2, tier=Tier.BRONZE))
    sim.run()
    assert [t.offered > 0 for t in speculation.tiers] == [False, False, True]


def test_drafts_that_do_not_pay_are_switched_off_and_tried_again_later() -> None:
    """Each tier gives up wrong guesses after the trial, and tries them again when the time has come."""
    sim = Sim(context_len=4096)
    settings = replace(ON, trial_steps=20, retry_s=5.0)
    speculation = speculate(sim, 0.0, settings)
    silver, bronze = speculation.tiers[Tier.SILVER], speculation.tiers[Tier.BRONZE]
    ticket = sim.submit(speech(max_tokens=300))
    sim.run()
    assert not silver.on and silver.switched_off == 1
    assert silver.steps == 20
    assert 0.0 < silver.gain < 1.0
    assert silver.off_until_ns - sim.ended[ticket].timings.last_ns <= 5 * S
    assert bronze.on
    sim.clock.advance(5 * S)
    sim.submit(speech(max_tokens=10))
    sim.run()
    assert silver.on and 0 < silver.steps < 20
    sim.submit(speech(max_tokens=100))
    sim.run()
    assert not silver.on and silver.switched_off == 2


def test_drafts_that_pay_go_on_and_their_gain_agrees_with_the_clock() -> None:
    """With weights that dominate a step and good guesses, drafts stay on. Measured and real gain agree within a
    tenth."""

    def took_ns(acceptance: float | None) -> tuple[int, Speculation | None]:
        sim = Sim(cost=WEIGHTY, context_len=4096)
        speculation = None if acceptance is None else speculate(sim, acceptance, replace(ON, trial_steps=30))
        sim.submit(speech(max_tokens=2000))
        sim.run()
        return sim.clock(), speculation

    plain_ns, _ = took_ns(None)
    drafted_ns, speculation = took_ns(0.8)
    assert speculation is not None
    silver = speculation.tiers[Tier.SILVER]
    assert silver.on
    assert silver.gain > 2.0
    # One step in 16 goes without drafts, so its gain is 1.
    assert plain_ns / drafted_ns == pytest.approx(silver.gain, rel=0.1)


def test_a_dear_drafter_does_not_pay() -> None:
    """Right guesses that cost more time than the step that they save are given up."""
    sim = Sim(cost=WEIGHTY, context_len=4096)
    speculation = speculate(sim, 1.0, replace(ON, trial_steps=30), token_us=4000.0)
    sim.submit(speech(max_tokens=400))
    sim.run()
    assert not speculation.tiers[Tier.SILVER].on


def test_drafting_takes_half_a_budget_at_most() -> None:
    """A drafter may take half of the step's budget."""
    sim = Sim()
    speculation = speculate(sim, 1.0, token_us=800.0)
    sim.submit(speech(1, tier=Tier.GOLD, max_tokens=20))
    longest = 0
    while sim.step():
        longest = max(longest, speculation.spent_ns)
    assert 0 < longest <= 2.5 * MS


def test_same_seed_same_trace() -> None:
    """With drafts all delivered tokens and their times follow from the submitted works."""

    def trace() -> list[tuple[int, int, str]]:
        rng = random.Random(7)
        sim = Sim(end_every=30)
        speculate(sim, 0.7, token_us=50.0)
        for _ in range(200):
            sim.submit(random_work(rng, 20, []))
            for _ in range(3):
                sim.step()
        sim.run()
        assert all(isinstance(e, Ended) for e in sim.ended.values())
        return sim.trace

    assert trace() == trace()
