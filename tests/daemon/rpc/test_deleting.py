"""Deleting worlds and checkpoints: they are gone for good, their streams end, and a world of the same name starts
anew."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from core.clock import now_ns
from core.errors import NotFound, Overloaded, Stale, StoreFailed
from daemon.config import Config, ServeSettings
from daemon.process.keeping import open_keeping
from daemon.rpc.grpc_face import GrpcFace
from memory import saves
from memory.records import Kind
from npcd.v1 import (
    dialogue_pb2,
    dialogue_pb2_grpc,
    intents_pb2,
    intents_pb2_grpc,
    npcs_pb2,
    npcs_pb2_grpc,
)
from npcd_client import Client, NpcSpec
from tests.daemon.process.test_keeping import JOURNAL_ALONE, REDIS_ALONE, kept, last, recalled
from tests.daemon.process.test_serve import VALE as SERVED
from tests.daemon.rig import UNHURRIED, Rig, gated, patience, patient, running, specs, until, world
from tests.daemon.talk.test_sessions import tell
from tests.memory.disk_fixture import small_disk
from tests.memory.redis_fixture import RedisServer, own_redis, redis_for_all
from tests.patience import PATIENCE_S

__all__ = ["own_redis", "patience", "redis_for_all", "small_disk"]
pytestmark = pytest.mark.usefixtures("patience")

VALE = npcs_pb2.DeleteWorldRequest(world_id="vale")


async def named(rig: Rig, tenant: str = "") -> list[str]:
    """The names of a tenant's worlds."""
    return [w.world_id for w in (await rig.daemon.calls.list_worlds(tenant, npcs_pb2.ListWorldsRequest())).worlds]


async def saved(rig: Rig) -> list[str]:
    """The checkpoints of the world."""
    request = npcs_pb2.ListCheckpointsRequest(world_id="vale")
    answer = await rig.daemon.calls.save_games.list_checkpoints("", request)
    assert answer.checkpoints_max == 64 and all(c.timeline_id and c.bytes for c in answer.checkpoints)
    return [c.checkpoint_id for c in answer.checkpoints]


async def save(rig: Rig, name: str) -> None:
    """Makes a checkpoint."""
    request = npcs_pb2.CheckpointRequest(world_id="vale", checkpoint_id=name)
    await rig.daemon.calls.save_games.checkpoint("", request)


async def rest(call: Any) -> list[Any]:
    """The rest of a stream, until it ends with OK. Raises AioRpcError when it ends otherwise."""
    said = []
    while (message := await call.read()) is not grpc.aio.EOF:
        said.append(message)
    assert await call.code() is grpc.StatusCode.OK
    return said


async def test_a_deleted_world_makes_room_for_another() -> None:
    """The error names the limit. After a deletion a world may be defined."""
    config = replace(UNHURRIED, worlds=replace(UNHURRIED.worlds, worlds_max=2))
    async with running(gated(), config) as rig:
        calls = rig.daemon.calls
        await calls.define_world("other", world())
        with pytest.raises(Overloaded, match=r"limit of 2 worlds .worlds.worlds_max. .*DeleteWorld"):
            await calls.define_world("", world(world_id="hill"))
        assert (await calls.list_worlds("", npcs_pb2.ListWorldsRequest())).worlds_max == 2
        with pytest.raises(Stale, match="the world has version 1"):
            await calls.delete_world("", npcs_pb2.DeleteWorldRequest(world_id="vale", expected_version=7))
        assert (await calls.delete_world("", VALE)).npcs == 4
        assert await named(rig) == [] and await named(rig, "other") == ["vale"], "it is another tenant's"
        with pytest.raises(NotFound, match="no world 'vale'"):
            await calls.delete_world("", VALE)
        with pytest.raises(NotFound):
            await calls.describe("", npcs_pb2.DescribeRequest(world_id="vale"))
        await calls.define_world("", world(world_id="hill"))
        (there,) = (await calls.list_worlds("", npcs_pb2.ListWorldsRequest())).worlds
        assert (there.world_id, there.version, there.npcs, there.language) == ("hill", 1, 0, "en")
        assert rig.daemon.worlds.npcs == 0


