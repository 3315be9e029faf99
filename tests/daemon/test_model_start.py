"""The model's part of a start: its stages are told, and what it finds out is kept for the next one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from core.clock import now_ns
from daemon.config import SHIPPED_MODEL, Config
from daemon.model import load_model
from daemon.starting import LOADING, OF_AN_ENGINE, READING, TUNING, WARMING, Start, plan
from engines.kept import CHOSEN, Kept
from engines.llama import LlamaSettings
from engines.model_file import ModelFile
from tiers.routing import LLAMA

AUTO = replace(Config(), engine=LlamaSettings(SHIPPED_MODEL, 42, 1024))


class Told(Start):
    """A start that keeps the stages that were begun."""

    def __init__(self) -> None:
        super().__init__(plan([(LLAMA, 8.0, 0)], stores=False), now_ns())
        self.begun: list[str] = []

    def begin(self, name: str, engine: str, now_ns: int) -> None:
        """Begins and keeps."""
        self.begun.append(name)
        super().begin(name, engine, now_ns)


def started(kept: Kept) -> tuple[list[str], list[dict[str, Any]]]:
    """The stages of a start, and its log."""
    start = Told()
    with capture_logs() as logs:
        model = load_model(AUTO, start=start, kept=kept)
    assert model.costs is not None and model.costs.learned > 10, "it is warm"
    assert model.sha256 == ModelFile((SHIPPED_MODEL,), {}).sha256()
    model.close()
    return start.begun, [dict(line) for line in logs]


def chosen(logs: list[dict[str, Any]]) -> dict[str, Any]:
    """The values of the line `tuned`."""
    (line,) = (line for line in logs if line["event"] == "tuned")
    return {name: line[name] for name in (*CHOSEN, "why")}


def test_the_second_start_does_not_tune_and_chooses_the_same(tmp_path: Path) -> None:
    """A start that finds the file torn says so, and measures again."""
    first, logs = started(Kept(tmp_path / "start"))
    assert first == list(OF_AN_ENGINE) and any(line["event"] == "tried" for line in logs)
    before = chosen(logs)
    second, logs = started(Kept(tmp_path / "start"))
    assert second == [READING, LOADING, WARMING]
    assert chosen(logs) == {**before, "why": "an earlier start measured it"}
    (file,) = (tmp_path / "start").glob("tuning-*")
    file.write_bytes(file.read_bytes()[:50])
    third, logs = started(Kept(tmp_path / "start"))
    assert third == list(OF_AN_ENGINE)
    (line,) = (line for line in logs if line["event"] == "kept file not used")
    assert str(file) in line["why"] and "damaged" in line["why"]


def test_where_nothing_can_be_written_it_starts_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data folder that takes a file, and no folder for temporary files: it tunes, warms up, and says what was not
    kept."""
    (tmp_path / "start").write_text("no folder")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    stages, logs = started(Kept(tmp_path / "start"))
    assert TUNING in stages and "tuned" in [line["event"] for line in logs]
    assert [line["event"] for line in logs].count("kept file not used") >= 1
