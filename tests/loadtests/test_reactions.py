"""A reaction runs from the observation with a new event to the model's first intent for it."""

from __future__ import annotations

from loadtests.reactions import FORGOTTEN_NS, Reactions
from npcd_client import GameClock, Intent, IntentSource, Observation

MS = 1_000_000


def seen(tick: int, *events: str) -> Observation:
    return Observation("mira", tick, events=events)


def intent(tick: int, source: IntentSource = IntentSource.MODEL, latency_ms: int = 30) -> Intent:
    return Intent("mira", 1, tick, "flee", "", "afraid", "", source, tick, 0, 0, "", 0, latency_ms, 1.0, 0, GameClock())


def test_both_sides_of_a_reaction() -> None:
    books = Reactions()
    books.observed(seen(5, "attacked"), 1000 * MS)
    assert books.answered(intent(5), 1035 * MS) == (35.0, 30.0)
    assert books.answered(intent(6), 1040 * MS) is None


def test_only_the_models_answer_to_that_observation_counts() -> None:
    books = Reactions()
    books.observed(seen(5, "attacked"), 1000 * MS)
    assert books.answered(intent(4), 1010 * MS) is None
    assert books.answered(intent(5, IntentSource.POLICY), 1020 * MS) is None
    assert books.answered(intent(5, latency_ms=0), 1025 * MS) is None, "words added to an intent"
    assert books.answered(intent(6), 1050 * MS) == (50.0, 30.0)


def test_an_event_that_goes_on_is_one_event() -> None:
    books = Reactions()
    books.observed(seen(5, "attacked"), 1000 * MS)
    books.observed(seen(6, "attacked"), 1100 * MS)
    assert books.answered(intent(6), 1130 * MS) == (130.0, 30.0)
    books.observed(seen(7, "attacked"), 1200 * MS)
    assert books.answered(intent(7), 1230 * MS) is None
    books.observed(seen(8, "bell_rang", "attacked"), 1300 * MS)
    assert books.answered(intent(8), 1330 * MS) == (30.0, 30.0)


def test_a_confirmation_is_no_reaction() -> None:
    books = Reactions()
    books.observed(seen(5, "attacked"), 1000 * MS)
    books.confirmed("mira", 4)
    books.confirmed("otto", 5)
    assert books.answered(intent(5), 1030 * MS) == (30.0, 30.0)
    books.observed(seen(6), 1100 * MS)
    books.observed(seen(7, "attacked"), 1200 * MS)
    books.confirmed("mira", 7)
    assert books.answered(intent(8), 2000 * MS) is None


def test_nobody_waits_for_ever() -> None:
    books = Reactions()
    books.observed(seen(5, "attacked"), 0)
    books.observed(seen(6), MS)
    books.observed(seen(7, "attacked"), FORGOTTEN_NS + MS)
    assert books.answered(intent(7), FORGOTTEN_NS + 11 * MS) == (10.0, 30.0)
