"""Data that outlives the daemon: with its own real Redis and PostgreSQL, with Redis by URL, and with the journal
alone."""

import asyncio
import contextlib
import hashlib
import importlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest

from core.clock import now_ns
from core.pseudonym import pseudonym
from core.steps import at_once
from core.words import NpcKey
from daemon.build import wall_ms
from daemon.config import Config, ServeSettings
from daemon.process.datafolder import OWNER_URL
from daemon.process.keeping import Keeping, open_keeping
from daemon.process.probes import Probes
from daemon.process.telemetry import StatusCollector
from daemon.rpc.grpc_face import GrpcFace
from memory.bond import DAY_MS, Bond
from memory.recent_writer import RecentWriter
from memory.records import Kind, Position, Record
from memory.saves import Save, pack, unpack
from npcd.v1 import dialogue_pb2, npcs_pb2
from npcd_client import CallerError as ClientCallerError
from npcd_client import Client
from npcd_client.v1 import npcs_pb2 as npcs_pb2_of_client
from tests.daemon.rig import Rig, gated, patience, patient, running, until, world
from tests.daemon.talk.test_sessions import FACTS, TOLD, end, tell, told_in
from tests.memory.disk_fixture import small_disk
from tests.memory.redis_fixture import RedisServer, own_redis, redis_for_all
from tests.patience import PATIENCE_S

__all__ = ["own_redis", "patience", "redis_for_all", "small_disk"]
pytestmark = pytest.mark.usefixtures("patience")

REDIS_ALONE: dict[str, Any] = {"postgres": "off"}
JOURNAL_ALONE: dict[str, Any] = {"redis": "off", "postgres": "off"}


@asynccontextmanager
async def kept(
    folder: Path, npcs: int = 2, clock_ms: Callable[[], int] = wall_ms, **memory: Any
) -> AsyncIterator[tuple[Rig, Keeping]]:
    """A daemon with a data folder."""
    config = Config()
    config = replace(config, memory=replace(patient(config.memory), folder=folder, **memory))
    keeping = await open_keeping(config, now_ns, clock_ms)
    try:
        async with running(gated(), config, npcs, keeping=keeping) as rig:
            yield rig, keeping
    finally:
        await keeping.stop(PATIENCE_S)


async def recalled(rig: Rig, npc: str = "npc0", player: str = "p1") -> npcs_pb2.RecallResponse:
    """The NPC's memories, as the daemon returns them."""
    request = npcs_pb2.RecallRequest(world_id="vale", npc_id=npc, player_id=player)
    return await rig.daemon.calls.recalling.recall("", request)


def last(events: list[dialogue_pb2.TalkEvent]) -> dialogue_pb2.TalkEvent:
    """The last event of a turn."""
    assert events[-1].kind == dialogue_pb2.TALK_EVENT_KIND_END
    return events[-1]


@pytest.mark.parametrize("memory", [{}, REDIS_ALONE, JOURNAL_ALONE], ids=["own servers", "Redis", "journal"])
async def test_a_daemon_that_starts_again_goes_on(tmp_path: Path, memory: dict[str, Any]) -> None:
    """Worlds, leases, cards, facts and the conversation under way are there, without a call of the game."""
    folder = tmp_path / "data"
    async with kept(folder, **memory) as (rig, _):
        said = last(await rig.say("npc0", TOLD[0], max_tokens=3, turn_id="t1"))
        assert said.accepted and said.accepted_known
        card = npcs_pb2.SetCardsRequest(world_id="vale", npc_id="npc0", player_id="p1")
        card.relationship.trust = 0.9
        assert (await rig.daemon.calls.recalling.set_cards("", card)).accepted
        leases = dict(rig.leases)
    async with kept(folder, npcs=0, **memory) as (rig, _):
        await rig.say("npc1", "Hello.", max_tokens=3)  # so that this life has a segment of its own
    async with kept(folder, npcs=0, **memory) as (rig, _):
        assert rig.leases == leases
        again = last(await rig.say("npc0", TOLD[0], max_tokens=3, turn_id="t1"))
        assert again.finish == dialogue_pb2.TALK_FINISH_REPEATED and again.session_id == said.session_id
        answer = await recalled(rig)
        assert [f.text for f in answer.facts] == [FACTS[0].replace("{player}", "The player")]
        assert answer.relationship.trust == 0.9
        assert (await recalled(rig, "npc1")).facts == []


