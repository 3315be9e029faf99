"""The benchmark of speculation: its arithmetic, its random model, and its simulated GPUs."""

from pathlib import Path

import pytest

from core.words import Tier
from core.work import GREEDY
from engines.llama import LlamaEngine, LlamaSettings, open_draft
from loadtests.bench import figures, kv_spec_big
from loadtests.bench.figures import Figures
from loadtests.bench.kv_spec import NEVER_OFF, Speakers, _with, break_even, prompts
from loadtests.bench.kv_spec_sim import ACCEPTANCES, CARDS, _crossing, _took_s

MODEL = figures.ROOT / "models" / "npcd-demo.gguf"


def test_break_even_is_where_as_many_tokens_more_come() -> None:
    """A step that takes twice as long needs one right draft of one. A step as short as without drafts needs none. Above
    1 drafts never pay."""
    assert break_even(2.0, 1) == pytest.approx(1.0)
    assert break_even(1.0, 3) == pytest.approx(0.0, abs=1e-6)
    assert break_even(1.0 + 0.5 + 0.25 + 0.125, 3) == pytest.approx(0.5)
    assert break_even(2.5, 1) > 1.0


def test_simulated_gains_grow_with_acceptance_and_shrink_with_the_batch() -> None:
    """That holds on both cards. Without right drafts they cost time."""
    for card in CARDS:
        gains = {a: _took_s(card, 1, None) / _took_s(card, 1, a) for a in (0.0, 0.5, 1.0)}
        assert gains[0.0] < 1.0 < gains[0.5] < gains[1.0] < 4.0
        many = _took_s(card, 32, None) / _took_s(card, 32, 0.5)
        assert many < gains[0.5]
    assert _crossing({0.2: 0.8, 0.4: 1.2}) == pytest.approx(0.3)
    assert _crossing(dict.fromkeys(ACCEPTANCES, 0.5)) == 1.0


def test_the_random_draft_is_right_more_often_than_not(tmp_path: Path) -> None:
    """Target and draft load, have one vocabulary, and agree often enough for a gain."""
    target, draft = kv_spec_big.write(MODEL, tmp_path)
    engine = LlamaEngine(LlamaSettings(target, sequences=40, context_len=256, flash_attention="off", weights="file"))
    assert 20e6 <= engine.card.parameters <= 40e6
    open_draft(draft, engine, 2).close()
    engine.close()


def test_works_say_the_same_with_drafts_and_without() -> None:
    """Both sides of the comparison do the same work."""
    engine = LlamaEngine(LlamaSettings(MODEL, sequences=40, context_len=512, threads=1))
    speakers = Speakers(engine, _with(engine))
    works = prompts(engine, 6, Tier.SILVER, 16, GREEDY)
    plain, drafted = speakers.speak(works, None), speakers.speak(works, NEVER_OFF, at_once=2)
    assert plain.made == drafted.made
    assert sum(map(len, plain.made.values())) > 30
    engine.close()


def test_every_figure_of_the_area_has_words() -> None:
    """Each figure is known by name, and drafts that are off have a goal."""
    assert Figures(lambda _: None).missed == []
    assert figures.KNOWN["spec.off_cost_share"].goal == "< 0.03"
