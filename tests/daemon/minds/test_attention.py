"""Attention, shares, cached answers and look-ahead, through a whole daemon."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from core.clock import MS
from core.errors import ConfigError
from core.words import NpcKey
from daemon.config import Config, check
from daemon.minds.mind import IntentSettings, Mind
from daemon.model import Model
from daemon.rpc.callers import Caller
from npcd.v1 import admin_pb2, intents_pb2, npcs_pb2, words_pb2
from tests.daemon.rig import Rig, Standing, gated, passes, quick, running, until, world
from tiers.activation import ActivationSettings
from tiers.phase import Phase, Record
from tiers.share import ShareSettings

MODEL = intents_pb2.INTENT_SOURCE_MODEL
POLICY = intents_pb2.INTENT_SOURCE_POLICY
PREDICTED = intents_pb2.INTENT_SOURCE_PREDICTED
ACTIVE, WARM, AMBIENT = words_pb2.ACTIVATION_ACTIVE, words_pb2.ACTIVATION_WARM, words_pb2.ACTIVATION_AMBIENT
WOLF = ("w1", "wolf", "hostile", 6.0)


def near(distance_m: float) -> tuple[str, str, str, float]:
    """A player at a distance."""
    return ("p1", "player", "neutral", distance_m)


def only_distance(**more: object) -> Config:
    """Settings in which only distance makes an NPC active or warm. Attention decides often, and at once."""
    activation = ActivationSettings(active_min=0, warm_min=0, every_ms=50, stay_s=0.0)
    config = quick(Config())
    return replace(config, intents=replace(config.intents, activation=activation, **more))  # type: ignore[arg-type]


def mind_of(rig: Rig, npc_id: str) -> Mind:
    """The daemon's mind of an NPC."""
    mind = rig.daemon.table.mind(NpcKey("", "vale", npc_id))
    assert mind is not None
    return mind


def record_of(rig: Rig, npc_id: str) -> Record[Mind]:
    """The record that decides when an NPC is asked."""
    record = rig.daemon.intents.asking.record(mind_of(rig, npc_id))
    assert record is not None
    return record


@asynccontextmanager
async def live(
    rig: Rig,
) -> AsyncIterator[tuple[asyncio.Queue[intents_pb2.ObservationFrame], list[intents_pb2.IntentFrame]]]:
    """A Live stream: a queue of frames to send, and the list of received frames."""
    sent: asyncio.Queue[intents_pb2.ObservationFrame] = asyncio.Queue()
    got: list[intents_pb2.IntentFrame] = []

    async def frames() -> AsyncIterator[intents_pb2.ObservationFrame]:
        while True:
            yield await sent.get()

    async def read() -> None:
        async for frame in rig.daemon.calls.live("", frames()):
            got.append(frame)

    reading = asyncio.create_task(read())
    try:
        yield sent, got
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def test_an_npc_far_from_every_player_is_the_policys_until_one_comes_near() -> None:
    """An ambient NPC is not asked. When the player comes near it is promoted and asked, and the stream and the watchers
    get the promotion with its reason."""
    async with running(gated(), only_distance()) as rig:
        calls = rig.daemon.calls
        events: list[npcs_pb2.NpcEvent] = []

        async def watch() -> None:
            async for event in calls.watch_npcs("", npcs_pb2.WatchNpcsRequest(world_id="vale")):
                events.append(event)

        watching = asyncio.create_task(watch())
        async with live(rig) as (sent, got):
            sent.put_nowait(rig.frame(rig.sees("npc0", WOLF)))
            assert (await rig.intent("npc0", lambda i: True)).source == POLICY
            assert record_of(rig, "npc0").phase is Phase.RESTING
            seen = rig.sees("npc0", WOLF, near(12.0))
            sent.put_nowait(rig.frame(seen))
            promoted = await rig.intent("npc0", lambda i: i.source == MODEL)
            assert (promoted.observed_tick, promoted.activation) == (seen.tick, ACTIVE)
            await until(lambda: any(f.activations for f in got) and len(events) > 0)
        watching.cancel()
        assert [(a.npc_id, a.activation) for f in got for a in f.activations] == [("npc0", ACTIVE)]
        assert [(e.kind, e.activation, e.reason) for e in events] == [
            (npcs_pb2.NPC_EVENT_KIND_PROMOTED, ACTIVE, "player at 12.0 m")
        ]
        described = await calls.describe("", npcs_pb2.DescribeRequest(world_id="vale", npc_ids=["npc0", "npc1"]))
        assert [(n.activation, n.activation_reason) for n in described.npcs] == [
            (ACTIVE, "player at 12.0 m"),
            (AMBIENT, "never observed"),
        ]
        status = await calls.admin.status(Caller(""), admin_pb2.StatusRequest())
        assert (status.npcs_active, status.npcs_warm, status.promotions) == (1, 0, 1)


