"""`npcd` as a user without an entry on the machine, without a home, and on read-only file systems."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon.process.children import Account, launch
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[3]
UID = 54_321  # of no user
NPCD = [sys.executable, "-m", "npcd"]
# For a user other than root the machine's users are hidden from the process instead.
HIDDEN = """
import pwd, sys
def unknown(*_): raise KeyError("uid not found")
pwd.getpwuid = pwd.getpwnam = unknown
from npcd.__main__ import main
sys.exit(main())
"""
SMALL = (
    *("engine.threads=1", "engine.flash_attention=off", "engine.weights=file", "engine.sequences=38"),
    *("engine.context_len=512", "caps.lore=120", "caps.words=80", "caps.archetype=60", "caps.persona=60"),
)


def command(*arguments: str) -> list[str]:
    """npcd with these arguments, as that user, who may read everything (this checkout) and write its own files."""
    if os.geteuid() == 0:
        return launch([*NPCD, *arguments], Account("nobody-known", UID, UID, reads_all=True), signal.SIGKILL)
    return [sys.executable, "-c", HIDDEN, *arguments]


def environment(**more: str) -> dict[str, str]:
    """An environment without HOME."""
    return {name: value for name, value in os.environ.items() if name != "HOME"} | more


def run(*arguments: str, **more: str) -> tuple[int, str, str]:
    """Runs it. Returns the exit status and the output."""
    done = subprocess.run(
        command(*arguments), cwd=ROOT, env=environment(**more), capture_output=True, text=True, timeout=PATIENCE_S,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@contextmanager
def serving(folder: Path, *arguments: str, **more: str) -> Iterator[str]:
    """A serving daemon of that user, and its log so far."""
    named = [part for one in SMALL for part in ("--set", one)]
    listen = ("--listen", f"unix:{folder}/n.sock", "--http", "127.0.0.1:0")
    process = subprocess.Popen(
        command("serve", "--no-supervise", *listen, *named, *arguments),
        cwd=ROOT, env=environment(**more), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = ""
    try:
        for line in process.stderr:
            said += line
            if "ready_after_s" in line:
                break
        else:
            pytest.fail(said)
        yield said
    finally:
        process.terminate()
        process.communicate()
    assert process.returncode == 0


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of that user."""
    folder = tmp_path / "own"
    folder.mkdir()
    if os.geteuid() == 0:
        for path in (folder, *folder.parents):
            if path == Path("/tmp"):
                break
            path.chmod(0o755)
        os.chown(folder, UID, UID)
    return folder


@pytest.mark.parametrize(
    "arguments", [("serve", "--no-supervise"), ("serve",), ("migrate",), ("archive", "compact", "--keep-months", "9")]
)
def test_without_a_home_the_data_folder_must_be_given(arguments: Sequence[str]) -> None:
    """The error is one line with exit status 2, without a traceback and without a second try."""
    code, _, said = run(*arguments, NPCD_MEMORY__KEEP="true")
    user = os.geteuid() or UID
    why = f"user {user} has no home folder: HOME is not set, and /etc/passwd has no line for it"
    assert (code, said.count("\n")) == (2, 1), said
    assert f": ~/.local/share/npcd: {why}; give " in said and "--data" in said


def test_doctor_says_it_too() -> None:
    """doctor has a failed check with the remedy."""
    code, said, _ = run("doctor", NPCD_MEMORY__KEEP="true")
    assert code == 1
    assert "has no home folder" in said and "--data" in said


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("memory.folder=~nosuchuser/npcd", "there is no user nosuchuser"),
        ("adapters.folder=~/adapters", "has no home folder"),
        ("worlds.policy_file=~/policy.toml", "has no home folder"),
        ("engine.model=~/model.gguf", "has no home folder"),
    ],
)
def test_other_paths_below_a_home_say_so_as_well(setting: str, says: str) -> None:
    """The error has the setting's name."""
    code, _, said = run("serve", "--no-supervise", "--set", setting)
    assert (code, said.count("\n")) == (2, 1), said
    assert setting.partition("=")[0] in said and says in said


def test_a_home_that_cannot_be_written_to_names_the_folder() -> None:
    """That is so with HOME=/, as in many containers."""
    code, _, said = run("serve", "--no-supervise", NPCD_MEMORY__KEEP="true", HOME="/proc/none")
    assert (code, said.count("\n")) == (2, 1), said
    assert "memory.folder: /proc/none/.local/share/npcd: " in said and "--data" in said


def test_it_serves_from_a_folder_of_its_own(own: Path) -> None:
    """It runs its own Redis. PostgreSQL needs a user with a name, and doctor and the log say so."""
    with serving(own, "--data", str(own / "data"), NPCD_MEMORY__KEEP="true") as said:
        assert "store started" in said and "has no name, which PostgreSQL wants" in said


def test_without_memory_it_needs_no_folder(own: Path) -> None:
    """It needs no temporary folder with room either."""
    with serving(own, NPCD_MEMORY__KEEP="false", TMPDIR="/proc/none"):
        pass
