"""Builds our Dockerfile without a container engine, and runs the image: deploy/check.sh.

Each stage is a copy of a fresh Debian 12 made by debootstrap; RUN runs in it by chroot, with the environment, folder
and user of the Dockerfile. At the end the image's own command is started as its own user, its health check is repeated
until it passes, and SIGTERM must end it with status 0. It needs root and debootstrap. It does not try the layers,
networks, volumes and limits of a real engine.

A chroot is not a container: it shares this machine's network, processes and kernel. Mounts are undone at the end, those
of a killed run with the mount namespace that deploy/check.sh makes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tools import dockerfile
from tools.dockerfile import Stage

ROOT = Path(__file__).resolve().parent.parent
BASES = {"debian:12-slim": "bookworm"}
# RUN lines reach packages as this machine does: by its resolver, certificates and pip settings.
LENT_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf")
LENT_ENVIRONMENT = ("PIP_", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
LENT_BUNDLE = "/run/lent.crt"  # no package of the image writes a file of this name
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HEALTHY_S, STOP_S = 180, 20

Process = subprocess.Popen[bytes]


class Machine:
    """The folders of all stages below one place, and the mounts in them."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._mounts: list[Path] = []

    def base(self, suite: str) -> Path:
        """A fresh Debian, made once by debootstrap from this machine's package sources."""
        base = self.place / suite
        if not (base / "etc/debian_version").exists():
            mirror = subprocess.run(
                ["apt-get", "indextargets", "--format", "$(REPO_URI)", f"Codename: {suite}"],
                capture_output=True, text=True, check=True,
            ).stdout.split()  # fmt: skip
            if not mirror:
                raise SystemExit(f"image: this machine's package sources have no {suite}")
            _say(f"debootstrap {suite}")
            made = base.with_suffix(".new")
            _remove(made)
            subprocess.run(
                ["debootstrap", "--variant=minbase", suite, str(made), mirror[0]],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            made.rename(base)
        return base

    def root(self, name: str, base: Path) -> Path:
        """A stage's folder: a copy of its base, with this machine's files that RUN lines need."""
        root = self.place / f"stage-{name}"
        _remove(root)
        subprocess.run(["cp", "-a", str(base), str(root)], check=True)
        for file in LENT_FILES:
            if Path(file).is_file():
                (root / file.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, root / file.lstrip("/"))
        bundle = Path(os.environ.get("SSL_CERT_FILE", BUNDLE))
        if bundle.is_file():
            shutil.copy(bundle, root / LENT_BUNDLE.lstrip("/"))
        for folder in ("/proc", "/dev", *_pip_folders()):
            inside = root / folder.lstrip("/")
            inside.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--rbind", folder, str(inside)], check=True)
            self._mounts.append(inside)
            # An unmount in there must not unmount out here.
            subprocess.run(["mount", "--make-rslave", str(inside)], check=True)
            if folder not in ("/proc", "/dev"):
                subprocess.run(["mount", "-o", "remount,bind,ro", str(inside)], check=True)
        return root

    def unmount(self) -> None:
        """Undoes every mount."""
        while self._mounts:
            subprocess.run(["umount", "--recursive", "--lazy", str(self._mounts.pop())], check=False)


def _remove(root: Path) -> None:
    """Removes a stage's folder, unless something of this machine is still mounted in it."""
    for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines():
        if line.split()[4].startswith(f"{root}/"):
            raise SystemExit(f"image: {line.split()[4]} is still mounted; umount it first")
    shutil.rmtree(root, ignore_errors=True)


def _pip_folders() -> list[str]:
    """Folders of this machine that its pip installs from; an index page points to files beside its folder."""
    said = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    words = said.stdout.replace("'", " ").replace("=", " ").split()
    paths = (Path(word.removeprefix("file://")) for word in words if word.startswith(("/", "file:///")))
    folders = {path.parent if path.name == "simple" else path for path in paths if path.is_dir()}
    return sorted(str(folder) for folder in folders)


def _say(text: str) -> None:
    print(f"image: {text}", flush=True)


class Build:
    """One build: stage after stage; `values` and `user` are those of the stage under way."""

    def __init__(self, machine: Machine, context: Path) -> None:
        self._machine = machine
        self._context = context
        self._ignore = dockerfile.patterns((context / ".dockerignore").read_text("utf-8"))
        self._roots: dict[str, Path] = {}
        self.root = Path()
        self.environment: dict[str, str] = {}
        self._arguments: dict[str, str] = {}
        self._folder = "/"
        self._user = "0:0"

    def stage(self, stage: Stage) -> None:
        """Builds one stage."""
        base = self._roots.get(stage.base) or self._machine.base(BASES[stage.base])
        self._roots[stage.name] = self._machine.root(stage.name, base)
        self.enter(self._roots[stage.name], {"PATH": PATH})
        for instruction in stage.instructions:
            began_s = time.monotonic()
            self._do(instruction.word, instruction.text)
            took_s = time.monotonic() - began_s
            _say(f"{stage.name}: line {instruction.line}: {instruction.word}, {took_s:.1f} s")

    def enter(self, root: Path, environment: dict[str, str]) -> None:
        """Programs started from now on run in this root, as root."""
        self.root, self.environment, self._arguments, self._folder, self._user = root, environment, {}, "/", "0:0"

    def _do(self, word: str, text: str) -> None:
        values = {**self._arguments, **self.environment}
        if word == "RUN":
            if self.start(dockerfile.command(text), self.lent() | self._arguments).wait():
                raise SystemExit(f"image: failed: RUN {text}")
        elif word == "COPY":
            self._copy(dockerfile.fill(text, values).split())
        elif word == "ENV":
            self.environment |= dockerfile.pairs(dockerfile.fill(text, values))
        elif word == "ARG":
            self._arguments |= dockerfile.pairs(dockerfile.fill(text, values))
        elif word == "WORKDIR":
            self._folder = text
            self._inside(text).mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            self._user = text

    def start(self, arguments: Sequence[str], more: Mapping[str, str] | None = None, quiet: bool = False) -> Process:
        """Starts a program in the stage, as its user, in its folder, with its environment and `more`."""
        # By its path, because the program is looked for on the image's PATH.
        chroot = shutil.which("chroot") or "/usr/sbin/chroot"
        inside = [chroot, f"--userspec={self._user}", str(self.root), "/usr/bin/env", "-C", self._folder, *arguments]
        environment = self.environment | dict(more or {})
        errors = subprocess.DEVNULL if quiet else None
        return subprocess.Popen(inside, env=environment, stdin=subprocess.DEVNULL, stderr=errors)

    def lent(self) -> dict[str, str]:
        """This machine's pip settings, for a program in the stage."""
        lent = {key: value for key, value in os.environ.items() if key.startswith(LENT_ENVIRONMENT)}
        if (self.root / LENT_BUNDLE.lstrip("/")).exists():
            lent |= dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), LENT_BUNDLE)
        return lent

    def _inside(self, path: str) -> Path:
        return self.root / (Path(self._folder) / path).as_posix().lstrip("/")

    def _copy(self, words: list[str]) -> None:
        source = self._context
        if words[0].startswith("--from="):
            source = self._roots[words.pop(0).removeprefix("--from=")]
        *names, target = words
        into = self._inside(target)
        for name in names:
            given = source / name.lstrip("/")
            # A folder's content goes into the target; a file goes under its name into a target that is a folder.
            to = into / given.name if given.is_file() and target.endswith("/") else into
            to.parent.mkdir(parents=True, exist_ok=True)
            if given.is_file():
                if source == self._context and dockerfile.ignored(name, self._ignore):
                    raise SystemExit(f"image: COPY {name}: .dockerignore keeps it out")
                shutil.copy(given, to)
            else:
                shutil.copytree(given, to, symlinks=True, dirs_exist_ok=True, ignore=self._left_out(source))

    def _left_out(self, source: Path) -> Callable[[str, list[str]], set[str]]:
        def left_out(folder: str, names: list[str]) -> set[str]:
            if source != self._context:
                return set()
            here = Path(folder).relative_to(source)
            return {name for name in names if dockerfile.ignored((here / name).as_posix(), self._ignore)}

        return left_out


