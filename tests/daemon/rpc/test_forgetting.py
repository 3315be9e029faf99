"""Forgetting a player is durable or reported as not durable, and npcd's own files then have no word of that player."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import StoreFailed
from core.words import NpcKey
from daemon.config import Config
from memory.records import Kind
from npcd.v1 import npcs_pb2
from tests.daemon.minds.test_attention import MODEL, only_distance
from tests.daemon.process.test_keeping import JOURNAL_ALONE, REDIS_ALONE, kept, last, recalled
from tests.daemon.rig import Rig, gated, patience, patient, running, until
from tests.daemon.talk.test_sessions import TOLD, tell
from tests.memory.disk_fixture import small_disk
from tests.memory.redis_fixture import RedisServer, own_redis, redis_for_all, redis_server
from tests.patience import PATIENCE_S

__all__ = ["own_redis", "patience", "redis_for_all", "redis_server", "small_disk"]
pytestmark = pytest.mark.usefixtures("patience")

MIRA = NpcKey("", "vale", "npc0")


def wish(player: str = "p1", npc: str = "") -> npcs_pb2.ForgetRequest:
    """A request to forget this player."""
    return npcs_pb2.ForgetRequest(world_id="vale", player_id=player, npc_id=npc)


async def forget(rig: Rig, player: str = "p1") -> list[str]:
    """The stores that have forgotten."""
    return list((await rig.daemon.calls.forgetting.forget("", wish(player))).stores)


async def fill(folder: Path, keeping: Any) -> Path:
    """Leaves no room for any record, not even in the journal's last page. Returns the file to remove again."""
    rubbish = folder / "rubbish"
    with rubbish.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    while await keeping.memory.keep(Kind.CHECKPOINT, NpcKey("", "v", ""), "", {}):  # the smallest record
        pass
    return rubbish


async def has_tried(rig: Rig) -> None:
    """Retries the owed work, as the daemon does once a second, until none is left."""
    upkeep = rig.daemon.upkeep

    def nothing_owed() -> bool:
        upkeep.look_after(1 << 62)  # every pause is over
        return not upkeep.owed

    await until(nothing_owed, "all that was owed is written")


def found(folder: Path, text: str) -> Iterator[Path]:
    """The files below a folder that contain a text."""
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(OSError):
            if path.is_file() and text.encode() in path.read_bytes():
                yield path


async def test_a_full_disk_is_said_and_tried_until_it_is_done(small_disk: Path, redis_server: RedisServer) -> None:
    """The call fails with UNAVAILABLE, and no memory is recalled meanwhile. With room again it is done without another
    request."""
    memory: dict[str, Any] = {"redis": redis_server.url(), "postgres": "off"}
    async with kept(small_disk / "data", **memory) as (rig, keeping):
        await tell(rig)
        await tell(rig, player="p2")
        assert await keeping.memory.settled(PATIENCE_S)
        rubbish = await fill(small_disk, keeping)
        for _ in range(2):
            with pytest.raises(StoreFailed, match="No space left on device"):
                await forget(rig)
        answer = await recalled(rig)
        assert not answer.facts and not answer.player_name
        assert list(await keeping.memory.bonds_of("", "vale", rig.daemon.calls.slicer())) == [("npc0", "p2")]
        rubbish.unlink()
        await has_tried(rig)
        assert keeping.recent is not None and await keeping.memory.settled(PATIENCE_S)
        assert list(await keeping.recent.bonds("", "vale")) == [("npc0", "p2")]
    async with kept(small_disk / "data", npcs=0, **memory) as (rig, _):
        assert not (await recalled(rig)).facts and (await recalled(rig, player="p2")).facts


async def test_on_a_full_disk_with_the_journal_alone_nothing_is_quoted_after_a_restart(small_disk: Path) -> None:
    """The text is overwritten in place, which needs no room, although the request itself cannot be written."""
    async with kept(small_disk / "data", **JOURNAL_ALONE) as (rig, keeping):
        await tell(rig)
        rubbish = await fill(small_disk, keeping)
        with pytest.raises(StoreFailed):
            await forget(rig)
        assert not list(found(small_disk / "data", "lantern"))
    rubbish.unlink()
    async with kept(small_disk / "data", npcs=0, **JOURNAL_ALONE) as (rig, _):
        assert not (await recalled(rig)).facts


async def test_a_save_that_cannot_be_written_anew_is_tried_again(tmp_path: Path) -> None:
    """Forget is not done while a save still has the player. The remains of a save that a kill left go as well."""
    async with running(gated(), saves=tmp_path / "saves") as rig:
        save_games = rig.daemon.calls.save_games
        await tell(rig)
        await save_games.checkpoint("", npcs_pb2.CheckpointRequest(world_id="vale", checkpoint_id="one"))
        (save,) = (tmp_path / "saves").rglob("*.npcd")
        half = save.with_suffix(".0123abcd.new")
        half.write_bytes(save.read_bytes())
        written = save.read_bytes()
        save.unlink()
        save.mkdir()  # it can neither be read nor written
        with pytest.raises(StoreFailed, match="cannot be written anew"):
            await forget(rig)
        assert not half.exists()
        save.rmdir()
        save.write_bytes(written)
        await has_tried(rig)
        assert b"lantern" not in save.read_bytes()


