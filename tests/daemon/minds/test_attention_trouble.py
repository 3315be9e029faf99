"""Hard cases of attention: none may leave an NPC without an answer, or the daemon without rest."""

import asyncio
from dataclasses import replace

import pytest
import uvloop

from core.clock import S
from core.words import Activation, Finish
from daemon.config import Config
from npcd.v1 import npcs_pb2
from tests.daemon.minds.test_attention import (
    AMBIENT,
    MODEL,
    POLICY,
    WOLF,
    live,
    mind_of,
    near,
    only_distance,
    record_of,
)
from tests.daemon.rig import GatedEngine, Rig, Standing, gate_of, gated, passes, running, specs, until, world
from tiers.phase import Phase

BEAR = ("b1", "bear", "hostile", 4.0)


def engine_of(rig: Rig) -> GatedEngine:
    """The engine behind the gate."""
    return gate_of(rig)


async def answered(rig: Rig, npc_id: str, what: str = "an answer to what it sees") -> None:
    """Waits until an NPC has an intent, without calling the daemon."""
    mind = mind_of(rig, npc_id)
    await until(lambda: mind.intent is not None and mind.intent.state == mind.state, what)


def test_a_timer_that_fires_early_is_set_again() -> None:
    """uvloop counts in milliseconds and may call before the moment. An NPC that is due then is still asked."""

    async def play() -> None:
        async with running(gated(), only_distance()) as rig:
            for n in range(40):
                seen = rig.sees("npc0", near(3.0), *[("w1", "wolf", "hostile", 2.0 + n)] * (n % 3))
                await rig.daemon.calls.observe("", rig.frame(seen))
                await answered(rig, "npc0", f"answer {n}")

    uvloop.run(play())


async def test_an_npc_that_a_pause_puts_off_is_asked_when_it_is_over() -> None:
    """The game reports each thing once; the model answers afterwards to observations of the pause."""
    async with running(gated(), only_distance(), clock=Standing()) as rig:
        calls = rig.daemon.calls
        await calls.observe("", rig.frame(rig.sees("npc0", near(3.0))))
        await rig.intent("npc0", lambda i: i.source == MODEL)
        last = rig.sees("npc0", near(3.0), WOLF)
        await calls.observe("", rig.frame(last, paused=True))
        await passes(rig, 1_000)
        assert record_of(rig, "npc0").phase is Phase.PUT_OFF
        await calls.observe("", rig.frame())
        await rig.intent("npc0", lambda i: i.observed_tick == last.tick and i.source == MODEL)


async def test_an_npc_that_becomes_ambient_has_the_rules_answer_to_its_last_observation() -> None:
    """That holds even without a further observation."""
    config = only_distance()
    config = replace(
        config, intents=replace(config.intents, cadence=replace(config.intents.cadence, active_hz=0.5, warm_hz=0.5))
    )
    async with running(gated(), config) as rig:
        calls = rig.daemon.calls
        await calls.observe("", rig.frame(rig.sees("npc0", near(3.0))))
        await rig.intent("npc0", lambda i: i.source == MODEL)
        last = rig.sees("npc0", near(3.0), WOLF, has_activation=True, activation=AMBIENT)
        await calls.observe("", rig.frame(last))
        said = await rig.intent("npc0", lambda i: i.observed_tick == last.tick)
        assert said.source == POLICY


async def test_a_glimpse_that_is_looked_at_late_is_decided_about() -> None:
    """A player is in the newest observation, which was not read before the last decision."""
    async with running(gated(), only_distance(ambient_look_ms=100)) as rig, live(rig) as (sent, _):
        sent.put_nowait(rig.frame(rig.sees("npc0", WOLF)))
        await rig.intent("npc0", lambda i: True)
        sent.put_nowait(rig.frame(rig.sees("npc0", near(3.0))))
        await until(lambda: mind_of(rig, "npc0").glimpse is not None)
        await rig.daemon.calls.observe("", rig.frame(rig.sees("npc1", WOLF)))  # a decision, and the last one for now
        await until(lambda: mind_of(rig, "npc0").glimpse is None)
        await until(lambda: mind_of(rig, "npc0").activation is Activation.ACTIVE)


