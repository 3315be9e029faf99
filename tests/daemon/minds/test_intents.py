"""Observations become intents: the newest wins, equal ones confirm, and every NPC always has an answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest

from core.clock import S, now_ns
from core.steps import at_once
from core.words import NpcKey
from daemon.config import Config
from daemon.model import Model
from npcd.v1 import intents_pb2, npcs_pb2
from tests.daemon.rig import UNHURRIED, Standing, gated, passes, quick, running, specs
from tests.patience import PATIENCE_S
from tiers.phase import Phase

MODEL = intents_pb2.INTENT_SOURCE_MODEL
POLICY = intents_pb2.INTENT_SOURCE_POLICY
# A bark is a version of its own, at some time after the intent's.
SILENT = replace(UNHURRIED, intents=replace(UNHURRIED.intents, bark_every_ms=0))
WOLF = ("w1", "wolf", "hostile", 6.0)
FRIEND = ("p1", "player", "friendly", 3.0)


async def test_an_observation_becomes_an_intent_of_the_worlds_words(real: Model) -> None:
    """On the shipped model action, target and emotion are the world's, and the tick is echoed."""
    async with running(real) as rig:
        calls = rig.daemon.calls
        seen = rig.sees("npc0", WOLF, FRIEND, time_of_day="night", place="road")
        response = await calls.observe("", rig.frame(seen))
        assert response.accepted == 1
        intent = await rig.intent("npc0", lambda i: i.observed_tick == seen.tick)
        assert intent.source == MODEL
        assert intent.action in ("idle", "flee", "attack", "greet")
        assert intent.emotion in ("calm", "happy", "afraid", "angry")
        assert intent.target_entity_id in ("", "w1", "p1")
        assert (intent.target_entity_id != "") or intent.action in ("idle", "flee")
        assert 0 < intent.confidence <= 1
        got = await calls.get_intents("", intents_pb2.GetIntentsRequest(world_id="vale", npc_ids=["npc0", "npc1", "x"]))
        assert [i.npc_id for i in got.intents] == ["npc0"]
        assert got.unknown_npc_ids == ["x"]


async def test_the_same_state_confirms_and_costs_nothing() -> None:
    """No work is submitted. The intent is as young as the newest observation that agrees with it."""
    async with running(gated()) as rig:
        calls, counts = rig.daemon.calls, rig.daemon.table.counts
        await calls.observe("", rig.frame(rig.sees("npc0", WOLF)))
        first = await rig.intent("npc0", lambda i: True)
        for distance in (6.5, 7.0, 7.5):
            again = rig.sees("npc0", ("w1", "wolf", "hostile", distance))
            await calls.observe("", rig.frame(again))
        assert counts.confirmed == 3
        assert counts.model == 1
        now = await rig.intent("npc0", lambda i: True)
        assert now.version == first.version
        assert now.observed_tick == again.tick


async def test_the_newest_tick_wins_and_older_ones_are_counted() -> None:
    """Frames may come in any order."""
    async with running(gated()) as rig:
        calls = rig.daemon.calls
        old, new = rig.sees("npc0", WOLF), rig.sees("npc0", FRIEND)
        await calls.observe("", rig.frame(new))
        await calls.observe("", rig.frame(old))
        intent = await rig.intent("npc0", lambda i: True)
        assert intent.observed_tick == new.tick
        described = await calls.describe("", npcs_pb2.DescribeRequest(world_id="vale", npc_ids=["npc0"]))
        assert described.npcs[0].observations_dropped == 1
        assert described.npcs[0].observed_tick == new.tick


async def test_bad_observations_are_reported_one_by_one_and_the_rest_counts() -> None:
    """The errors of an unknown NPC, a stale lease, an infinite position and a wrong health name their fields. The good
    observation is answered."""
    async with running(gated()) as rig:
        stale = rig.sees("npc1")
        stale.lease_epoch = 99
        bad = rig.sees("npc2", x_m=float("inf"))
        ill = rig.sees("npc3", health=1.5, has_health=True)
        good = rig.sees("npc0", WOLF)
        response = await rig.daemon.calls.observe("", rig.frame(rig.sees("ghost"), stale, bad, ill, good))
        assert response.accepted == 1
        assert [(e.npc_id, e.code, e.field) for e in response.errors] == [
            ("ghost", "UNKNOWN_NPC", "npc_id"),
            ("npc1", "STALE_LEASE", "lease_epoch"),
            ("npc2", "INVALID_FIELD", "x_m"),
            ("npc3", "INVALID_FIELD", "health"),
        ]
        assert response.errors[1].lease_epoch == rig.leases["npc1"]
        assert (await rig.intent("npc0", lambda i: True)).observed_tick == good.tick


