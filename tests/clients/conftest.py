"""Fixtures for the clients' tests: a daemon in a process of its own, for clients that bring their own event loop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

HERE = Path(__file__).resolve().parent
CLIENT = HERE.parent.parent / "clients" / "python"


@pytest.fixture
def daemon_target(tmp_path: Path) -> Iterator[str]:
    """The target of a fake daemon that gives an intent for every observation and runs in another process."""
    target = f"unix://{tmp_path}/fake.sock"
    python_path = os.pathsep.join([str(CLIENT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "fake_daemon.py"), target]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": python_path})
    try:
        yield target
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
