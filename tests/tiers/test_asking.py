"""Asking keeps its laws in any order of inputs, and decides as its simple, slow twin does."""

from __future__ import annotations

import pytest

from tests.tiers.asking_world import World

STEPS = 600


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("pauses", [False, True], ids=["few places", "games that pause"])
def test_asks_as_the_slow_version(pauses: bool, seed: int) -> None:
    """Both want the same acts after every input, the laws hold, and in the end nothing is left."""
    world = World(seed, pauses)
    for _ in range(STEPS):
        world.step()
    world.settle()
    assert min(world.counts.get(what, 0) for what in ("ask", "stand", "rule")) > 0, "something happened"


@pytest.mark.parametrize("seed", range(10))
def test_asks_as_the_slow_version_in_every_slot(seed: int) -> None:
    """The same holds for NPCs that are asked without a change, too."""
    world = World(seed, pauses=seed % 2 == 0, change_driven=False)
    for _ in range(STEPS):
        world.step()
    world.settle()


@pytest.mark.parametrize("seed", range(20))
def test_the_laws_hold_when_there_is_room_for_little_at_a_time(seed: int) -> None:
    """Each tick does one to five things, and later ticks do the rest."""
    world = World(seed, pauses=seed % 2 == 0, twin=False)
    for _ in range(STEPS):
        world.step()
    world.settle()