async def test_the_policy_answers_when_the_model_is_late_and_the_model_replaces_it() -> None:
    """While the engine is blocked, the source is policy after answer_within_ms. When it goes on, the source is model
    with a higher version."""
    model = gated()
    engine = model.engine
    async with running(model, Config()) as rig:
        engine.gated = True
        seen = rig.sees("npc0", ("w1", "wolf", "hostile", 3.0))
        await rig.daemon.calls.observe("", rig.frame(seen))
        fallback = await rig.intent("npc0", lambda i: True)
        assert fallback.source == POLICY
        assert (fallback.action, fallback.target_entity_id) == ("flee", "w1")
        engine.open()
        answer = await rig.intent("npc0", lambda i: i.source == MODEL)
        assert answer.version > fallback.version
        assert answer.observed_tick == seen.tick


async def test_a_full_gold_queue_leaves_the_policy() -> None:
    """Gold is never shed: an NPC that cannot be asked is answered by rule."""
    config = Config()
    promises = replace(config.promises, gold=replace(config.promises.gold, waiting_max=2))
    intents = replace(config.intents, stall_ms=10_000, answer_within_ms=10_000)
    model = gated()
    engine = model.engine
    async with running(model, replace(config, promises=promises, intents=intents), npcs=6) as rig:
        engine.gated = True
        frame = rig.frame(*(rig.sees(f"npc{n}", WOLF, events=["attacked"]) for n in range(6)))
        await rig.daemon.calls.observe("", frame)
        got = await rig.daemon.calls.get_intents("", intents_pb2.GetIntentsRequest(world_id="vale"))
        assert [i.source for i in got.intents] == [POLICY] * 6


async def test_a_waiting_older_question_is_superseded_by_the_newer() -> None:
    """While the engine is busy, only the newest observation of an NPC is asked about."""
    model = gated()
    engine = model.engine
    async with running(model, quick(UNHURRIED), clock=Standing()) as rig:
        calls = rig.daemon.calls
        engine.gated = True
        for n in range(4):
            seen = rig.sees("npc0", ("w1", "wolf", "hostile", (1.0, 5.0, 15.0, 30.0)[n]), events=["attacked"])
            await calls.observe("", rig.frame(seen))
            await passes(rig, 60)  # a slot has 50 ms
        engine.open()
        answer = await rig.intent("npc0", lambda i: i.source == MODEL and i.observed_tick == seen.tick)
        assert answer.version >= 1
        assert rig.daemon.table.counts.model <= 3


async def test_live_streams_begin_with_a_snapshot_and_survive_bad_frames(real: Model) -> None:
    """The first frame has all present intents. A frame of a wrong world is reported, and the stream goes on."""
    async with running(real) as rig:
        calls = rig.daemon.calls
        await calls.observe("", rig.frame(rig.sees("npc0", WOLF)))
        await rig.intent("npc0", lambda i: True)
        wrong = rig.frame(rig.sees("npc1", WOLF))
        wrong.world_id = "elsewhere"
        good = rig.frame(rig.sees("npc1", FRIEND))
        sent: asyncio.Queue[intents_pb2.ObservationFrame | None] = asyncio.Queue()

        async def frames() -> AsyncIterator[intents_pb2.ObservationFrame]:
            while (one := await sent.get()) is not None:
                yield one

        for observed in (rig.frame(), wrong, good):
            sent.put_nowait(observed)
        got: list[intents_pb2.IntentFrame] = []
        async with asyncio.timeout(PATIENCE_S):
            async for frame in calls.live("", frames()):
                got.append(frame)
                if any(i.npc_id == "npc1" for i in frame.intents):
                    sent.put_nowait(None)
        assert got[0].snapshot and not any(f.snapshot for f in got[1:])
        assert [i.npc_id for i in got[0].intents] == ["npc0"]
        errors = [e for f in got for e in f.errors]
        assert [(e.code, e.field) for e in errors] == [("INVALID_FRAME", "world_id")]
        assert [f.sequence for f in got] == list(range(1, len(got) + 1))
        assert got[-1].last_frame == good.frame


