"""The daemon's own Redis and PostgreSQL, used where no URLs are given: real servers, as children, on Unix sockets.

One thread owns them: it starts them, starts again a server that died, and stops them. They end with this thread (see
daemon/process/children.py), so nothing of npcd is left running, however the daemon ended. When the daemon is killed,
both servers end in order: Redis with its file written, PostgreSQL with a checkpoint. The next daemon finds a server
that has not ended yet, waits for it, ends it if it must, and only then starts another on the same folder. Nothing
accepted depends on them: the journal has it, and the stores are written from there.

A server that is not installed is a reason, not an error: the daemon goes on without that store.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from core.clock import S, now_ns
from core.errors import StoreFailed
from daemon.process import own_servers
from daemon.process.children import END_S, LOOK_S, last_line
from daemon.process.datafolder import DataFolder
from daemon.process.own_servers import SERVING, OwnPostgres, OwnRedis, OwnServer, Urls

MIGRATE_S = 120.0
HOUSE = Path(__file__).resolve().parents[2]


class Embedded:
    """Both servers and the thread that owns them. start() and stop() block; the rest are plain reads."""

    def __init__(
        self,
        folder: DataFolder,
        redis: bool = True,
        postgres: bool = True,
        migrate: Callable[[Urls], None] | None = None,
    ) -> None:
        """`migrate` is called once PostgreSQL answers, for each of its starts until one call succeeds; it may raise
        StoreFailed. None: `npcd migrate`.
        """
        self._over = threading.Event()
        self._settled = threading.Event()
        self._servers: list[OwnServer] = []
        if redis:
            self._servers.append(OwnRedis(folder, self._over.is_set))
        if postgres:
            self._servers.append(OwnPostgres(folder, self._over.is_set, migrate or self._migrate))
        self._end_limit_s = END_S
        self._thread = threading.Thread(target=self._own, name="embedded", daemon=True)

    def start(self) -> Urls:
        """Starts them and waits until each answers, or cannot, for READY_S at most. One that is late has its URL all
        the same: its clients find it when it is there.
        """
        self._thread.start()
        self._settled.wait(own_servers.READY_S)
        urls = [server.urls() for server in self._servers]
        return Urls(*(next((u[i] for u in urls if u[i]), "") for i in range(3)))

    @property
    def reasons(self) -> list[str]:
        """Why a store is not there, one line each; empty while all is well."""
        return [f"{server.name}: {server.reason}" for server in self._servers if server.reason]

    @property
    def restarts(self) -> dict[str, int]:
        """How often each had to be started again."""
        return {server.name: server.restarts for server in self._servers}

    @property
    def pids(self) -> dict[str, int]:
        """The process of each, 0 while there is none."""
        return {server.name: server.child.pid for server in self._servers}

    def stop(self, limit_s: float = END_S) -> None:
        """Stops both in order, after `limit_s` at once; returns when they have ended. A cluster that is still being
        made for the first time ends with this process. May be called twice.
        """
        self._end_limit_s = limit_s
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(limit_s + 1.0)

    def _own(self) -> None:
        try:
            while not self._over.is_set():
                for server in self._servers:
                    server.look(now_ns())
                if all(server.settled for server in self._servers):
                    self._settled.set()
                self._over.wait(min((server.look_again_s for server in self._servers), default=own_servers.WATCH_S))
        finally:
            self._settled.set()
            for server in self._servers:
                server.child.ask_to_end()
            until_ns = now_ns() + int(self._end_limit_s * S)
            for server in self._servers:
                server.child.end(max(0.0, (until_ns - now_ns()) / S))

    def _migrate(self, urls: Urls) -> None:
        """As the owner, and in a process of its own: the serving one has nothing that could read or drop."""
        command = [sys.executable, "-m", "npcd", "migrate", "--postgres", urls.postgres_owner_url]
        process = subprocess.Popen(
            [*command, "--serving-role", SERVING], cwd=HOUSE, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        until_ns = now_ns() + int(MIGRATE_S * S)
        while True:
            try:
                out, _ = process.communicate(timeout=LOOK_S)
                break
            except subprocess.TimeoutExpired:
                if self._over.is_set() or now_ns() > until_ns:
                    process.kill()
        if process.returncode:
            raise StoreFailed(f"npcd migrate: {last_line(out) or f'ended with {process.returncode}'}")
