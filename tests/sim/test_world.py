"""A world of a thousand NPCs, with all that goes wrong, keeps every law after every step.

More seeds and longer times: tests/sim/nightly.py, by `make nightly`.
"""

from dataclasses import replace
from typing import Any

import pytest

from core.words import Tier
from tests.sim.lives import HARD_TIMES, SCARCE, TEN_MINUTES, check_that_everything_happened, lived


def test_ten_minutes_of_a_thousand_npcs() -> None:
    """The laws hold with intents, barks, dialogues, stories, storms, failures, bursts and lulls, and all of these
    happened."""
    check_that_everything_happened(*lived(1, TEN_MINUTES))


@pytest.mark.parametrize("seed", range(1, 4))
def test_hard_times(seed: int) -> None:
    """Under endless overload the laws hold, and Bronze still gets tokens."""
    world, laws = lived(seed, HARD_TIMES)
    assert laws.gold_held_up > 1000
    assert world.scheduler.meter.tiers[Tier.BRONZE].output_tokens > 50


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize(
    "other",
    [{}, {"sequences": 20}, {"lanes": 3, "sequences": 60}, {"dialogues": 40, "part_share": 0.9, "sequences": 100}],
    ids=["", "sequences", "lanes", "talks"],
)
def test_nobody_waits_for_what_a_lower_tier_holds(seed: int, other: dict[str, Any]) -> None:
    """Trunks, lanes and sequences are scarce. Works of lower tiers give way at once or hurry, and the laws hold."""
    world, _ = lived(seed, replace(SCARCE, **other))
    assert sum(world.scheduler.put_back.values()) > 3


def test_same_seed_same_trace() -> None:
    """All delivered tokens and their times follow from the seed."""
    short = replace(TEN_MINUTES, seconds=10.0, storm_every_s=3.0, overfill_every_s=5.0)
    (_, first), (_, second), (_, other) = lived(7, short), lived(7, short), lived(8, short)
    assert first.trace == second.trace
    assert first.trace != other.trace
