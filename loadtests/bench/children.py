"""The benchmarks' child processes: a daemon with the benchmarks' calls, and the game that loads it.

Ownership: each child is started by an `async with` and ended with it, by its own process id.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from loadtests.bench.figures import ROOT
from npcd_client import NpcdError

STOP_S = 15.0
LOG_CHARS = 2_000


class Child:
    """One process. `log` holds its standard error; with `talks`, its standard streams are ours."""

    def __init__(self, command: Sequence[str], talks: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="npcd-bench-"))
        self._command = [part.replace("{folder}", str(self.folder)) for part in command]
        self._talks = talks
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE if self._talks else asyncio.subprocess.DEVNULL
        with (self.folder / "log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, cwd=ROOT, stdin=pipe, stdout=pipe if self._talks else log, stderr=log
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def ended(self) -> bool:
        """True when it ended by itself."""
        return self._process is not None and self._process.returncode is not None

    @property
    def log(self) -> str:
        """The end of its log."""
        return (self.folder / "log").read_text("utf-8", "replace")[-LOG_CHARS:]

    async def ask(self, line: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """Writes a line (none when empty) and reads one line of JSON. Raises NpcdError when there is none."""
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        if line:
            self._process.stdin.write(f"{line}\n".encode())
        answer = b""
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._process.stdout.readline()
        except TimeoutError:
            pass
        if not answer:
            raise NpcdError(f"{' '.join(self._command[:4])} does not answer '{line}': {self.log}")
        return dict(json.loads(answer))


def daemon(*sets: str) -> Child:
    """`npcd serve` with the benchmarks' calls, on a Unix socket in its folder: see target()."""
    return Child(
        [
            *(sys.executable, "-m", "loadtests.bench.served", "--listen", "unix:{folder}/npcd.sock", "--http", ""),
            *("--data", "{folder}/data"),
            "--no-supervise",  # the time of this process id is measured
            *(part for one in sets for part in ("--set", one)),
        ]
    )


def target(child: Child) -> str:
    """The address at which a daemon listens."""
    return f"unix:{child.folder}/npcd.sock"


def traffic(target: str) -> Child:
    """The game that loads a daemon."""
    return Child([sys.executable, "-m", "loadtests.bench.traffic", target], talks=True)