async def test_an_action_that_speaks_gets_a_bark(real: Model) -> None:
    """A second, short work makes the bark, which arrives as a newer version of the same intent."""
    config = UNHURRIED
    async with running(real, replace(config, intents=replace(config.intents, bark_every_ms=1))) as rig:
        calls = rig.daemon.calls
        places = ["road", "mill", "gate", "crypt", "forest", "market", "tavern", "castle"]
        for n in range(40):
            seen = rig.sees(
                f"npc{n % 4}", (f"p{n}", "player", ("friendly", "hostile")[n % 2], 3.0), place=places[n % 8]
            )
            await calls.observe("", rig.frame(seen))
            await rig.intent(f"npc{n % 4}", lambda i, tick=seen.tick: i.observed_tick == tick)  # type: ignore[misc]
            if rig.daemon.table.counts.barks:
                break
        got = await calls.get_intents("", intents_pb2.GetIntentsRequest(world_id="vale"))
        barks = [i for i in got.intents if i.bark]
        assert barks
        assert all(i.action in ("attack", "greet") for i in barks)


async def test_a_paused_game_is_not_thought_about() -> None:
    """While paused there is no question; when the game goes on, there is one."""
    async with running(gated()) as rig:
        calls = rig.daemon.calls
        await calls.observe("", rig.frame(rig.sees("npc0", WOLF), paused=True))
        mind = rig.daemon.table.mind(NpcKey("", "vale", "npc0"))
        record = rig.daemon.intents.asking.record(mind) if mind is not None else None
        assert record is not None and not record.questions and record.phase is not Phase.IN_LINE
        seen = rig.sees("npc0", WOLF)
        await calls.observe("", rig.frame(seen))
        assert (await rig.intent("npc0", lambda i: True)).observed_tick == seen.tick


async def test_a_removed_npc_is_gone_with_its_work_and_its_trunk() -> None:
    """Describe does not know it, and its trunk holds no sequence."""
    async with running(gated()) as rig:
        calls = rig.daemon.calls
        await calls.observe("", rig.frame(rig.sees("npc0", WOLF)))
        await rig.intent("npc0", lambda i: True)
        answer = await calls.remove("", npcs_pb2.RemoveRequest(world_id="vale", npc_ids=["npc0", "ghost"]))
        assert (answer.removed, list(answer.unknown_npc_ids)) == (1, ["ghost"])
        described = await calls.describe("", npcs_pb2.DescribeRequest(world_id="vale", npc_ids=["npc0"]))
        assert described.unknown_npc_ids == ["npc0"]
        response = await calls.observe("", rig.frame(rig.sees("npc0", WOLF)))
        assert response.errors[0].code == "UNKNOWN_NPC"


async def test_a_game_server_that_starts_again_takes_over_and_its_ticks_begin_anew() -> None:
    """With the new lease tick 1 counts again, and the old server's observations are refused."""
    async with running(gated()) as rig:
        calls = rig.daemon.calls
        rig.tick = 5000
        old = rig.sees("npc0", WOLF)
        await calls.observe("", rig.frame(old))
        request = npcs_pb2.RegisterRequest(world_id="vale", npcs=specs(1), take_over=True)
        lease = (await calls.register("", request)).leases[0]
        refused = await calls.observe("", rig.frame(rig.sees("npc0", FRIEND)))
        assert [e.code for e in refused.errors] == ["STALE_LEASE"]
        rig.leases["npc0"], rig.tick = lease.lease_epoch, 0
        new = rig.sees("npc0", FRIEND)
        await calls.observe("", rig.frame(new))
        assert (await rig.intent("npc0", lambda i: i.observed_tick == 1)).source == MODEL