async def test_the_archive_has_everything_once_and_players_by_pseudonym(tmp_path: Path) -> None:
    """A forgotten player is gone from every store."""
    async with kept(tmp_path / "data") as (rig, keeping):
        await tell(rig)
        await tell(rig, player="p2")
        journal, archive = keeping.journal, keeping.memory.archive_feeder
        assert archive is not None and await archive.passed(journal.end, PATIENCE_S)
        answer = await rig.daemon.calls.forgetting.forget("", npcs_pb2.ForgetRequest(world_id="vale", player_id="p1"))
        assert answer.stores == ["hot", "recent", "archive", "journal", "parked"] and answer.sessions == 1
        assert (await recalled(rig)).facts == [] and (await recalled(rig, player="p2")).facts
        kept_bytes = b"".join(p.read_bytes() for p in (tmp_path / "data" / "journal").glob("*.journal"))
        assert kept_bytes.count(b"green lantern") == 2  # the line of p2, and its fact
        assert kept_bytes.count(b'"p1"') == 1  # the wish to be forgotten


async def test_an_operator_follows_one_player_from_npcd_kv_to_the_archive(tmp_path: Path) -> None:
    """Describe, which npcd kv prints, and the archive have the same pseudonym, by the key that an older version left in
    the data folder.
    """
    data, key = tmp_path / "data", bytes(range(32))
    data.mkdir(mode=0o700)
    (data / "pseudonym_key").write_bytes(key)
    async with kept(data) as (rig, keeping):
        await tell(rig)
        answer = await rig.daemon.calls.describe("", npcs_pb2.DescribeRequest(world_id="vale"))
        partners = {trunk.partner for npc in answer.npcs for trunk in npc.trunks if trunk.partner}
        archive = keeping.memory.archive_feeder
        assert archive is not None and await archive.passed(keeping.journal.end, PATIENCE_S)
        with psycopg.connect((data / OWNER_URL).read_text()) as admin:
            players = {player for (player,) in admin.execute("SELECT DISTINCT player FROM events WHERE player <> ''")}
    assert partners == players == {pseudonym(key, "", "p1")}