async def test_the_models_intent_is_not_replaced_by_the_rules_because_another_question_is_late() -> None:
    """It saw something for a moment, and sees now again a state that has the model's answer."""
    async with running(gated(), only_distance(answer_within_ms=60, stall_ms=30), clock=Standing()) as rig:
        calls = rig.daemon.calls
        await calls.observe("", rig.frame(rig.sees("npc0", near(3.0))))
        await rig.intent("npc0", lambda i: i.source == MODEL)
        mind = mind_of(rig, "npc0")
        await passes(rig, 100)
        engine_of(rig).gated = True
        await calls.observe("", rig.frame(rig.sees("npc0", near(3.0), WOLF)))
        await until(lambda: bool(record_of(rig, "npc0").questions))
        await calls.observe("", rig.frame(rig.sees("npc0", near(3.0))))
        await passes(rig, 1_000)
        assert mind.intent is not None
        assert mind.intent.source.name == "MODEL"
        engine_of(rig).open()
        await until(lambda: not record_of(rig, "npc0").questions)
        await passes(rig, 1_000)
        assert (mind.intent.source.name, mind.intent.state) == ("MODEL", mind.state)


async def test_a_late_answer_does_not_replace_one_to_the_present_state() -> None:
    """The NPC sees again a state that has an answer. The late answer is kept for its own state."""
    async with running(gated(), only_distance(), clock=Standing()) as rig:
        calls = rig.daemon.calls
        await calls.observe("", rig.frame(rig.sees("npc0", near(3.0))))
        await rig.intent("npc0", lambda i: i.source == MODEL)
        mind = mind_of(rig, "npc0")
        await passes(rig, 100)
        engine_of(rig).gated = True
        await calls.observe("", rig.frame(rig.sees("npc0", near(3.0), WOLF)))
        await until(lambda: bool(record_of(rig, "npc0").questions))
        await calls.observe("", rig.frame(rig.sees("npc0", near(3.0))))
        version = mind.version
        states = []
        stand = rig.daemon.table.stand
        rig.daemon.table.stand = lambda m, **more: (states.append(more["state"]), stand(m, **more))[1]  # type: ignore
        engine_of(rig).open()
        await until(lambda: not record_of(rig, "npc0").questions)
        await passes(rig, 1_000)
        assert not states, (version, states, mind.state)


async def test_npcs_of_a_world_that_changed_are_asked_again() -> None:
    """The world's words have changed, so the old intent is not good even for the same observation."""
    async with running(gated(), only_distance()) as rig:
        calls = rig.daemon.calls
        seen = {"npc0": near(3.0), "npc1": WOLF}
        await calls.observe("", rig.frame(*(rig.sees(*one) for one in seen.items())))
        for npc_id in seen:
            await rig.intent(npc_id, lambda i: i.action != "bow")
        bow = [npcs_pb2.ActionWord(word="bow")]
        other = world()
        other.ClearField("actions")
        other.actions.extend(bow)
        await calls.define_world("", other)
        await calls.observe("", rig.frame(*(rig.sees(*one) for one in seen.items())))
        await rig.intent("npc0", lambda i: i.action == "bow" and i.source == MODEL)
        assert (await rig.intent("npc1", lambda i: i.action == "bow")).source == POLICY


async def test_an_answer_from_the_world_as_it_was_is_not_remembered() -> None:
    """The world changed while the model was computing, so the answer belongs to the old world."""
    async with running(gated(), only_distance()) as rig:
        calls = rig.daemon.calls
        engine_of(rig).gated = True
        await calls.observe("", rig.frame(rig.sees("npc0", near(3.0))))
        await until(lambda: bool(record_of(rig, "npc0").questions) and engine_of(rig).at_gate)
        await calls.define_world("", world(language="de"))
        engine_of(rig).open()
        await until(lambda: not record_of(rig, "npc0").questions)
        await answered(rig, "npc0")
        await until(
            lambda: rig.daemon.step_backend.scheduler.meter.tiers[0].ended[Finish.STOP] == 2, "another question"
        )
        assert rig.daemon.table.counts.model == 1


