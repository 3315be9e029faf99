"""The daemon's own Redis and PostgreSQL: real servers that start once, stop with the daemon, and are found again after
a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from core.errors import StoreFailed
from daemon.process import children, own_servers, server_programs
from daemon.process.children import account, launch
from daemon.process.datafolder import DataFolder
from daemon.process.embedded import Embedded
from daemon.process.own_servers import Urls
from daemon.process.server_programs import Program, find_redis
from tests.daemon.process.own_servers_rig import STARTER, STORES, client, keep, kept, left, running, until
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[3]
# The same below `npcd serve`'s parent, on the serving event loop.
SUPERVISED = """
import asyncio, sys
from daemon.process.supervise import Patience, supervise
life = supervise(lambda line: None, Patience(first_s=0.001))
if isinstance(life, int):
    sys.exit(life)
from pathlib import Path
import structlog, uvloop
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
from daemon.process.datafolder import DataFolder
from daemon.process.embedded import Embedded
async def main():
    loop = asyncio.get_running_loop()
    folder = await loop.run_in_executor(None, DataFolder, Path(sys.argv[1]))
    servers = Embedded(folder, migrate=lambda urls: None)
    urls = await loop.run_in_executor(None, servers.start)
    import os
    print(os.getpid(), *servers.pids.values(), *servers.reasons, flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    await loop.run_in_executor(None, servers.stop)
uvloop.run(main())
"""


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """start() returns with servers that answer, even on a busy machine."""
    monkeypatch.setattr(own_servers, "READY_S", PATIENCE_S)


def test_both_are_real_and_small_and_listen_on_sockets_alone(tmp_path: Path) -> None:
    """Redis has its file and evicts nothing. PostgreSQL has an owner, and a role that owns nothing."""
    with running(tmp_path) as (servers, urls):
        assert servers.reasons == []
        config = client(urls).config_get("*")
        assert (config["port"], config["appendonly"], config["appendfsync"], config["save"]) == (
            "0",
            "yes",
            "everysec",
            "",
        )
        assert config["maxmemory-policy"] == "noeviction"
        with psycopg.connect(urls.postgres_owner_url) as owner:
            assert owner.execute("SHOW listen_addresses").fetchone() == ("",)
            assert owner.execute("SHOW shared_buffers").fetchone() == ("32MB",)
            assert owner.execute("SELECT current_user, current_database()").fetchone() == ("npcd_owner", "npcd")
        with psycopg.connect(urls.postgres_url) as serving:
            assert serving.execute("SELECT current_user").fetchone() == ("npcd_serving",)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                serving.execute("CREATE TABLE mine (x int)")
        assert all(len(pids) == 1 for pids in left(tmp_path).values())
    assert left(tmp_path) == {"redis": [], "postgres": []}


def test_another_user_does_not_get_in(tmp_path: Path) -> None:
    """The kernel names the user of a connection, so even on a socket that is open to all a role's name is not
    enough."""
    nobody = account("nobody")
    if os.geteuid() != 0 or nobody is None:
        pytest.skip("this machine: only root can be somebody else")
    with running(tmp_path, redis=False) as (_, urls):
        folder = parse_qs(urlsplit(urls.postgres_url).query)["host"][0]
        Path(folder, ".s.PGSQL.5432").chmod(0o666)
        code = f"import psycopg; psycopg.connect({urls.postgres_owner_url!r})"
        done = subprocess.run(
            launch([sys.executable, "-c", code], nobody._replace(reads_all=True), 9),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Peer authentication failed" in done.stderr


def test_after_kill_9_they_are_there_once_with_what_they_had(tmp_path: Path) -> None:
    """The next daemon finds them with all their data, also those that are still ending when it starts."""
    for life in range(3):
        starter = subprocess.Popen(
            [sys.executable, "-c", STARTER, str(tmp_path)],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert starter.stdout is not None
        urls = Urls(*(starter.stdout.readline().strip() for _ in range(3)))
        keep(urls, f"life {life}")
        starter.kill()
        starter.communicate()
        with running(tmp_path) as (servers, again):
            assert again == urls and servers.reasons == []
            assert kept(again) == (f"life {life}", [f"life {n}" for n in range(life + 1)])
            assert all(len(pids) == 1 for pids in left(tmp_path).values())
    assert left(tmp_path) == {"redis": [], "postgres": []}


def test_nobody_outlives_the_daemon(tmp_path: Path) -> None:
    """When the daemon is killed, its servers end, even if no next daemon starts."""
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert starter.stdout is not None and starter.stdout.readline()
    starter.kill()
    starter.communicate()
    until(lambda: left(tmp_path) == {"redis": [], "postgres": []}, "servers are left")


def test_below_the_parent_and_on_uvloop(tmp_path: Path) -> None:
    """After a kill the next serving process has servers of its own. At the end no process is left."""
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISED, str(tmp_path)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdin is not None
    serving, *first = map(int, process.stdout.readline().split())
    os.kill(serving, signal.SIGKILL)
    _, *second = map(int, process.stdout.readline().split())
    assert not set(first) & set(second)
    assert left(tmp_path) == dict(zip(STORES, ([pid] for pid in second), strict=True))
    process.stdin.close()
    assert process.wait(PATIENCE_S) == 0
    assert left(tmp_path) == {"redis": [], "postgres": []}


def test_one_that_hangs_is_ended_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of a dead daemon that is stopped and ignores its signal is killed, and the folder is free."""
    monkeypatch.setattr(children, "END_S", 0.1)
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert starter.stdout is not None
    urls = Urls(*(starter.stdout.readline().strip() for _ in range(3)))
    keep(urls, "before")
    before = left(tmp_path)
    for name in STORES:
        os.kill(before[name][0], signal.SIGSTOP)
    starter.kill()
    starter.communicate()
    assert left(tmp_path) == before
    with running(tmp_path) as (servers, again):
        until(lambda: not servers.reasons, "they did not start")
        assert kept(again)[1] == ["before"]
        now = left(tmp_path)
        assert all(len(now[name]) == 1 and now[name] != before[name] for name in STORES)


def test_one_that_dies_is_started_again(tmp_path: Path) -> None:
    """The death is counted, and the health is degraded meanwhile. The restart needs no request."""
    with running(tmp_path) as (servers, urls):
        keep(urls, "before")
        for name in STORES:
            os.kill(servers.pids[name], signal.SIGKILL)
        until(lambda: all(servers.restarts.values()), "nobody noticed")
        until(lambda: not servers.reasons, "they did not come back")
        assert kept(urls) == ("before", ["before"])
        assert servers.restarts == {"redis": 1, "postgres": 1}


def test_leftovers_of_others_are_no_obstacle(tmp_path: Path) -> None:
    """That holds for pid files that name a living process, a lock file of PostgreSQL's, and a socket without a
    listener."""
    with running(tmp_path) as (_, urls):
        keep(urls, "before")
        sockets = Path(client(urls).connection_pool.connection_kwargs["path"]).parent.parent
    pid = f"{os.getpid()}\n{tmp_path}\n1\n5432\n\n\n\nready\n"
    (tmp_path / "postgres/data/postmaster.pid").write_text(pid)
    (sockets / "postgres/.s.PGSQL.5432.lock").write_text(pid)
    (sockets / "redis/redis.sock").touch()
    with running(tmp_path) as (servers, again):
        assert servers.reasons == []
        assert kept(again) == ("before", ["before"])


def test_a_cluster_that_was_half_made_is_made_anew(tmp_path: Path) -> None:
    """That happens when the daemon is killed in its first second."""
    (tmp_path / "postgres/data.new/base").mkdir(parents=True)
    with running(tmp_path, redis=False) as (servers, urls):
        assert servers.reasons == []
        psycopg.connect(urls.postgres_url).close()


def test_a_folder_with_a_long_path(tmp_path: Path) -> None:
    """With a path of 200 bytes, with a space and a quote, the sockets are elsewhere and the data is not."""
    path = tmp_path / ("it's a " + "n" * 93) / ("n" * 100)
    with running(path) as (servers, urls):
        assert servers.reasons == []
        keep(urls, "far")
        assert (path / "postgres/data/base").is_dir()
    with running(path) as (_, urls):
        assert kept(urls) == ("far", ["far"])


def test_as_another_user(tmp_path: Path) -> None:
    """A user without root's rights who owns the folder runs both servers as itself."""
    nobody = account("nobody")
    if os.geteuid() != 0 or nobody is None:
        pytest.skip("this machine: only root can be somebody else; the other tests ran as this user")
    path = tmp_path / "theirs"
    path.mkdir()
    os.chown(path, nobody.uid, nobody.gid)
    # The user may read everything, to reach this interpreter and checkout wherever they are.
    starter = subprocess.Popen(
        launch([sys.executable, "-c", STARTER, str(path)], nobody._replace(reads_all=True), signal.SIGKILL),
        cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert starter.stdout is not None
    assert starter.stdout.readline().startswith("unix://")
    for pids in left(path).values():
        assert len(pids) == 1 and Path(f"/proc/{pids[0]}").stat().st_uid == nobody.uid
    starter.communicate("")
    assert starter.returncode == 0 and left(path) == {"redis": [], "postgres": []}


def test_the_right_to_read_everything_writes_nothing(tmp_path: Path) -> None:
    """It is for programs, and files of other users stay as they are."""
    nobody = account("nobody")
    if os.geteuid() != 0 or nobody is None:
        pytest.skip("this machine: only root can let others read everything")
    tmp_path.chmod(0o700)
    secret = tmp_path / "secret"
    secret.write_text("told")
    with pytest.raises(StoreFailed, match="Permission denied"):
        children.run(["/bin/cat", str(secret)], nobody)
    may_read = nobody._replace(reads_all=True)
    assert children.run(["/bin/cat", str(secret)], may_read) == "told"
    with pytest.raises(StoreFailed, match="Permission denied"):
        children.run(["/bin/sh", "-c", f"echo no > {secret}"], may_read)


def test_one_that_cannot_start_says_why_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last words of its log are the reason. start() does not wait for a server that cannot come."""
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho Fatal: no\nexit 1\n")
    program.chmod(0o755)
    real = find_redis()
    assert real is not None
    found = [Program(program, "7.0")]
    monkeypatch.setattr(server_programs, "find_redis", lambda: found[0])
    with running(tmp_path / "data", postgres=False) as (servers, urls):
        assert servers.reasons == ["redis: ended (1): Fatal: no"] and urls.redis_url
        found[0] = real
        until(lambda: not servers.reasons, "it was not tried again")
        assert client(urls).ping()


def test_the_schema_is_made_before_anybody_writes(tmp_path: Path) -> None:
    """It is tried until it succeeds, and then not again in this life."""
    folder = DataFolder(tmp_path)
    seen: list[Urls] = []

    def migrate(urls: Urls) -> None:
        seen.append(urls)
        if len(seen) == 1:
            raise StoreFailed("npcd migrate: not yet")

    servers = Embedded(folder, redis=False, migrate=migrate)
    try:
        urls = servers.start()
        assert seen[0] == urls and servers.reasons in (["postgres: npcd migrate: not yet"], [])
        until(lambda: not servers.reasons, "it was not tried again")
        os.kill(servers.pids["postgres"], signal.SIGKILL)
        until(lambda: servers.restarts == {"postgres": 1} and not servers.reasons, "it did not come back")
        assert len(seen) == 2
    finally:
        servers.stop()
        folder.close()


def test_a_log_does_not_grow_for_ever(tmp_path: Path) -> None:
    """A server that complains for days does not fill the disk."""
    with running(tmp_path, postgres=False) as (_, urls):
        log = tmp_path / "redis/log"
        with log.open("ab") as file:
            file.write(b"x" * (children.LOG_BYTES_MAX + 1))
        until(lambda: log.stat().st_size < 10_000, "it was not begun anew")
        assert client(urls).ping()


def test_stopping_twice_or_before_the_start_is_nothing(tmp_path: Path) -> None:
    """Cleaning up works at any point of the start."""
    folder = DataFolder(tmp_path)
    Embedded(folder).stop()
    servers = Embedded(folder, postgres=False)
    servers.start()
    servers.stop()
    servers.stop()
    folder.close()


def test_one_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """After the limit it is killed, and no process is left."""
    with running(tmp_path) as (servers, _):
        os.kill(servers.pids["redis"], signal.SIGSTOP)
        servers.stop(0.1)
        assert servers.pids == {"redis": 0, "postgres": 0}
    until(lambda: left(tmp_path) == {"redis": [], "postgres": []}, "a server is left")