async def test_conversations_go_on_without_redis_and_it_gets_all_of_it_later(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    """When Redis is killed in the middle, the turn goes on from hot memory and says so. Afterwards every record is
    there once."""
    memory: dict[str, Any] = {"redis": own_redis.url(), "postgres": "off"}
    async with kept(tmp_path / "data", **memory) as (rig, keeping):
        await tell(rig, lines=TOLD[:1])
        assert await keeping.memory.settled(PATIENCE_S)
        own_redis.kill()
        recent = keeping.recent
        assert recent is not None
        assert last(await rig.say("npc0", TOLD[1], max_tokens=3)).accepted
        await until(lambda: bool(recent.away), "Redis is away")
        event = last(await rig.say("npc0", TOLD[1], "p2", max_tokens=3))
        assert event.accepted and event.timings.recall_late and list(event.timings.stores) == ["hot"]
        await until(lambda: bool(keeping.memory.degraded()), "it is told")
        own_redis.start()
        assert await keeping.memory.settled(PATIENCE_S)
        await until(lambda: not recent.away, "Redis is back")
        at_once(keeping.memory.looking_after())
        bonds = await recent.bonds("", "vale")
        assert [f.text for f in bonds["npc0", "p1"].facts] == FACTS and bonds["npc0", "p2"].facts
        assert bonds["npc0", "p1"].session is not None and bonds["npc0", "p1"].session.count == 2


async def test_one_late_recall_does_not_cost_the_conversation_its_memory(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    """Redis hangs while a conversation begins. That turn reports that recall was late, and so does every answer until
    Redis was read. From then on the trunk has the memories.
    """
    memory: dict[str, Any] = {"redis": own_redis.url(), "postgres": "off"}
    folder = tmp_path / "data"
    async with kept(folder, **memory) as (rig, _):
        await tell(rig)
    impatient = replace(patient(Config().memory).recent, recall_ms=50.0)
    async with kept(folder, npcs=0, recent=impatient, **memory) as (rig, keeping):
        with own_redis.stopped():
            for _ in range(2):
                event = last(await rig.say("npc0", "Good evening.", max_tokens=3))
                assert event.timings.recall_late and list(event.timings.stores) == ["hot"]
                assert (await recalled(rig)).late
            assert told_in(rig) == ()
        assert await keeping.memory.settled(PATIENCE_S)
        async with asyncio.timeout(PATIENCE_S):
            while (event := last(await rig.say("npc0", "Well?", max_tokens=3))).timings.recall_late:
                pass
        assert list(event.timings.stores) == ["hot", "recent"]
        assert told_in(rig) != ()
        answer = await recalled(rig)
        assert not answer.late and [f.text for f in answer.facts] == [
            fact.replace("{player}", "The player") for fact in FACTS
        ]
        event = last(await rig.say("npc0", "Well?", max_tokens=3))
        assert not event.timings.recall_late and list(event.timings.stores) == ["hot"]


async def test_worlds_come_back_when_redis_is_late(
    tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is down when the daemon starts, and the journal does not go back far enough. The worlds and NPCs are taken
    up when Redis comes, with their leases and memories.
    """
    memory: dict[str, Any] = {"redis": own_redis.url(), "postgres": "off"}
    folder = tmp_path / "data"
    async with kept(folder, **memory) as (rig, keeping):
        await tell(rig)
        leases = dict(rig.leases)
        assert await keeping.memory.settled(PATIENCE_S)
    own_redis.kill()
    for segment in (folder / "journal").glob("*.journal"):
        segment.unlink()
    monkeypatch.setattr("daemon.process.keeping.CAUGHT_UP_WITHIN_S", 0.1)
    async with kept(folder, npcs=0, **memory) as (rig, _):
        assert not rig.leases
        own_redis.start()
        await until(lambda: rig.daemon.worlds.npcs == len(leases), "the NPCs are there")
        assert {n.key.npc: n.lease_epoch for w in rig.daemon.worlds for n in w.npcs.values()} == leases
        assert len((await recalled(rig)).facts) == 2


async def test_a_week_is_remembered_and_a_month_is_not(tmp_path: Path) -> None:
    """By another clock, after 7 days summary and facts are recalled, after 31 days nothing is."""
    folder = tmp_path / "data"
    now_ms = wall_ms()
    async with kept(folder, **REDIS_ALONE) as (rig, _):
        await tell(rig)
        await rig.daemon.calls.end_session("", end())
        await until(lambda: not rig.daemon.door.open, "the summary")
    async with kept(folder, 0, lambda: now_ms + 7 * DAY_MS, **REDIS_ALONE) as (rig, _):
        answer = await recalled(rig)
        assert len(answer.facts) == 2 and len(answer.summaries) == 1 and "recent" in answer.stores
    async with kept(folder, 0, lambda: now_ms + 31 * DAY_MS, **REDIS_ALONE) as (rig, _):
        answer = await recalled(rig)
        assert not answer.facts and not answer.summaries and "recent" in answer.stores


@pytest.mark.parametrize("memory", [REDIS_ALONE, JOURNAL_ALONE], ids=["Redis", "journal"])
async def test_cards_outlive_the_talk(tmp_path: Path, memory: dict[str, Any]) -> None:
    """A card that was set on day 29 is there on day 31, when the talk is not. A card for a player who was away for
    longer than a month is recalled at once. Both hold after restarts.
    """
    folder = tmp_path / "data"
    day = [0]
    began_ms = wall_ms()

    def clock_ms() -> int:
        return began_ms + day[0] * DAY_MS

    async def set_card(rig: Rig, player: str, trust: float) -> None:
        card = npcs_pb2.SetCardsRequest(world_id="vale", npc_id="npc0", player_id=player)
        card.relationship.trust = trust
        assert (await rig.daemon.calls.recalling.set_cards("", card)).accepted

    async with kept(folder, clock_ms=clock_ms, **memory) as (rig, _):
        for player in ("p1", "p2"):
            await tell(rig, player=player)
            await rig.daemon.calls.end_session("", end(player=player))
        await until(lambda: not rig.daemon.door.open, "the summaries")
        day[0] = 29
        await set_card(rig, "p1", 0.9)
        assert len((await recalled(rig)).facts) == 2
        day[0] = 31
        await set_card(rig, "p2", -0.5)
        for player, trust in (("p1", 0.9), ("p2", -0.5)):
            answer = await recalled(rig, player=player)
            assert answer.relationship.trust == trust and not answer.facts and not answer.summaries
    async with kept(folder, 0, clock_ms, **memory) as (rig, _):
        day[0] = 300
        assert (await recalled(rig)).relationship.trust == 0.9
        assert (await recalled(rig, player="p2")).relationship.trust == -0.5


async def test_the_journal_alone_keeps_cards_and_worlds_longer_than_its_segments(tmp_path: Path) -> None:
    """Without Redis, data that lives longer than keep_hours is written again before the old segments are deleted."""
    folder = tmp_path / "data"
    hour = [0]
    began_ms = wall_ms()

    def clock_ms() -> int:
        return began_ms + hour[0] * DAY_MS // 24

    async with kept(folder, clock_ms=clock_ms, **JOURNAL_ALONE) as (rig, keeping):
        upkeep = rig.daemon.upkeep
        leases = dict(rig.leases)
        await tell(rig)
        card = npcs_pb2.SetCardsRequest(world_id="vale", npc_id="npc0", player_id="p1")
        card.quest.active.append("Find the lantern.")
        assert (await rig.daemon.calls.recalling.set_cards("", card)).accepted
        first = keeping.journal.first
        for hour[0] in range(10, 120, 10):
            upkeep.look_after(rig.daemon.clock())
            await until(lambda: upkeep.idle, "it is carried on")
            assert last(await rig.say("npc1", "Hello.", max_tokens=3)).accepted
            await until(lambda: clock_ms() - keeping.journal.end.segment < DAY_MS // 12, "a new segment")
        await until(lambda: keeping.journal.first > first, "old segments are deleted")
        await until(lambda: not any(b"I lost my green" in p.read_bytes() for p in (folder / "journal").iterdir()))
    async with kept(folder, 0, clock_ms, **JOURNAL_ALONE) as (rig, _):
        assert rig.leases == leases
        assert list((await recalled(rig)).quest.active) == ["Find the lantern."]


async def test_a_full_disk_takes_nothing_and_stops_nobody(small_disk: Path) -> None:
    """Turns go on and report that they were not accepted, and health is degraded. With room again all is well."""
    async with kept(small_disk / "data", **JOURNAL_ALONE) as (rig, _):
        assert last(await rig.say("npc0", TOLD[0], max_tokens=3)).accepted
        with (small_disk / "rubbish").open("wb", buffering=0) as rubbish, contextlib.suppress(OSError):
            while True:
                rubbish.write(bytes(4096))
        for n in range(100):  # the page that was begun has room for some
            event = last(await rig.say("npc0", f"line {n}", max_tokens=3))
            assert event.finish == dialogue_pb2.TALK_FINISH_LENGTH and event.accepted_known
            if not event.accepted:
                break
        assert not event.accepted
        assert any("No space left" in line for line in rig.daemon.board.message().degraded)
        (small_disk / "rubbish").unlink()
        async with asyncio.timeout(PATIENCE_S):
            while not last(await rig.say("npc0", "hello", max_tokens=3)).accepted:  # noqa: ASYNC110 - as a player would
                await asyncio.sleep(0.05)
        assert rig.daemon.board.message().degraded == []


async def test_undone_talk_does_not_come_back(tmp_path: Path) -> None:
    """After save, talk and restore with Redis, neither this nor a later life of the daemon has the undone talk."""
    folder = tmp_path / "data"
    async with kept(folder, **REDIS_ALONE) as (rig, keeping):
        calls = rig.daemon.calls.save_games
        await tell(rig, lines=TOLD[:1])
        await calls.checkpoint("", npcs_pb2.CheckpointRequest(world_id="vale", checkpoint_id="10:00"))
        await tell(rig, lines=TOLD[1:])
        await tell(rig, "npc1")
        assert await keeping.memory.settled(PATIENCE_S)
        await calls.restore("", npcs_pb2.RestoreRequest(world_id="vale", checkpoint_id="10:00"))
        for npc, facts in (("npc0", 1), ("npc1", 0)):
            assert len((await recalled(rig, npc)).facts) == facts
        assert await keeping.memory.settled(PATIENCE_S)
        assert keeping.recent is not None
        assert list(await keeping.recent.bonds("", "vale")) == [("npc0", "p1")]
        timeline = keeping.memory.timeline("", "vale")
    async with kept(folder, npcs=0, **REDIS_ALONE) as (rig, keeping):
        assert keeping.memory.timeline("", "vale") == timeline != "first"
        assert len((await recalled(rig)).facts) == 1 and not (await recalled(rig, "npc1")).facts
        assert keeping.memory.at_hand(rig.daemon.worlds.npc("", "vale", "npc0").key, "p1") != Bond()


@pytest.mark.parametrize("example", ["ten_lines", "remembering"])
async def test_the_readmes_examples_run(tmp_path: Path, example: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Both programs run against a daemon with a data folder and a simulated model."""
    async with kept(tmp_path / "data", npcs=0, **REDIS_ALONE) as (rig, _):
        face = GrpcFace(ServeSettings(listen=(f"unix:{tmp_path}/npcd.sock",)))
        (address,) = await face.start()
        face.calls = rig.daemon.calls
        await face.report(serving=True)
        program = importlib.import_module(f"clients.python.examples.{example}")
        await program.main(address)
        await face.stop(0)
    said = capsys.readouterr().out
    assert ("Mira: " if example == "ten_lines" else "The player lost the green lantern") in said.replace(
        "Corvessa", "The player"
    )


async def test_a_game_saves_and_asks_through_its_client(tmp_path: Path) -> None:
    """Cards, recall, save games and forgetting work over the wire through the Python client."""
    async with kept(tmp_path / "data", **REDIS_ALONE) as (rig, _):
        face = GrpcFace(ServeSettings(listen=(f"unix:{tmp_path}/npcd.sock",)))
        (address,) = await face.start()
        face.calls = rig.daemon.calls
        async with Client(address, timeout_s=PATIENCE_S) as npcd:
            npcd.world_id = "vale"
            said = [e async for e in npcd.talk("npc0", "p1", TOLD[0], max_tokens=3)]
            assert said[-1].accepted
            await npcd.set_cards("npc0", "p1", relationship=npcs_pb2_of_client.RelationshipCard(trust=-0.5))
            await npcd.checkpoint("one")
            saved = await npcd.export_world()
            assert [e async for e in npcd.talk("npc0", "p1", TOLD[1], max_tokens=3)]
            assert len((await npcd.recall("npc0", "p1")).facts) == 2
            await npcd.restore("one")
            answer = await npcd.recall("npc0", "p1")
            assert len(answer.facts) == 1 and answer.relationship.trust == -0.5
            with pytest.raises(ClientCallerError, match="no checkpoint"):
                await npcd.restore("two")
            assert "journal" in (await npcd.forget("p1")).stores
            assert not (await npcd.recall("npc0", "p1")).facts
            assert (await npcd.import_world(saved)).npcs == 2
            assert len((await npcd.recall("npc0", "p1")).facts) == 1
            with pytest.raises(ClientCallerError, match="cut off"):
                await npcd.import_world(saved[:-10])
        await face.stop(0)


async def test_health_and_metrics_tell_of_the_stores(tmp_path: Path, own_redis: RedisServer) -> None:
    """A store that is down gives degraded, not unhealthy. Recalls and the backlog are counted."""
    memory: dict[str, Any] = {"redis": own_redis.url(), "postgres": "off"}
    async with kept(tmp_path / "data", **memory) as (rig, keeping):
        board = rig.daemon.board
        probes = Probes(lambda: "serving", StatusCollector(board.message, dict), lambda: list(board.message().degraded))
        http = await probes.start("127.0.0.1:0")

        async def get(path: str) -> tuple[int, str]:
            async with aiohttp.ClientSession() as session, session.get(f"http://{http}/{path}") as answer:
                return answer.status, await answer.text()

        await tell(rig)
        assert await keeping.memory.settled(PATIENCE_S)
        assert await get("healthz") == (200, "ok\n")
        said = (await get("metrics"))[1]
        assert 'npcd_store_up{store="recent"} 1.0' in said and 'npcd_store_records_total{store="journal"}' in said
        own_redis.kill()
        await tell(rig)
        await until(lambda: bool(keeping.memory.degraded()), "it is told")
        status, text = await get("healthz")
        assert status == 200 and text.startswith("degraded\nrecent memory is away: ")
        assert 'npcd_store_up{store="recent"} 0.0' in (await get("metrics"))[1]
        await probes.stop()


async def test_undone_memories_are_not_read_while_redis_still_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a Forget and its write in Redis, neither a recall nor a prefetch brings the bond back. A turn that ended
    just before is before it in the journal.
    """
    async with kept(tmp_path / "data", **REDIS_ALONE) as (rig, keeping):
        await tell(rig)
        assert await keeping.memory.settled(PATIENCE_S)
        mark = npcs_pb2.CheckpointRequest(world_id="vale", checkpoint_id="one")
        await rig.daemon.calls.save_games.checkpoint("", mark)
        write, let, recaller = RecentWriter.write, threading.Event(), keeping.memory.recaller

        def slowly(self: RecentWriter, records: Sequence[Record], upto: Position) -> None:
            let.wait(PATIENCE_S)
            write(self, records, upto)

        monkeypatch.setattr(RecentWriter, "write", slowly)
        begun, forget_here = asyncio.Event(), keeping.memory.forget_here

        def noted(npc: NpcKey, player: str) -> asyncio.Future[bool]:
            begun.set()
            return forget_here(npc, player)

        monkeypatch.setattr(keeping.memory, "forget_here", noted)
        key = rig.daemon.worlds.npc("", "vale", "npc0").key
        turn = keeping.memory.keep_soon(Kind.TURN, key, "p1", {"session": "s", "line": "x", "reply": "y"})
        request = npcs_pb2.ForgetRequest(world_id="vale", player_id="p1")
        forgetting = asyncio.create_task(rig.daemon.calls.forgetting.forget("", request))
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        assert not (await recalled(rig)).facts
        prefetched = recaller.counts.prefetched
        keeping.memory.near(key, "p1")
        assert recaller.counts.prefetched == prefetched, "the store is not asked"
        forgetting.cancel()  # the caller leaves, and the work is done all the same
        let.set()
        assert await turn and await keeping.memory.settled(PATIENCE_S)
        assert not (await recalled(rig)).facts and keeping.recent is not None
        assert await keeping.recent.bonds("", "vale") == {}
        journal = tmp_path / "data" / "journal"
        await until(lambda: not any(b"lantern" in p.read_bytes() for p in journal.glob("*.journal")), "redacted")
        saves = tmp_path / "data" / "saves"
        assert list(saves.rglob("*.npcd"))
        await until(lambda: not any(b"lantern" in p.read_bytes() for p in saves.rglob("*.npcd")), "saves written anew")


async def test_a_read_that_was_under_way_does_not_bring_the_forgotten_back(tmp_path: Path) -> None:
    """Its answer was right when Redis gave it, and arrives when Redis has forgotten, too."""
    async with kept(tmp_path / "data", **REDIS_ALONE) as (rig, keeping):
        key = rig.daemon.worlds.npc("", "vale", "npc0").key
        recent, let = keeping.recent, asyncio.Event()
        assert recent is not None

        async def slowly(npc: NpcKey, player: str, now_ms: int) -> Bond | None:
            await let.wait()
            return Bond(name="Ann")

        recent.recall = slowly  # type: ignore[method-assign]
        keeping.memory.near(key, "p1")
        await asyncio.sleep(0)
        await rig.daemon.calls.forgetting.forget("", npcs_pb2.ForgetRequest(world_id="vale", player_id="p1"))
        assert await keeping.memory.settled(PATIENCE_S)
        let.set()
        for _ in range(10):
            await asyncio.sleep(0)
        assert keeping.memory.at_hand(key, "p1") is None


async def test_a_world_that_lost_a_persona_keeps_its_npcs_over_a_restart(tmp_path: Path) -> None:
    """The NPC that cannot be taken up again is reported, and the others are there."""
    folder = tmp_path / "data"
    async with kept(folder, **REDIS_ALONE) as (rig, _):
        changed = world()
        del changed.personas[1:]
        await rig.daemon.calls.define_world("", changed)
    async with kept(folder, npcs=0, **REDIS_ALONE) as (rig, _):
        assert set(rig.leases) == {"npc0"}


async def test_the_data_folder_may_move(tmp_path: Path) -> None:
    """The save from which a world was restored is found below the folder, wherever that is now."""
    folder = tmp_path / "data"
    async with kept(folder, **JOURNAL_ALONE) as (rig, _):
        calls = rig.daemon.calls.save_games
        await tell(rig)
        await calls.checkpoint("", npcs_pb2.CheckpointRequest(world_id="vale", checkpoint_id="one"))
        await calls.restore("", npcs_pb2.RestoreRequest(world_id="vale", checkpoint_id="one"))
    folder.rename(tmp_path / "elsewhere")
    async with kept(tmp_path / "elsewhere", npcs=0, **JOURNAL_ALONE) as (rig, _):
        assert len((await recalled(rig)).facts) == 2


def test_a_file_that_is_no_save_is_refused() -> None:
    """Nesting, wrong types, invalid numbers and endless texts are refused, even with a right checksum."""
    save = Save("vale", "first", 1_000, b"", 1, 0, [(b"x", 1)], {("npc0", "p1"): Bond(name="Ann")})
    good = list(pack(save))
    assert unpack(b"".join(good)) == save

    def resealed(*lines: bytes) -> bytes:
        body = b"".join(lines)
        return body + b'["end","' + hashlib.sha256(body).hexdigest().encode() + b'"]\n'

    for line in (
        b"[" * 200_000 + b"\n",
        b'["bond","npc0","p1",{"name":5}]\n',
        b'["bond","npc0","p1",{"facts":[[7,0.5,1]]}]\n',
        b'["bond","npc0","p1",{"facts":[["x",0.5,1e30]]}]\n',
        b'["bond","npc0","p1",{"facts":' + json.dumps([["x", 0.5, 1]] * 99).encode() + b"}]\n",
        b'["bond","npc0","p1",{"facts":[["' + b"x" * 10_000 + b'",0.5,1]]}]\n',
        b'["bond","npc0","p1",{"relationship":{"trust":9,"affinity":0,"promises":[],"betrayals":[]}}]\n',
        b'["bond","","p1",{}]\n',
        b'["bond","npc0","p1",{"name":"' + b"x" * (2 << 20) + b'"}]\n',
    ):
        with pytest.raises(ValueError):
            unpack(resealed(good[0], line))
    for head in (b'"at_ms":"0"', b'"at_ms":1e30', b'"at_ms":-1'):
        with pytest.raises(ValueError):
            unpack(resealed(good[0].replace(b'"at_ms":1000', head), *good[1:-1]))
