"""Installs older protobuf and gRPC runtimes into folders of their own, for the tests of the Python client.

    python -m tools.runtimes         installs the missing ones into build/runtimes (some 40 MiB); safe to run again

Each folder goes to the front of PYTHONPATH, where it hides the packages of .venv. A package without a wheel for this
Python is left out, and the test that needs it says so.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.proto import ROOT

FOLDER = ROOT / "build" / "runtimes"

# The first is the oldest that the client allows. 6.30 checks generated code most strictly.
RUNTIMES: Mapping[str, Sequence[str]] = {
    "protobuf-5.29": ("protobuf==5.29.1", "grpcio==1.63.2"),
    "protobuf-6.30": ("protobuf==6.30.0", "grpcio==1.71.2"),
    "protobuf-6.33": ("protobuf==6.33.6", "grpcio==1.76.0"),
    "protobuf-7.34": ("protobuf==7.34.0", "grpcio==1.80.1"),
}
# The newest generator that writes for protobuf 5.29.
GENERATOR = "protoc-29"
GENERATOR_NEEDS = ("grpcio-tools==1.71.2",)


def place(name: str) -> Path | None:
    """The folder of a runtime or of the generator; None when it is not installed."""
    folder = FOLDER / name
    return folder if (folder / ".ready").exists() else None


def install(name: str, needs: Sequence[str]) -> str:
    """Installs into a folder of its own. Returns the error, or an empty text when it is there."""
    if place(name):
        return ""
    folder = FOLDER / name
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
    command += ["--only-binary=:all:", f"--target={folder}"]
    # Without its requirements the generator brings no second protobuf.
    command += ["--no-deps", *needs] if name == GENERATOR else [*needs]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_without_pythonpath())
    if done.returncode != 0:
        return next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), done.stderr.strip())
    (folder / ".ready").touch()
    return ""


def _without_pythonpath() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def main() -> int:
    for name, needs in {**RUNTIMES, GENERATOR: GENERATOR_NEEDS}.items():
        why = install(name, needs)
        sys.stdout.write(f"runtimes: {name}: {f'left out: {why}' if why else 'is there'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
