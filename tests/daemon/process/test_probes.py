"""The probes over HTTP: on a port or a Unix socket, and quiet about callers that do not speak HTTP."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from prometheus_client.registry import CollectorRegistry
from structlog.testing import capture_logs

from core.clock import now_ns
from core.errors import ConfigError
from daemon.config import is_local
from daemon.process.probes import Probes
from daemon.starting import LOADING, STORES, Stage, Start
from npcd.v1 import admin_pb2, admin_pb2_grpc
from tests.patience import PATIENCE_S


@asynccontextmanager
async def probing(address: str) -> AsyncIterator[str]:
    """Serves probes until the block ends; gives their address."""
    probes = Probes(lambda: "serving", CollectorRegistry())
    where = await probes.start(address)
    try:
        yield where
    finally:
        await probes.stop()


async def ready(path: Path) -> str:
    """The answer of /readyz on a Unix socket."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
        session.get("http://npcd/readyz") as answer,
    ):
        return f"{answer.status} {await answer.text()}"


@pytest.mark.parametrize("form", ["unix:{}", "unix://{}"])
async def test_the_probes_are_served_on_a_unix_socket(form: str, tmp_path: Path) -> None:
    """The socket is open to its owner only, also where a killed daemon left one. It goes when the daemon ends."""
    path = tmp_path / "probes.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    async with probing(form.format(path)) as where:
        assert where == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await ready(path) == "200 serving\n"
    assert not path.exists()


async def test_a_daemon_that_starts_is_not_ready_and_says_how_far_it_is(tmp_path: Path) -> None:
    """The first line is its phase. The second has stage, share and seconds, from the first moment on."""
    start = Start([Stage(LOADING, "llama", 3.0), Stage(STORES, "", 1.0)], now_ns())
    phase = "starting"
    probes = Probes(lambda: phase, CollectorRegistry(), start=start)
    await probes.start(f"unix:{tmp_path}/p.sock")
    assert await ready(tmp_path / "p.sock") == (
        "503 starting\nloading the model of engine 'llama', 0% done, about 4 s left\n"
    )
    start.begin(STORES, "", now_ns())
    assert await ready(tmp_path / "p.sock") == "503 starting\nopening stores, 75% done, about 1 s left\n"
    phase = "serving"
    assert await ready(tmp_path / "p.sock") == "200 serving\n"
    await probes.stop()


async def test_a_socket_in_use_stays_with_its_listener(tmp_path: Path) -> None:
    """The second daemon is refused with the setting's name, and removes nothing when it ends."""
    path = tmp_path / "probes.sock"
    async with probing(f"unix:{path}"):
        second = Probes(lambda: "serving", CollectorRegistry())
        with pytest.raises(
            ConfigError, match=rf"serve\.http: cannot listen on unix:{path}: another process listens there"
        ):
            await second.start(f"unix:{path}")
        await second.stop()
        assert await ready(path) == "200 serving\n"


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("unix:/run/npcd/probes.sock", True),
        ("unix:probes.sock", True),
        ("127.0.0.1:80", True),
        ("[::1]:80", True),
        ("localhost:80", True),
        ("0.0.0.0:80", False),
        ("[::]:80", False),
        ("10.0.0.7:80", False),
    ],
)
def test_other_machines_reach_neither_loopback_nor_a_unix_socket(address: str, local: bool) -> None:
    """Therefore the daemon warns of the other addresses only."""
    assert is_local(address) is local


def told(logs: list[Any]) -> list[Mapping[str, Any]]:
    """The log lines of calls that were not understood."""
    return [line for line in logs if line["event"] == "probe request not understood"]


async def test_a_grpc_client_at_the_port_of_the_probes_costs_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """It costs one line however often it tries. The line names the peer and gRPC's address, and no traceback is
    written."""
    with capture_logs() as logs:
        async with probing("127.0.0.1:0") as where:
            for _ in range(3):
                async with grpc.aio.insecure_channel(where) as channel:
                    with pytest.raises(grpc.aio.AioRpcError):
                        await admin_pb2_grpc.AdminStub(channel).Status(admin_pb2.StatusRequest(), timeout=PATIENCE_S)
    (line,) = told(logs)
    assert line["peer"] == "127.0.0.1" and "serve.listen" in line["hint"]
    assert len(logs) == 1 and "exc_info" not in line
    assert not caplog.records, "aiohttp's own logger writes tracebacks"


@pytest.mark.parametrize(
    "said",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client's hello\r\n\r\n",
        b"GET /readyz HTTP/9\r\n\r\n",
        b"GET /readyz HTTP/1.1\r\nno header\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /readyz HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"\r\n\0\0\0\r\n\r\n",
    ],
)
async def test_no_bytes_that_are_no_http_bring_a_traceback(said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """The connection ends, the log has a line at most, and the probes go on."""
    with capture_logs() as logs:
        async with probing("127.0.0.1:0") as where:
            host, _, port = where.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(said)
            writer.write_eof()
            await asyncio.wait_for(reader.read(), PATIENCE_S)
            writer.close()
            async with aiohttp.ClientSession() as session, session.get(f"http://{where}/readyz") as answer:
                assert answer.status == 200
    assert len(logs) <= 1 and logs == told(logs)
    assert not caplog.records, "aiohttp's own logger writes tracebacks"


async def test_a_probe_that_fails_inside_is_told_in_full() -> None:
    """A fault of ours keeps its traceback."""

    def broken() -> str:
        raise RuntimeError("no phase")

    with capture_logs() as logs:
        probes = Probes(broken, CollectorRegistry())
        where = await probes.start("127.0.0.1:0")
        async with aiohttp.ClientSession() as session, session.get(f"http://{where}/readyz") as answer:
            assert answer.status == 500
        await probes.stop()
    (line,) = logs
    assert line["log_level"] == "error" and line["exc_info"]
