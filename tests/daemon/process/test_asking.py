"""A model is asked in a process of its own, and nothing that happens there keeps doctor from its other findings."""

from pathlib import Path

import pytest

from core.errors import ConfigError
from daemon.process import asking
from daemon.process.answers import ACTIONS, STATES
from daemon.process.diagnosis import Outcome
from engines.llama import LlamaSettings
from prompts.caps import Caps
from tests.engines.shapes import CHATML, qwen2_like

CAPS = Caps(lore=400, words=300, archetype=250, persona=250, intent_tail=160)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> LlamaSettings:
    """A chat model that learned nothing."""
    return LlamaSettings(qwen2_like(tmp_path_factory.mktemp("asking") / "m.gguf"), threads=1)


def test_every_state_has_an_answer_of_the_worlds_words(settings: LlamaSettings) -> None:
    """The answers are the most probable ones, so they are the same each time."""
    answers = asking.ask(settings, CHATML, CAPS)
    assert len(answers) == len(STATES)
    assert set(answers) <= {action.word for action in ACTIONS}
    assert answers == asking.ask(settings, CHATML, CAPS)


def test_the_finding_is_about_the_answers(settings: LlamaSettings) -> None:
    """It comes from another process."""
    check = asking.asked(settings, CHATML, CAPS)
    assert check.name == "answers" and "of 12 different situations" in check.says


def test_a_model_that_cannot_answer_is_a_finding_with_the_reason(settings: LlamaSettings, tmp_path: Path) -> None:
    """A world that is too long for the caps, and a file that is not there."""
    check = asking.asked(settings, CHATML, Caps(lore=1))
    assert check.outcome is Outcome.OK and "not checked" in check.says and "lore" in check.says
    with pytest.raises(ConfigError):
        asking.ask(LlamaSettings(tmp_path / "none.gguf"), CHATML, CAPS)


def test_a_process_that_ends_or_takes_long_is_a_finding(
    settings: LlamaSettings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """llama.cpp may end its process, and a large model may take minutes to load."""
    check = asking.asked(settings, CHATML, None)  # type: ignore[arg-type]
    assert "ended with status 1" in check.says
    monkeypatch.setattr(asking, "PATIENCE_S", 0.0)
    check = asking.asked(settings, CHATML, CAPS)
    assert check.outcome is Outcome.OK and "take more than 0 s" in check.says
    capfd.readouterr()
