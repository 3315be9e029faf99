"""The Live stream over a real gRPC connection: the frame loop hands in observations and reads intents."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npcd_client import (
    ActionWord,
    Activation,
    Archetype,
    CallerError,
    Client,
    FrameClient,
    Intent,
    IntentSource,
    Live,
    LiveProblem,
    LiveSettings,
    NpcSpec,
    Observation,
    Percept,
    TooLate,
    World,
)
from npcd_client.v1 import intents_pb2
from tests.clients.fake_daemon import FakeDaemon, serving
from tests.patience import PATIENCE_S

Frame = intents_pb2.ObservationFrame

WORLD = World("hollow", "A valley.", (Archetype("vampire", "Thirsts."),), (ActionWord("idle"),), ("calm",))
NPCS = [NpcSpec(npc_id, "vampire", "p") for npc_id in ("a", "b", "c")]
FAST = LiveSettings(flush_ms=1, backoff_min_ms=5, backoff_max_ms=20)


def intent(npc_id: str, version: int, tick: int = 1, **more: Any) -> intents_pb2.Intent:
    return intents_pb2.Intent(
        npc_id=npc_id,
        version=version,
        action="idle",
        source=intents_pb2.INTENT_SOURCE_MODEL,
        observed_tick=tick,
        **more,
    )


def latest(live: Live, npc_id: str) -> Intent:
    """The newest intent of an NPC. The test fails when there is none."""
    held = live.latest(npc_id)
    assert held is not None
    return held


async def until(holds: Callable[[], object]) -> None:
    """Waits until a condition is true, and fails the test when it stays false."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 (what is waited for is the shipped client's state, which has no event)
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def playing(
    on_intent: Callable[[Intent], None] | None = None, on_problem: Callable[[LiveProblem], None] | None = None
) -> AsyncIterator[tuple[FakeDaemon, Client, Live]]:
    """A fake daemon, a client with three NPCs, and their open stream."""
    async with serving() as (daemon, target), Client(target, timeout_s=PATIENCE_S) as npcd:
        await npcd.define_world(WORLD)
        await npcd.register(NPCS)
        async with npcd.live(settings=FAST, on_intent=on_intent, on_problem=on_problem) as live:
            await live.wait_connected(PATIENCE_S)
            hello = await daemon.frames.get()
            assert hello.world_id == "hollow" and not hello.observations
            yield daemon, npcd, live


async def test_observations_carry_their_lease_and_everything_seen() -> None:
    async with playing() as (daemon, _, live):
        live.tell_time(5000, 2.0, paused=True)
        seen = Observation(
            "a",
            7,
            (1, 2, 3),
            (0, 0, 1),
            0.5,
            "night",
            "crypt",
            (Percept("p1", "player", "hostile", 4.5, False),),
            ("attacked",),
        )
        live.observe(seen)
        frame = await asyncio.wait_for(daemon.frames.get(), PATIENCE_S)
        assert (frame.game_time_ms, frame.time_scale, frame.paused) == (5000, 2.0, True)
        (sent,) = frame.observations
        assert (sent.npc_id, sent.tick, sent.lease_epoch) == ("a", 7, daemon.leases["a"])
        assert (sent.x_m, sent.vz_mps, sent.health, sent.has_health) == (1, 1, 0.5, True)
        assert (sent.time_of_day, sent.place, list(sent.events)) == ("night", "crypt", ["attacked"])
        assert (sent.percepts[0].entity_id, sent.percepts[0].distance_m, sent.percepts[0].in_sight) == (
            "p1",
            4.5,
            False,
        )
        assert not sent.has_activation
        live.observe(Observation("b", 1))
        assert not (await daemon.frames.get()).observations[0].has_health


async def test_the_newest_observation_of_an_npc_wins_and_one_frame_carries_all() -> None:
    async with playing() as (daemon, _, live):
        for tick in range(1, 101):
            for npc_id in "abc":
                live.observe(Observation(npc_id, tick))
        live.observe(Observation("a", 50))  # late and older: never sent
        frame = await asyncio.wait_for(daemon.frames.get(), PATIENCE_S)
        assert {o.npc_id: o.tick for o in frame.observations} == {"a": 100, "b": 100, "c": 100}
        assert live.counters.observations_coalesced == 298


