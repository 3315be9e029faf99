"""Pauses and paces: each holds for the NPCs of the game server that reports it, and for no other NPCs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.clock import S
from daemon.config import Config
from daemon.minds.mind import Mind
from npcd.v1 import intents_pb2, npcs_pb2
from tests.daemon.minds.test_attention import MODEL, WOLF, live, mind_of, near, only_distance, record_of
from tests.daemon.rig import UNHURRIED, Rig, Standing, gated, running, specs, until
from tiers.cadence import CadenceSettings
from tiers.phase import Phase, Record
from tiers.share import ShareSettings

Frame = intents_pb2.ObservationFrame


def slow_slots(slot_s: float) -> Config:
    """A slot so long that none ends by itself while a test runs."""
    cadence = CadenceSettings(active_hz=1 / slot_s, warm_hz=0.01)
    return replace(UNHURRIED, intents=replace(UNHURRIED.intents, cadence=cadence))


def at_scale(frame: Frame, time_scale: float) -> Frame:
    """The frame of a game that runs at another pace."""
    frame.time_scale = time_scale
    return frame


async def own_leases(rig: Rig, *npc_ids: str) -> None:
    """Registers each of these NPCs from a game server of its own."""
    for spec in specs(4):
        if spec.npc_id in npc_ids:
            request = npcs_pb2.RegisterRequest(world_id="vale", npcs=[spec], take_over=True)
            (lease,) = (await rig.daemon.calls.register("", request)).leases
            rig.leases[lease.npc_id] = lease.lease_epoch


async def answered(rig: Rig, npc_id: str, tick: int) -> None:
    """Waits until the model has answered that observation."""
    await rig.intent(npc_id, lambda i: i.observed_tick == tick and i.source == MODEL)


def not_asked(record: Record[Mind]) -> bool:
    """True when the NPC is put off and no question about it is under way."""
    return record.phase is Phase.PUT_OFF and not record.questions


async def test_a_streams_pause_holds_for_its_own_npcs() -> None:
    """Another game server in the same world goes on. Its frames end no other pause, and its end does not either."""
    async with running(gated(), only_distance()) as rig, live(rig) as (mine, _):
        mine.put_nowait(rig.frame(rig.sees("npc0", near(3.0))))
        await answered(rig, "npc0", 1)
        async with live(rig) as (other, _):
            other.put_nowait(rig.frame(rig.sees("npc1", near(3.0))))
            await answered(rig, "npc1", 2)
            seen = rig.sees("npc0", near(3.0), WOLF)
            mine.put_nowait(rig.frame(seen, paused=True))
            await until(lambda: mind_of(rig, "npc0").game.time.paused)
            for distance_m in (30.0, 15.0, 1.0):
                later = rig.sees("npc1", near(distance_m), events=["heard_noise"])
                other.put_nowait(rig.frame(later))
                await answered(rig, "npc1", later.tick)
            assert not_asked(record_of(rig, "npc0"))
        await rig.daemon.calls.observe("", rig.frame())
        assert not_asked(record_of(rig, "npc0"))
        mine.put_nowait(rig.frame())
        await answered(rig, "npc0", seen.tick)


async def test_a_paused_frame_without_observations_pauses_what_the_stream_observed() -> None:
    """In a usual pause menu nothing moves, so nothing is observed. NPCs that were due before are put off as well."""
    async with running(gated(), slow_slots(600.0)) as rig, live(rig) as (sent, _):
        sent.put_nowait(rig.frame(rig.sees("npc0", WOLF)))
        await answered(rig, "npc0", 1)
        sent.put_nowait(rig.frame(rig.sees("npc0", near(3.0))))
        await until(lambda: record_of(rig, "npc0").phase is Phase.DUE)
        mind, record, clock = mind_of(rig, "npc0"), record_of(rig, "npc0"), rig.daemon.clock
        left_ns = record.due_game_ns - mind.game.time.at(clock())
        sent.put_nowait(rig.frame(paused=True))
        await until(lambda: mind.game.time.paused)
        stands_ns = mind.game.time.at(clock())
        sent.put_nowait(rig.frame())
        await until(lambda: not mind.game.time.paused)
        # The rest of the slot is still left.
        assert record.due_ns - clock() <= left_ns and record.due_game_ns - stands_ns <= left_ns


async def test_calls_of_observe_pause_the_leases_that_stand_in_them() -> None:
    """A frame about one game server's NPCs pauses no NPC of another server. A frame without observations pauses all."""
    async with running(gated(), only_distance()) as rig:
        calls = rig.daemon.calls
        await own_leases(rig, "npc0", "npc1")
        for npc_id in ("npc0", "npc1"):
            seen = rig.sees(npc_id, near(3.0))
            await calls.observe("", rig.frame(seen))
            await answered(rig, npc_id, seen.tick)
        put_off = rig.sees("npc0", near(3.0), WOLF)
        await calls.observe("", rig.frame(put_off, paused=True))
        seen = rig.sees("npc1", near(3.0), WOLF)
        await calls.observe("", rig.frame(seen))
        await answered(rig, "npc1", seen.tick)
        assert not_asked(record_of(rig, "npc0"))
        await calls.observe("", rig.frame(paused=True))
        both = rig.sees("npc1", near(30.0))
        await calls.observe("", rig.frame(rig.sees("npc2", near(3.0))))  # of a third lease, so it ends no pause
        await calls.observe("", rig.frame(both, paused=True))
        assert not_asked(record_of(rig, "npc0")) and not_asked(record_of(rig, "npc1"))
        await calls.observe("", rig.frame())
        await answered(rig, "npc0", put_off.tick)
        await answered(rig, "npc1", both.tick)


