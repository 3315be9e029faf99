"""Runs the README's two commands in a clean Debian 12, as a new user does: `make clean-root`.

A fresh root made by debootstrap gets the packages that the README asks for and nothing else, and a copy of the
checkout's committed files. `make demo` and `make test` run in it, by chroot, and the seconds of each are printed. It
needs root and debootstrap, and some twenty minutes. The root is kept in the cache, without the packages and the
checkout.
Other commands than these two can be given: `python3 -m tools.clean_root "make demo"`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tools.image import PATH, ROOT, Build, Machine

# The README's packages, by Debian's names. The machine lends the package sources and pip's certificates.
ASKED_FOR = ("g++", "make", "python3", "python3-venv")
COMMANDS = ("make demo", "make test")
MISSING = 2


def main(commands: Sequence[str]) -> int:
    """Exit status 0 when both commands passed; 1 when one failed; 2 where no root can be made."""
    missing = [tool for tool in ("debootstrap", "chroot", "unshare", "git") if shutil.which(tool) is None]
    if os.geteuid() != 0:
        missing.append("root's rights")
    if missing:
        print(f"clean root: not run, missing: {', '.join(missing)}", file=sys.stderr)
        return MISSING
    if os.environ.get("NPCD_CLEAN_ROOT") != "inside":
        # A mount namespace of its own: nothing stays mounted, however this ends.
        inside = {**os.environ, "NPCD_CLEAN_ROOT": "inside"}
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "tools.clean_root"]
        command += commands
        return subprocess.run(command, cwd=ROOT, env=inside, check=False).returncode
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = cache / "npcd/image"
    place.mkdir(parents=True, exist_ok=True)
    machine = Machine(place)
    try:
        return _run(machine, commands or COMMANDS)
    finally:
        machine.unmount()


def _run(machine: Machine, commands: Sequence[str]) -> int:
    root = machine.root("clean", machine.base("bookworm"))
    build = Build(machine, ROOT)
    build.enter(root, {"HOME": "/root", "PATH": PATH})
    for command in ("apt-get -q update", f"apt-get -qq install -y --no-install-recommends {' '.join(ASKED_FOR)}"):
        if not _timed(build, f"{command} >/tmp/apt.log 2>&1 || {{ tail -n 20 /tmp/apt.log; exit 1; }}", command):
            return 1
    _copy(root / "npcd")
    for command in commands:
        if not _timed(build, f"cd /npcd && {command}", command):
            return 1
    return 0


def _copy(target: Path) -> None:
    """Copies the checkout's committed files."""
    target.mkdir()
    archive = subprocess.Popen(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", str(target)], stdin=archive.stdout, check=True)
    if archive.wait():
        raise SystemExit("clean root: git archive failed")


def _timed(build: Build, script: str, name: str) -> bool:
    """Runs a line of shell in the root and prints its time."""
    began_s = time.monotonic()
    status = build.start(["sh", "-c", script], build.lent() | {"DEBIAN_FRONTEND": "noninteractive"}).wait()
    took_s = time.monotonic() - began_s
    print(f"clean root: {name}: {'passed' if not status else f'FAILED ({status})'} after {took_s:.0f} s", flush=True)
    return not status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
