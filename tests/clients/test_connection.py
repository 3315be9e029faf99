"""The clients connect to this machine directly, whatever proxies the environment names."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from daemon.commands import kv as kv_command
from loadtests.sync_client import SyncClient
from npcd_client import ActionWord, Archetype, CallerError, Client, FrameClient, World
from npcd_client.connection import is_here
from tests.clients.fake_daemon import FakeDaemon, serving
from tests.clients.test_cpp import CAN_BUILD, built
from tests.patience import PATIENCE_S
from tools import dockerfile

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")


@contextmanager
def proxied(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """An environment that names a proxy in every spelling. No client may connect to that proxy."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as proxy:
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        for name in NAMES:
            monkeypatch.setenv(name, url)
            monkeypatch.setenv(name.upper(), url)
        for name in ("no_proxy", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        proxy.setblocking(False)
        yield proxy
        with pytest.raises(BlockingIOError):
            proxy.accept()


@asynccontextmanager
async def fake() -> AsyncIterator[str]:
    """A daemon on a loopback port."""
    daemon = FakeDaemon()
    port = await daemon.start("127.0.0.1:0")
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await daemon.stop()


async def test_the_python_client_asks_no_proxy_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python client connects directly to an address and to a name of this machine."""
    async with fake() as target:
        with proxied(monkeypatch):
            for here in (target, target.replace("127.0.0.1", "localhost"), f"dns:///{target}", f"ipv4:{target}"):
                async with Client(here, timeout_s=PATIENCE_S) as npcd:
                    await npcd.wait_ready(PATIENCE_S)


async def test_the_command_line_and_the_loads_ask_no_proxy_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`npcd kv`, `npcd demo` and the loads that locust plays connect directly to this machine."""
    async with fake() as target:
        with proxied(monkeypatch):

            def load() -> None:
                client = SyncClient(target)
                client.wait_serving(PATIENCE_S)
                client.close()

            def ask() -> None:
                asked = Namespace(world="vale", npcs=[], target=target, token_file=None, ca=None, json=False)
                assert list(kv_command.run(asked))[-1].startswith("0 trunks")

            await asyncio.to_thread(load)
            await asyncio.to_thread(ask)


def test_the_loads_refuse_an_address_and_a_token_that_cannot_be_used() -> None:
    """Before they wait for a daemon that nobody could reach."""
    for target, token, named in (("127.0.0.1:99999", "", "target"), ("127.0.0.1:1", "a\nb", "token")):
        with pytest.raises(CallerError, match=f"^{named}: "):
            SyncClient(target, token)


@pytest.mark.skipif(not CAN_BUILD, reason="the C++ client was not built: no grpc++ here")
async def test_the_cpp_client_asks_no_proxy_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The C++ client gets as far as the fake daemon goes: it is served, and defines its world."""
    smoke = await asyncio.to_thread(built)
    async with fake() as target:
        with proxied(monkeypatch):
            process = await asyncio.create_subprocess_exec(str(smoke), target, stdout=asyncio.subprocess.PIPE)
            out, _ = await process.communicate()
            assert b"serving" in out


def test_the_images_health_check_asks_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The health check's command reaches an HTTP server on this machine that answers once."""
    image = dockerfile.read((ROOT / "Dockerfile").read_text("utf-8"))[-1]
    words = dockerfile.command(image.last("HEALTHCHECK").partition("CMD ")[2])
    with proxied(monkeypatch), socket.create_server(("127.0.0.1", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"
        command = [sys.executable, *(word.replace("127.0.0.1:50062", where) for word in words[1:])]
        process = subprocess.Popen(command, env=os.environ)
        server.settimeout(PATIENCE_S)
        connection, _ = server.accept()
        with connection:
            assert connection.recv(4096).startswith(b"GET /healthz ")
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n")
            assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(
    ("target", "here"),
    [
        ("127.0.0.1:50061", True), ("127.9.9.9:1", True), ("localhost:50061", True), ("LOCALHOST:1", True),
        ("[::1]:50061", True), ("unix:run/x.sock", True), ("unix:///run/x.sock", True), ("unix-abstract:x", True),
        ("dns:///localhost:1", True), ("ipv6:[::1]:1", True), ("ipv4:127.0.0.1:1", True),
        ("[::ffff:127.0.0.1]:1", True),
        ("npcd.localhost:1", True), ("game.example:50061", False), ("10.0.0.1:1", False), ("[fe80::1]:1", False),
        ("dns:///npcd:1", False), ("localhost.example:1", False), ("127.0.0.1.example:1", False),
    ],
)  # fmt: skip
def test_targets_of_this_machine_are_recognised(target: str, here: bool) -> None:
    """Targets of this machine are recognised in every form that gRPC takes. For other targets the environment's proxies
    are used as before."""
    assert is_here(target) is here


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:99999", "127.0.0.1:65536", "127.0.0.1:0", "127.0.0.1", "127.0.0.1:", ":50061", "localhost", "",
        "localhost:http", "localhost:-1", "localhost:+1", "localhost:5e1", "localhost:50061 ", " localhost:50061",
        "localhost:50061\n", "localhost:\u0665\u0660", "http://127.0.0.1:50061", "https://npcd.example",
        "127.0.0.1:50061/", "::1", "::1:50061", "[::1]", "[::1]:0", "[::1]:70000", "[::1", "[]:1",
        "dns:///localhost", "dns:///localhost:99999", "dns:localhost", "ipv4:127.0.0.1", "ipv4:127.0.0.1:99999",
        "ipv4:127.0.0.1:1,127.0.0.1", "ipv6:[::1]", "ipv6:::1", "unix:", "unix://", "unix:///", "unix://run/x.sock",
        "unix:/run/\0x", "localhost\ud800:1", None, 50061, b"localhost:50061", Path("/run/x.sock"),
    ],
)  # fmt: skip
def test_an_address_that_would_lead_elsewhere_is_refused(target: Any) -> None:
    """The client refuses such an address in its constructor, before it connects to anything."""
    for make in (Client, FrameClient.start):
        with pytest.raises(CallerError, match="must be host:port with a port of 1 to 65535, or unix:/path") as caught:
            make(target)
        assert str(caught.value).startswith("target: ") and caught.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:1", "127.0.0.1:65535", "localhost:50061", "npcd.example:443", "my_npcd:50061", "[::1]:50061",
        "[fe80::1%eth0]:1", "dns:///npcd:1", "dns:npcd:1", "dns://8.8.8.8/npcd:1", "ipv4:127.0.0.1:1",
        "ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1", "unix:run/x.sock", "unix:/run/x.sock", "unix:///run/x.sock",
        "unix:///home/J\u00f6rg/x.sock", "unix-abstract:x",
    ],
)  # fmt: skip
def test_an_address_that_leads_somewhere_is_taken(target: str) -> None:
    """The client takes every form in which gRPC names a host with its port, or a Unix socket."""
    assert Client(target).target == target


@pytest.mark.parametrize(
    "token",
    ["\u041a\u043b\u044e\u0447", "secret\n", "se\ncret", "se\r\ncret", "se\0cret", "se\tcret", "\x7f", "caf\u00e9",
     "\ud800", " secret", "secret ", b"secret", 5],
)  # fmt: skip
def test_a_token_that_no_call_can_carry_is_refused(token: Any) -> None:
    """The constructor refuses the token with a message that names the setting and does not show the token."""
    for make in (Client, FrameClient.start):
        with pytest.raises(CallerError, match=r"^token: ") as caught:
            make("127.0.0.1:50061", token=token)
        assert "secret" not in str(caught.value)


async def test_every_token_that_is_taken_arrives_as_it_is() -> None:
    """Every printable ASCII character of a token arrives unchanged."""
    token = "a" + "".join(map(chr, range(0x20, 0x7F)))
    async with serving() as (daemon, target), Client(target, token=token, timeout_s=PATIENCE_S) as npcd:
        await npcd.define_world(
            World("w", "Lore.", (Archetype("vampire", "Thirsts."),), (ActionWord("idle"),), ("calm",))
        )
        assert daemon.metadata[-1]["authorization"] == f"Bearer {token}"
