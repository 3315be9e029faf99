"""The caps follow the engine's capacity: down at once when intents are late, and slowly up again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.clock import MS, S
from core.errors import ConfigError
from tiers.carrying import LEAST, Carrying, CarrySettings, check_carry

ROUND_NS = 250 * MS


def rounds(carrying: Carrying, count: int, took_ms: float, each: int = 40, since_ns: int = 0) -> int:
    """Rounds of intents that all take the same time; returns the moment after them."""
    for n in range(count):
        for _ in range(each):
            carrying.answered(round(took_ms * MS))
        carrying.decide(0, since_ns + n * ROUND_NS)
    return since_ns + count * ROUND_NS


def test_in_time_it_grows_to_all() -> None:
    """The caps start at half of their maxima and grow by some percent a second."""
    carrying = Carrying()
    assert carrying.caps(80, 200, 400) == (100, 200)
    now_ns = rounds(carrying, 40, took_ms=12)
    assert 0.75 < carrying.share < 0.85
    rounds(carrying, 40, took_ms=12, since_ns=now_ns)
    assert carrying.caps(80, 200, 400) == (200, 400)


def test_late_it_shrinks_at_once_but_not_below_the_floor_of_active_ones() -> None:
    """The caps shrink by a tenth each half second, and so does the number that fills up the warm level."""
    carrying = Carrying(CarrySettings(start=1.0))
    rounds(carrying, 5, took_ms=200)
    assert carrying.share == pytest.approx(0.9**3)
    rounds(carrying, 400, took_ms=200, since_ns=2 * S)
    assert carrying.share == LEAST
    assert carrying.caps(80, 200, 400) == (80, 20)


def test_after_being_late_it_waits_before_it_grows() -> None:
    """After the last late intent the caps stay for calm_s before they grow."""
    carrying = Carrying(CarrySettings(start=0.8))
    now_ns = rounds(carrying, 1, took_ms=200)
    shrunk = carrying.share
    now_ns = rounds(carrying, 7, took_ms=10, since_ns=now_ns)
    assert carrying.share == shrunk
    rounds(carrying, 20, took_ms=10, since_ns=now_ns)
    assert carrying.share > shrunk


def test_a_few_late_ones_of_many_and_few_at_all_say_nothing() -> None:
    """Late intents up to late_share of a round, and rounds of fewer than eight, change nothing."""
    carrying = Carrying(CarrySettings(start=0.9))
    for _ in range(97):
        carrying.answered(10 * MS)
    for _ in range(3):
        carrying.answered(500 * MS)
    carrying.decide(0, ROUND_NS)
    for _ in range(7):
        carrying.answered(500 * MS)
    assert carrying.decide(0, 2 * ROUND_NS) >= 0.9


def test_an_overdue_npc_without_an_answer_is_late_too() -> None:
    """An NPC that is overdue counts as late, although it has no answer yet."""
    carrying = Carrying(CarrySettings(start=0.9))
    carrying.decide(20, ROUND_NS)
    assert carrying.share < 0.9


@given(st.lists(st.tuples(st.integers(0, 60), st.floats(0, 1000), st.integers(0, 50), st.integers(1, 3000))))
def test_the_share_stays_within_its_bounds(said: list[tuple[int, float, int, int]]) -> None:
    """The share stays within its bounds for random rounds."""
    carrying, now_ns = Carrying(), 0
    for answers, took_ms, overdue, passed_ms in said:
        for _ in range(answers):
            carrying.answered(round(took_ms * MS))
        now_ns += passed_ms * MS
        assert LEAST <= carrying.decide(overdue, now_ns) <= 1.0


def test_settings_that_cannot_be_are_refused() -> None:
    """The error names the setting."""
    for settings, said in (
        (CarrySettings(start=0.0), "start"),
        (CarrySettings(late_share=0.0), "late_share"),
        (CarrySettings(less=1.0), "less"),
        (CarrySettings(more_per_s=0.0), "more_per_s"),
        (CarrySettings(late_ms=0.0), "late_ms"),
        (CarrySettings(calm_s=-1.0), "calm_s"),
    ):
        with pytest.raises(ConfigError, match=f"intents.carry.{said}"):
            check_carry(settings)
