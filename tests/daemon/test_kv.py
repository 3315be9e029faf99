"""Where KV rests, as the daemon's callers see it: parked in a real Redis, described, and forgotten."""

import asyncio
import json
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from core.clock import now_ns
from core.errors import StoreFailed
from core.words import NpcKey
from daemon import kv_command
from daemon.config import Config, ServeSettings
from daemon.grpc_face import GrpcFace
from daemon.keeping import Keeping, open_keeping
from npcd.v1 import npcs_pb2
from scheduler.placing import KvSettings
from tests.daemon.rig import Rig, gated, running, until
from tests.memory.redis_fixture import RedisServer, redis_for_all, redis_server

__all__ = ["redis_for_all", "redis_server"]


@asynccontextmanager
async def kept(folder: Path, server: RedisServer) -> AsyncIterator[tuple[Rig, Keeping]]:
    """A daemon without RAM for KV, so that whatever leaves its sequence goes to Redis."""
    config = Config()
    memory = replace(config.memory, folder=folder, postgres="off", redis=server.url())
    kv = KvSettings(ram_mib=0, redis_mib=16, lanes=4, prefixes=2)
    config = replace(config, memory=memory, scheduler=replace(config.scheduler, kv=kv))
    keeping = await open_keeping(config, now_ns)
    try:
        assert keeping.parked is not None
        async with running(gated(), config, 2, keeping=keeping) as rig:
            await asyncio.to_thread(keeping.parked.settled, 20.0)
            yield rig, keeping
    finally:
        await keeping.stop(5.0)


async def homes(rig: Rig) -> dict[tuple[str, bool], str]:
    """The home of each trunk, by NPC and whether it is a dialogue's."""
    answer = await rig.daemon.calls.describe("", npcs_pb2.DescribeRequest(world_id="vale"))
    return {(npc.npc_id, bool(t.partner)): t.home for npc in answer.npcs for t in npc.trunks}


async def park(rig: Rig, keeping: Keeping, npc: str) -> None:
    """Moves an NPC's trunks out, as far as Redis."""
    assert keeping.parked is not None
    await until(lambda: not rig.daemon.door.open)
    rig.daemon.door.move_out(NpcKey("", "vale", npc))
    await rig.daemon.door.obeyed()
    assert await asyncio.to_thread(keeping.parked.settled, 20.0)


async def test_a_trunk_in_redis_comes_back_for_the_next_turn(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before and after: the second turn finds its trunk again, loaded, and Timings say so."""
    async with kept(tmp_path / "data", redis_server) as (rig, keeping):
        # A trunk of 60 tokens is computed sooner than its bytes are verified.
        for costs in (rig.daemon.scheduler.placer.loads, rig.daemon.scheduler.placer.parking.costs):
            monkeypatch.setattr(costs, "pays", lambda *_: True)
        await rig.say("npc0", "Good day to you.", max_tokens=4)
        await park(rig, keeping, "npc0")
        assert await homes(rig) == {
            ("npc0", False): "redis", ("npc0", True): "redis", ("npc1", False): "sequence"
        }  # fmt: skip
        events = await rig.say("npc0", "How is the bread?", max_tokens=4)
        placer = rig.daemon.scheduler.placer
        assert placer.parking.fetched or placer.parking.given_up
        timings = events[-1].timings
        assert timings.cached_tokens or placer.parking.given_up
        assert timings.loaded_tokens == timings.cached_tokens or placer.parking.given_up
        assert placer.loads_refused == 0


async def test_forget_reaches_parked_kv(tmp_path: Path, redis_server: RedisServer) -> None:
    """The answer names the store, the player's bytes are gone from Redis, and the NPC's own trunk is still there."""
    async with kept(tmp_path / "data", redis_server) as (rig, keeping):
        await rig.say("npc0", "I am the thief.", max_tokens=4)
        await park(rig, keeping, "npc0")
        before = len(redis_server.execute("KEYS", "npcd:1:kv:*:*"))
        request = npcs_pb2.ForgetRequest(world_id="vale", player_id="p1")
        answer = await rig.daemon.calls.remembering.forget("", request)
        assert "parked" in answer.stores
        assert len(redis_server.execute("KEYS", "npcd:1:kv:*:*")) == before - 1
        assert ("npc0", True) not in await homes(rig)
        await rig.say("npc0", "I am the thief.", max_tokens=4)
        await park(rig, keeping, "npc0")
        with redis_server.stopped():
            again = await rig.daemon.calls.remembering.forget("", request)
        assert "parked" not in again.stores


async def test_npcd_kv_shows_every_trunk(
    tmp_path: Path, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a table with a sum, and as JSON; a world or daemon that is not there is said in a line."""
    async with kept(tmp_path / "data", redis_server) as (rig, keeping):
        await rig.say("npc0", "Good day to you.", max_tokens=4)
        await park(rig, keeping, "npc0")
        address = f"unix:{tmp_path}/npcd.sock"
        face = GrpcFace(ServeSettings(listen=(address,)))
        face.calls = rig.daemon.calls
        await face.start()

        def lines(**more: object) -> list[str]:
            asked: dict[str, object] = {
                "world": "vale",
                "npcs": [],
                "target": address,
                "token_file": None,
                "ca": None,
                "json": False,
            }
            return list(kv_command.run(Namespace(**asked | more)))

        table = await asyncio.to_thread(lines)
        assert len(table) == 5
        assert "redis" in table[1] and "sequence" in table[3]
        assert table[-1].startswith("3 trunks: 1 sequence (") and "2 redis (" in table[-1]
        rows = [json.loads(line) for line in await asyncio.to_thread(lambda: lines(json=True, npcs=["npc0"]))]
        assert {(r["npc"], r["home"]) for r in rows} == {("npc0", "redis")}
        assert all(r["bytes"] > r["tokens"] > 0 for r in rows)
        unknown = await asyncio.to_thread(lambda: lines(npcs=["nobody"]))
        assert unknown[-1] == "not in this world: nobody"
        with pytest.raises(StoreFailed, match="nowhere"):
            await asyncio.to_thread(lambda: lines(world="nowhere"))
        await face.stop(0)
