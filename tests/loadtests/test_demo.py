"""The demo from the outside: it plays, reports, ends its daemon, and says so when the daemon dies.

In place of npcd a script stands in that ends the way a test wants; what it serves is the fake daemon of tests/clients.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests.report import broken_promises
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
STUB = """
import asyncio, os, sys
from tests.clients import fake_daemon
assert sys.argv[1:3] == ["serve", "--listen"] and sys.argv[4:6] == ["--http", "127.0.0.1:0"], sys.argv
assert sys.argv[6] == "--data", sys.argv
print("the stub serves with", sys.argv[8:], file=sys.stderr, flush=True)
dies = os.environ.get("STUB_DIES", "")
if dies == "at once":
    sys.exit("no model found")
if dies == "when spoken to":
    fake_daemon.FakeDaemon._answer = lambda self, request: os._exit(7)
asyncio.run(fake_daemon.main(sys.argv[3]))
"""


def demo(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the demo in a folder where `python -m npcd` is the stub."""
    (folder / "npcd").mkdir()
    (folder / "npcd" / "__init__.py").touch()
    (folder / "npcd" / "__main__.py").write_text(STUB, encoding="utf-8")
    path = os.pathsep.join([str(folder), str(ROOT), str(ROOT / "clients" / "python")])
    command = [sys.executable, "-m", "loadtests.demo", *arguments]
    settings = os.environ | {"PYTHONPATH": path, "TMPDIR": str(folder)} | environment
    return subprocess.run(
        command, cwd=folder, env=settings, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def test_a_run_plays_reports_and_cleans_up(tmp_path: Path) -> None:
    done = demo(tmp_path, "--npcs", "6", "--seconds", "3", "--json", "out.json", "--model", "some.gguf")
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert made["npcs"] == 6 and made["errors"] == 0 and made["dialogue_turns"] >= 1
    assert made["frames"] + made["frames_skipped"] == 900
    assert 0 < made["observations"] <= 6 * 10 * 3
    assert sum(made["intents_by_source"].values()) == made["slots_due"] > 0
    assert made["intent_age_ms"]["p50"] > 0 and made["gold_token_ms"] == {"p50": 5.0, "p95": 6.0, "p99": 7.0}
    assert "waiting for npcd" in done.stdout and "Well met, stranger." in done.stdout
    assert not list(tmp_path.glob("npcd-demo-*")), "its folder is gone"


def test_a_daemon_that_does_not_come_up_is_told_with_its_last_words(tmp_path: Path) -> None:
    done = demo(tmp_path, "--seconds", "3", STUB_DIES="at once")
    assert done.returncode == 1
    assert "exit code 1" in done.stderr and "no model found" in done.stderr


def test_a_daemon_that_dies_on_the_way_ends_the_run(tmp_path: Path) -> None:
    done = demo(tmp_path, "--npcs", "4", "--seconds", "30", "--json", "out.json", STUB_DIES="when spoken to")
    assert done.returncode == 1
    assert "died during the run" in done.stderr and "the stub serves with ['--no-supervise']" in done.stderr
    made = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert made["errors_by_kind"]["daemon"] == 1 and made["frames"] < 30 * 300


def kept() -> dict[str, Any]:
    """A report that keeps every promise, barely."""
    return {
        "seconds": 20.0,
        "frames": 5500,
        "frames_late": 0,
        "errors": 0,
        "intents_model_share": 0.95,
        "dialogue_turns": 6,
        "cached_tokens": 1,
        "gold_token_ms": {"p95": 15.9},
        "silver_ttft_ms": {"p95": 249.0},
    }


def test_a_report_that_keeps_its_promises_breaks_none() -> None:
    assert broken_promises(kept()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frames", 5499),
        ("frames_late", 1),
        ("errors", 1),
        ("intents_model_share", 0.9499),
        ("dialogue_turns", 5),
        ("cached_tokens", 0),
        ("gold_token_ms", {"p95": 16.0}),
        ("gold_token_ms", {"p95": 0.0}),
        ("silver_ttft_ms", {"p95": 250.0}),
        ("silver_ttft_ms", {"p95": 0.0}),
    ],
)
def test_each_broken_promise_is_named(name: str, value: object) -> None:
    broken = broken_promises(kept() | {name: value})
    assert len(broken) == 1 and broken[0].startswith(name)
