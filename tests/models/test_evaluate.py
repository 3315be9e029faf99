"""The examination of models: it gives right answers full marks, and it can be failed."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from models.corpus import memories, words
from models.corpus.render import rng_of
from models.curve import svg
from models.evaluate import QUICK, Report, examine, intents_only
from models.exam import facts as exam_facts
from models.exam import intents as exam_intents
from models.exam.facts import Answered, rate
from models.exam.intents import Asked, scores
from models.exam.talk import repeats
from models.exam.voice import Voice, generated
from models.play import SHIPPED
from prompts.caps import Caps
from prompts.layout import Layout
from tests.engines.shapes import FAMILIES

# A small vocabulary needs many tokens for a text.
ROOMY = Caps(lore=900, words=600, archetype=400, persona=400, intent_tail=200)


def asked(archetype: str, number: int) -> Asked:
    """An intent that was chosen right."""
    choice = (("idle", "flee", "hide")[number % 3], number % 2, "calm")
    return Asked(archetype, choice, choice)


def test_shuffled_intents_drop() -> None:
    """An examinee with only right answers loses about the shuffled share, and no more."""
    every = [asked(a, n) for a in words.ARCHETYPES for n in range(200)]
    assert scores(every)["all"].whole == 1.0
    dropped = scores(exam_intents.shuffled(every, 0.2, 1))["all"].whole
    assert 0.78 < dropped < 0.95


def test_shuffled_facts_drop() -> None:
    """An examinee with only right facts loses about the shuffled share."""
    people = [f"{a}{b}ra" for a in "ABCDEFGHIJKLMN" for b in "aeiou"]
    every = [Answered("lich", "name", "trunk", frozenset({p}), f"I am {p}.") for p in people]
    assert rate(every) == 1.0
    assert rate(exam_facts.shuffled(every, 0.2, 1)) == pytest.approx(0.8, abs=0.15)


def test_majority_knows_the_archetype() -> None:
    """The majority baseline is what the most frequent answer of each archetype reaches."""
    every = [replace(asked("lich", n), wanted=("idle", 0, "calm")) for n in range(5)]
    every += [replace(asked("ghoul", n), wanted=("hide", 0, "sad")) for n in range(5)]
    assert scores(every)["all"].majority_whole == 1.0


def test_one_answer_to_everything_is_seen() -> None:
    """`same_action` is the share of the action that was chosen most."""
    every = [replace(asked("lich", n), made=("flee" if n < 9 else "hide", 0, "calm")) for n in range(12)]
    assert scores(every)["all"].same_action == pytest.approx(0.75)


def test_a_chat_model_chooses_among_the_words_of_its_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The examination of intents is laid out by the model's own template, and has no goals."""
    report = Report()
    intents_only(report, FAMILIES["qwen2"](tmp_path / "m.gguf"), 10, 1, ROOMY)
    said = capsys.readouterr().out
    assert "layout: chat" in said and "vampire" in said
    assert not report.missed


def test_right_needs_every_word() -> None:
    """An answer is right when it has every word that matters, in any case and order."""
    answer = Answered("ghoul", "item", "trunk", frozenset({"old", "mill"}), "At the Mill, the old one, heh.")
    assert answer.right
    assert not replace(answer, text="At the mill, heh.").right


@pytest.mark.parametrize("archetype", words.ARCHETYPES)
def test_refusals_invent_nothing(archetype: str) -> None:
    """The generator's own refusals count as no invention; a stated fact counts as one."""
    rng = rng_of(9, "refusals", 0)
    for _ in range(200):
        assert exam_facts.named(archetype, memories.untold(rng, archetype)) == []
    for kind in memories.KINDS:
        slots = memories.make_memory(rng, kind, True)
        assert exam_facts.named(archetype, memories.answer(rng, archetype, kind, slots))


def test_repeats() -> None:
    """A sentence is a repeat when it was said within the window, or stands twice in one reply."""
    assert repeats(["A b. C.", "D.", "C. E."], window=3) == ("C.",)
    assert repeats(["A b. C.", "D.", "C. E."], window=2) == ()
    assert repeats(["Yes. Yes."]) == ("Yes.",)


def test_voices_differ(layout: Layout) -> None:
    """The classifier recognises the generator's voices on people and worlds that it was not trained on."""
    voice = Voice(generated(layout, 1, 40))
    for archetype, lines in generated(layout, 2, 10, unseen=True).items():
        assert sum(voice.of(line) == archetype for line in lines) / len(lines) > 0.9


def test_goals_can_be_missed() -> None:
    """A value that misses its goal is marked, and stays in the report."""
    report = Report()
    assert report.goal("a", 0.9, least=0.9) == "0.900"
    assert report.goal("b", 0.2, most=0.1) == "0.200!"
    assert (report.goals, report.missed) == (2, ["b: 0.200, goal <= 0.1"])


def test_shipped_model_knows_more_than_chance(capsys: pytest.CaptureFixture[str]) -> None:
    """With a fifth of the answers shuffled, a quick run scores lower: the shipped model does better than chance."""
    report = Report()
    examine(report, SHIPPED, replace(QUICK, intents=120, npcs=2), seed=2, shuffle=0.2, transcript=False)
    assert report.goals == 2 and not report.missed
    assert "whole intents" in capsys.readouterr().out


def test_curve_is_a_picture() -> None:
    """The curve is well-formed SVG with a line for every logged loss."""
    points = [{"step": s, "loss": 3.0 / s, "held_loss": 4.0 / s, "held_found": 9.0} for s in (1.0, 2.0, 3.0)]
    root = ElementTree.fromstring(svg(points))
    assert len([e for e in root if e.tag.endswith("polyline")]) == 3
