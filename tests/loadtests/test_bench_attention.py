"""The attention area: its figures have words and goals, its stages make recordings, and its logs are read as
written."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from loadtests.bench import attention, figures
from loadtests.bench.__main__ import AREAS
from loadtests.bench.attention_game import Log, Stage
from loadtests.bench.attention_rig import p95
from loadtests.bench.attention_served import Spent, spent
from loadtests.bench.attention_wise import _carried
from loadtests.scene import load_scene


def test_the_area_is_known_and_its_promised_figures_have_goals() -> None:
    """The goals are those of the promise, and each figure of the area has words."""
    assert "attention" in AREAS and {"asking", "cpu", "idle", "change", "prediction", "stall"} == set(attention.PARTS)
    wanted = {
        "attention.cpu_cores": "< 0.5",
        "attention.idle_latency_x": "<= 1.2",
        "attention.same_action_share": ">= 0.98",
        "attention.calls_x": "<= 0.5",
        "attention.prediction_age_x": "<= 0.85",
        "attention.predicted_wasted_share": "<= 0.5",
        "attention.predicted_full_load_tokens": "<= 0",
        "attention.stall_policy_max_ms": "<= 50",
        "attention.stall_errors": "<= 0",
    }
    assert {key: figures.KNOWN[key].goal for key in wanted} == wanted
    used = {
        word
        for file in Path(attention.__file__).parent.glob("attention_*.py")
        for word in file.read_text("utf-8").split('"')
        if word.startswith("attention.")
    }
    assert used and used <= set(figures.KNOWN)


@pytest.mark.parametrize("players", [0, 2])
def test_a_stage_is_a_village_or_a_crowd(players: int) -> None:
    """Both have the requested length and rate."""
    recording = Stage(20, 2.0, 5.0, players).record(load_scene())
    assert (len(recording.residents), len(recording.sights), recording.rate_hz) == (20, 10, 5.0)


def test_a_log_keeps_the_models_word_and_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The policy's answer counts only where the model never answered. A later answer of the model replaces its earlier
    one."""
    log = Log([1, 2], [(5, "policy", 31, "a")])
    for action, source in (("flee", "policy"), ("hide", "model"), ("idle", "policy"), ("attack", "model")):
        log.note("a", 1, action, source)
    log.note("a", 2, "flee", "policy")
    log.note("a", 2, "idle", "policy")
    assert log.actions == {"a 1": ("attack", "model"), "a 2": ("idle", "policy")}
    log.write(tmp_path / "log.json")
    assert Log.read(tmp_path / "log.json") == log


def test_an_npc_goes_on_where_nothing_is_said_about_a_slot() -> None:
    """The NPC goes on with its last action until the next answer."""
    log = Log(actions={"a 2": ("flee", "model"), "b 1": ("idle", "model")})
    slots = [("a", 1), ("a", 2), ("a", 3), ("b", 1)]
    assert [action for action, _ in _carried(log, slots)] == ["", "flee", "flee", "idle"]


def test_every_thread_has_its_own_time() -> None:
    """A thread that works has time under its name, and no thread's time counts twice."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            sum(range(1000))

    worker = threading.Thread(target=work, name="worker")
    worker.start()
    try:
        before = spent()
        time.sleep(0.3)
        cores = spent().cores(before)
    finally:
        over.set()
        worker.join()
    assert cores["worker"] > 0.02
    assert cores["worker"] <= 1.05
    assert cores["native"] > -0.05


def test_cores_are_of_the_time_between() -> None:
    """New threads count in full, and time of no known thread is native."""
    before = Spent(0, 1_000, {"engine": 400})
    cores = Spent(1_000, 2_000, {"engine": 900, "new": 100}).cores(before)
    assert cores == {"engine": 0.5, "new": 0.1, "native": pytest.approx(0.4)}


def test_p95_is_a_value_that_was_there() -> None:
    assert p95([]) == 0.0
    assert p95(list(range(100))) == 95
