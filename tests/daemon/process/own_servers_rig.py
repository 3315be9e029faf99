"""npcd's own Redis and PostgreSQL, started for a test: their arguments, their data, and their processes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import redis

from daemon.process.children import eldest, holders
from daemon.process.datafolder import DataFolder
from daemon.process.embedded import Embedded
from daemon.process.own_servers import Urls
from daemon.process.server_programs import find_postgres
from tests.patience import PATIENCE_S

STORES = ("redis", "postgres")
# Starts both and prints that; then lives until its input ends, or until it is killed.
STARTER = """
import sys
from pathlib import Path
import structlog
from daemon.process.datafolder import DataFolder
from daemon.process.embedded import Embedded
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
folder = DataFolder(Path(sys.argv[1]))
servers = Embedded(folder, migrate=lambda urls: None)
urls = servers.start()
print(*servers.reasons, *urls, sep="\\n", flush=True)
sys.stdin.read()
servers.stop()
folder.close()
"""


def no_migration(urls: Urls) -> None:
    """Stands in for the schema, which other tests make."""


@contextmanager
def running(path: Path, **which: bool) -> Iterator[tuple[Embedded, Urls]]:
    """Both servers of a data folder."""
    folder = DataFolder(path)
    servers = Embedded(folder, migrate=no_migration, **which)
    try:
        yield servers, servers.start()
    finally:
        servers.stop()
        folder.close()


CAP_SYS_PTRACE = 19


def left(path: Path) -> dict[str, list[int]]:
    """The servers that run on a data folder, without their own children. Skips the test where root may not see the open
    files of other processes, as in many containers.
    """
    program = find_postgres()
    if program is not None and program.user is not None and os.geteuid() != program.user.uid:
        capabilities = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
        if capabilities is None or not int(capabilities[1], 16) >> CAP_SYS_PTRACE & 1:
            pytest.skip("this machine: what runs as PostgreSQL's user cannot be seen without CAP_SYS_PTRACE")
    return {name: eldest(holders(path / name / "lock")) for name in STORES}


def until(what: Callable[[], bool], why: str) -> None:
    """Waits until a condition is true."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if what():
            return
        time.sleep(0.02)
    pytest.fail(why)


def client(urls: Urls) -> redis.Redis:
    """A client of Redis."""
    return redis.Redis.from_url(urls.redis_url, decode_responses=True)


def keep(urls: Urls, what: str) -> None:
    """Stores something in both."""
    client(urls).set("kept", what)
    with psycopg.connect(urls.postgres_owner_url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (what text)")
        connection.execute("INSERT INTO kept VALUES (%s)", [what])


def kept(urls: Urls) -> tuple[str, list[str]]:
    """All that both have stored."""
    with psycopg.connect(urls.postgres_owner_url) as connection:
        rows = connection.execute("SELECT what FROM kept").fetchall()
    return str(client(urls).get("kept")), [row[0] for row in rows]