async def test_checkpoints_that_come_at_the_same_time_keep_to_their_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for five, five of eight at once are made. An existing name may be used again, and the place of a
    deleted checkpoint is free for the next one.
    """
    monkeypatch.setattr("daemon.rpc.save_games.SAVES_MAX", 5)
    async with kept(tmp_path / "data", **JOURNAL_ALONE) as (rig, _):
        save_games = rig.daemon.calls.save_games
        said = await asyncio.gather(*(save(rig, f"c{n}") for n in range(8)), return_exceptions=True)
        assert [isinstance(answer, Overloaded) for answer in said] == [False] * 5 + [True] * 3
        request = npcs_pb2.DeleteCheckpointRequest(world_id="vale", checkpoint_id="c0")
        tries = [save(rig, "c1"), save_games.delete_checkpoint("", request), save(rig, "new"), save(rig, "newer")]
        done = await asyncio.gather(*tries, return_exceptions=True)
        assert [isinstance(answer, Overloaded) for answer in done] == [False, False, False, True]
        listed = await save_games.list_checkpoints("", npcs_pb2.ListCheckpointsRequest(world_id="vale"))
        assert {c.checkpoint_id for c in listed.checkpoints} == {"c1", "c2", "c3", "c4", "new"}


@pytest.mark.parametrize("memory", [{}, REDIS_ALONE, JOURNAL_ALONE], ids=["own servers", "Redis", "journal"])
async def test_a_deleted_world_stays_deleted_over_restarts(tmp_path: Path, memory: dict[str, Any]) -> None:
    """That holds with every store. A world that is defined again under its name has no memories, also after a
    restart."""
    folder = tmp_path / "data"
    async with kept(folder, **memory) as (rig, keeping):
        await tell(rig)
        await save(rig, "one")
        await rig.daemon.calls.define_world("", world(world_id="hill"))
        assert await keeping.memory.settled(PATIENCE_S)
        answer = await rig.daemon.calls.delete_world("", VALE)
        assert (answer.npcs, answer.checkpoints) == (2, 1)
        assert not list((folder / "saves").rglob("*.npcd"))
    async with kept(folder, npcs=0, **memory) as (rig, keeping):
        assert await named(rig) == ["hill"]
        await rig.daemon.calls.define_world("", world())
        await rig.daemon.calls.register("", npcs_pb2.RegisterRequest(world_id="vale", npcs=specs(1)))
        assert (await recalled(rig)).facts == [] and await saved(rig) == []
        await rig.say("npc0", "Hello.", max_tokens=2)
        assert await keeping.memory.settled(PATIENCE_S)
    async with kept(folder, npcs=0, **memory) as (rig, keeping):
        assert await named(rig) == ["hill", "vale"]
        assert list(rig.daemon.worlds.world("", "vale").npcs) == ["npc0"], "npc1 was of the world that is deleted"
        assert (await recalled(rig)).facts == []
        if keeping.recent is not None:
            assert list(await keeping.recent.bonds("", "vale")) == [("npc0", "p1")]


async def test_nothing_of_a_deleted_world_is_left_in_redis(tmp_path: Path, own_redis: RedisServer) -> None:
    """That holds when Redis was down during the deletion. Other tenants' worlds stay whole."""
    memory: dict[str, Any] = {"redis": own_redis.url(), "postgres": "off"}
    async with kept(tmp_path / "data", **memory) as (rig, keeping):
        await rig.daemon.calls.define_world("other", world())
        await tell(rig)
        assert await keeping.memory.settled(PATIENCE_S)
        recent = keeping.recent
        assert recent is not None
        assert {w.tenant for w in await recent.worlds()} == {"", "other"}
        own_redis.kill()
        await until(lambda: bool(recent.away), "Redis is away")
        await rig.daemon.calls.delete_world("", VALE)
        assert await named(rig) == []
        own_redis.start()
        assert await keeping.memory.settled(PATIENCE_S)
        await until(lambda: not recent.away, "Redis is back")
        assert [w.tenant for w in await recent.worlds()] == ["other"]
        left = [key for key in own_redis.execute("KEYS", "npcd:1:*") if b":at:" not in key]
        assert sorted(left) == [b"npcd:1:world:other:vale", b"npcd:1:worlds"]