async def test_a_refused_observation_pauses_nobody() -> None:
    """A game server that lost its lease no longer controls the NPC's time."""
    async with running(gated(), only_distance()) as rig:
        calls = rig.daemon.calls
        await own_leases(rig, "npc0")
        await calls.observe("", rig.frame(rig.sees("npc0", near(3.0))))
        await answered(rig, "npc0", 1)
        stale = rig.sees("npc0", near(3.0))
        stale.lease_epoch -= 1
        assert (await calls.observe("", rig.frame(stale, rig.sees("npc1", near(3.0)), paused=True))).errors
        assert not mind_of(rig, "npc0").game.time.paused and mind_of(rig, "npc1").game.time.paused
        seen = rig.sees("npc0", near(3.0), WOLF)
        await calls.observe("", rig.frame(seen))
        await answered(rig, "npc0", seen.tick)


async def test_an_npc_that_is_taken_over_is_of_the_new_game_servers_time() -> None:
    """The earlier server goes on pausing, and its pause no longer holds for the NPC."""
    async with running(gated(), only_distance()) as rig, live(rig) as (before, _), live(rig) as (after, _):
        before.put_nowait(rig.frame(rig.sees("npc0", near(3.0)), paused=True))
        await until(lambda: rig.daemon.table.counts.observations == 1)
        assert mind_of(rig, "npc0").game.time.paused
        await own_leases(rig, "npc0")
        seen = rig.sees("npc0", near(3.0), WOLF)
        after.put_nowait(rig.frame(seen))
        await answered(rig, "npc0", seen.tick)


async def test_a_pause_ends_with_its_stream() -> None:
    """A game that leaves while it is paused puts no NPC off for ever."""
    async with running(gated(), only_distance()) as rig:
        async with live(rig) as (sent, _):
            sent.put_nowait(rig.frame(rig.sees("npc0", near(3.0)), paused=True))
            await until(lambda: rig.daemon.table.counts.observations == 1)
            await until(lambda: mind_of(rig, "npc0").decided)
            assert not record_of(rig, "npc0").questions
        await answered(rig, "npc0", 1)


async def test_an_npc_in_line_when_the_game_pauses_is_not_asked() -> None:
    """It is not asked when a place gets free, and is asked when the game goes on."""
    # A closed gate is a stalled engine: after `stall_ms` the rules would answer for the NPCs in line.
    config = only_distance(share=ShareSettings(under_way_max=1), answer_within_ms=60_000, stall_ms=60_000)
    npcs = ("npc0", "npc1", "npc2")
    model = gated()
    async with running(model, config) as rig, live(rig) as (sent, _):
        sent.put_nowait(rig.frame(*(rig.sees(npc_id, near(3.0)) for npc_id in npcs)))
        for number, npc_id in enumerate(npcs, 1):
            await answered(rig, npc_id, number)
        minds = [mind_of(rig, npc_id) for npc_id in npcs]
        model.engine.gated = True
        sent.put_nowait(rig.frame(*(rig.sees(npc_id, near(3.0), WOLF) for npc_id in npcs)))
        await until(lambda: len(rig.daemon.intents.asking.line) == 2, "two in line")
        sent.put_nowait(rig.frame(paused=True))
        await until(lambda: minds[0].game.time.paused)
        model.engine.open()
        records = [record_of(rig, npc_id) for npc_id in npcs]
        await until(lambda: not any(r.questions or r.phase is Phase.IN_LINE for r in records), "the line is empty")
        assert len(minds[0].game.put_off) == 2
        assert sum(mind.intent is not None and mind.intent.seen.tick > 3 for mind in minds) == 1, "the one under way"
        sent.put_nowait(rig.frame())
        for number, npc_id in enumerate(npcs, 4):
            await answered(rig, npc_id, number)


