"""A first `make` in a fresh clone prints a line per stage and an error that names its log; every checkout has line
feeds."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("tools/setup.sh", "tools/csharp_plugin.sh", "deploy/check.sh", ".ci/run", "Makefile")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the files that setup needs, and nothing installed."""
    for name in ("tools/setup.sh", "requirements.txt", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def setup(clone: Path) -> subprocess.CompletedProcess[str]:
    """Runs setup in an environment where pip finds no package."""
    alone = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    alone |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(["bash", "tools/setup.sh"], cwd=clone, env=alone, capture_output=True, text=True, check=False)


def test_a_stage_that_fails_names_its_log(clone: Path) -> None:
    """pip's output is in the log. The terminal shows a line for each stage, and pip's reason."""
    done = setup(clone)
    assert done.returncode == 1
    venv, llama = done.stdout.splitlines()
    assert venv.startswith("setup: making .venv") and venv.endswith(" s")
    assert llama.startswith("setup: building llama.cpp") and "FAILED" in llama
    log = clone / "build/setup.log"
    assert str(log) in done.stderr and "requested llama-cpp-python" in done.stderr
    assert "== building llama.cpp" in log.read_text() and "requested llama-cpp-python" in log.read_text()
    assert not (clone / ".venv/.ready").exists()


def test_a_second_run_keeps_what_was_made(clone: Path) -> None:
    """After a failure the environment is kept and not made anew."""
    setup(clone)
    (clone / ".venv/kept").touch()
    assert setup(clone).stdout.startswith("setup: building llama.cpp")
    assert (clone / ".venv/kept").exists()


def test_a_folder_that_cannot_be_written_is_said(clone: Path) -> None:
    """The error is one line with the path."""
    (clone / "build").write_text("a file in the place of the folder")
    done = setup(clone)
    assert done.returncode == 1 and "cannot write" in done.stderr and str(clone / "build/setup.log") in done.stderr


def test_scripts_keep_their_line_feeds(tmp_path: Path) -> None:
    """Scripts keep their line feeds in a clone with core.autocrlf, as git for Windows makes it."""
    if shutil.which("git") is None:
        pytest.skip("no clone was made: git is not installed")

    def git(*words: str) -> None:
        author = ("-c", "user.name=n", "-c", "user.email=n@example.org")
        subprocess.run(["git", *author, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q", "ours")
    for name in (*SCRIPTS, ".gitattributes"):
        (tmp_path / "ours" / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "ours" / name)
    git("-C", "ours", "add", "-A", "-f")
    git("-C", "ours", "commit", "-q", "-m", "scripts")
    git("-c", "core.autocrlf=true", "clone", "-q", "ours", "theirs")
    for name in SCRIPTS:
        assert (tmp_path / "theirs" / name).read_bytes() == (ROOT / name).read_bytes(), name
