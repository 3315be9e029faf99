"""A Redis that cannot be the recent store is refused with its kind and with the remedy."""

from __future__ import annotations

import socket
from pathlib import Path
from threading import Thread

import pytest

from core.errors import StoreFailed
from memory.recent_writer import RecentWriter, look
from memory.records import Position
from memory.redis_connection import RecentSettings
from memory.redis_reasons import refusal, unfit
from tests.memory.redis_fixture import RedisServer, serving


def reason(url: str) -> str:
    """The reason why npcd refuses a Redis."""
    with pytest.raises(StoreFailed) as caught:
        look(RecentSettings(url=url))
    return str(caught.value)


def port() -> int:
    """A free port."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_a_cluster() -> None:
    """It reports cluster mode itself. Where that command is not allowed, its refusal shows it: the whole error is "3621
    10.0.0.1:6379"."""
    with serving("--cluster-enabled yes") as server:
        assert reason(server.url()).startswith("is part of a Redis Cluster, which npcd does not use; give ")
        server.execute("ACL", "SETUSER", "npcd", "on", ">pw", "~*", "+@all", "-info")
        assert reason(server.url("npcd", "pw")).startswith("is part of a Redis Cluster")
    assert refusal("MovedError", "3621 10.0.0.1:6379").startswith("is part of a Redis Cluster")


def test_a_sentinel(tmp_path: Path) -> None:
    """It answers as a Redis, and stores nothing."""
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text("")

    class Sentinel(RedisServer):
        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            self._settings = (str(configuration), "--sentinel", f"--port {port()}", f"--unixsocket {self.socket}",
                              f"--dir {folder}")  # fmt: skip

    server = Sentinel(tmp_path)
    try:
        server.start()
        assert reason(server.url()).startswith("is a Redis Sentinel; give the address of the Redis that it watches")
    finally:
        server.end()


def test_passwords() -> None:
    """A password may be missing, wrong, or not expected. No error shows it."""
    with serving("--requirepass s3cret") as server:
        assert reason(server.url()).startswith("wants a password; put it into the URL")
        said = reason(server.url("", "wrong-one"))
        assert said.startswith("refuses the user or the password") and "wrong-one" not in said
    with serving() as open_server:
        said = reason(open_server.url("", "wrong-one"))
        assert "npcd was given one; leave it out" in said and "wrong-one" not in said


def test_a_replica_that_only_reads() -> None:
    """It is refused before a write, and by its error when it becomes a replica later."""
    with serving("--replicaof 127.0.0.1", str(port())) as replica:
        assert reason(replica.url()).startswith("is a replica, which only reads; give the address of its primary")
    with serving() as server:
        writer = RecentWriter(RecentSettings(url=server.url()), "j", lambda file: {})
        writer.connect()
        server.execute("REPLICAOF", "127.0.0.1", str(port()))
        with pytest.raises(StoreFailed, match="is a replica, which only reads"):
            writer.write([], Position(0, 1))
        writer.close()


def test_one_that_is_too_old_or_lacks_a_command() -> None:
    """npcd's keys expire by SET with PXAT, which came with 6.2."""
    assert unfit({"redis_version": "5.0.7"}).startswith("is Redis 5.0.7, and npcd wants 6.2 or newer; ")
    assert unfit({"redis_version": "6.0.16"}).startswith("is Redis 6.0.16")
    for well in (
        {},
        {"redis_version": "6.2.14"},
        {"redis_version": "7.0", "role": "master"},
        {"redis_version": "unstable"},
    ):
        assert unfit(well) == ""
    with serving("--rename-command GET", "HIDDEN") as server:
        assert reason(server.url()).startswith("does not know a command that npcd needs; ")


def test_a_server_that_is_no_redis() -> None:
    """An HTTP server is named as no Redis."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = Thread(target=answer)
        thread.start()
        said = reason(f"redis://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert said == "answers as no Redis does; check the address"