async def test_observe_and_latest_work_from_many_threads_at_once() -> None:
    async with playing() as (daemon, _, live):

        def play(npc_id: str) -> None:
            for tick in range(1, 2001):
                live.observe(Observation(npc_id, tick))
                live.latest(npc_id)

        threads = [threading.Thread(target=play, args=(npc_id,)) for npc_id in "abc"]
        for thread in threads:
            thread.start()
        newest: dict[str, int] = {}
        async with asyncio.timeout(PATIENCE_S):
            while newest != {"a": 2000, "b": 2000, "c": 2000}:
                for seen in (await daemon.frames.get()).observations:
                    assert seen.tick > newest.get(seen.npc_id, 0)
                    newest[seen.npc_id] = seen.tick
        for thread in threads:
            thread.join()
        counters = live.counters
        assert counters.observations_sent + counters.observations_coalesced + counters.observations_overrun == 6000


async def test_after_a_pause_the_next_observation_wakes_the_loop() -> None:
    """The writer sleeps when there is nothing to send. An observation that arrives just as it falls asleep is still
    sent."""
    async with serving() as (daemon, target), Client(target, timeout_s=PATIENCE_S) as npcd:
        await npcd.define_world(WORLD)
        await npcd.register(NPCS)
        async with npcd.live(settings=LiveSettings(flush_ms=1, idle_ms=2)) as live:
            await live.wait_connected(PATIENCE_S)
            for tick in range(1, 200):
                live.observe(Observation("a", tick))
                async with asyncio.timeout(PATIENCE_S):
                    while not (frame := await daemon.frames.get()).observations:
                        pass
                assert frame.observations[0].tick == tick
                if tick % 2:
                    await until(lambda: live._flush is None)


async def test_intents_arrive_in_the_table_and_at_the_listener() -> None:
    heard: list[Intent] = []
    async with playing(on_intent=heard.append) as (daemon, _, live):
        assert live.latest("a") is None
        daemon.push(intents_pb2.IntentFrame(intents=[intent("a", 1, bark="Hush.", ttl_ms=100)]))
        await until(lambda: live.latest("a"))
        held = latest(live, "a")
        assert (held.action, held.bark, held.source, held.daemon_epoch) == ("idle", "Hush.", IntentSource.MODEL, 1)
        daemon.push(intents_pb2.IntentFrame(intents=[intent("a", 3), intent("b", 1)]))
        daemon.push(intents_pb2.IntentFrame(intents=[intent("a", 2), intent("b", 2)]))
        await until(lambda: live.latest("b") and latest(live, "b").version == 2)
        assert latest(live, "a").version == 3 and live.intents_stale == 1
        assert [(i.npc_id, i.version) for i in heard] == [("a", 1), ("a", 3), ("b", 1), ("b", 2)]


async def test_after_a_restart_the_snapshot_replaces_the_table() -> None:
    """The daemon dies and comes back with another epoch. Rows that only the old daemon knew are gone, and versions
    start anew."""

    async with playing() as (daemon, _, live):
        daemon.push(intents_pb2.IntentFrame(intents=[intent("a", 9), intent("b", 9)]))
        await until(lambda: live.latest("b"))
        daemon.daemon_epoch = 2
        daemon.intents = {"a": intent("a", 1)}
        daemon.end_streams()
        await until(lambda: live.daemon_epoch == 2)
        await live.wait_connected(PATIENCE_S)
        assert (latest(live, "a").daemon_epoch, latest(live, "a").version) == (2, 1)
        assert live.latest("b") is None
        assert live.counters.connects == 2 and live.problems[-1].code == "ENDED"
        live.observe(Observation("a", 5))
        await daemon.frames.get()  # the second hello
        assert (await asyncio.wait_for(daemon.frames.get(), PATIENCE_S)).observations[0].tick == 5


async def test_a_daemon_that_lost_everything_is_told_again(tmp_path: Path) -> None:
    """The daemon has lost its world and its leases. The client defines and registers again by itself, and observations
    carry the new lease."""

    target = f"unix://{tmp_path}/d.sock"
    first = FakeDaemon(1)
    await first.start(target)
    async with Client(target, timeout_s=PATIENCE_S) as npcd:
        await npcd.define_world(WORLD)
        await npcd.register(NPCS)
        async with npcd.live(settings=FAST) as live:
            await live.wait_connected(PATIENCE_S)
            await first.stop()
            second = FakeDaemon(2)
            await second.start(target)
            await until(lambda: live.connected and live.daemon_epoch == 2)
            assert set(second.npcs) == {"a", "b", "c"} and second.leases["a"] == 200
            live.observe(Observation("a", 5))
            async with asyncio.timeout(PATIENCE_S):
                while not (frame := await second.frames.get()).observations:
                    pass
            assert frame.observations[0].lease_epoch == 200
    await second.stop()


