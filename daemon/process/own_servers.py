"""npcd's own Redis and PostgreSQL: how each is started, asked whether it answers, and started again after it died.

The thread of daemon/process/embedded.py owns them and calls look() now and then. Each server is a child on a Unix
socket, with a folder of its own below the data folder.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import structlog

from core.clock import S, now_ns
from core.errors import StoreFailed
from daemon.process.children import LOOK_S, Account, Child, last_line, run
from daemon.process.datafolder import DataFolder
from daemon.process.server_programs import Program, postgres_for, redis_for

OWNER, SERVING, DATABASE, PORT = "npcd_owner", "npcd_serving", "npcd", 5432
READY_S = 30.0  # Embedded.start() waits for so long; a server may take longer, with gigabytes to read
WATCH_S = 0.25
PAUSE_FIRST_S, PAUSE_MOST_S, STABLE_S = 0.25, 10.0, 60.0

log = structlog.get_logger("npcd")


class Urls(NamedTuple):
    """The URLs of the stores; empty for a store that is not there."""

    redis_url: str = ""
    postgres_url: str = ""  # of the role that may only insert
    postgres_owner_url: str = ""


class OwnServer:
    """One server. Only the owning thread calls it; `reason`, `restarts`, `settled` and urls() others read too."""

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
        """The URLs under which it answers; empty when it is not installed here."""
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
                    log.warning("store missing", store=self.name, why=self.reason)
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
        log.warning("store away", store=self.name, why=reason, again_in_s=pause_s)

    def _find(self) -> tuple[Program | None, str]:
        """The program to start; or None, and why there is none."""
        raise NotImplementedError

    def _begin(self, program: Program) -> None:
        """Starts it. Raises StoreFailed."""
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _on_ready(self) -> None:
        """Does what must come before its first use. Raises StoreFailed."""

    def _where(self) -> Urls:
        raise NotImplementedError


class OwnRedis(OwnServer):
    """Everything that it takes is in a file that is synced every second; nothing is thrown out for room."""

    name = "redis"

    def __init__(self, folder: DataFolder, given_up: Callable[[], bool]) -> None:
        super().__init__(folder, signal.SIGTERM, given_up)
        self._socket = self.sockets / "redis.sock"

    def _find(self) -> tuple[Program | None, str]:
        return redis_for(self.folder)

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


class OwnPostgres(OwnServer):
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
        return postgres_for(self.folder)

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
    """The answer of a server on a Unix socket; empty when there is none within a second."""
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(1.0)
        try:
            one.connect(str(path))
            one.sendall(question)
            return one.recv(100)
        except OSError:
            return b""
