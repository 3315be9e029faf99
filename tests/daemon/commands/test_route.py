"""`npcd route explain`: the route of each kind of work, and the origin of each value."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.main import main
from tests.patience import PATIENCE_S
from tiers.routing import WorkKind


def explain(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Runs it. Returns exit status, stdout and stderr."""
    status = main(["route", "explain", *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_table_has_every_kind_and_says_that_all_is_as_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind has one line."""
    status, out, _ = explain(capsys)
    assert status == 0
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert {kind.value for kind in WorkKind} <= set(lines)
    assert lines["intent"] == ["gold", "llama", "32", "8", "auto", "no"]
    assert lines["reply"] == ["silver", "llama", "192", "512", "auto", "yes"]
    assert lines["trunk"] == ["bronze", "llama", "-", "-", "auto", "no"]
    assert "Everything is as shipped." in out


def test_a_set_value_is_shown_with_its_origin(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File, environment and flag are named; the last source of a value counts."""
    file = tmp_path / "npcd.toml"
    file.write_text("[routes.summary]\noutput_max = 100\ntier = 'silver'\n[engine]\ncontext_len = 1536\n")
    monkeypatch.setenv("NPCD_ROUTES__SUMMARY__TIER", "bronze")
    status, out, _ = explain(capsys, "--config", str(file), "--set", "routes.reply.recall=false")
    assert status == 0
    assert f"* routes.summary.output_max = 100: {file}" in out
    assert "* routes.summary.tier = bronze: environment variable NPCD_ROUTES__SUMMARY__TIER" in out
    assert "* routes.reply.recall = no: --set routes.reply.recall=false" in out
    assert f"* engine.context_len = 1536: {file}" in out
    assert "as shipped" not in out


def test_one_kind_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    """Each value has its setting and its origin."""
    status, out, _ = explain(capsys, "reply", "--set", "routes.reply.context_max=1024")
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["tier", "silver", "routes.reply.tier", "default"] in lines
    assert ["tail", "192", "caps.talk_tail", "default"] in lines
    assert ["context", "1024", "routes.reply.context_max", "--set", "routes.reply.context_max=1024"] in lines


def test_a_value_beyond_a_promise_is_pointed_out(capsys: pytest.CaptureFixture[str]) -> None:
    """A tail longer than Gold's promise covers is allowed, with a note. A Silver one has room."""
    _, out, _ = explain(capsys, "--set", "caps.intent_tail=96")
    assert "! intent: a tail of 96 is more than promises.gold.tail_max (32); measure it" in out
    assert "! prediction" not in out
    _, out, _ = explain(capsys, "reply_trunk", "--set", "routes.reply.context_max=1024")
    assert "routes.reply.context_max" in out and "!" not in out


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints the same for programs."""
    status, out, _ = explain(capsys, "--json", "--set", "caps.intent_tail=40")
    assert status == 0
    rows = {row["kind"]: row for row in json.loads(out)}
    assert set(rows) == {kind.value for kind in WorkKind}
    assert rows["intent"]["tier"] == {"value": "gold", "setting": "routes.intent.tier", "origin": "default"}
    assert rows["prediction"]["tail"]["origin"] == "--set caps.intent_tail=40"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("replay",), "no kind of work is called 'replay'; did you mean reply?"),
        (("quest",), "there are: intent, bark, reply, reply_trunk, summary, trunk, prediction, prediction_bark"),
        (("--set", "routes.replay.tier=gold"), "unknown setting 'routes.replay'; did you mean 'routes.reply'?"),
        (("--set", "routes.reply.tier=iron"), "'routes.reply.tier' must be gold, silver, bronze, not 'iron'"),
        (("--set", "routes.reply.engine=vllm"), "there is no engine 'vllm'; there is: llama"),
        (("--set", "routes.intent.recall=true"), "Gold never waits on I/O"),
        (("--set", "routes.reply.tools=true"), "unknown setting 'routes.reply.tools'"),
        (("--set", "dialogue.max_tokens=600"), "dialogue.max_tokens: 600, must be 1 to routes.reply.output_max (512)"),
        (("--set", "caps.bark=12"), "caps.bark: give it as routes.bark.output_max"),
    ],
)
def test_a_faulty_table_ends_with_2(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str) -> None:
    """The error is one line with the allowed values."""
    status, out, err = explain(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("npcd: ") and said in err and err.count("\n") == 1


def test_it_runs_as_a_command() -> None:
    """It runs as `npcd route explain`."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("NPCD_")}
    done = subprocess.run(
        [sys.executable, "-m", "npcd", "route", "explain", "bark"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=clean,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("bark: a few words")


RULES = """
[engines.talk]
model = "talk.gguf"
[engines.big]
model = "big.gguf"
[routes.reply]
engine = "talk"
[[routes.reply.when]]
engine = "big"
world = "town"
archetype = ["king", "queen"]
[[routes.reply.when]]
engine = "llama"
context_min = 1500
"""


def test_it_says_which_engine_serves_an_npc_and_why(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The row that decides is named with its conditions. For one kind, each row before it is shown with a reason."""
    file = tmp_path / "npcd.toml"
    file.write_text(RULES)
    status, out, _ = explain(capsys, "--config", str(file), "--world", "town", "--archetype", "king")
    assert status == 0
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if line}
    assert lines["reply"] == "big routes.reply.when, row 1: world = town, archetype = king or queen"
    assert lines["summary"] == lines["reply_trunk"] == lines["reply"]
    assert lines["intent"] == lines["bark"] == "llama routes.intent.engine"
    status, out, _ = explain(capsys, "reply", "--config", str(file), "--archetype", "guard", "--context", "1600")
    assert out.splitlines()[:2] == [
        "reply            llama  routes.reply.when, row 2: context >= 1500",
        "  row 1 (world = town, archetype = king or queen) does not hold: world is not given, not town",
    ]
    status, out, _ = explain(capsys, "reply", "--config", str(file), "--json", "--world", "moor")
    (row,) = json.loads(out)
    assert (row["engine"], row["why"][-1]) == ("talk", "routes.reply.engine, since no row of routes.reply.when holds")
    status, _, err = explain(capsys, "--config", str(file), "--activation", "hot")
    assert status == 2 and "--activation: 'hot', must be active, warm, ambient" in err


def test_the_table_shows_the_engine_that_a_kind_follows_to(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Its setting is that of the kind that decides, and kinds with rows are named."""
    file = tmp_path / "npcd.toml"
    file.write_text(RULES)
    _, out, _ = explain(capsys, "--config", str(file))
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert lines["summary"][1] == lines["reply"][1] == "talk*" and lines["bark"][1] == "llama"
    assert "Rows decide for reply, reply_trunk, summary" in out
    _, out, _ = explain(capsys, "summary", "--config", str(file))
    assert ["engine", "talk", "routes.reply.engine", str(file)] in [line.split() for line in out.splitlines()]
