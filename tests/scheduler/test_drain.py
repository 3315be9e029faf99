"""The drain rate follows how long works take and how many run at once. Idle times do not count."""

import random

import pytest

from scheduler.drain import SAMPLES, Drain


@pytest.mark.parametrize("at_once", [1, 3, 24])
def test_the_time_between_two_ends_is_a_works_time_shared_by_those_that_run(at_once: int) -> None:
    """Works take 240 ms each, and a fixed number run at once. Pauses of any length between the rounds change
    nothing."""
    rng, now, drain = random.Random(at_once), 1, Drain()
    assert drain.each_ns(now) is None
    for _ in range(2 * SAMPLES):
        now += rng.randrange(10**12)
        for _ in range(at_once):
            drain.submitted(now)
            drain.taken(now)
        now += 240 * 10**6
        each_ns = drain.each_ns(now)
        for _ in range(at_once):
            drain.ended(ran=True, counts=True, now_ns=now)
    assert each_ns == pytest.approx(240 * 10**6 / at_once, rel=0.02 + at_once / SAMPLES)


def test_works_that_only_wait_pass_the_time_as_one_that_runs() -> None:
    """A tier with waiting works and no running one is not idle."""
    drain = Drain()
    for _ in range(2):
        drain.submitted(0)
        drain.taken(0)
        drain.ended(ran=True, counts=True, now_ns=0)
    for _ in range(5):
        drain.submitted(0)
    assert drain.each_ns(10**9) == 10**9 / 2


def test_a_work_that_left_while_it_waited_says_nothing_about_the_rate() -> None:
    """A work that left while it waited took no time of the engine's."""
    drain = Drain()
    for _ in range(9):
        drain.submitted(0)
        drain.ended(ran=False, counts=False, now_ns=5)
    assert drain.each_ns(9) is None
