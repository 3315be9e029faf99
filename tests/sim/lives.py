"""Worlds that the tests live through."""

from __future__ import annotations

from dataclasses import replace

from core.words import Finish, Tier
from scheduler.window import Closed
from tests.sim.laws import Broken, Laws
from tests.sim.world import World, WorldSettings
from tiers.promises import Promises

TEN_MINUTES = WorldSettings(seconds=600.0, failures=60)
PROMISES = Promises()
# More Gold than the engine can do, dialogues in crowds, no rest, and a bound that Bronze reaches again and again.
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
# Everybody wants what others have: few lanes and sequences, conversations that end and begin again, guesses on the
# trunks of intents, forks that Gold asks about while they speak, and failures after which works begin anew.
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
    """A world that has come to its end; when it does not, the message says how to see it again."""
    world = World(seed, settings)
    try:
        laws = world.run()
    except AssertionError as error:
        at_s = world.clock() / 1e9
        raise Broken(f"{error}\nat {at_s:.3f} s of World({seed}, {settings})\n{world.laws.report()}") from error
    print(f"seed {seed}:\n{laws.report()}")
    return world, laws


def check_that_everything_happened(world: World, laws: Laws) -> None:
    """A world in which nothing went wrong would prove little."""
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
    parking = placer.moves.parking
    assert min(parking.parked, parking.fetched, parking.lost, parking.given_up, placer.moves.refused["checksum"]) > 10
    # Rule TIME needs somebody who was expected and does not come; tests/scenarios/window.txt has it.
    unused = [
        rule.name for rule, times in scheduler.admission.window.closed.items() if not times and rule is not Closed.TIME
    ]
    assert not unused, f"no window was closed by {unused}"