@pytest.mark.parametrize(("time_scale", "slots_s"), [(0.0, 1.0), (1.0, 1.0), (0.01, 100.0), (5.0, 0.2), (1e6, 0.005)])
async def test_the_cadence_runs_on_game_time(time_scale: float, slots_s: float) -> None:
    """A slot of ten game seconds lasts as long as those do, and at least 50 ms of wall time."""
    standing = Standing()  # between the two observations no slot ends, even on a busy machine
    async with running(gated(), slow_slots(10.0), clock=standing) as rig:
        calls, clock = rig.daemon.calls, rig.daemon.clock
        standing.at_ns = clock()
        await calls.observe("", at_scale(rig.frame(rig.sees("npc0", WOLF)), time_scale))
        await answered(rig, "npc0", 1)
        await calls.observe("", at_scale(rig.frame(rig.sees("npc0", near(3.0))), time_scale))
        record = record_of(rig, "npc0")
        assert record.asked_ns is not None
        passed_ns = record.due_game_ns - record.asked_ns  # half a slot at least, one and a half at most
        slot_ns = round(10 * S * max(1.0, time_scale * 0.005))
        assert slot_ns // 2 <= passed_ns <= slot_ns * 3 // 2 + 2_000_000
        if slots_s >= 1.0:
            assert 0 < record.due_ns - clock() <= slots_s * 15 * S + 2_000_000


async def test_a_game_that_speeds_up_is_asked_sooner_and_one_that_slows_down_later() -> None:
    """Due moments from another pace move with the new one, also for NPCs without a new observation."""
    async with running(gated(), slow_slots(600.0)) as rig, live(rig) as (sent, _):
        sent.put_nowait(rig.frame(rig.sees("npc0", WOLF)))
        await answered(rig, "npc0", 1)
        seen = rig.sees("npc0", near(3.0))
        sent.put_nowait(rig.frame(seen))
        await until(lambda: record_of(rig, "npc0").phase is Phase.DUE)
        mind, record = mind_of(rig, "npc0"), record_of(rig, "npc0")
        first_ns = record.due_ns
        sent.put_nowait(at_scale(rig.frame(), 1e-6))
        await until(lambda: mind.game.time.scale == 1e-6)
        assert record.due_ns > first_ns + 3600 * S
        sent.put_nowait(at_scale(rig.frame(), 1e4))
        await answered(rig, "npc0", seen.tick)


async def test_onlookers_and_frames_in_a_row_change_nothing() -> None:
    """The same pace again is no change, and 0 counts as 1."""
    async with running(gated()) as rig, live(rig) as (sent, _):
        for scale in (0.0, 1.0, 0.0):
            sent.put_nowait(at_scale(rig.frame(rig.sees("npc0", WOLF)), scale))
        await rig.intent("npc0", lambda i: i.observed_tick == 3)
        game = mind_of(rig, "npc0").game
        present_ns = rig.daemon.clock()
        assert game.time.at(present_ns) == present_ns


async def test_a_game_that_pauses_again_before_everybody_went_on() -> None:
    """NPCs whose turn had not come are put off again, and go on with the next frame that is not paused."""
    async with running(gated(), only_distance()) as rig:
        calls, npcs = rig.daemon.calls, [f"npc{n}" for n in range(200)]
        leases = await calls.register("", npcs_pb2.RegisterRequest(world_id="vale", npcs=specs(200), take_over=True))
        rig.leases = {lease.npc_id: lease.lease_epoch for lease in leases.leases}
        await calls.observe("", rig.frame(*(rig.sees(npc_id, near(3.0)) for npc_id in npcs)))
        await until(lambda: all(mind_of(rig, npc_id).intent for npc_id in npcs))
        await calls.observe("", rig.frame(*(rig.sees(npc_id, WOLF) for npc_id in npcs), paused=True))
        world, intents = rig.daemon.worlds.world("", "vale"), rig.daemon.intents
        games = intents.games.callers(world, ())
        for paused in (False, True, False, True):
            intents.tell_time(games, 1.0, paused)
            intents.pump()
        await calls.observe("", rig.frame())
        minds = [mind_of(rig, npc_id) for npc_id in npcs]
        await until(
            lambda: all(m.intent is not None and m.intent.state == m.state for m in minds), "everybody's answer"
        )
        assert not games[0].put_off


@pytest.mark.parametrize("ends", ["another frame", "the stream's end"])
async def test_a_game_that_ran_very_fast_leaves_nobody_due_in_hours(ends: str) -> None:
    """At a million times the pace a slot has 14 hours of game time. Back at the usual pace a slot is a slot again."""
    clock = Standing()
    async with running(gated(), UNHURRIED, clock=clock) as rig:
        async with live(rig) as (mine, _):
            mine.put_nowait(at_scale(rig.frame(rig.sees("npc0", near(3.0))), 1e6))
            await answered(rig, "npc0", 1)
            clock.at_ns = clock()
            seen = rig.sees("npc0", near(3.0), WOLF)
            mine.put_nowait(at_scale(rig.frame(seen), 1e6))
            mind, record = mind_of(rig, "npc0"), record_of(rig, "npc0")
            await until(lambda: mind.tick == seen.tick and record.due_ns > 0, "the NPC is due in its slot")
            if ends == "another frame":
                mine.put_nowait(at_scale(rig.frame(), 1.0))
                await until(lambda: mind.game.time.scale == 1.0, "the game runs at the usual pace")
        await until(lambda: mind.game.time.scale == 1.0, "the game runs at the usual pace")
        assert record.due_ns - clock() <= S / UNHURRIED.intents.cadence.active_hz
        clock.at_ns = 0
        await answered(rig, "npc0", seen.tick)