async def test_a_stream_that_begins_hears_of_all_who_are_not_ambient() -> None:
    """The snapshot has their activations; later frames have changes."""
    async with running(gated(), only_distance()) as rig:
        frame = rig.frame(rig.sees("npc0", near(5.0)), rig.sees("npc1", near(50.0)), rig.sees("npc2", WOLF))
        await rig.daemon.calls.observe("", frame)
        async with live(rig) as (sent, got):
            sent.put_nowait(rig.frame())
            await until(lambda: bool(got))
        assert got[0].snapshot
        assert {a.npc_id: a.activation for a in got[0].activations} == {"npc0": ACTIVE, "npc1": WARM}


async def test_an_event_of_an_ambient_npc_is_asked_about_at_once() -> None:
    """The fast lane: an NPC that is attacked gets the model's answer, though it stays ambient."""
    async with running(gated(), only_distance()) as rig:
        await rig.daemon.calls.observe("", rig.frame(rig.sees("npc0", WOLF)))
        assert (await rig.intent("npc0", lambda i: True)).source == POLICY
        hit = rig.sees("npc0", WOLF, events=["attacked"])
        await rig.daemon.calls.observe("", rig.frame(hit))
        intent = await rig.intent("npc0", lambda i: i.source == MODEL)
        assert (intent.observed_tick, intent.activation) == (hit.tick, AMBIENT)


async def test_the_game_has_the_last_word_on_activation() -> None:
    """An override beats the distance in both directions. A wrong one is an error that names the field."""
    async with running(gated(), only_distance()) as rig:
        calls = rig.daemon.calls
        far = rig.sees("npc0", WOLF, has_activation=True, activation=ACTIVE)
        close = rig.sees("npc1", WOLF, near(3.0), has_activation=True, activation=AMBIENT)
        await calls.observe("", rig.frame(far, close))
        assert (await rig.intent("npc0", lambda i: True)).source == MODEL
        assert (await rig.intent("npc1", lambda i: True)).source == POLICY
        wrong = rig.sees("npc2", WOLF, has_activation=True)
        errors = (await calls.observe("", rig.frame(wrong))).errors
        assert [(e.npc_id, e.code, e.field) for e in errors] == [("npc2", "INVALID_FIELD", "activation")]


async def test_of_an_ambient_npc_only_the_newest_observation_is_looked_at_and_its_errors_are_told() -> None:
    """Of a stream's many observations of it one in 100 ms is read. A fault of the newest is reported."""
    clock = Standing()
    config = only_distance(ambient_look_ms=100)
    async with running(gated(), config, clock=clock) as rig, live(rig) as (sent, got):
        clock.at_ns = clock()
        sent.put_nowait(rig.frame(rig.sees("npc0", WOLF)))
        await until(lambda: any(f.intents for f in got))
        looked, mind, counts = [], mind_of(rig, "npc0"), rig.daemon.table.counts
        for n in range(1, 56):  # one in 10 ms
            clock.at_ns += 10 * MS
            before, seen_before = mind.seen, counts.observations
            last = rig.sees("npc0", ("w1", "wolf", "hostile", 1.0 + n))
            sent.put_nowait(rig.frame(last))
            await until(lambda count=seen_before: counts.observations > count)  # type: ignore[misc]
            looked += [n] * (mind.seen is not before)
        assert looked == [10, 20, 30, 40, 50]
        assert mind.seen is not None and mind.seen.tick < last.tick
        await passes(rig, 300)
        assert mind.seen.tick == last.tick, "the newest"
        wrong = rig.sees("npc0", WOLF, health=2.0, has_health=True)
        sent.put_nowait(rig.frame(wrong))
        await until(lambda: any(f.errors for f in got), "the error")
        assert [(e.npc_id, e.field) for f in got for e in f.errors] == [("npc0", "health")]


