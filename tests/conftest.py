"""Settings that every test shares, and the bound that ends a test that hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import settings

# A daemon that a test starts remembers nothing, unless the test says so: no data folder, no servers of its own.
os.environ.setdefault("NPCD_MEMORY__KEEP", "false")

# Tests connect to this machine only. If the environment has a proxy (for pip, for example), they must not use it.
for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1", "localhost", "::1"]))

# Tests keep their sockets below the temporary folder, and a socket's path may have 107 bytes.
if len(os.fsencode(tempfile.gettempdir())) > 30:
    os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"

# Random cases repeat from run to run. A slow machine is no failure: a timing is a benchmark, not a test.
settings.register_profile("house", derandomize=True, deadline=None)
settings.load_profile("house")

# A test that runs longer than this hangs, and fails. If its thread is inside a library, it cannot be interrupted: then
# faulthandler_timeout in pyproject.toml ends the whole run.
HANGS_S = 540.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Bounds every test together with its setup and teardown."""

    def hangs(number: int, frame: FrameType | None) -> None:
        try:
            tasks = asyncio.all_tasks()
        except RuntimeError:  # this thread runs no loop
            tasks = set()
        for task in tasks:
            task.print_stack(file=sys.stderr)  # the await in which it hangs; the loop's stack does not show it
        pytest.fail(f"hangs: not over after {HANGS_S:g} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, HANGS_S)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- skips -------------------------------------------------------------------------------------------------------------
# CI runs the suite once with nothing but what the README asks for, then what was skipped there again with the extras. A
# reason that begins with "this machine:" is one that nothing which could be installed would change.


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--skipped-to FILE` writes down the skipped tests and files, one a line. `pytest @FILE` then runs just these."""
    parser.addoption("--skipped-to", metavar="FILE", type=Path, default=None, help="write the skipped tests there")


class _Skipped:
    """Collects the tests and files that were skipped because a package was missing, and writes them down."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._names: dict[str, None] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        if not reason.removeprefix("Skipped: ").startswith("this machine:"):
            self._names[report.nodeid] = None

    def pytest_sessionfinish(self) -> None:
        self._file.write_text("".join(f"{name}\n" for name in self._names), "utf-8")


def pytest_configure(config: pytest.Config) -> None:
    """Starts collecting when the option is given."""
    file = config.getoption("--skipped-to")
    if file is not None:
        config.pluginmanager.register(_Skipped(file))
