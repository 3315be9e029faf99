"""Twelve states, and the judgement of a model's answers to them."""

import pytest

from daemon.process.answers import ACTIONS, STATES, judged, not_asked
from daemon.process.diagnosis import Outcome
from prompts.sight import percept_words, situation_words


def test_the_states_are_twelve_that_read_differently() -> None:
    """No two of them have the same words, so a model that answers all alike does not look at them."""
    read = {(situation_words(s), *map(percept_words, s.percepts)) for s in STATES}
    assert len(read) == len(STATES) == 12
    assert len({action.word for action in ACTIONS}) == 10


@pytest.mark.parametrize(("times", "outcome"), [(12, Outcome.WARN), (11, Outcome.WARN), (10, Outcome.OK)])
def test_nine_in_ten_alike_is_a_warning(times: int, outcome: Outcome) -> None:
    """The finding has the answer and how often it came. A warning says what helps."""
    check = judged([*["flee"] * times, *["wait", "help"][: 12 - times]])
    assert check.outcome is outcome and f"{times} of 12" in check.says and "'flee'" in check.says
    assert ("routes.intent.engine" in check.fix) == (outcome is Outcome.WARN)


def test_a_model_that_could_not_be_asked_is_no_problem() -> None:
    """The finding gives the reason."""
    check = not_asked("it is too slow")
    assert check.outcome is Outcome.OK and "it is too slow" in check.says