async def test_a_world_that_the_journal_cannot_let_go_of_is_still_there(small_disk: Path) -> None:
    """On a full disk the call fails with UNAVAILABLE and nothing has changed. With room again the world is deleted for
    good."""
    async with kept(small_disk / "data", **JOURNAL_ALONE) as (rig, keeping):
        await tell(rig)
        await save(rig, "one")
        calls = rig.daemon.calls
        with (small_disk / "rubbish").open("wb", buffering=0) as rubbish, contextlib.suppress(OSError):
            while True:
                rubbish.write(bytes(4096))
        for n in range(100):  # the page that was begun has room for some
            if not last(await rig.say("npc1", f"line {n}", max_tokens=3)).accepted:
                break
        with pytest.raises(StoreFailed, match=r"'vale' is not deleted: .* call DeleteWorld again"):
            await calls.delete_world("", VALE)
        assert await named(rig) == ["vale"] and await saved(rig) == ["one"] and (await recalled(rig)).facts
        assert (await calls.describe("", npcs_pb2.DescribeRequest(world_id="vale"))).npcs
        (small_disk / "rubbish").unlink()
        await until(lambda: not keeping.memory.degraded(), "there is room")
        assert (await calls.delete_world("", VALE)).checkpoints == 1
    async with kept(small_disk / "data", npcs=0, **JOURNAL_ALONE) as (rig, _):
        assert await named(rig) == []


async def test_a_record_that_is_refused_at_the_last_moment_changes_nothing(tmp_path: Path) -> None:
    """The journal was well when it was asked, and then refused the record. World, checkpoints and memories are as
    before."""
    async with kept(tmp_path / "data", **JOURNAL_ALONE) as (rig, keeping):
        await tell(rig)
        await save(rig, "one")
        refused = asyncio.get_running_loop().create_future()
        refused.set_result(False)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(keeping.journal, "put", lambda record: refused)  # it takes nothing, without a known reason
            with pytest.raises(StoreFailed, match="the journal cannot be written"):
                await rig.daemon.calls.delete_world("", VALE)
        assert await named(rig) == ["vale"] and await saved(rig) == ["one"] and (await recalled(rig)).facts
        assert last(await rig.say("npc0", "Hello.", max_tokens=3)).accepted


async def test_every_stream_of_a_deleted_world_ends_cleanly(tmp_path: Path) -> None:
    """Live and both Watches give the reason and end with OK, a turn ends CANCELLED, a conversation with NOT_FOUND. A
    stream of another world goes on.
    """
    model = gated()
    async with running(model) as rig:
        await rig.daemon.calls.define_world("", world(world_id="hill"))
        face = GrpcFace(ServeSettings(listen=(f"unix:{tmp_path}/n.sock",)))
        (address,) = await face.start()
        face.calls = rig.daemon.calls
        async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(PATIENCE_S):
            npcs: Any = npcs_pb2_grpc.NpcsStub(channel)
            intents: Any = intents_pb2_grpc.IntentsStub(channel)
            dialogue: Any = dialogue_pb2_grpc.DialogueStub(channel)
            live = intents.Live()
            await live.write(rig.frame(rig.sees("npc0", ("w", "wolf", "hostile", 5.0))))
            watch = intents.Watch(intents_pb2.WatchIntentsRequest(world_id="vale"))
            other = intents.Watch(intents_pb2.WatchIntentsRequest(world_id="hill"))
            for stream in (live, watch, other):
                assert isinstance(await stream.read(), intents_pb2.IntentFrame)
            events = npcs.Watch(npcs_pb2.WatchNpcsRequest(world_id="vale"))
            idle = dialogue.Converse()  # after a line, this client sends nothing more
            await idle.write(dialogue_pb2.ConverseRequest(talk=rig.talk("npc1", "Hello.", max_tokens=2)))
            while (await idle.read()).kind != dialogue_pb2.TALK_EVENT_KIND_END:
                pass
            model.engine.gated = True
            talks = [dialogue.Talk(rig.talk("npc2", "Hello.", player, max_tokens=80)) for player in ("p1", "p2")]
            busy = dialogue.Converse()
            await busy.write(dialogue_pb2.ConverseRequest(talk=rig.talk("npc3", "Hello.", max_tokens=80)))
            assert (await talks[0].read()).kind == dialogue_pb2.TALK_EVENT_KIND_STARTED
            assert (await busy.read()).kind == dialogue_pb2.TALK_EVENT_KIND_STARTED
            await until(lambda: bool(rig.daemon.calls.npc_events.watchers))
            assert (await npcs.DeleteWorld(VALE)).npcs == 4
            model.engine.open()
            for frames in (live, watch):
                said = [frame.world_deleted for frame in await rest(frames)]
                assert said == [False] * (len(said) - 1) + [True]
            told = await rest(events)
            assert told[-1].kind == npcs_pb2.NPC_EVENT_KIND_WORLD_DELETED
            ends = await rest(talks[0])
            assert ends[-1].finish == dialogue_pb2.TALK_FINISH_CANCELLED and not ends[-1].accepted
            for call in (talks[1], idle, busy):  # one waited for its turn, one for a line, one was speaking
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await rest(call)
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND, caught.value
            await rig.daemon.door.all_ended()
            assert rig.daemon.dialogue.open_turns == 0 and not rig.daemon.deleting.listening
            await until(lambda: rig.daemon.board.lifecycle.streams == 0)
            assert not other.done()
            # After the name is used again, streams of the new world belong to the new world.
            await npcs.DefineWorld(world())
            await npcs.Register(npcs_pb2.RegisterRequest(world_id="vale", npcs=specs(1)))
            again = intents.Watch(intents_pb2.WatchIntentsRequest(world_id="vale"))
            frame = await again.read()
            assert isinstance(frame, intents_pb2.IntentFrame) and not frame.world_deleted and not frame.intents
            again.cancel()
        await face.stop(0)