def check(build: Build, stage: Stage) -> None:
    """Starts the image as an engine would, waits until it is healthy and ready, and stops it."""
    health = dockerfile.command(stage.last("HEALTHCHECK").partition("CMD ")[2])
    if not build.start(health, quiet=True).wait():
        raise SystemExit("image: its health check is well before it was started: something else answers there")
    process = build.start([*dockerfile.command(stage.last("ENTRYPOINT")), *dockerfile.command(stage.last("CMD"))])
    try:
        began_s = time.monotonic()
        ready = [part.replace("/healthz", "/readyz") for part in health]
        for what, asked in (("healthy", health), ("ready", ready)):
            while build.start(asked, quiet=True).wait():
                if process.poll() is not None or time.monotonic() - began_s > HEALTHY_S:
                    raise SystemExit(f"image: not {what} after {time.monotonic() - began_s:.0f} s")
                time.sleep(0.5)
            _say(f"{what} after {time.monotonic() - began_s:.1f} s")
        process.send_signal(signal.SIGTERM)
        status = process.wait(STOP_S)
        if status:
            raise SystemExit(f"image: ended with {status} after SIGTERM")
        _say("ended with 0 after SIGTERM")
    finally:
        if process.poll() is None:
            process.kill()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.image", description=__doc__.splitlines()[0])
    parser.add_argument("place", type=Path, help="folder for Debian and the stages; outside the checkout, some GB")
    place = parser.parse_args(argv).place.resolve()
    stages = dockerfile.read((ROOT / "Dockerfile").read_text("utf-8"))
    place.mkdir(parents=True, exist_ok=True)
    machine = Machine(place)
    build = Build(machine, ROOT)
    try:
        for stage in stages:
            build.stage(stage)
        check(build, stages[-1])
    finally:
        machine.unmount()
    _say("well")
    return 0


if __name__ == "__main__":
    sys.exit(main())
