"""The homes of KV as the daemon's callers see them: parked in a real Redis, described, and forgotten."""

import asyncio
import json
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from core.clock import S, now_ns
from core.errors import ConfigError, StoreFailed
from core.words import NpcKey, TrunkKey
from daemon.commands import kv as kv_command
from daemon.config import Config, ServeSettings
from daemon.model import Model
from daemon.process.keeping import Keeping, open_keeping
from daemon.rpc.grpc_face import GrpcFace
from kvcache.verify import SIGNATURE_BYTES, signer
from npcd.v1 import npcs_pb2
from scheduler.placing import KvSettings
from tests.daemon.rig import Rig, gated, move_out, patience, patient, running, until
from tests.memory.redis_fixture import RedisServer, redis_for_all, redis_server
from tests.patience import PATIENCE_S

__all__ = ["patience", "redis_for_all", "redis_server"]
pytestmark = pytest.mark.usefixtures("patience")


@asynccontextmanager
async def kept(folder: Path, server: RedisServer, model: Model | None = None) -> AsyncIterator[tuple[Rig, Keeping]]:
    """A daemon without RAM for KV, so that a trunk that leaves its sequence goes to Redis."""
    config = Config()
    memory = replace(patient(config.memory), folder=folder, postgres="off", redis=server.url())
    kv = KvSettings(ram_mib=0, redis_mib=16, lanes=4, prefixes=2)
    config = replace(config, memory=memory, scheduler=replace(config.scheduler, kv=kv))
    keeping = await open_keeping(config, now_ns)
    try:
        assert keeping.parked is not None
        async with running(model or gated(), config, 2, keeping=keeping) as rig:
            await asyncio.to_thread(keeping.parked.settled, PATIENCE_S)
            yield rig, keeping
    finally:
        await keeping.stop(PATIENCE_S)


async def homes(rig: Rig) -> dict[tuple[str, bool], str]:
    """The home of each trunk, by NPC and by kind: True for a dialogue's."""
    answer = await rig.daemon.calls.describe("", npcs_pb2.DescribeRequest(world_id="vale"))
    return {(npc.npc_id, bool(t.partner)): t.home for npc in answer.npcs for t in npc.trunks}


async def park(rig: Rig, keeping: Keeping, npc: str) -> None:
    """Moves an NPC's trunks out, as far as Redis."""
    assert keeping.parked is not None
    await until(lambda: not rig.daemon.door.open)
    homes = rig.daemon.step_backend.scheduler.placer.homes
    homes.ram_bytes_max = 0
    await move_out(rig, npc)
    assert await asyncio.to_thread(keeping.parked.settled, PATIENCE_S)
    homes.ram_bytes_max = 64 << 20  # a trunk comes back through RAM


