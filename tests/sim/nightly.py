"""Worlds that take too long to run for every change: `make nightly` runs them."""

from dataclasses import replace

import pytest
from hypothesis import given, settings

from tests.daemon.fuzz import troubled
from tests.daemon.rpc.test_fuzz import HANDFUL, SLOWLY
from tests.sim.lives import HARD_TIMES, SCARCE, TEN_MINUTES, check_that_everything_happened, lived


@pytest.mark.parametrize("seed", range(2, 12))
def test_ten_minutes_of_other_worlds(seed: int) -> None:
    """With other seeds, too, every law holds and every kind of trouble happens."""
    check_that_everything_happened(*lived(seed, TEN_MINUTES))


@pytest.mark.parametrize("seed", range(4, 24))
def test_other_hard_times(seed: int) -> None:
    """With other seeds and for longer, the laws hold under overload."""
    lived(seed, replace(HARD_TIMES, seconds=60.0))


@pytest.mark.parametrize("seed", range(4, 24))
def test_other_scarce_times(seed: int) -> None:
    """With other seeds and for longer, no work waits for a place that a lower tier holds."""
    lived(seed, replace(SCARCE, seconds=60.0))


def test_100_000_messages_break_nothing() -> None:
    """The laws of test_fuzz.py hold for longer runs and for other messages each night."""
    with troubled() as (fuzz, runner):

        @settings(SLOWLY, max_examples=1_000, derandomize=False)
        @given(HANDFUL)
        def play(script) -> None:  # type: ignore[no-untyped-def]
            runner.run(fuzz.play(script))

        while fuzz.messages < 100_000:
            play()