async def test_a_world_that_changes_in_the_middle_of_a_frame() -> None:
    """Later parts of the frame are for the NPCs as they are now. A removed NPC has no mind."""
    async with running(gated(), only_distance(), npcs=0) as rig:
        calls = rig.daemon.calls
        await calls.define_world("", world())
        leases = await calls.register("", npcs_pb2.RegisterRequest(world_id="vale", npcs=specs(400)))
        rig.leases.update({one.npc_id: one.lease_epoch for one in leases.leases})
        frame = rig.frame(*(rig.sees(f"npc{n}", WOLF, near(3.0)) for n in range(400)))
        observing = asyncio.create_task(calls.observe("", frame))
        await until(lambda: len(rig.daemon.table.minds) > 0)
        assert len(rig.daemon.table.minds) < 400, "in the middle of the frame"
        await calls.define_world("", world(language="de"))
        await calls.remove("", npcs_pb2.RemoveRequest(world_id="vale", npc_ids=[f"npc{n}" for n in range(300, 400)]))
        await observing
        known = {n.key: n for w in rig.daemon.worlds for n in w.npcs.values()}
        assert set(rig.daemon.table.minds) <= set(known)
        assert all(known[key] is mind.npc for key, mind in rig.daemon.table.minds.items())


async def test_a_frame_whose_sender_goes_away_is_thought_about() -> None:
    """The call is cancelled in the middle. The observations that were taken are asked about."""
    async with running(gated(), only_distance(), npcs=0) as rig:
        calls = rig.daemon.calls
        await calls.define_world("", world())
        leases = await calls.register("", npcs_pb2.RegisterRequest(world_id="vale", npcs=specs(400)))
        rig.leases.update({one.npc_id: one.lease_epoch for one in leases.leases})
        frame = rig.frame(*(rig.sees(f"npc{n}", WOLF, near(3.0)) for n in range(400)))
        observing = asyncio.create_task(calls.observe("", frame))
        await until(lambda: len(rig.daemon.table.minds) > 0)
        observing.cancel()
        await asyncio.gather(observing, return_exceptions=True)
        minds = list(rig.daemon.table.minds.values())
        assert 0 < len(minds) < 400, "in the middle of the frame"
        await until(lambda: all(m.intent is not None for m in minds), "an intent for each")


async def test_an_observation_before_the_first_decision_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was asked at once because it was attacked. Its next observation came before attention decided about it."""
    async with running(gated(), only_distance()) as rig:
        calls = rig.daemon.calls
        await calls.observe("", rig.frame(rig.sees("npc1", WOLF)))  # a decision
        with monkeypatch.context() as patch:
            patch.setattr("daemon.minds.attention.NEWCOMERS_WITHIN_NS", 600 * S)  # no decision meanwhile
            await calls.observe("", rig.frame(rig.sees("npc0", WOLF, events=["attacked"])))
            mind = mind_of(rig, "npc0")
            await until(lambda: mind.intent is not None)
            assert not mind.decided
            await calls.observe("", rig.frame(rig.sees("npc0", WOLF, BEAR)))
            assert not mind.decided
        await calls.observe("", rig.frame(rig.sees("npc2", WOLF)))
        await answered(rig, "npc0")
        await until(lambda: mind.decided)


async def test_an_event_just_before_an_npc_becomes_ambient_is_asked_about() -> None:
    """The game lowers the NPC's attention in the very observation with a blow."""
    config = only_distance()
    cadence = replace(config.intents.cadence, active_hz=1.0, warm_hz=1.0)
    config = replace(config, intents=replace(config.intents, cadence=cadence))
    async with running(gated(), config) as rig:
        calls = rig.daemon.calls
        await calls.observe("", rig.frame(rig.sees("npc0", near(3.0))))
        await rig.intent("npc0", lambda i: i.source == MODEL)
        hit = rig.sees("npc0", near(3.0), WOLF, events=["attacked"], has_activation=True, activation=AMBIENT)
        await calls.observe("", rig.frame(hit))
        await rig.intent("npc0", lambda i: i.observed_tick == hit.tick and i.source == MODEL)


async def test_an_ambient_npc_keeps_nothing_for_looking_ahead() -> None:
    """A player has walked through a whole town once."""
    ahead = replace(Config().intents.prediction, on=True)
    async with running(gated(), only_distance(prediction=ahead), clock=Standing()) as rig:
        calls = rig.daemon.calls
        for _ in range(3):
            await calls.observe("", rig.frame(rig.sees("npc0", near(3.0))))
            await passes(rig, 70)
        mind = mind_of(rig, "npc0")
        assert mind.motion is not None
        await calls.observe("", rig.frame(rig.sees("npc0", near(300.0))))
        await until(lambda: mind.activation is Activation.AMBIENT)
        assert mind.motion is None