async def test_a_world_is_defined_again_only_when_the_old_one_is_gone(tmp_path: Path) -> None:
    """A definition during the deletion waits. Its leases differ from all old ones, and its ticks start anew."""
    async with kept(tmp_path / "data", **JOURNAL_ALONE) as (rig, keeping):
        calls, old, let = rig.daemon.calls, dict(rig.leases), asyncio.Event()
        assert old["npc0"] > 1_700_000_000, "leases of two worlds of a name never meet"

        async def slowly(*what: Any) -> bool:
            await let.wait()
            return await delete(*what)

        delete, keeping.memory.delete_world = keeping.memory.delete_world, slowly  # type: ignore[assignment,method-assign]
        deleting = asyncio.create_task(calls.delete_world("", VALE))
        await until(lambda: not rig.daemon.worlds.has_world("", "vale"), "it is leaving")
        defining = asyncio.create_task(calls.define_world("", world()))
        with pytest.raises(NotFound):
            await calls.register("", npcs_pb2.RegisterRequest(world_id="vale", npcs=specs(1)))
        deleting.cancel()  # the caller leaves, and the deletion is completed all the same
        let.set()
        assert (await defining).version == 1
        assert await named(rig) == ["vale"] and not rig.daemon.worlds.world("", "vale").npcs
        answer = await calls.register("", npcs_pb2.RegisterRequest(world_id="vale", npcs=specs(1)))
        assert answer.leases[0].lease_epoch >= old["npc0"]


async def test_a_turn_that_ends_in_the_middle_of_a_deletion_is_not_kept(tmp_path: Path) -> None:
    """A turn that ends after the world was left reports that it was not accepted, and brings nothing back."""
    async with kept(tmp_path / "data", **REDIS_ALONE) as (rig, keeping):
        await tell(rig)
        key = rig.daemon.worlds.npc("", "vale", "npc0").key
        vale = rig.daemon.worlds.world("", "vale")
        vale.leaving = True
        assert not await keeping.memory.keep(Kind.TURN, key, "p1", {"session": "s", "line": "x", "reply": "y"})
        vale.leaving = False
        assert await keeping.memory.keep(Kind.TURN, key, "p1", {"session": "s", "line": "x", "reply": "y"})
        await rig.daemon.calls.delete_world("", VALE)
        assert await keeping.memory.settled(PATIENCE_S) and keeping.recent is not None
        assert await keeping.recent.bonds("", "vale") == {}