async def test_an_error_about_one_npc_is_told_and_the_stream_goes_on() -> None:
    told: list[LiveProblem] = []
    async with playing(on_problem=told.append) as (daemon, _, live):
        error = intents_pb2.NpcError(npc_id="a", code="STALE_LEASE", message="another server has it", lease_epoch=9)
        daemon.push(intents_pb2.IntentFrame(errors=[error], intents=[intent("b", 1)]))
        await until(lambda: live.latest("b"))
        assert [(p.npc_id, p.code, p.lease_epoch) for p in told] == [("a", "STALE_LEASE", 9)]
        assert list(live.problems) == told and live.counters.problems == 1
        live.observe(Observation("a", -1))  # cannot be put on the wire
        live.observe(Observation("b", 1))
        frame = await asyncio.wait_for(daemon.frames.get(), PATIENCE_S)
        assert [o.npc_id for o in frame.observations] == ["b"]
        assert (told[-1].npc_id, told[-1].code) == ("a", "INVALID_FIELD")


BAD_FIELDS: list[dict[str, Any]] = [
    {"percepts": ("kim",)}, {"percepts": None}, {"percepts": (Percept("x", "wolf", distance_m="far"),)},  # type: ignore[arg-type]
    {"tick": -1}, {"tick": 2**70},
    {"activation": 99}, {"activation": "active"}, {"activation": []},
    {"position_m": (1, 2)}, {"position_m": None}, {"velocity_mps": (10**400, 0, 0)},
    {"health": "low"}, {"health": 10**400}, {"time_of_day": 5}, {"place": "\ud800"},
    {"events": (1,)}, {"events": "attacked"}, {"npc_id": "\ud800"},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_FIELDS, ids=lambda bad: f"{next(iter(bad))}={next(iter(bad.values()))!r}"[:30])
async def test_an_observation_that_cannot_be_sent_is_its_npcs_problem_alone(bad: dict[str, Any]) -> None:
    """For every Python error that the value raises, the problem names the NPC and the field, and the observations of
    other NPCs are sent."""
    async with playing() as (daemon, _, live):
        live.observe(replace(Observation("a", 2), **bad))
        live.observe(Observation("b", 2))
        assert [o.npc_id for o in (await asyncio.wait_for(daemon.frames.get(), PATIENCE_S)).observations] == ["b"]
        (problem,) = live.problems
        (field,) = bad
        assert (problem.npc_id, problem.code, problem.field) == (bad.get("npc_id", "a"), "INVALID_FIELD", field)
        assert problem.message.startswith(f"cannot be sent: {field}: ")
        live.observe(Observation("a", 3))
        assert [o.npc_id for o in (await asyncio.wait_for(daemon.frames.get(), PATIENCE_S)).observations] == ["a"]
        assert live.counters.connects == 1


@pytest.mark.parametrize("number", Activation)
async def test_the_number_of_an_activation_is_as_good_as_its_name(number: Activation) -> None:
    """An activation is an IntEnum, so a plain int means the same."""
    async with playing() as (daemon, _, live):
        live.observe(Observation("a", 2, activation=int(number)))  # type: ignore[arg-type]
        (sent,) = (await asyncio.wait_for(daemon.frames.get(), PATIENCE_S)).observations
        assert sent.has_activation and Activation(sent.activation) is number


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (Observation("a", None), "tick"), (Observation("a", 2.5), "tick"), (Observation("a", "2"), "tick"),  # type: ignore[arg-type]
        (Observation("a", np.array([1, 2])), "tick"),  # type: ignore[arg-type]
        (Observation(7, 1), "npc_id"), (Observation(None, 1), "npc_id"), (Observation([], 1), "npc_id"),  # type: ignore[arg-type]
        (None, "observation"), ({"npc_id": "a", "tick": 1}, "observation"),
    ],
)  # fmt: skip
async def test_an_observation_that_cannot_be_told_apart_is_refused_at_once(bad: Any, field: str) -> None:
    """observe() names the field. The stream goes on: of two good observations of one NPC the newer one is sent."""
    async with playing() as (daemon, _, live):
        live.observe(Observation("a", 1))
        with pytest.raises(CallerError, match=f"^{field}: is of type "):
            live.observe(bad)
        live.observe(Observation("a", 2))
        assert [(o.npc_id, o.tick) for o in (await asyncio.wait_for(daemon.frames.get(), PATIENCE_S)).observations] == [
            ("a", 2)
        ]
        assert not live.problems


