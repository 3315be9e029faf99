"""A world whose works have drafts keeps the same laws: each ticket ends once, gets its own tokens, and budgets are
kept."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from core.choice import Tokens
from core.words import Tier
from engines import sim
from engines.sim import ForcedDrafts, SimEngine
from scheduler.scheduler import Scheduler, SchedulerSettings
from scheduler.speculation import Speculation, SpeculationSettings
from tests.sim.laws import Broken, Laws
from tests.sim.world import World, WorldSettings
from tiers.promises import Promises

CALM = WorldSettings(
    seconds=60.0,
    npcs=200,
    active=32,
    dialogues=8,
    stories_waiting=1,
    storm_every_s=9.0,
    overfill_every_s=0.0,
    failures=40,
)


def lived(seed: int, acceptance: float, settings: WorldSettings = CALM) -> tuple[World, Laws, Speculation]:
    """A world that has run to its end, with drafts from a slow draft model throughout."""

    def make(engine: SimEngine, promises: Promises, scheduler: SchedulerSettings) -> Scheduler:
        on = SpeculationSettings(drafts="model", works_max=40, tokens_max=4, trial_steps=10**9)
        drafter = ForcedDrafts(engine, acceptance, 40.0, settings.end_every)
        return Scheduler(engine, promises, scheduler, Speculation(on, drafter, engine.vocab.eog_ids))

    world = World(seed, settings, make)
    laws = world.run()
    speculation = world.scheduler.composer.speculation
    assert speculation is not None
    return world, laws, speculation


def test_a_world_with_drafts_keeps_the_laws() -> None:
    """The laws hold with right and wrong drafts on every tier, beside cancels, failures, choices and adapters."""
    for seed, acceptance in ((1, 0.7), (2, 0.3), (3, 1.0)):
        world, laws, speculation = lived(seed, acceptance)
        assert laws.checked_tokens > 1000
        assert world.scheduler.meter.step_failures > 5
        for tier in (Tier.GOLD, Tier.SILVER, Tier.BRONZE):
            assert speculation.tiers[tier].offered > 100, f"{tier.name}: {speculation.tiers[tier]}"


def test_same_seed_same_trace_with_drafts() -> None:
    """All delivered tokens and their times follow from the seed."""
    short = replace(CALM, seconds=10.0)
    (_, first, _), (_, second, _), (_, other, _) = (lived(seed, 0.6, short) for seed in (5, 5, 6))
    assert first.trace == second.trace
    assert first.trace != other.trace


def test_drafts_that_nobody_verifies_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The laws can fail: a work that is given guesses unverified does not get its own tokens."""

    def believe(drafts: Tokens, pick: Callable[[int], int]) -> list[int]:
        return [*map(int, drafts), pick(len(drafts))]

    monkeypatch.setattr(sim, "verify", believe)
    with pytest.raises(Broken, match="tokens: ticket"):
        lived(1, 0.7, replace(CALM, seconds=40.0))