async def test_an_npc_that_waits_has_the_policys_answer_and_is_asked_about_the_newest_later() -> None:
    """One question at a time is allowed for four NPCs. Three wait with the rules' answers, and keep up with their
    observations."""
    model = gated()
    engine = model.engine
    share = ShareSettings(under_way_max=1, reserve_share=0.0)
    async with running(model, only_distance(share=share, answer_within_ms=40)) as rig:
        calls = rig.daemon.calls
        engine.gated = True
        await calls.observe("", rig.frame(*(rig.sees(f"npc{n}", near(3.0)) for n in range(4))))
        for n in range(4):
            assert (await rig.intent(f"npc{n}", lambda i: True)).source == POLICY
        status = await calls.admin.status(Caller(""), admin_pb2.StatusRequest())
        assert status.intents_put_off == 3
        newest = [rig.sees(f"npc{n}", near(10.0), WOLF) for n in range(4)]
        await calls.observe("", rig.frame(*newest))
        waits = next(f"npc{n}" for n in range(4) if record_of(rig, f"npc{n}").phase is Phase.IN_LINE)
        tick = next(o.tick for o in newest if o.npc_id == waits)
        kept_up = await rig.intent(waits, lambda i: i.observed_tick == tick)
        assert kept_up.source == POLICY
        engine.open()
        for o in newest:
            answer = await rig.intent(o.npc_id, lambda i, tick=o.tick: i.source == MODEL and i.observed_tick == tick)  # type: ignore[misc]
            assert answer.observed_tick == o.tick
        assert rig.daemon.table.counts.model <= 5, "those that waited were asked about the newest alone"


async def test_an_engine_that_stands_still_leaves_every_due_intent_to_the_policy_soon() -> None:
    """That is long before answer_within_ms, and changes nothing else. When the engine goes on, the model answers
    again."""
    model = gated()
    engine = model.engine
    config = only_distance(answer_within_ms=10_000, stall_ms=30)
    async with running(model, config) as rig:
        calls = rig.daemon.calls
        engine.gated = True
        for n in range(4):
            seen = rig.sees(f"npc{n}", near(3.0), WOLF)
            await calls.observe("", rig.frame(seen))
            answer = await rig.intent(f"npc{n}", lambda i: True)
            assert (answer.source, answer.observed_tick) == (POLICY, seen.tick)
        got = await calls.get_intents("", intents_pb2.GetIntentsRequest(world_id="vale"))
        assert len(got.intents) == 4
        engine.open()
        for n in range(4):
            assert (await rig.intent(f"npc{n}", lambda i: i.source == MODEL)).confidence > 0


async def test_the_same_question_is_not_asked_twice() -> None:
    """An NPC that is back in an earlier state gets the model's earlier answer, at once and without tokens."""
    async with running(gated(), only_distance()) as rig:
        calls, counts = rig.daemon.calls, rig.daemon.table.counts
        first = rig.sees("npc0", near(3.0))
        await calls.observe("", rig.frame(first))
        said = await rig.intent("npc0", lambda i: i.source == MODEL)
        away = rig.sees("npc0", near(10.0))
        await calls.observe("", rig.frame(away))
        await rig.intent("npc0", lambda i: i.source == MODEL and i.observed_tick == away.tick)
        finished = rig.daemon.step_backend.scheduler.meter.tiers[0].output_tokens
        back = rig.sees("npc0", near(3.5))
        await calls.observe("", rig.frame(back))
        again = await rig.intent("npc0", lambda i: i.observed_tick == back.tick)
        assert (again.action, again.target_entity_id, again.emotion) == (
            said.action,
            said.target_entity_id,
            said.emotion,
        )
        assert (again.source, counts.remembered) == (MODEL, 1)
        assert rig.daemon.step_backend.scheduler.meter.tiers[0].output_tokens == finished


async def test_a_world_that_changes_forgets_what_was_answered() -> None:
    """With another lore the question is another one."""
    async with running(gated(), only_distance()) as rig:
        calls = rig.daemon.calls
        await calls.observe("", rig.frame(rig.sees("npc0", near(3.0))))
        await rig.intent("npc0", lambda i: i.source == MODEL)
        assert mind_of(rig, "npc0").answers
        await calls.define_world("", world(language="de"))
        assert not mind_of(rig, "npc0").answers


