"""The load: plans and budgets that can break, and whole runs with locust against a daemon whose steps take a stated
time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loadtests.board import Board
from loadtests.budget import BUDGET, broken_rows, load_budget
from loadtests.histogram import Histogram
from loadtests.load import main
from loadtests.scene import SCENES, load_plan
from loadtests.slots import Slots
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
needs_locust = pytest.mark.skipif(
    importlib.util.find_spec("locust") is None, reason="no load was run: locust is not installed (make extras)"
)

# -- plans -------------------------------------------------------------------------------------------------------------


def test_the_scenes_are_what_they_are_named_for() -> None:
    """The village has 100 NPCs and ten players; the town 500 in view at 10 Hz and twenty."""
    village, town = load_plan(SCENES / "village.toml"), load_plan(SCENES / "town.toml")
    assert (village.servers * village.npcs, village.conversations) == (100, 10)
    assert (town.servers * town.npcs, town.conversations, town.rate_hz) == (500, 20, 10)
    assert village.crowd is None
    assert town.crowd is not None and town.crowd.change_every_s >= 1
    assert village.scene.world.world_id == "hollow"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("npcs = 100", "", r"missing \['npcs'\]"),
        ("npcs = 100", "npcs = 100\nghosts = 3", r"unknown \['ghosts'\]"),
        ("npcs = 100", "npcs = 0", "above 0"),
        ("conversations = 10", "conversations = 101", "101 conversations"),
    ],
)
def test_a_wrong_plan_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    """The message names the fault."""
    text = (SCENES / "village.toml").read_text("utf-8").replace('"demo.toml"', f'"{SCENES / "demo.toml"}"')
    assert old in text
    (tmp_path / "wrong.toml").write_text(text.replace(old, new), "utf-8")
    with pytest.raises(ValueError, match=says):
        load_plan(tmp_path / "wrong.toml")


def test_a_wrong_crowd_is_refused(tmp_path: Path) -> None:
    """Its keys are known, and each NPC is observed in every so many frames."""
    text = (SCENES / "town.toml").read_text("utf-8").replace('"demo.toml"', f'"{SCENES / "demo.toml"}"')
    for old, new, says in (
        ("players = 5", "ghosts = 5", r"missing \['players'\], unknown \['ghosts'\]"),
        ("rate_hz = 10", "rate_hz = 7", "fps must be a multiple"),
    ):
        assert old in text
        (tmp_path / "wrong.toml").write_text(text.replace(old, new), "utf-8")
        with pytest.raises(ValueError, match=says):
            load_plan(tmp_path / "wrong.toml")


def test_an_unknown_scene_names_those_that_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong name is refused before anything is started, with locust and without it."""
    assert main(["city"]) == 2
    said = capsys.readouterr().err
    assert "city" in said and "village" in said and "locust" not in said


# -- budgets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", ["village", "town"])
def test_every_scene_has_a_budget(scene: str) -> None:
    """Each of them has the tiers' promises."""
    rows = load_budget(BUDGET, scene)
    assert rows["gold_token_p95_ms"]["max"] == 16 and rows["silver_ttft_p95_ms"]["max"] == 250


def test_each_row_can_break() -> None:
    """A figure over its max, under its min, or missing breaks its row and no other."""
    rows = load_budget(BUDGET, "village")
    good = {name: row.get("max", row.get("min")) for name, row in rows.items()}
    assert broken_rows(good, rows) == []
    for name, row in rows.items():
        worse = row["max"] + 0.01 if "max" in row else row["min"] - 0.01
        (broken,) = broken_rows(good | {name: worse}, rows)
        assert broken.startswith(f"{name}: ")
        (missing,) = broken_rows({key: value for key, value in good.items() if key != name}, rows)
        assert missing == f"{name}: not measured"


def test_a_percentile_of_nothing_keeps_no_budget() -> None:
    """A histogram without values gives 0 ms, which breaks its row. Zero errors keep theirs."""
    assert broken_rows({"a_ms": 0.0, "errors": 0}, {"a_ms": {"max": 5}, "errors": {"max": 0}}) == ["a_ms: not measured"]


def test_a_budget_that_says_nothing_is_refused(tmp_path: Path) -> None:
    """A misspelt bound would never break, so it is refused."""
    path = tmp_path / "budget.toml"
    path.write_text("[village]\nerrors = { most = 0 }\n", "utf-8")
    with pytest.raises(ValueError, match="errors must have max, min or both"):
        load_budget(path, "village")
    with pytest.raises(ValueError, match="no budget for town"):
        load_budget(path, "town")


# -- several game servers ----------------------------------------------------------------------------------------------


def test_boards_add_up() -> None:
    """Percentiles are those of all values, shares those of all slots."""
    whole, parts, histograms = Board(3, Slots(3)), [Board(1, Slots(1)) for _ in range(3)], Histogram(1.0, 5_000.0)
    for number, part in enumerate(parts):
        for value in range(number * 100, number * 100 + 50):
            part.intent_age.add(float(value))
            histograms.add(float(value))
        part.slots.observed(0, 1, "day", 0.0)
        part.slots.close()
        part.frames, part.versions["model"] = 10, number
        whole.include(part)
    assert whole.intent_age.percentiles(p50=0.5, p95=0.95) == histograms.percentiles(p50=0.5, p95=0.95)
    assert (whole.intent_age.count, whole.frames, whole.versions["model"]) == (150, 30, 3)
    assert whole.slots.due == 3 and whole.slots.by_source["policy"] == 3