async def test_a_confirmation_says_which_lease_its_tick_is_of_and_how_old_it_is() -> None:
    """After take_over ticks start anew: a lower tick of the newer lease confirms the same version."""
    async with running(gated(), SILENT) as rig:
        calls = rig.daemon.calls
        rig.tick = 500
        await calls.observe("", rig.frame(rig.sees("npc0", WOLF)))
        first = await rig.intent("npc0", lambda i: True)
        assert (first.observed_tick, first.lease_epoch) == (501, rig.leases["npc0"])
        request = npcs_pb2.RegisterRequest(world_id="vale", npcs=specs(1), take_over=True)
        (lease,) = (await calls.register("", request)).leases
        rig.leases["npc0"], rig.tick = lease.lease_epoch, 0
        async for frame in calls.watch_intents("", intents_pb2.WatchIntentsRequest(world_id="vale")):
            if frame.snapshot:
                await calls.observe("", rig.frame(rig.sees("npc0", WOLF)))
            for confirmed in frame.confirmed:
                assert (confirmed.observed_tick, confirmed.lease_epoch) == (1, lease.lease_epoch)
                assert confirmed.version == first.version and confirmed.age_ms < PATIENCE_S * 1000
                return


async def test_versions_grow_also_for_an_npc_that_was_removed_and_comes_again() -> None:
    """The order (daemon_epoch, version) holds for an NPC's name, so clients that keep the highest see its new
    intents."""
    async with running(gated()) as rig:
        calls = rig.daemon.calls
        for seen in (WOLF, FRIEND):
            await calls.observe("", rig.frame(rig.sees("npc0", seen, events=["heard_noise"])))
            before = await rig.intent("npc0", lambda i: i.observed_tick == rig.tick)
        await calls.remove("", npcs_pb2.RemoveRequest(world_id="vale", npc_ids=["npc0"]))
        (lease,) = (await calls.register("", npcs_pb2.RegisterRequest(world_id="vale", npcs=specs(1)))).leases
        rig.leases["npc0"] = lease.lease_epoch
        await calls.observe("", rig.frame(rig.sees("npc0", WOLF)))
        assert (await rig.intent("npc0", lambda i: True)).version > before.version


@pytest.mark.parametrize("days", [49, 50, 20_000, 10**9])
async def test_an_npc_that_was_not_observed_for_long_is_told_as_that_old_or_older(days: int) -> None:
    """Ages and latencies beyond a field's range are its largest value. The world's other NPCs are reported as well."""
    async with running(gated(), SILENT) as rig:
        calls = rig.daemon.calls
        await calls.observe("", rig.frame(rig.sees("npc0", WOLF), rig.sees("npc1", FRIEND)))
        await rig.intent("npc0", lambda i: True)
        await rig.intent("npc1", lambda i: True)
        mind = rig.daemon.table.mind(NpcKey("", "vale", "npc0"))
        assert mind is not None and mind.intent is not None
        long_ns = days * 24 * 3600 * S
        mind.intent.seen = mind.intent.seen._replace(at_ns=mind.intent.seen.at_ns - long_ns)
        mind.intent.due_ns -= long_ns
        past = mind.history.pop()
        mind.history.append(past._replace(made_ns=past.made_ns - long_ns, latency_ns=long_ns))

        age_ms = min(days * 24 * 3600 * 1000, 2**32 - 1)
        got = await calls.get_intents("", intents_pb2.GetIntentsRequest(world_id="vale"))
        told = {intent.npc_id: intent for intent in got.intents}
        assert set(told) == {"npc0", "npc1"}
        assert age_ms <= told["npc0"].age_ms and age_ms <= told["npc0"].latency_ms
        subscriber = rig.daemon.table.subscribe(rig.daemon.worlds.world("", "vale"), ())
        at_once(rig.daemon.table.marking(subscriber))
        frame = at_once(rig.daemon.table.framing(subscriber, 1, 1))
        assert {i.npc_id for i in frame.intents} == {"npc0", "npc1"}
        subscriber.note(mind, changed=False)
        (confirmed,) = at_once(rig.daemon.table.framing(subscriber, 1, 2)).confirmed
        assert confirmed.age_ms >= age_ms
        described = await calls.describe("", npcs_pb2.DescribeRequest(world_id="vale", with_history=True))
        assert described.npcs[0].history[-1].latency_ms == age_ms