async def test_checkpoints_are_listed_and_deleted(tmp_path: Path) -> None:
    """The newest is last, whatever the names. A deleted one is gone after a restart, too, and cannot be restored."""
    folder = tmp_path / "data"
    names = ["z", "10:00 Uhr", "a.b/..", "ä"]
    async with kept(folder, **JOURNAL_ALONE) as (rig, _):
        calls = rig.daemon.calls.save_games
        assert await saved(rig) == []
        for name in names:
            await save(rig, name)
            await asyncio.sleep(0.002)  # checkpoints of one millisecond are ordered by name
        assert await saved(rig) == names
        (broken,) = (p for p in (folder / "saves").rglob("*.npcd") if p.stem == "z")
        broken.write_bytes(b"rubbish")
        request = npcs_pb2.ListCheckpointsRequest(world_id="vale")
        listed = (await calls.list_checkpoints("", request)).checkpoints
        assert ("z", "", 7) in [(c.checkpoint_id, c.timeline_id, c.bytes) for c in listed]
        answer = await calls.delete_checkpoint("", npcs_pb2.DeleteCheckpointRequest(world_id="vale", checkpoint_id="z"))
        assert answer.bytes == 7
        for name in ("z", "never"):
            with pytest.raises(NotFound, match=f"no checkpoint '{name}'"):
                await calls.delete_checkpoint("", npcs_pb2.DeleteCheckpointRequest(world_id="vale", checkpoint_id=name))
        with pytest.raises(NotFound, match="no world 'hill'"):
            await calls.list_checkpoints("", npcs_pb2.ListCheckpointsRequest(world_id="hill"))
    async with kept(folder, npcs=0, **JOURNAL_ALONE) as (rig, _):
        assert await saved(rig) == names[1:]
        with pytest.raises(NotFound):
            await rig.daemon.calls.save_games.restore("", npcs_pb2.RestoreRequest(world_id="vale", checkpoint_id="z"))


async def test_a_full_world_of_checkpoints_is_not_full_for_ever(tmp_path: Path) -> None:
    """The limit's message names the remedy, and the remedy works."""
    async with kept(tmp_path / "data", **JOURNAL_ALONE) as (rig, _):
        for n in range(64):
            await save(rig, f"c{n}")
        with pytest.raises(Overloaded, match=r"64 checkpoints; .* or delete one"):
            await save(rig, "one more")
        request = npcs_pb2.DeleteCheckpointRequest(world_id="vale", checkpoint_id="c7")
        await rig.daemon.calls.save_games.delete_checkpoint("", request)
        await save(rig, "one more")
        assert len(await saved(rig)) == 64


async def test_a_world_that_could_not_be_taken_up_again_is_listed_and_can_be_deleted(tmp_path: Path) -> None:
    """After a start with tighter limits its name and the reason are listed. After its deletion it does not come
    back."""
    folder = tmp_path / "data"
    async with kept(folder, **REDIS_ALONE) as (rig, _):
        await tell(rig)

    config = Config()
    memory = replace(patient(config.memory), folder=folder, **REDIS_ALONE)
    config = replace(config, memory=memory, worlds=replace(config.worlds, actions_max=1))
    keeping = await open_keeping(config, now_ns)
    async with running(gated(), config, 0, keeping=keeping) as rig:
        (there,) = (await rig.daemon.calls.list_worlds("", npcs_pb2.ListWorldsRequest())).worlds
        assert there.world_id == "vale" and "must be 1 to 1" in there.unusable
        await rig.daemon.calls.delete_world("", VALE)
        assert await named(rig) == []
    await keeping.stop(PATIENCE_S)
    async with kept(folder, npcs=0, **REDIS_ALONE) as (rig, _):
        assert await named(rig) == []


def test_files_that_a_killed_deletion_put_aside_go_at_the_next_start(tmp_path: Path) -> None:
    """It is not visible before, and the saves of other worlds stay."""
    folder, other = saves.folder_of(tmp_path, "", "vale"), saves.folder_of(tmp_path, "", "vale.deleted")
    for where in (folder, other):
        saves.write(where / "one.npcd", saves.Save("vale", "first", 1, b"", 1, 0))
    assert saves.put_aside(folder) == 1 and saves.listed(folder) == []
    saves.put_back(folder)
    assert len(saves.listed(folder)) == 1
    saves.put_aside(folder)
    saves.sweep(tmp_path)
    assert saves.listed(folder) == [] and len(saves.listed(other)) == 1
    assert sorted(p.name for p in (tmp_path / "%").iterdir()) == ["vale", "vale%2Edeleted"]


