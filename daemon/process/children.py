"""A program that runs for this process on a folder: one at a time, and not longer than this process.

At most one: the program inherits a lock on a file of its folder, and so does every process that it forks. While the
lock is taken an earlier process is left, whatever pid files say. It is ended before a new one starts.

Not longer: the kernel sends it its signal for an orderly end when the *thread* that started it is over. So a child is
started by a thread that lives as long as it is wanted. It is not set between fork and exec of this process, where
nothing but the async-signal-safe is allowed once there are threads, but by a few lines of Python that become the
program.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from core.clock import S, now_ns
from core.errors import StoreFailed

LOOK_S = 0.02
END_S = 5.0  # from the polite signal to SIGKILL
LOG_BYTES_MAX = 1 << 20
PROC = Path("/proc")
# A program of ours gets nothing of our environment: variables for other servers (PGDATA, ...) are not for it.
ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"}
# The user first: changing it forgets the signal. The parent may have ended before the signal was set. To read what its
# user may not (a program below a home of mode 0700), it keeps CAP_DAC_READ_SEARCH of root's, and nothing else; with
# SECBIT_NO_SETUID_FIXUP, or access() would not know of it.
_LAUNCH = """
import ctypes, os, signal, sys
parent, number, uid, gid, reads_all, *command = sys.argv[1:]
libc = ctypes.CDLL(None)
if int(uid) >= 0:
    if int(reads_all):
        libc.prctl(28, 4 | 16, 0, 0, 0)
    os.setgroups([int(gid)]); os.setgid(int(gid)); os.setuid(int(uid))
if int(reads_all):
    libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(4, 4, 4, 0, 0, 0))
    libc.prctl(47, 2, 2, 0, 0)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
libc.prctl(1, int(number), 0, 0, 0)
if os.getppid() != int(parent):
    sys.exit(1)
os.execv(command[0], command)
"""


class Account(NamedTuple):
    """A user of this machine. With `reads_all` its processes may read every file, and write no more than it may."""

    name: str
    uid: int
    gid: int
    reads_all: bool = False


def account(name: str) -> Account | None:
    """The user of that name, if there is one."""
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(name, found.pw_uid, found.pw_gid)


def launch(command: Sequence[str], user: Account | None, at_end: int) -> list[str]:
    """The command that becomes `command`, as another user if one is given (root only), and is sent the signal
    `at_end` when the thread that starts it is over.
    """
    uid, gid, reads_all = (user.uid, user.gid, user.reads_all) if user else (-1, -1, False)
    numbers = map(str, (os.getpid(), int(at_end), uid, gid, int(reads_all)))
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, *numbers, *command]


def run(
    command: Sequence[str], user: Account | None, fds: Sequence[int] = (), said: str = "", limit_s: float = 180.0
) -> str:
    """Runs a program to its end and returns its output. Raises StoreFailed with its last line."""
    try:
        done = subprocess.run(
            launch(command, user, signal.SIGKILL), input=said, pass_fds=fds, cwd="/", env=ENVIRONMENT, timeout=limit_s,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StoreFailed(f"{command[0]}: {error}") from error
    if done.returncode:
        raise StoreFailed(f"{command[0]}: {last_line(done.stdout) or f'ended with {done.returncode}'}")
    return done.stdout


def last_line(text: str) -> str:
    """The last line with anything in it, 200 characters of it."""
    return next((line.strip()[:200] for line in reversed(text.splitlines()) if line.strip()), "")


class Child:
    """One program, as often as it is started. Used by one thread.

    `lock` and `log` are files; `polite` is the signal after which it ends in order. No wait goes on once `given_up` is
    true.
    """

    def __init__(self, lock: Path, log: Path, polite: signal.Signals, given_up: Callable[[], bool]) -> None:
        self._lock, self._log, self._polite, self._given_up = lock, log, polite, given_up
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process, 0 when there is none."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def exit_code(self) -> int | None:
        """Its exit code (negative: a signal); None while it runs, or before the first start."""
        return self._process.poll() if self._process is not None else None

    @contextlib.contextmanager
    def alone(self) -> Iterator[int]:
        """The lock, once every process of an earlier start has ended; start() hands it on to the program. Raises
        StoreFailed when one does not end.
        """
        lock = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._take(lock)
            yield lock
        finally:
            os.close(lock)  # the program that was handed it still has it

    def start(self, command: Sequence[str], fds: Sequence[int], user: Account | None = None) -> None:
        """Starts it with these file descriptors, the lock's among them. Raises StoreFailed."""
        try:
            with open(self._log, "ab") as log:
                self._process = subprocess.Popen(
                    launch(command, user, self._polite), pass_fds=fds, cwd="/", env=ENVIRONMENT,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,  # Ctrl-C is for us: it ends when we have drained
                )  # fmt: skip
        except OSError as error:
            raise StoreFailed(f"{command[0]}: {error.strerror}") from error

    def ask_to_end(self) -> None:
        """Sends it the signal for an orderly end."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(self._polite)

    def end(self, limit_s: float = END_S) -> None:
        """Ends it in order, or after `limit_s` at once; returns when it is over."""
        self.ask_to_end()
        if self._process is None:
            return
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def trim_log(self) -> None:
        """Begins the log anew when it has become long."""
        with contextlib.suppress(OSError):
            if self._log.stat().st_size > LOG_BYTES_MAX:
                os.truncate(self._log, 0)

    def last_words(self) -> str:
        """The last line that it wrote."""
        try:
            return last_line(self._log.read_bytes()[-4096:].decode("utf-8", "replace"))
        except OSError:
            return ""

    def _take(self, lock: int) -> None:
        """Takes the lock, and ends the processes that hold it. Raises StoreFailed when they do not end."""
        politely_ns = now_ns() + int(END_S * S)
        asked = False
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            left = holders(self._lock)
            late = now_ns() > politely_ns
            if not asked or late:
                for pid in left if late else eldest(left):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL if late else self._polite)
                asked = True
            if self._given_up() or now_ns() > politely_ns + END_S * S:
                raise StoreFailed(f"{self._lock} is held by process {left or 'unknown'}, which does not end")
            time.sleep(LOOK_S)


def holders(path: Path) -> list[int]:
    """Processes other than this one that have a file open, as far as we may see them."""
    wanted = path.stat()
    found = []
    for process in PROC.iterdir():
        if not process.name.isdigit() or process.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):
            for fd in os.scandir(process / "fd"):
                with contextlib.suppress(OSError):
                    if os.path.samestat(os.stat(fd.path), wanted):
                        found.append(int(process.name))
                        break
    return found


def eldest(pids: Sequence[int]) -> list[int]:
    """Those of them that are no children of others of them."""
    return [pid for pid in pids if _parent(pid) not in pids]


def _parent(pid: int) -> int:
    try:
        return int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0
