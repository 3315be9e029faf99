"""Conversations are admitted as far as the engine carries them, and a person reads what it cannot carry."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from core.clock import S
from core.errors import Overloaded
from core.words import Activation, NpcKey
from daemon.minds.pacing import Pacing
from engines.base import Geometry
from engines.sim import SimCost, SimEngine, SimVocab, VirtualClock
from prompts.marks import MARKS
from scheduler.placing import KvSettings
from scheduler.scheduler import Scheduler, SchedulerSettings
from scheduler.step_backend import StepBackend
from scheduler.ticket import Door
from scheduler.warmup import sweep
from tiers.activation import ActivationSettings
from tiers.cadence import CadenceSettings
from tiers.pace import PaceSettings, Wanted
from tiers.promises import Promises
from tiers.routing import Routes


def pacing(token_ms: float, golden: Collection[str] = ("llama",)) -> tuple[Pacing, VirtualClock]:
    """The pace of an engine that takes so long for a token, as its warm-up measured it; the engine is not started."""
    clock = VirtualClock(10 * S)
    vocab = SimVocab(list(MARKS.values()))
    cost = SimCost(token_us=token_ms * 1000)
    engine = SimEngine(Geometry(40, 1024, 512, 128, vocab.size), vocab, clock, cost)
    kv = KvSettings(prefixes=2, lanes=6, ram_mib=1)
    scheduler = Scheduler(engine, Promises(), SchedulerSettings(kv=kv))
    sweep(engine, scheduler.costs, clock)
    door = Door({"llama": StepBackend(scheduler, clock)}, Promises(), clock)
    settings = (PaceSettings(), CadenceSettings(), ActivationSettings())
    return Pacing(door, Promises(), Routes(), settings[0], golden, *settings[1:], 100, clock), clock


def carried(kept: Pacing) -> int:
    """How many conversations are carried."""
    return next(iter(kept.all))[1].carried.conversations_max


def test_an_engine_without_intents_carries_more_conversations() -> None:
    """Nothing is kept free for intents where none are made."""
    beside, alone = carried(pacing(12.0)[0]), carried(pacing(12.0, golden=())[0])
    assert 1 < beside < alone, (beside, alone)


def npc(n: int) -> NpcKey:
    """An NPC's name."""
    return NpcKey("", "vale", f"npc{n}")


def test_a_new_conversation_beyond_the_pace_is_refused_with_a_retry_time() -> None:
    """At 30 ms a token two conversations are carried. A third is refused until one has been silent for 30 s; those
    under way are never refused."""
    ours, clock = pacing(30.0)
    ours.admit(npc(0), "p")
    clock.advance(S)
    ours.admit(npc(1), "p")
    with pytest.raises(
        Overloaded, match=r"2 conversations are under way and the engine carries 2 \(3.* ms a token"
    ) as e:
        ours.admit(npc(2), "p")
    assert e.value.retry_ms == 29_000
    clock.advance(28 * S)
    ours.admit(npc(1), "p")
    with pytest.raises(Overloaded) as e:
        ours.admit(npc(2), "p")
    assert e.value.retry_ms == 1_000
    clock.advance(S)
    ours.admit(npc(2), "p")
    ((_, kept),) = ours.all
    assert kept.refused == 2 and len(kept.talks) == 2


def test_what_is_carried_follows_the_costs_and_what_is_wanted() -> None:
    """A fast engine allows all of it. A slow one with many NPCs allows neither barks nor looking ahead."""
    for token_ms, all_of_it in ((0.05, True), (12.0, False)):
        ours, clock = pacing(token_ms)
        ours.wanted = Wanted(40, 40)
        clock.advance(S)
        assert ours.allows_barks(Activation.ACTIVE) == ours.allows_barks(Activation.WARM) == all_of_it
        assert ours.allows_loads() == ours.allows_look_ahead() == all_of_it
        assert (ours.intents.active_max >= 40) == all_of_it


def test_promises_that_cannot_be_kept_are_said_with_numbers() -> None:
    """At 40 ms a token a line for each promise says what it takes here and what helps. A fast engine says nothing."""
    ours, _ = pacing(40.0)
    gold, silver = ours.shortfalls("llama")
    assert gold.startswith("40 ms a token here, Gold is promised 16: about 2 NPCs every 2 s; set routes.intent.engine")
    assert "Silver is promised 250" in silver and "routes.reply.engine" in silver
    assert len(pacing(200.0)[0].shortfalls("llama")) == 3
    assert pacing(0.3)[0].shortfalls("llama") == []