async def test_redis_own_file_has_nothing_of_a_forgotten_player(tmp_path: Path) -> None:
    """When Forget reports that recent memory has forgotten, no file below the data folder has the player's words."""
    data = tmp_path / "data"
    async with kept(data, **REDIS_ALONE) as (rig, keeping):
        await tell(rig)
        await tell(rig, player="p2", lines=("My brother is called Corvinus.",))
        assert await keeping.memory.settled(PATIENCE_S)
        assert list(found(data / "redis", "lantern"))
        assert "recent" in await forget(rig)
        assert not list(found(data, "lantern"))
        assert list(found(data / "redis", "Corvinus"))
        assert keeping.memory.degraded() == []


async def test_redis_own_file_is_written_anew_also_after_a_restart(tmp_path: Path) -> None:
    """npcd ends after Redis has forgotten and before its file was rewritten. The next start rewrites it."""
    data = tmp_path / "data"
    async with kept(data, **REDIS_ALONE) as (rig, keeping):
        await tell(rig)
        assert await keeping.memory.settled(PATIENCE_S) and keeping.rewriting is not None
        keeping.rewriting.stop(PATIENCE_S)
        stores = await forget(rig)
        assert "journal" in stores and "recent" not in stores
        assert await keeping.memory.settled(PATIENCE_S)
        assert list(found(data / "redis", "lantern"))
    async with kept(data, npcs=0, **REDIS_ALONE):
        await until(lambda: not list(found(data, "lantern")), "the file is written anew")


async def test_redis_by_url_is_asked_only_when_the_settings_say_so(tmp_path: Path, own_redis: RedisServer) -> None:
    """A server that others may use as well is not rewritten. With memory.recent.rewrite_aof its file is."""
    memory: dict[str, Any] = {"redis": own_redis.url(), "postgres": "off"}
    async with kept(tmp_path / "data", **memory) as (rig, keeping):
        await tell(rig)
        assert await keeping.memory.settled(PATIENCE_S)
        assert "recent" in await forget(rig) and keeping.rewriting is None
        assert not own_redis.execute("KEYS", "*p1*")
    assert list(found(own_redis.folder, "lantern"))
    memory["recent"] = replace(patient(Config().memory).recent, rewrite_aof=True)
    async with kept(tmp_path / "data", npcs=0, **memory) as (rig, keeping):
        await tell(rig)
        assert await keeping.memory.settled(PATIENCE_S)
        assert "recent" in await forget(rig) and keeping.rewriting is not None
        await until(lambda: not list(found(own_redis.folder, "lantern")), "Redis deletes its old file")


async def test_history_does_not_name_a_forgotten_player() -> None:
    """Describe with_history has no entry of a forgotten player; entries about others stay."""
    async with running(gated(), only_distance()) as rig:
        calls = rig.daemon.calls
        for who in ("player-77", "player-8"):
            seen = rig.sees("npc0", (who, "player", "neutral", 3.0))
            await calls.observe("", rig.frame(seen))
            await rig.intent("npc0", lambda i, tick=seen.tick: i.observed_tick == tick and i.source == MODEL)  # type: ignore[misc]
        request = npcs_pb2.DescribeRequest(world_id="vale", npc_ids=["npc0"], with_history=True)
        assert "player-77" in str(await calls.describe("", request))
        await forget(rig, "player-77")
        told = str(await calls.describe("", request))
        assert "player-77" not in told and "player-8" in told


async def test_records_of_npcs_that_a_full_disk_refused_are_written_later(small_disk: Path) -> None:
    """Register and Remove report that the record is not accepted. With room again it is written, and it holds after a
    restart."""
    async with kept(small_disk / "data", **JOURNAL_ALONE) as (rig, keeping):
        calls = rig.daemon.calls
        rubbish = await fill(small_disk, keeping)
        more = [npcs_pb2.NpcSpec(npc_id="late", archetype_id="villager", persona_id="mira")]
        registered = await calls.register("", npcs_pb2.RegisterRequest(world_id="vale", npcs=more))
        removed = await calls.remove("", npcs_pb2.RemoveRequest(world_id="vale", npc_ids=["npc0"]))
        assert registered.accepted_known and not registered.accepted
        assert removed.removed == 1 and removed.accepted_known and not removed.accepted
        rubbish.unlink()
        await has_tried(rig)
        again = await calls.register("", npcs_pb2.RegisterRequest(world_id="vale", npcs=more))
        assert again.accepted
    async with kept(small_disk / "data", npcs=0, **JOURNAL_ALONE) as (rig, _):
        assert set(rig.leases) == {"npc1", "late"}
        assert last(await rig.say("npc1", TOLD[0], max_tokens=3)).accepted
