"""The data folder: the files that one daemon keeps on this machine, locked against a second one.

lock            held while a daemon lives; has its process number
pseudonym_key   32 bytes, the key of players' pseudonyms in logs and archive
journal_id      32 hex digits: stores keep it beside a position, which means nothing in another journal
journal/ saves/ redis/ postgres/
start/          results of earlier starts that make the next one faster: it may be removed
sockets         where Unix sockets are when this folder's path is too long for them
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

from core.clock import S, now_ns
from core.errors import ConfigError
from core.files import from_home

KEY_BYTES, ID_DIGITS = 32, 32
UNIX_PATH_BYTES_MAX = 107  # sun_path, less the closing zero
SOCKET_NAME_BYTES_MAX = len("/postgres/.s.PGSQL.5432.lock")
LOCK_WAIT_S = 2.0  # a daemon that was killed has its lock until the kernel has taken its memory apart
LOCK_LIVE_WAIT_S = 0.3  # for a daemon that lives and is not ending
PF_EXITING = 4  # of the kernel's flags of a process
HELP_FOR_KEYS = "put it back as it was, or remove it and lose what hangs on it"
HELP_FOR_HOME = "give a folder of npcd's user with --data"
OWNER_URL = "owner_url"  # a file here while npcd's own PostgreSQL runs: how its owner is reached
SUBFOLDERS = ("journal", "redis", "postgres", "saves")


class DataFolder:
    """An open data folder, readable by its owner alone. Raises ConfigError when it cannot be opened."""

    def __init__(self, path: Path, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self.path = from_home(path, "memory.folder", HELP_FOR_HOME).absolute()
        self._lock = -1
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # It may be a mounted volume of another user who lets us write; the files in it are ours.
            with contextlib.suppress(PermissionError):
                self.path.chmod(0o700)
            self._lock = _locked(self.path / "lock", lock_wait_s)
            for name in SUBFOLDERS:
                (self.path / name).mkdir(mode=0o700, exist_ok=True)
            self.pseudonym_key = _made_once(self.path / "pseudonym_key", os.urandom(KEY_BYTES))
            self.journal_id = _made_once(self.path / "journal_id", os.urandom(ID_DIGITS // 2).hex().encode()).decode(
                "ascii"
            )
            self._sockets = self._find_sockets()
        except (OSError, UnicodeDecodeError) as error:
            self._unlock()
            said = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(f"memory.folder: {self.path}: {said}; {HELP_FOR_HOME}") from error
        except ConfigError:
            self._unlock()
            raise

    @property
    def journal(self) -> Path:
        """Where the journal's segments are."""
        return self.path / "journal"

    @property
    def saves(self) -> Path:
        """Where checkpoints are."""
        return self.path / "saves"

    def sockets(self, name: str) -> Path:
        """A folder for a server's Unix sockets, short enough for names of up to 20 bytes; made when it is not there."""
        path = self._sockets / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def close(self) -> None:
        """Gives the folder free. Servers in it have been stopped."""
        if self._sockets.parent != self.path:
            shutil.rmtree(self._sockets, ignore_errors=True)
            (self.path / "sockets").unlink(missing_ok=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _find_sockets(self) -> Path:
        """A folder below this one if its path is short enough, else the one of the daemon before us, or a new one."""
        near, noted = self.path / "run", self.path / "sockets"
        if len(os.fsencode(near)) + SOCKET_NAME_BYTES_MAX <= UNIX_PATH_BYTES_MAX:
            near.mkdir(mode=0o700, exist_ok=True)
            return near
        with contextlib.suppress(FileNotFoundError):
            before = Path(os.fsdecode(noted.read_bytes()))
            if _ours_alone(before):
                return before
        far = _short_folder()
        noted.write_bytes(os.fsencode(far))
        return far


def trouble(path: Path) -> tuple[str, str]:
    """The problem that would keep a daemon from using this folder, and a fix; empty without one. Changes nothing."""
    path = from_home(path, "memory.folder", HELP_FOR_HOME).absolute()
    there = _nearest(path)
    if not there.is_dir():
        return f"{there} is not a folder", "give another one with --data"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} cannot be written to", HELP_FOR_HOME
    for name, size in (("pseudonym_key", KEY_BYTES), ("journal_id", ID_DIGITS)):
        with contextlib.suppress(OSError):
            found = (path / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes and not {size}", HELP_FOR_KEYS
    with contextlib.suppress(OSError):
        lock = os.open(path / "lock", os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for a moment; a daemon that starts just then tries again
        except BlockingIOError:
            return f"it is in use by {_holder(lock)}", "stop that one, or give another folder with --data"
        finally:
            os.close(lock)
    return "", ""


def free_bytes(path: Path) -> int:
    """Free bytes where the data folder is, or would be."""
    return shutil.disk_usage(_nearest(from_home(path, "memory.folder", HELP_FOR_HOME).absolute())).free


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if os.path.exists(folder))  # false where we may not look


def _holder(lock: int) -> str:
    by = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
    return f"another npcd (process {by})" if by else "another npcd"


def _lives(lock: int) -> bool:
    """True if the process that a lock file names lives, and the kernel is not taking it apart."""
    by = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
    try:
        said = Path(f"/proc/{int(by)}/stat").read_text().rpartition(")")[2].split()
        return said[0] not in "ZX" and not int(said[6]) & PF_EXITING
    except (OSError, ValueError, IndexError):
        return False


def _locked(path: Path, wait_s: float) -> int:
    """The lock file, open and locked. Raises ConfigError when another process has it for longer than `wait_s`."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    began_ns = now_ns()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            longest_s = min(wait_s, LOCK_LIVE_WAIT_S) if _lives(lock) else wait_s
            if now_ns() < began_ns + int(longest_s * S):
                time.sleep(0.02)
                continue
            who = _holder(lock)
            os.close(lock)
            raise ConfigError(
                f"memory.folder: {path.parent} is in use by {who}; stop it, or give this one another folder with --data"
            ) from None
    with contextlib.suppress(OSError):  # on a full disk our process number is missing
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _made_once(path: Path, fresh: bytes) -> bytes:
    """The bytes of a file, which is made with `fresh` if it is missing. Raises ConfigError if its length is wrong."""
    with contextlib.suppress(FileNotFoundError):
        found = path.read_bytes()
        if len(found) != len(fresh):
            raise ConfigError(f"memory.folder: {path} has {len(found)} bytes and not {len(fresh)}; {HELP_FOR_KEYS}")
        path.chmod(0o600)
        return found
    half = path.with_suffix(".new")
    half.unlink(missing_ok=True)
    with open(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(fresh)
        file.flush()
        os.fsync(file.fileno())
    half.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    return fresh


def _short_folder() -> Path:
    """A new folder of ours with a short path."""
    folders = [Path("/tmp")]
    with contextlib.suppress(FileNotFoundError):  # there is none that can be written to
        folders.insert(0, Path(tempfile.gettempdir()))
    for parent in folders:
        if len(os.fsencode(parent)) <= 60 and os.access(parent, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix="npcd-", dir=parent))
    raise ConfigError(
        "memory.folder: its path is too long for Unix sockets, and no short folder can be written to; "
        "give a shorter path with --data"
    )


def _ours_alone(path: Path) -> bool:
    """True if it is a folder of this user that nobody else may enter. Others can take names in /tmp."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
