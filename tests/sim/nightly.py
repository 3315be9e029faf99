"""Worlds that take too long for every change: `make nightly`."""

from dataclasses import replace

import pytest

from tests.sim.lives import HARD_TIMES, TEN_MINUTES, check_that_everything_happened, lived


@pytest.mark.parametrize("seed", range(2, 12))
def test_ten_minutes_of_other_worlds(seed: int) -> None:
    """With other seeds, too, every law holds and everything was there."""
    check_that_everything_happened(*lived(seed, TEN_MINUTES))


@pytest.mark.parametrize("seed", range(4, 24))
def test_other_hard_times(seed: int) -> None:
    """With other seeds, and for longer, the laws hold under overload."""
    lived(seed, replace(HARD_TIMES, seconds=60.0))