async def test_a_frame_client_goes_on_after_an_observation_that_cannot_be_sent() -> None:
    """The game's thread gets the fault as a problem, and the observations of other NPCs arrive."""
    async with serving() as (daemon, target):

        def play(game: FrameClient) -> Live:
            game.wait(game.npcd.define_world(WORLD))
            game.wait(game.npcd.register(NPCS))
            live = game.open_live(timeout_s=PATIENCE_S)
            game.observe(Observation("a", 2, percepts=("kim",)))  # type: ignore[arg-type]
            game.observe(Observation("b", 2, activation=1))  # type: ignore[arg-type]
            return live

        game = FrameClient.start(target, timeout_s=PATIENCE_S)
        try:
            live = await asyncio.to_thread(play, game)
            async with asyncio.timeout(PATIENCE_S):
                while not (frame := await daemon.frames.get()).observations:
                    pass  # the hello
            assert [o.npc_id for o in frame.observations] == ["b"]
            (problem,) = live.problems
            assert (problem.npc_id, problem.field) == ("a", "percepts")
        finally:
            await asyncio.to_thread(game.close)


async def test_a_tick_of_another_kind_of_whole_number_is_a_tick() -> None:
    """Two observations of one NPC whose ticks are of another integer type are put in order like any others."""
    async with playing() as (daemon, _, live):
        for tick in (2, 3, 1):
            live.observe(Observation("a", np.int64(tick)))  # type: ignore[arg-type]
        assert [o.tick for o in (await asyncio.wait_for(daemon.frames.get(), PATIENCE_S)).observations] == [3]
        assert not live.problems


@pytest.mark.parametrize("paused", ["", 0, None, 1, "yes"])
async def test_a_pause_that_is_not_a_bool_is_told_as_one(paused: Any) -> None:
    """A pause that is no bool is sent as its truth value, without a problem, and the stream goes on."""
    async with playing() as (daemon, _, live):
        live.tell_time(Decimal(5), 1, paused)  # type: ignore[arg-type]
        live.observe(Observation("a", 1))
        assert (await asyncio.wait_for(daemon.frames.get(), PATIENCE_S)).paused is bool(paused)
        assert not live.problems


async def test_a_stream_that_cannot_be_begun_says_why_and_is_tried_again() -> None:
    """A world id of another type gives the stream a problem of its own, and close() still returns."""
    async with serving() as (_, target), Client(target, timeout_s=PATIENCE_S) as npcd:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        async with npcd.live(5, settings=FAST) as live:  # type: ignore[arg-type]
            await until(lambda: live.counters.connects > 1)
            assert (live.problems[0].npc_id, live.problems[0].code) == ("", "CLIENT_FAILED")
            assert live.problems[0].message.startswith("TypeError: ")
            assert not live.connected and isinstance(told[0]["exception"], TypeError)


async def test_a_listener_that_fails_does_not_end_the_stream() -> None:
    def listen(_intent: Intent) -> None:
        raise RuntimeError("the game's own bug")

    reported: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    async with playing(on_intent=listen) as (daemon, _, live):
        daemon.push(intents_pb2.IntentFrame(intents=[intent("a", 1)]))
        daemon.push(intents_pb2.IntentFrame(intents=[intent("b", 1)]))
        await until(lambda: live.latest("b"))
        assert [str(e) for e in reported] == ["the game's own bug"] * 2