async def test_without_change_driven_every_slot_asks() -> None:
    """At a fixed cadence the same state is asked about again and again, as long as it is observed."""
    async with running(gated(), only_distance(change_driven=False), clock=Standing()) as rig:
        calls = rig.daemon.calls
        while rig.daemon.table.counts.model < 3:  # at most for the test's own time limit
            await calls.observe("", rig.frame(rig.sees("npc0", near(3.0))))
            await passes(rig, 60)  # a slot has 50 ms
        assert rig.daemon.table.counts.remembered == 0


async def test_history_tells_what_stood_before() -> None:
    """The newest is last, with state, source and tick, and only on request."""
    async with running(gated(), only_distance()) as rig:
        calls = rig.daemon.calls
        ticks = []
        for distance_m in (3.0, 10.0, 30.0):
            seen = rig.sees("npc0", near(distance_m))
            ticks.append(seen.tick)
            await calls.observe("", rig.frame(seen))
            await rig.intent("npc0", lambda i, tick=seen.tick: i.observed_tick == tick and i.source == MODEL)  # type: ignore[misc]
        request = npcs_pb2.DescribeRequest(world_id="vale", npc_ids=["npc0"])
        assert not (await calls.describe("", request)).npcs[0].history
        request.with_history = True
        history = (await calls.describe("", request)).npcs[0].history
        answered = [past for past in history if past.source == "model"]
        assert [past.observed_tick for past in answered] == ticks
        assert "player neutral close" not in answered[0].state and "player neutral near" in answered[0].state


@pytest.mark.parametrize("on", [True, False])
async def test_the_state_of_a_player_who_walks_up_is_asked_about_ahead(real: Model, on: bool) -> None:
    """On the shipped model, when the expected state comes true its answer is there at once, with source predicted, and
    equals the model's answer at that time.
    """
    config = only_distance()
    prediction = replace(config.intents.prediction, on=on, states_max=1, wasted_max=0.95)
    config = replace(config, intents=replace(config.intents, prediction=prediction, remember=0))
    async with running(real, config) as rig:
        calls = rig.daemon.calls
        game_ms, foreseen = 1000, None
        for walk in range(20 if on else 2):
            for n in range(80):  # from 12 m to 4 m at 2 m/s: at 8 m "away" becomes "near"
                player = (f"p{walk}", "player", "neutral", 12.0 - 0.1 * n)
                frame = rig.frame(rig.sees("npc0", player, time_of_day="day", place="market"))
                frame.game_time_ms = game_ms = game_ms + 50
                await calls.observe("", frame)
                await asyncio.sleep(0.01)
                got = await calls.get_intents("", intents_pb2.GetIntentsRequest(world_id="vale", npc_ids=["npc0"]))
                foreseen = next((i for i in got.intents if i.source == PREDICTED), foreseen)
            if foreseen is not None:
                break
        status = await calls.admin.status(Caller(""), admin_pb2.StatusRequest())
        assert (foreseen is not None) is on
        assert bool(status.predictions_hit) is on and bool(status.intents_predicted) is on
        assert bool(status.predicted_tokens) is on
        if foreseen is not None:
            twin = rig.sees("npc2", near(7.5), time_of_day="day", place="market")
            await calls.observe("", rig.frame(twin))
            asked = await rig.intent("npc2", lambda i: i.source == MODEL)
            assert (asked.action, asked.emotion) == (foreseen.action, foreseen.emotion)
            await calls.remove("", npcs_pb2.RemoveRequest(world_id="vale", npc_ids=["npc0", "npc2"]))
            assert not rig.daemon.look_ahead.foresight.expecting


def test_settings_that_do_not_fit_together_are_refused() -> None:
    """The error names each setting."""
    for intents, said in (
        (IntentSettings(stall_ms=0), "intents.stall_ms"),
        (IntentSettings(stall_ms=200, answer_within_ms=100), "intents.stall_ms"),
        (IntentSettings(warm_look_ms=-1), "intents.warm_look_ms"),
        (IntentSettings(remember=1000), "intents.remember"),
        (IntentSettings(activation=ActivationSettings(enter_m=50.0)), "intents.activation.leave_m"),
        (IntentSettings(share=ShareSettings(under_way_max=0)), "intents.share.under_way_max"),
    ):
        with pytest.raises(ConfigError, match=said):
            check(replace(Config(), intents=intents))