# -- whole runs --------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """The results of one run."""

    step_ms: float
    done: subprocess.CompletedProcess[str]
    folder: Path

    @property
    def figures(self) -> dict[str, Any]:
        """The figures that it wrote."""
        made: dict[str, Any] = json.loads((self.folder / "agreement.json").read_text("utf-8"))
        return made


TRIES, LATE_MAX_MS = 3, 100


# A budget for each step time: the first one can be kept, the second cannot.
@pytest.fixture(scope="module", params=[(80, 10_000), (100, 1)], ids=["80 ms", "100 ms"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One load against the simulated daemon. If the load was far too late with its own lines, because the machine was
    busy, the run says nothing about either side and is repeated.
    """
    step_ms, silver_max_ms = request.param
    for _ in range(TRIES):
        made = _load(step_ms, silver_max_ms, tmp_path_factory.mktemp("load"))
        if not (made.folder / "agreement.json").exists() or made.figures["lines_late_p95_ms"] <= LATE_MAX_MS:
            break
    return made


def _load(step_ms: float, silver_max_ms: float, folder: Path) -> Run:
    budget = folder / "budget.toml"
    budget.write_text(
        f"[agreement]\nerrors.max = 0\nturns.min = 10\nsilver_ttft_p95_ms.max = {silver_max_ms}\n", "utf-8"
    )
    command = [
        *(sys.executable, "-m", "loadtests.load", "agreement", "--seconds", "15"),
        *("--daemon", f"loadtests.bench.simulated {step_ms}", "--budget", str(budget), "--results", str(folder)),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env=os.environ | {"TMPDIR": str(folder)},
    )
    return Run(step_ms, done, folder)


@needs_locust
def test_a_run_keeps_its_budget_or_names_the_row_that_broke(run: Run) -> None:
    """The exit status is 0 or 1, locust's report is beside the figures, and nothing is left behind."""
    if run.step_ms == 80:
        assert run.done.returncode == 0, run.done.stderr
        assert "broken" not in run.done.stderr
    else:
        assert run.done.returncode == 1, run.done.stderr
        broken = [line for line in run.done.stderr.splitlines() if line.startswith("broken")]
        assert len(broken) == 1 and broken[0].startswith("broken: silver_ttft_p95_ms: ")
    assert "<html" in (run.folder / "agreement.html").read_text("utf-8")
    assert not list(run.folder.glob("npcd-demo-*")), "the daemon's folder is gone"


@needs_locust
def test_locust_and_npcd_measure_the_same(run: Run) -> None:
    """Their medians of the same value differ by 10 % or 2 ms at most, and are not below the cost of steps.

    Where the load itself is late with its lines by more than that, it sees the answers as late.
    """
    figures = run.figures
    assert figures["daemon"]["engine"] == "sim"
    pairs = {
        "silver_ttft": (figures["locust_p50_ms"]["Talk first text"], run.step_ms),
        "reaction": (figures["locust_p50_ms"]["Live reaction to an event"], 3 * run.step_ms),
    }
    for name, (locust_ms, least_ms) in pairs.items():
        load_ms, npcd_ms = (figures["both_sides_p50_ms"][name][side] for side in ("load", "npcd"))
        apart_ms = max(0.1 * npcd_ms, 2.0, figures["lines_late_p95_ms"])
        assert abs(locust_ms - npcd_ms) <= apart_ms, f"{name}: locust {locust_ms}, npcd {npcd_ms}"
        assert abs(load_ms - npcd_ms) <= apart_ms, f"{name}: load {load_ms}, npcd {npcd_ms}"
        assert min(locust_ms, npcd_ms) >= least_ms
    assert figures["reactions"] >= 20 and figures["turns"] >= 20
    assert figures["model_share"] >= 0.9 and figures["errors"] == 0


def _ask(url: str, data: dict[str, object] | None = None) -> str:
    """The web page's answer; POST with data."""
    body = urllib.parse.urlencode(data).encode() if data is not None else None
    with urllib.request.urlopen(url, body, timeout=10) as answer:
        return str(answer.read().decode())


def _until(condition: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come to that"
        time.sleep(0.2)


@needs_locust
def test_the_web_page_starts_and_stops_loads(tmp_path: Path) -> None:
    """It serves this machine only, again and again, until Ctrl-C. Then daemon and locust are gone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "loadtests.load", "agreement", "--ui", "--web-port", str(port)),
        *("--daemon", "loadtests.bench.simulated 20", "--results", str(tmp_path)),
    ]
    page = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)})

    def counts() -> dict[str, int]:
        answer = json.loads(_ask(f"{page}/stats/requests"))
        assert not answer["errors"]
        return {row["name"]: row["num_requests"] for row in answer["stats"]} | {answer["state"]: 1}

    def up() -> bool:
        try:
            return "Locust" in _ask(page)
        except OSError:
            return False

    try:
        _until(up)
        for _ in range(2):
            _ask(f"{page}/swarm", {"user_count": 4, "spawn_rate": 10})
            _until(lambda: counts().get("whole turn", 0) >= 3 and counts().get("intent", 0) >= 3)
            _ask(f"{page}/stop", {})
            _until(lambda: "stopped" in counts())
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    assert not up()
    assert not list(tmp_path.glob("npcd-demo-*")), "the daemon's folder is gone"


@needs_locust
def test_a_daemon_that_is_not_there_is_no_run(tmp_path: Path) -> None:
    """The exit status is 3, with the reason."""
    command = [sys.executable, "-m", "loadtests.load", "village", "--connect", f"unix://{tmp_path}/none"]
    done = subprocess.run(
        [*command, "--results", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 3 and "No such file" in done.stderr
    assert not (tmp_path / "village.json").exists()
