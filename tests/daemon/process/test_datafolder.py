"""The data folder belongs to one daemon and one user, and its key and id never change."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import ConfigError
from daemon.process.children import account, launch
from daemon.process.datafolder import UNIX_PATH_BYTES_MAX, DataFolder, free_bytes, trouble

ROOT = Path(__file__).resolve().parents[3]
OPENS = """
import sys
from pathlib import Path
from daemon.process.datafolder import DataFolder
folder = DataFolder(Path(sys.argv[1]), 0)
"""


def mode(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    """Missing parents are made, too, for any umask."""
    before = os.umask(0o022)
    try:
        folder = DataFolder(tmp_path / "share" / "npcd")
    finally:
        os.umask(before)
    assert {path.name for path in folder.path.iterdir()} >= {"journal", "redis", "postgres", "saves", "lock"}
    assert mode(folder.path) == 0o700
    for path in folder.path.iterdir():
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path
    assert folder.journal.is_dir() and folder.saves.is_dir()
    folder.close()


def test_one_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    """A volume's mount point is often open to others."""
    tmp_path.chmod(0o755)
    (tmp_path / "pseudonym_key").write_bytes(bytes(32))
    folder = DataFolder(tmp_path)
    assert mode(tmp_path) == 0o700 and mode(tmp_path / "pseudonym_key") == 0o600
    folder.close()


def test_key_and_id_are_made_once(tmp_path: Path) -> None:
    """The key has 32 bytes and the id 32 hex digits. They are the same for the next daemon, and differ in another
    folder."""
    first = DataFolder(tmp_path / "a")
    key, journal = first.pseudonym_key, first.journal_id
    assert len(key) == 32 and len(bytes.fromhex(journal)) == 16
    first.close()
    again, other = DataFolder(tmp_path / "a"), DataFolder(tmp_path / "b")
    assert (again.pseudonym_key, again.journal_id) == (key, journal)
    assert other.pseudonym_key != key and other.journal_id != journal
    again.close()
    other.close()


def test_a_broken_key_is_not_replaced(tmp_path: Path) -> None:
    """With a new key the archive would silently get other pseudonyms for the same players."""
    DataFolder(tmp_path).close()
    (tmp_path / "pseudonym_key").write_bytes(b"short")
    with pytest.raises(ConfigError, match="pseudonym_key has 5 bytes and not 32; put it back"):
        DataFolder(tmp_path)
    assert (tmp_path / "pseudonym_key").read_bytes() == b"short"


def test_a_second_daemon_is_refused(tmp_path: Path) -> None:
    """The error names the folder, the process that has it, and the remedy. After the first daemon has ended, the second
    gets the folder."""
    first = DataFolder(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", OPENS, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    said = done.stderr.splitlines()[-1]
    assert f"{tmp_path} is in use by another npcd (process {os.getpid()})" in said and "--data" in said
    with pytest.raises(ConfigError, match="in use by another npcd"):
        DataFolder(tmp_path, 0)
    first.close()
    DataFolder(tmp_path, 0).close()


def test_a_daemon_that_was_killed_leaves_no_lock(tmp_path: Path) -> None:
    """The kernel releases the lock, whatever the file says."""
    code = OPENS + "import os; os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -9
    DataFolder(tmp_path).close()


@pytest.mark.parametrize("name", ["file/npcd", "file"])
def test_a_folder_that_cannot_be_is_named(tmp_path: Path, name: str) -> None:
    """The error is one line with the remedy."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--data") as raised:
        DataFolder(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value) and "\n" not in str(raised.value)


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """That is so when this user cannot write to it."""
    nobody = account("nobody")
    if os.geteuid() == 0 and nobody is not None:
        # The user may read everything, to reach this checkout wherever it is.
        command = launch([sys.executable, "-c", OPENS, str(tmp_path)], nobody._replace(reads_all=True), 9)
    else:
        command = [sys.executable, "-c", OPENS, "/"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "ermission denied; give a folder of npcd's user with --data" in done.stderr


def test_sockets_are_below_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    """That is so while its path is short."""
    path = Path("/tmp") / f"npcd-test-{os.getpid()}"
    folder = DataFolder(path)
    try:
        assert folder.sockets("redis") == path / "run" / "redis" and mode(path / "run" / "redis") == 0o700
    finally:
        folder.close()
        shutil.rmtree(path)


def test_sockets_of_a_long_path_are_elsewhere(tmp_path: Path) -> None:
    """Their folder has a short path, belongs to us alone, is the same for the next daemon after a crash, and is removed
    at an orderly end."""
    path = tmp_path / ("n" * 100) / ("n" * 100)
    folder = DataFolder(path)
    sockets = folder.sockets("postgres")
    assert len(os.fsencode(sockets / ".s.PGSQL.5432")) <= UNIX_PATH_BYTES_MAX
    assert mode(sockets) == 0o700 == mode(sockets.parent)
    folder._unlock()  # as the kernel does for a killed process
    after_crash = DataFolder(path)
    assert after_crash.sockets("postgres") == sockets
    after_crash.close()
    assert not sockets.parent.exists()
    fresh = DataFolder(path)
    assert fresh.sockets("postgres").parent.is_dir()
    fresh.close()


def test_a_socket_folder_that_became_anothers_is_not_used(tmp_path: Path) -> None:
    """A free name in /tmp may be taken by anyone."""
    path = tmp_path / ("n" * 100) / ("n" * 100)
    folder = DataFolder(path)
    before = folder.sockets("redis").parent
    folder._unlock()
    before.chmod(0o777)
    after = DataFolder(path)
    assert after.sockets("redis").parent != before
    after.close()
    shutil.rmtree(before)


def test_obstacles_are_reported_without_a_change(tmp_path: Path) -> None:
    """npcd doctor uses it."""
    path = tmp_path / "share" / "npcd"
    assert trouble(path) == ("", "") and not path.parent.exists() and free_bytes(path) > 0
    folder = DataFolder(path)
    what, helps = trouble(path)
    assert what == f"it is in use by another npcd (process {os.getpid()})" and "--data" in helps
    folder.close()
    assert trouble(path) == ("", "")
    (path / "journal_id").write_text("x")
    assert trouble(path)[0] == "journal_id has 1 bytes and not 32"
    (tmp_path / "file").touch()
    assert trouble(tmp_path / "file" / "npcd")[0] == f"{tmp_path / 'file'} is not a folder"


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names that folder, or the one in which it would be made."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert trouble(tmp_path / "npcd")[0] == f"{tmp_path} cannot be written to"