async def test_the_largest_numbers_that_a_frame_can_carry_are_taken() -> None:
    """Game time that is huge or goes back, and the highest tick and frame, come back as they were sent."""
    most = 2**64 - 1
    async with running(gated()) as rig:
        calls = rig.daemon.calls
        await calls.observe("", rig.frame(rig.sees("npc0", WOLF)))
        await rig.intent("npc0", lambda i: True)
        for game_time_ms, tick in ((most, 2), (0, 3), (most, 4), (5, most)):
            seen = rig.sees("npc0", WOLF)
            seen.tick = tick
            frame = rig.frame(seen)
            frame.game_time_ms, frame.frame = game_time_ms, most
            assert (await calls.observe("", frame)).accepted == 1
            (intent,) = (await calls.get_intents("", intents_pb2.GetIntentsRequest(world_id="vale"))).intents
            assert (intent.observed_tick, intent.game_time_ms) == (tick, game_time_ms)


async def test_an_npc_that_becomes_another_one_is_observed_under_the_lease_it_had() -> None:
    """Without take_over the game server that observes it goes on, and watchers get no takeover."""
    async with running(gated()) as rig:
        calls = rig.daemon.calls
        await calls.observe("", rig.frame(rig.sees("npc0", WOLF)))
        await rig.intent("npc0", lambda i: True)
        async with aclosing(calls.npc_events.watch("", "vale")) as events:
            heard = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            other = npcs_pb2.NpcSpec(npc_id="npc0", archetype_id="vampire", persona_id="count")
            answer = await calls.register("", npcs_pb2.RegisterRequest(world_id="vale", npcs=[other]))
            assert [lease.lease_epoch for lease in answer.leases] == [rig.leases["npc0"]]
            event = await asyncio.wait_for(heard, PATIENCE_S)
        assert (event.kind, event.lease_epoch) == (npcs_pb2.NPC_EVENT_KIND_REGISTERED, rig.leases["npc0"])
        seen = rig.sees("npc0", WOLF)
        response = await calls.observe("", rig.frame(seen))
        assert (response.accepted, len(response.errors)) == (1, 0)
        await rig.intent("npc0", lambda i: i.observed_tick == seen.tick and i.source == MODEL)


@pytest.mark.parametrize("years", [1, 200])
async def test_a_daemon_that_ran_for_years_answers_every_question(years: int) -> None:
    """No number keeps an answer from coming, however long ago something was observed, said or remembered."""
    later_ns = 0
    async with running(gated(), clock=lambda: now_ns() + later_ns) as rig:
        calls = rig.daemon.calls
        await calls.observe("", rig.frame(rig.sees("npc0", WOLF)))
        await rig.intent("npc0", lambda i: True)
        await rig.say("npc0", "My name is Ann.", max_tokens=2)
        later_ns = years * 365 * 24 * 3600 * S
        (intent,) = (await calls.get_intents("", intents_pb2.GetIntentsRequest(world_id="vale"))).intents
        assert intent.age_ms == min(2**32 - 1, intent.age_ms) > 2**32 - 2
        described = await calls.describe("", npcs_pb2.DescribeRequest(world_id="vale", with_history=True))
        assert described.npcs[0].history[0].age_ms >= later_ns // 1_000_000
        assert described.npcs[0].trunks[0].idle_ms >= later_ns // 1_000_000
        status = rig.daemon.board.message()
        assert status.uptime_ms >= later_ns // 1_000_000
        answer = await calls.recalling.recall(
            "", npcs_pb2.RecallRequest(world_id="vale", npc_id="npc0", player_id="p1")
        )
        assert answer.player_name == "Ann"
        again = rig.sees("npc0", FRIEND)
        await calls.observe("", rig.frame(again))
        young = await rig.intent("npc0", lambda i: i.observed_tick == again.tick)
        assert young.age_ms < PATIENCE_S * 1000
        assert (await rig.say("npc0", "And now?", max_tokens=2))[-1].finish