async def test_a_slow_daemon_gets_the_newest_observation_and_never_a_backlog() -> None:
    """While a write waits for the daemon, a newer observation replaces the older one of its NPC instead of queueing."""

    async with serving() as (daemon, target), Client(target, timeout_s=PATIENCE_S) as npcd:
        await npcd.define_world(WORLD)
        await npcd.register(NPCS)
        release = asyncio.Event()
        taken: list[intents_pb2.Observation] = []

        async def read_slowly(first: Frame, frames: AsyncIterator[Frame]) -> None:
            await release.wait()
            async for frame in frames:
                taken.extend(frame.observations)

        daemon.read = read_slowly  # type: ignore[method-assign]
        async with npcd.live(settings=FAST) as live:
            await live.wait_connected(PATIENCE_S)
            place = "x" * 200_000  # fills the flow-control window within a few frames
            tick = 0
            async with asyncio.timeout(PATIENCE_S):
                while live.counters.observations_coalesced < 50:
                    tick += 1
                    live.observe(Observation("a", tick, place=place))
                    await asyncio.sleep(0.002)
            assert len(live._newest) <= 1 and len(live._inbox) <= 1
            release.set()
            await until(lambda: taken and taken[-1].tick == tick)
            assert len(taken) < tick


async def test_no_snapshot_in_time_is_too_late(tmp_path: Path) -> None:
    async with Client(f"unix://{tmp_path}/nobody.sock", world_id="hollow") as npcd, npcd.live(settings=FAST) as live:
        live.observe(Observation("a", 1))
        with pytest.raises(TooLate, match="no snapshot of world hollow"):
            await live.wait_connected(0.3)
        assert live.counters.problems >= 1 and live.problems[-1].code == "UNAVAILABLE"
    live.observe(Observation("a", 2))  # after close: nothing happens


async def test_after_a_new_lease_the_first_ticks_are_sent_and_older_observations_are_not() -> None:
    """An observation that was made under the old lease is never sent under the new one, where its high tick would hide
    later ones."""
    async with playing() as (daemon, _, live):
        leases = dict(live._lease_epochs)
        for npc_id in "abc":
            live.observe(Observation(npc_id, 500))
        live._lease_epochs.update(a=900, b=900)  # type: ignore[attr-defined]
        live.observe(Observation("a", 1))
        frame = await asyncio.wait_for(daemon.frames.get(), PATIENCE_S)
        sent = {seen.npc_id: (seen.tick, seen.lease_epoch) for seen in frame.observations}
        assert sent == {"a": (1, 900), "c": (500, leases["c"])}
        assert live.counters.observations_outdated == 1, "b said nothing under its new lease yet"


async def test_leases_that_the_client_took_by_itself_carry_what_waits() -> None:
    """A daemon lost its state and the client registers again. Observations of the meantime are sent, and their ticks go
    on."""
    async with playing() as (daemon, _, live):
        daemon.npcs.clear()
        daemon.daemon_epoch = 2
        problem = intents_pb2.NpcError(npc_id="a", code="UNKNOWN_NPC")
        registered = asyncio.Event()
        announce = live._announce

        async def announced(daemon_epoch: int) -> None:
            live.observe(Observation("a", 9))
            await announce(daemon_epoch)
            registered.set()

        live._announce = announced
        daemon.push(intents_pb2.IntentFrame(errors=[problem]))
        await asyncio.wait_for(registered.wait(), PATIENCE_S)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for seen in (await daemon.frames.get()).observations:
                    if (seen.npc_id, seen.tick) == ("a", 9):
                        assert live.counters.observations_outdated == 0
                        return


async def test_a_late_message_of_a_deleted_world_leaves_the_next_one_alone() -> None:
    """The game deletes its world and makes another one of the same name before the first world's stream ends. A late
    message of the first stream changes nothing in the second world."""
    async with playing() as (daemon, npcd, live):
        daemon.worlds.clear()
        daemon.leases.clear()
        daemon.daemon_epoch = 7  # the new world's leases differ
        await npcd.define_world(WORLD)
        leases = (await npcd.register(NPCS)).lease_epochs
        daemon.push(intents_pb2.IntentFrame(world_deleted=True))
        await until(lambda: any(problem.code == "WORLD_DELETED" for problem in live.problems))
        assert live._lease_epochs == leases and set(leases) == {"a", "b", "c"}
        daemon.worlds.clear()
        daemon.daemon_epoch = 8  # it lost its state: the client defines the new world again
        daemon.end_streams()
        await until(lambda: "hollow" in daemon.worlds and live.connected)