async def test_a_trunk_in_redis_comes_back_for_the_next_turn(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Describe shows the home before and after. The second turn loads its trunk, and Timings count that."""
    async with kept(tmp_path / "data", redis_server) as (rig, keeping):
        # A trunk of 60 tokens is computed sooner than its bytes are verified.
        placer = rig.daemon.step_backend.scheduler.placer
        for costs in (placer.moves.loads, placer.moves.parking.costs):
            monkeypatch.setattr(costs, "pays", lambda *_: True)
        placer.moves.parking._wait_ns = 20 * S
        await rig.say("npc0", "Good day to you.", max_tokens=4)
        await park(rig, keeping, "npc0")
        assert await homes(rig) == {
            ("npc0", False): "redis", ("npc0", True): "redis", ("npc1", False): "sequence"
        }  # fmt: skip
        events = await rig.say("npc0", "How is the bread?", max_tokens=4)
        timings = events[-1].timings
        assert timings.loaded_tokens == timings.cached_tokens > 0
        # The first line begins to fetch all trunks of an NPC.
        assert (placer.moves.parking.fetched, placer.moves.loads_refused) == (2, 0)


def one_bit(value: bytes) -> bytes:
    """The same bytes with one bit flipped in the middle of the KV."""
    broken = bytearray(value)
    broken[len(value) // 2] ^= 16
    return bytes(broken)


def cut(value: bytes) -> bytes:
    """Some bytes fewer."""
    return value[:-100]


def by_another_key(value: bytes) -> bytes:
    """The same bytes, signed with another key."""
    at = SIGNATURE_BYTES
    length = int.from_bytes(value[at : at + 4], "little")
    header, payload = value[at + 4 : at + 4 + length], value[at + 4 + length :]
    return signer(b"another key, which is as long!!!")(b"", header, payload) + value[at:]


@pytest.mark.parametrize("spoil", [one_bit, cut, by_another_key])
async def test_a_home_in_redis_that_is_not_ours_is_computed_anew(
    tmp_path: Path,
    redis_server: RedisServer,
    real: Model,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[bytes], bytes],
) -> None:
    """On the shipped model the fault is counted, and the reply is the one of a daemon that kept nothing."""
    async with kept(tmp_path / "data", redis_server, real) as (rig, keeping):
        placer = rig.daemon.step_backend.scheduler.placer
        for costs in (placer.moves.loads, placer.moves.parking.costs):
            monkeypatch.setattr(costs, "pays", lambda *_: True)
        placer.moves.parking._wait_ns = 20 * S
        npc, said = NpcKey("", "vale", "npc0"), {}
        for player in ("nothing", "whole", "spoilt"):
            greedy = {"player": player, "max_tokens": 24, "temperature": 0.0, "has_temperature": True}
            await rig.say("npc0", "Good day to you.", **greedy)  # type: ignore[arg-type]
            await park(rig, keeping, "npc0")
            if player == "nothing":
                rig.daemon.door.forget(TrunkKey(npc, player))
                await rig.daemon.door.obeyed()
            for name in redis_server.execute("KEYS", "npcd:1:kv:*:*") if player == "spoilt" else ():
                redis_server.execute("SET", name, spoil(redis_server.execute("GET", name)))
            refused = placer.moves.loads_refused
            events = await rig.say("npc0", "How is the bread?", **greedy)  # type: ignore[arg-type]
            await until(lambda: not rig.daemon.door.open)
            said[player] = "".join(e.text for e in events)
            timings = events[-1].timings
            assert (timings.loaded_tokens > 0) is (player == "whole")
            assert (placer.moves.loads_refused > refused) is (player == "spoilt")
        assert said["spoilt"] == said["whole"] == said["nothing"] != ""
        assert placer.moves.refused["signature"] == placer.moves.loads_refused


async def test_forget_reaches_parked_kv(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer names the store, the player's bytes are gone from Redis, and the NPC's own trunk is still there."""
    async with kept(tmp_path / "data", redis_server) as (rig, keeping):
        await rig.say("npc0", "I am the thief.", max_tokens=4)
        await park(rig, keeping, "npc0")
        before = len(redis_server.execute("KEYS", "npcd:1:kv:*:*"))
        request = npcs_pb2.ForgetRequest(world_id="vale", player_id="p1")
        answer = await rig.daemon.calls.forgetting.forget("", request)
        assert "parked" in answer.stores
        assert len(redis_server.execute("KEYS", "npcd:1:kv:*:*")) == before - 1
        assert ("npc0", True) not in await homes(rig)
        await rig.say("npc0", "I am the thief.", max_tokens=4)
        await park(rig, keeping, "npc0")
        monkeypatch.setattr("memory.memory.FORGET_WITHIN_S", 0.1)
        monkeypatch.setattr("daemon.rpc.forgetting.FORGOTTEN_WITHIN_S", 0.1)
        with redis_server.stopped():
            again = await rig.daemon.calls.forgetting.forget("", request)
        assert "parked" not in again.stores


async def test_npcd_kv_shows_every_trunk(
    tmp_path: Path, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints a table with a sum, or JSON. For a world or daemon that is not there it prints one line."""
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


@pytest.mark.parametrize(
    "target",
    ["", "nonsense", "127.0.0.1:99999", "127.0.0.1:0", "127.0.0.1:x", ":50061", "127.0.0.1:٥٠٠٦١", "::1:50061",
     "127.0.0.1 :50061", "unix:", "ipv4:127.0.0.1:70000"],
)  # fmt: skip
def test_a_target_that_is_none_is_refused(target: str) -> None:
    """gRPC would read port 99999 as another one."""
    asked = Namespace(world="vale", npcs=[], target=target, token_file=None, ca=None, json=False)
    with pytest.raises(ConfigError, match=r"^--target: '.*' must be host:port or unix:/path$"):
        list(kv_command.run(asked))


@pytest.mark.parametrize("text", ["", "\n", "geheim€\n", "two\twords\n"])
def test_a_token_that_no_request_can_carry_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    """The message names the flag and the file."""
    file = tmp_path / "token"
    file.write_text(text)
    asked = Namespace(world="vale", npcs=[], target="127.0.0.1:1", token_file=file, ca=None, json=False)
    with pytest.raises(ConfigError, match=r"^--token-file: the first line of .* must be a token") as refused:
        list(kv_command.run(asked))
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize("target", ["[::1]:1", "dns:///localhost:1", "ipv4:127.0.0.1:1", "localhost:1"])
def test_other_forms_of_an_address_are_asked(target: str) -> None:
    """No daemon serves there, and the error is about the daemon and not about the address."""
    asked = Namespace(world="vale", npcs=[], target=target, token_file=None, ca=None, json=False)
    with pytest.raises(StoreFailed, match=r"onnect"):
        list(kv_command.run(asked))
