"""What an installation brings: one name, npcd, with the folders inside it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from npcd import __version__

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("core", "tiers", "prompts", "engines", "kvcache", "scheduler", "memory", "daemon", "loadtests", "models")


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in a wheel built from this checkout."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_only_npcd_is_visible(carried: set[str]) -> None:
    """Nothing but npcd and its metadata reaches site-packages."""
    top = {name.partition("/")[0] for name in carried}
    assert top == {"npcd", f"npcd-{__version__}.dist-info"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_is_carried(carried: set[str], folder: str) -> None:
    """Each source file, setting, migration and model of a folder is in npcd/_app."""
    files = [path for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".toml", ".sql", ".gguf"}]
    # models/work is what training leaves behind; git and the wheel both leave it out.
    paths = {path.relative_to(ROOT).as_posix() for path in files}
    wanted = {f"npcd/_app/{path}" for path in paths if not path.startswith("models/work/")}
    assert wanted
    assert wanted <= carried


def test_the_stubs_and_the_way_in_are_carried(carried: set[str]) -> None:
    """`npcd` starts at npcd/__main__.py and speaks npcd/v1."""
    assert {"npcd/__main__.py", "npcd/__init__.py", "npcd/v1/intents_pb2.py"} <= carried


def test_the_way_in_is_cheap() -> None:
    """Importing npcd.__main__ loads none of the daemon, so `npcd --help` stays quick and the path is set first."""
    code = "import sys, npcd.__main__; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert not {"daemon", "core", "numpy", "grpc", "llama_cpp"} & set(done.stdout.split())
