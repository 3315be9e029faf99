"""A run's own daemon, as a child process. Owns the process, its log file and its socket's folder."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path

LOG_LINES = 30
STOP_TIMEOUT_S = 15.0


class DaemonChild:
    """`npcd serve` on a Unix socket in a folder of its own. `program` is a module that takes the same arguments, with
    the arguments before its "serve".

    Call start(), and stop() at the end in any case.
    """

    def __init__(self, arguments: Sequence[str] = (), program: Sequence[str] = ("npcd",)) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="npcd-demo-"))
        self.target = f"unix://{self._folder}/npcd.sock"
        self._log = self._folder / "daemon.log"
        self._command = [
            *(sys.executable, "-m", *program, "serve", "--listen", self.target, "--http", "127.0.0.1:0"),
            *("--data", str(self._folder / "data")),
            "--no-supervise",  # a run must notice a death, so no supervisor restarts the daemon
            *arguments,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the daemon. Its output goes to a file, so that it never waits for a reader."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def exit_code(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.poll() if self._process else None

    def log_tail(self) -> str:
        """The last lines of its log."""
        try:
            with self._log.open(encoding="utf-8", errors="replace") as log:
                return "".join(deque(log, LOG_LINES))
        except FileNotFoundError:
            return ""

    def stop(self) -> int:
        """Sends SIGTERM, kills it after a while, removes its folder, and returns its exit code."""
        code = 0
        if self._process:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
            try:
                code = self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                code = self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        return code
