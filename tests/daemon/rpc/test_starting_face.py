"""Over the wire while the daemon starts: it says how far it is, and a client that waits says why it gave up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from core.clock import S, now_ns
from daemon.config import ServeSettings
from daemon.rpc.grpc_face import RETRY_KEY, GrpcFace
from daemon.starting import LOADING, TUNING, Stage, Start
from loadtests.sync_client import SyncClient
from npcd.v1 import admin_pb2, admin_pb2_grpc, npcs_pb2, npcs_pb2_grpc
from npcd_client import Client, TooLate, Unavailable
from tests.daemon.rig import gated, running
from tests.patience import PATIENCE_S

TOKENS = 'a-token-of-some-length = "studio"\n'


def begun() -> Start:
    """A start that is a quarter done, its second stage begun."""
    start = Start([Stage(TUNING, "talk", 5.0), Stage(LOADING, "talk", 15.0)], now_ns())
    start.begin(LOADING, "talk", now_ns())
    return start


@asynccontextmanager
async def starting(folder: Path, start: Start, tokens: str = "") -> AsyncIterator[tuple[GrpcFace, str]]:
    """The face of a daemon that has no model yet."""
    face = GrpcFace(ServeSettings(listen=(f"unix:{folder}/n.sock",), tokens_file=tokens), start)
    (address,) = await face.start()
    try:
        yield face, address
    finally:
        await face.stop(0)


async def test_status_says_how_far_the_start_is_and_other_calls_when_to_come_again(tmp_path: Path) -> None:
    """The health is NOT_SERVING. A call gets UNAVAILABLE with stage, share and seconds in words, and a retry time."""
    async with starting(tmp_path, begun()) as (_, address), grpc.aio.insecure_channel(address) as channel:
        status = await admin_pb2_grpc.AdminStub(channel).Status(admin_pb2.StatusRequest())
        assert status.phase == "starting" and status.version and status.contract_major == 1
        assert (status.starting.stage, status.starting.engine) == (LOADING, "talk")
        assert status.starting.share == pytest.approx(0.25) and status.starting.left_ms == 15_000
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await check(b"") == b"\x08\x02", "NOT_SERVING"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await npcs_pb2_grpc.NpcsStub(channel).ListWorlds(npcs_pb2.ListWorldsRequest())
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "loading the model of engine 'talk', 25% done, about 15 s left" in (refused.value.details() or "")
        assert dict(refused.value.trailing_metadata() or ())[RETRY_KEY] == "1000"
    async with starting(tmp_path, begun()) as (_, address), Client(address) as client:
        with pytest.raises(Unavailable) as unavailable:
            await client.list_worlds()
        assert unavailable.value.retry_ms == 1000


async def test_only_known_callers_are_told(tmp_path: Path) -> None:
    """With a tokens file Status asks for a token before there is a model, too."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(TOKENS)
    request = admin_pb2.StatusRequest()
    async with starting(tmp_path, begun(), str(tokens)) as (_, address), grpc.aio.insecure_channel(address) as channel:
        admin = admin_pb2_grpc.AdminStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await admin.Status(request)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        known = (("authorization", "Bearer a-token-of-some-length"),)
        assert (await admin.Status(request, metadata=known)).starting.stage == LOADING


async def test_a_client_names_the_stage_that_it_did_not_wait_for(tmp_path: Path) -> None:
    """Within its time limit; and without one when the start is stuck."""
    async with starting(tmp_path, begun()) as (_, address), Client(address) as client:
        with pytest.raises(TooLate, match=r"is not serving yet \(loading the model of engine 'talk', 25% done"):
            await client.wait_ready(0.2)
    stuck = Start([Stage(TUNING, "", 5.0)], now_ns() - 70 * S)
    async with starting(tmp_path, stuck) as (_, address), Client(address) as client:
        with pytest.raises(TooLate, match=r"its start has been stuck for 7\d s: tuning"):
            await client.wait_ready()
        load = SyncClient(address)
        with pytest.raises(TooLate, match=r"its start has been stuck for 7\d s: tuning"):
            await asyncio.to_thread(load.wait_serving, PATIENCE_S)
        load.close()


async def test_a_client_without_a_time_limit_waits_until_the_daemon_serves(tmp_path: Path) -> None:
    """As does a load."""
    async with starting(tmp_path, begun()) as (face, address), Client(address) as client, running(gated()) as rig:
        load = SyncClient(address)
        waiting = [
            asyncio.create_task(client.wait_ready()),
            asyncio.create_task(asyncio.to_thread(load.wait_serving, PATIENCE_S)),
        ]
        done, _ = await asyncio.wait(waiting, timeout=0.3)
        assert not done
        rig.daemon.board.lifecycle.phase = "serving"
        face.calls = rig.daemon.calls
        await face.report(serving=True)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*waiting)
        load.close()
