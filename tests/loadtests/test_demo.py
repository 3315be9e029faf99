"""The demo from outside: it plays, reports, ends its daemon, and says so when the daemon dies.

A script stands in for npcd and ends as the test says. It serves the fake daemon of tests/clients.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import loadtests.demo
from loadtests.demo import main
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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        *(
            (["--seconds", text], "argument --seconds: must be a number from")
            for text in ("nan", "inf", "0", "-1", "1e9")
        ),
        *(
            (["--npcs", text], "argument --npcs: must be a whole number from 1")
            for text in ("0", "-1", "nan", "5000", "2.5")
        ),
        *((["--fps", text], "argument --fps: must be a whole number") for text in ("0", "-5", "1e3", "inf")),
        *((["--rate-hz", text], "argument --rate-hz: must be a number") for text in ("0", "-1", "nan", "inf", "")),
        (["--seed", "1.5"], "argument --seed: must be a whole number"),
        (["--seed", "9" * 5000], "argument --seed: must be a whole number"),
        (["--json", "/proc/none/out.json"], "the folder /proc/none does not exist"),
        (["--json", "/tmp"], "/tmp cannot be written to"),
    ],
)
def test_numbers_that_make_no_game_are_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is one line below the usage, with the bounds, and nothing is started."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert says in said and len(said) < 250


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"), (b"GGUF\0\0", "no TOML"), (b"a = = 1", "line 1"), (b"world_id = 'w'", "a world needs"),
        (b"world_id='w'\nlore='l'\narchetypes=[]\nactions=[]\nemotions=[]\n", "has no 'map'"),
    ],
)  # fmt: skip
def test_a_scene_that_is_none_is_told(
    content: bytes | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the file, before a daemon is started."""
    path = tmp_path / "scene.toml"
    if content is not None:
        path.write_bytes(content)
    assert main(["--scene", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"npcd demo: --scene {path}: ") and says in said and said.count("\n") == 1


def test_frames_that_the_machine_does_not_carry_are_told(tmp_path: Path) -> None:
    """A thousand NPCs at a thousand frames a second end with the report and a status other than 0."""
    done = demo(tmp_path, "--npcs", "1000", "--seconds", "1", "--fps", "1000", "--json", "out.json")
    assert done.returncode == 1
    made = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert made["frames"] < 200 and made["errors"] == 0
    told = f"not kept up: {made['frames']} of 1000 frames were played; this machine does not carry 1000 NPCs"
    assert told in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--json", "/dev/full"]])
def test_a_report_that_cannot_be_written_is_told(arguments: list[str], tmp_path: Path) -> None:
    """For a full disk below standard output or the file the demo prints one line, no traceback, and does not exit with
    0."""
    (tmp_path / "npcd").mkdir()
    (tmp_path / "npcd" / "__init__.py").touch()
    (tmp_path / "npcd" / "__main__.py").write_text(STUB, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "clients" / "python")])
    with open(os.devnull if arguments else "/dev/full", "w") as out:
        done = subprocess.run(
            # So few frames that no machine is too slow for them.
            [sys.executable, "-m", "loadtests.demo", *"--npcs 2 --seconds 1 --fps 30 --rate-hz 1".split(), *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path, "TMPDIR": str(tmp_path)}, stdout=out, stderr=subprocess.PIPE,
            text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("npcd demo: No space left on device") and done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("npcd-demo-*")), "its daemon and folder are gone"


def test_ctrl_c_while_it_waits_ends_with_a_line(tmp_path: Path) -> None:
    """The status is 130, without a traceback."""
    command = [sys.executable, "-c", "import sys; from npcd.__main__ import main; sys.exit(main())", "demo"]
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts connections and never answers
        where = f"127.0.0.1:{mute.getsockname()[1]}"
        process = subprocess.Popen(
            [*command, "--connect", where], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stderr is not None
        assert "waiting for npcd" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (130, "interrupted\n")


def test_ctrl_c_while_libraries_are_imported_ends_without_a_word(tmp_path: Path) -> None:
    """Here the client is a library whose import never ends."""
    (tmp_path / "npcd_client.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(600)\n")
    code = "import sys; from npcd.__main__ import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "demo"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (-signal.SIGINT, "")


def test_a_daemon_that_is_not_there_is_told_soon(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With --connect no wait is needed, because a daemon that is starting listens already."""
    monkeypatch.setattr(loadtests.demo, "NOBODY_TIMEOUT_S", 0.1)
    assert main(["--connect", "127.0.0.1:1"]) == 1
    said = capfd.readouterr().err
    assert said.startswith("no daemon serves at 127.0.0.1:1: ") and "npcd serve" in said


@pytest.mark.parametrize("example", ["ten_lines", "remembering"])
def test_an_example_without_a_daemon_says_what_is_missing(example: str) -> None:
    """The example prints two lines and no traceback."""
    program = ROOT / "clients" / "python" / "examples" / f"{example}.py"
    done = subprocess.run(
        [sys.executable, str(program), "127.0.0.1:1"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first.startswith("127.0.0.1:1: not ready") and "npcd serve" in second


def kept() -> dict[str, Any]:
    """A report that just keeps every promise."""
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