async def test_a_game_deletes_through_its_client_and_the_client_does_not_bring_it_back(tmp_path: Path) -> None:
    """list_worlds, delete_world, list_checkpoints and delete_checkpoint work. A Live stream gets the problem, and stays
    away."""
    async with kept(tmp_path / "data", **JOURNAL_ALONE) as (rig, _):
        face = GrpcFace(ServeSettings(listen=(f"unix:{tmp_path}/n.sock",)))
        (address,) = await face.start()
        face.calls = rig.daemon.calls
        await face.report(serving=True)
        npcd = Client(address, timeout_s=PATIENCE_S)
        admin = Client(address, world_id="hill", timeout_s=PATIENCE_S)
        async with npcd, admin, asyncio.timeout(PATIENCE_S):
            await npcd.define_world(replace(SERVED, world_id="hill"))
            await npcd.register([NpcSpec("a", "villager", "mira")])
            await npcd.checkpoint("one")
            assert [c.checkpoint_id for c in (await npcd.list_checkpoints()).checkpoints] == ["one"]
            assert (await npcd.delete_checkpoint("one")).bytes > 0
            assert [w.world_id for w in (await npcd.list_worlds()).worlds] == ["hill", "vale"]
            async with npcd.live() as live:
                await live.wait_connected(PATIENCE_S)
                connects = live.counters.connects
                assert (await admin.delete_world()).npcs == 1
                await until(lambda: any(p.code == "WORLD_DELETED" for p in live.problems), "the game is told")
                await until(lambda: live.counters.connects > connects + 1, "it looks again")
                assert [w.world_id for w in (await admin.list_worlds()).worlds] == ["vale"]
                await npcd.define_world(replace(SERVED, world_id="hill"))
                await until(lambda: live.connected, "it is there again")
            await npcd.delete_world()
        await face.stop(0)


async def test_a_client_that_was_away_does_not_bring_a_deleted_world_back(tmp_path: Path) -> None:
    """The daemon that had the world does not know it any more. The game gets the problem as if its stream had been
    open."""
    settings = ServeSettings(listen=(f"unix:{tmp_path}/n.sock",))
    async with kept(tmp_path / "data", **JOURNAL_ALONE) as (rig, _), asyncio.timeout(PATIENCE_S):
        face = GrpcFace(settings)
        (address,) = await face.start()
        face.calls = rig.daemon.calls
        async with Client(address, timeout_s=PATIENCE_S) as npcd:
            await npcd.define_world(replace(SERVED, world_id="hill"))
            await npcd.register([NpcSpec("a", "villager", "mira")])
            async with npcd.live() as live:
                await live.wait_connected(PATIENCE_S)
                await face.stop(0)
                await rig.daemon.calls.delete_world("", npcs_pb2.DeleteWorldRequest(world_id="hill"))
                face = GrpcFace(settings)
                await face.start()
                face.calls = rig.daemon.calls
                await until(lambda: any(p.code == "NOT_FOUND" for p in live.problems), "it comes back")
                connects = live.counters.connects
                await until(lambda: live.counters.connects > connects + 1, "it looks again")
                assert await named(rig) == ["vale"]
                assert [p.code for p in live.problems].count("WORLD_DELETED") == 1
                await npcd.define_world(replace(SERVED, world_id="hill"))
                await npcd.register([NpcSpec("a", "villager", "mira")])
                await until(lambda: live.connected, "it is there again")
                assert await named(rig) == ["hill", "vale"]
        await face.stop(0)


async def test_a_stream_hears_of_a_deletion_while_its_frame_is_made() -> None:
    """Its snapshot is made in slices of the loop's time. A wake in between does not count as a part of it."""
    config = replace(UNHURRIED, calls=replace(UNHURRIED.calls, slice_ms=0.0))
    async with running(gated(), config, npcs=100) as rig, asyncio.timeout(PATIENCE_S):
        calls = rig.daemon.calls
        watched = calls.watch_intents("", intents_pb2.WatchIntentsRequest(world_id="vale"))
        first = asyncio.ensure_future(anext(watched))
        while not rig.daemon.table.subscribers:  # noqa: ASYNC110 - to the turn of the loop in which it is there
            await asyncio.sleep(0)
        assert not first.done(), "it is being made"
        rig.daemon.table.end_world("", "vale")
        frames = [await first, *[frame async for frame in watched]]
        assert [(frame.snapshot, frame.world_deleted) for frame in frames] == [(True, False), (False, True)]


async def test_a_definition_without_an_archetype_warns_of_the_npcs_that_a_restart_loses(tmp_path: Path) -> None:
    """The answer names them, also when the same definition comes again, and they are exactly those that are lost."""
    less = world()
    del less.archetypes[1]
    async with kept(tmp_path / "data", **JOURNAL_ALONE) as (rig, _):
        for changed in (True, False):
            answer = await rig.daemon.calls.define_world("", less)
            (said,) = answer.warnings
            assert answer.changed is changed and said.startswith("archetypes: 1 registered NPC ") and "npc1;" in said
    async with kept(tmp_path / "data", npcs=0, **JOURNAL_ALONE) as (rig, _):
        assert list(rig.daemon.worlds.world("", "vale").npcs) == ["npc0"]
