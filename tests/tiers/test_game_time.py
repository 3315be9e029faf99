"""Game time: scaled, paused, and never going back."""

from __future__ import annotations

import random

import pytest

from core.clock import MS, S
from tiers.game_time import FAR_NS, SLOT_MIN_NS, GameTime


def test_it_is_wall_time_until_somebody_says_otherwise() -> None:
    """A game at scale 1 has wall time's moments exactly, however late it begins and however often it reports its
    time."""
    time = GameTime(123)
    assert not time.tell(1.0, False, 456) and not time.tell(0.0, False, 789)
    for ns in (123, 500, 10**15 + 7):
        assert time.at(ns) == ns and time.wall(ns) == ns


def test_it_runs_at_its_scale_and_stands_still_while_paused() -> None:
    """Game time goes on from where it was: ten times as fast, then paused, then half as fast."""
    time = GameTime(0)
    assert time.tell(10.0, False, 1 * S)
    assert time.at(2 * S) == 11 * S
    assert time.tell(10.0, True, 2 * S)
    assert time.at(100 * S) == 11 * S
    assert time.tell(0.5, False, 100 * S)
    assert time.at(102 * S) == 12 * S


def test_a_slot_is_game_time_but_nobody_is_asked_more_often_than_twenty_times_a_second() -> None:
    """Slow games have their slots in game time. In fast ones a slot lasts at least 50 ms of wall time."""
    time = GameTime(0)
    for scale, slot_ns in ((1e-6, 500 * MS), (1.0, 500 * MS), (10.0, 500 * MS), (20.0, 1 * S), (1e6, 50_000 * S)):
        time.tell(scale, False, 0)
        assert time.slot_ns(500 * MS) == slot_ns
        assert time.slot_ns(500 * MS) >= SLOT_MIN_NS * scale or scale < 10


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e-9, 1e6])
def test_every_scale_that_a_frame_may_carry_has_moments(scale: float) -> None:
    """At every allowed scale, from almost standing to the fastest, each game time has a wall moment that is a whole
    number."""
    time = GameTime(0)
    time.tell(scale, False, S)
    assert S < time.wall(2 * S) <= S + FAR_NS + 1
    assert isinstance(time.at(50 * 24 * 3600 * S), int)


@pytest.mark.parametrize("seed", range(20))
def test_there_and_back(seed: int) -> None:
    """For random reports game time never goes back, and the moment of a game time is the first at which it has come."""
    dice = random.Random(seed)
    time, now_ns, last_ns = GameTime(0), 0, 0
    for _ in range(300):
        now_ns += dice.randrange(1, 3 * S)
        if dice.random() < 0.3:
            time.tell(dice.choice([0.0, 1.0, 0.001, 0.37, 2.5, 60.0, 1e6]), dice.random() < 0.3, now_ns)
        at_ns = time.at(now_ns)
        assert at_ns >= last_ns
        last_ns = at_ns
        if not time.paused:
            wanted_ns = at_ns + dice.randrange(1, 5 * S)
            wall_ns = time.wall(wanted_ns)
            assert wall_ns >= now_ns and time.at(wall_ns) >= wanted_ns
            assert time.at(wall_ns - 2) <= wanted_ns
