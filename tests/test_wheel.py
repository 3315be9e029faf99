"""An installation brings one name, npcd, with all that its commands need inside it, and nothing else.

The wheel is built from this checkout and unpacked into an environment that has the libraries and not the checkout.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from npcd import __version__
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parent.parent
# Folders that are carried whole, by where they stand in the checkout; and single files of other folders.
WHOLE = {
    "npcd": "npcd",
    "clients/python/npcd_client": "npcd/_app/npcd_client",
    **{
        folder: f"npcd/_app/{folder}"
        for folder in ("core", "tiers", "prompts", "engines", "kvcache", "scheduler", "memory", "daemon")
    },
}
MODELS = ("models/CARD.md", "models/npcd-demo.gguf", "models/npcd-demo-draft.gguf")
COMMANDS = (
    "serve", "doctor", "demo", "version", "migrate", "archive show", "archive forget", "archive compact", "kv",
    "route explain", "policy check",
)  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from this checkout."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def carried(wheel: Path) -> set[str]:
    """The names of the files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel and the libraries of this one, and without the checkout."""
    place = tmp_path_factory.mktemp("installed")
    venv.create(place, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(place), "platbase": str(place)}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    # Python puts the folder that a .pth file names on the path. It does not read the .pth files in that folder, which
    # lead to the checkout.
    (packages / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return place / "bin" / "python"


def npcd(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of the installed npcd, far from the checkout."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["NPCD_MEMORY__FOLDER"] = str(python.parent.parent / "data")
    return subprocess.run(
        [str(python), "-m", "npcd", *arguments],
        cwd=python.parent, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


def files_of(folder: str) -> set[str]:
    """The files of a folder that run: no caches, and no types of the client."""
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
    types = ".pyi" if folder.startswith("clients/") else "no suffix"
    return {path for path in found if "__pycache__" not in path and not path.endswith(types)}


def demo_files() -> set[str]:
    """Every file of loadtests that the demo imports, directly or not, and its scene."""
    found, left = {"loadtests/__init__.py", "loadtests/scenes/demo.toml"}, ["loadtests/demo.py"]
    while left:
        path = left.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "loadtests":
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                paths = (f"{name.replace('.', '/')}.py" for name in names)
                left += [path for path in paths if (ROOT / path).is_file()]
    return found


def test_only_npcd_is_visible(carried: set[str]) -> None:
    """Nothing but npcd and its metadata reaches site-packages."""
    top = {name.partition("/")[0] for name in carried}
    assert top == {"npcd", f"npcd-{__version__}.dist-info"}


def test_the_wheel_carries_what_runs_and_nothing_else(carried: set[str]) -> None:
    """The wheel has the daemon, the demo with its client, and the models. It has no benchmark, trainer or corpus."""
    wanted = {f"npcd/_app/{path}" for path in (*demo_files(), *MODELS)}
    for folder, place in WHOLE.items():
        wanted |= {f"{place}/{path.removeprefix(f'{folder}/')}" for path in files_of(folder)}
    assert {name for name in carried if name.startswith("npcd/")} == wanted


def test_the_installed_npcd_is_the_one_that_is_tried(python: Path) -> None:
    """The environment of these tests finds neither the checkout nor a module that only the checkout has."""
    code = (
        "import importlib.util, npcd.__main__ as way, sys; sys.path.insert(0, str(way.house()));"
        "print(way.house().name, *(importlib.util.find_spec(n) for n in ('loadtests.bench', 'models.train', 'tools')))"
    )
    done = subprocess.run([str(python), "-c", code], cwd=python.parent, capture_output=True, text=True, check=False)
    # models has no __init__.py here, so that the name of a folder without modules is all that is found.
    assert done.stdout.split() == ["_app", "None", "None", "None"], done.stderr


def test_the_installed_version(python: Path) -> None:
    """`npcd --version` prints the built version."""
    assert npcd(python, "--version").stdout.split() == ["npcd", __version__]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_installed_command_has_its_help(python: Path, command: str) -> None:
    """Each command is there, with all that it imports to say how it is used."""
    done = npcd(python, *command.split(), "--help")
    assert done.returncode == 0 and f"npcd {command}" in done.stdout, done.stderr


def test_the_installed_demo_plays(python: Path) -> None:
    """The demo starts the daemon that came with it, and plays its scene without an error."""
    done = npcd(python, "demo", "--npcs", "3", "--seconds", "2", "--fps", "10", "--rate-hz", "2")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_installed_doctor_examines(python: Path) -> None:
    """Doctor finds the model that ships, and misses no library."""
    said = npcd(python, "doctor").stdout
    assert "npcd demonstration model" in said and "is missing" not in said, said


def test_a_demo_without_its_client_says_so_in_one_line(python: Path) -> None:
    """In a checkout where the Python client was not installed, the line says how to install it."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from npcd.__main__ import main; sys.exit(main(['demo']))"
    done = subprocess.run([str(python), "-c", code], cwd=python.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pip install ./clients/python" in done.stderr and (ROOT / "clients/python/pyproject.toml").exists()


def test_the_way_in_is_cheap() -> None:
    """Importing npcd.__main__ loads none of the daemon, so `npcd --help` stays quick and the path is set first."""
    code = "import sys, npcd.__main__; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert not {"daemon", "core", "numpy", "grpc", "llama_cpp"} & set(done.stdout.split())
