"""A client waits for a daemon as long as its start moves."""

import pytest

from npcd_client.v1 import admin_pb2
from npcd_client.waiting import NOBODY_S, STUCK_S, UNTOLD_S, Waiting


def status(stage: str, share: float, still_s: float = 0.0, engine: str = "") -> admin_pb2.StatusResponse:
    """The status that a daemon gives while it starts."""
    starting = admin_pb2.Starting(
        stage=stage, engine=engine, share=share, left_ms=12_000, still_ms=round(still_s * 1000)
    )
    return admin_pb2.StatusResponse(phase="starting", starting=starting)


def test_it_waits_for_hours_while_the_start_moves() -> None:
    """A little progress each time is enough."""
    waiting = Waiting(0.0)
    for minute in range(120):
        waiting.hears(status("loading the model", minute / 200), minute * 59.0)
        assert waiting.gives_up(minute * 59.0 + 25) == ""


@pytest.mark.parametrize("daemon_says", [True, False])
def test_it_gives_up_with_the_stage_when_the_start_is_stuck(daemon_says: bool) -> None:
    """After a minute without progress, by the daemon's own count or by the client's."""
    waiting = Waiting(0.0)
    for second in range(round(STUCK_S) + 1):
        assert waiting.gives_up(float(second)) == ""
        still_s = float(second) if daemon_says else 0.0
        waiting.hears(status("tuning", 0.3, still_s, "talk"), float(second))
    waiting.hears(status("tuning", 0.3, STUCK_S + 1 if daemon_says else 0.0, "talk"), STUCK_S + 1)
    why = waiting.gives_up(STUCK_S + 1.5)
    assert "stuck for 6" in why and "tuning of engine 'talk', 30% done" in why


def test_it_gives_up_when_nobody_answers() -> None:
    """A daemon that goes away is waited for as long as one that has not come yet."""
    waiting = Waiting(0.0)
    assert waiting.gives_up(NOBODY_S - 1) == ""
    assert "nothing answered there for 30 s" in waiting.gives_up(NOBODY_S + 1)
    waiting.hears(status("tuning", 0.1), 100.0)
    assert waiting.gives_up(129.0) == "" and "nothing answered" in waiting.gives_up(131.0)
    assert "for 5 s" in Waiting(0.0, nobody_s=5.0).gives_up(6.0)


def test_a_daemon_that_does_not_say_how_far_it_is_is_waited_for_three_minutes() -> None:
    """Its contract is older; it has no stage."""
    waiting = Waiting(0.0)
    for second in range(0, round(UNTOLD_S), 5):
        waiting.hears(None, float(second))
        assert waiting.gives_up(float(second)) == "" and waiting.stage == ""
    assert "does not say how far it is" in waiting.gives_up(UNTOLD_S + 1)
