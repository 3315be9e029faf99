"""The worlds that the simulation's tests run."""

from __future__ import annotations

from dataclasses import replace

from core.words import Finish, Tier
from scheduler.window import Closed
from tests.sim.laws import Broken, Laws
from tests.sim.world import World, WorldSettings
from tiers.promises import Promises

TEN_MINUTES = WorldSettings(seconds=600.0, failures=60)
PROMISES = Promises()
# More Gold than the engine can do, dialogues in crowds, no rest, and a Bronze bound that is reached again and again.
HARD_TIMES = WorldSettings(
    seconds=20.0,
    npcs=300,
    active=160,
    dialogues=60,
    stories_waiting=20,
    overfill_every_s=6.0,
    storm_every_s=0.0,
    lull_every_s=0.0,
    promises=replace(PROMISES, bronze=replace(PROMISES.bronze, wait_max_ms=1500)),
)
# Works compete for few lanes and sequences. Conversations end and begin again, guesses share the trunks of intents,
# Gold asks about forks while they speak, and failures make works begin anew.
SCARCE = WorldSettings(
    seconds=12.0,
    npcs=120,
    active=32,
    dialogues=16,
    stories_waiting=8,
    storm_every_s=0.0,
    overfill_every_s=0.0,
    lull_every_s=5.0,
    lull_s=1.0,
    forget_every_s=0.5,
    wonder_every_s=0.1,
    foresee_every_s=0.1,
    part_share=0.5,
    failures=40,
    sequences=44,
    prefixes=4,
    lanes=8,
    promises=replace(PROMISES, bronze=replace(PROMISES.bronze, wait_max_ms=3000)),
)


def lived(seed: int, settings: WorldSettings) -> tuple[World, Laws]:
    """A world that has run to its end. If a law breaks, the message says how to repeat the run."""
    world = World(seed, settings)
    try:
        laws = world.run()
    except AssertionError as error:
        at_s = world.clock() / 1e9
        raise Broken(f"{error}\nat {at_s:.3f} s of World({seed}, {settings})\n{world.laws.report()}") from error
    print(f"seed {seed}:\n{laws.report()}")
    return world, laws


def check_that_everything_happened(world: World, laws: Laws) -> None:
    """Every kind of trouble happened: a world in which nothing goes wrong would prove little."""
    scheduler = world.scheduler
    placer = scheduler.placer
    ends = laws.finishes
    for tier in Tier:
        for finish in (Finish.STOP, Finish.LENGTH, Finish.CANCELLED, Finish.FAILED):
            assert ends[tier, finish], f"no {tier.name} ended as {finish.name}"
    assert any(ends[tier, Finish.REFUSED] for tier in Tier)
    assert ends[Tier.GOLD, Finish.SUPERSEDED]
    assert world.rested > 10
    assert scheduler.meter.step_failures > 10
    assert placer.moves.moved_out > 100
    assert placer.moves.loaded > 100
    assert placer.homes.ram_dropped > 10
    assert world.adopted > 100
    parking = placer.moves.parking
    assert min(parking.parked, parking.fetched, parking.lost, parking.given_up, placer.moves.refused["checksum"]) > 10
    # Rule TIME needs an expected work that does not come; tests/scenarios/window.txt covers it.
    unused = [
        rule.name for rule, times in scheduler.admission.window.closed.items() if not times and rule is not Closed.TIME
    ]
    assert not unused, f"no window was closed by {unused}"
