"""The shipped file."""

from hypothesis import given
from hypothesis import strategies as st

from daemon.prompt import MARKS, Layout
from models.corpus import words
from models.evaluate import SHIPPED, intents
from models.play import Played

MEBIBYTE = 1 << 20


def test_file_is_small() -> None:
    """The file that ships is 6 MiB at most."""
    assert SHIPPED.stat().st_size <= 6 * MEBIBYTE


def test_marks_are_single_control_tokens(shipped: Played, layout: Layout) -> None:
    """Every mark of the layout is one control token, and `end` ends a generation."""
    assert layout.native
    ids = [shipped.control(mark) for mark in MARKS.values()]
    assert len(set(ids)) == len(MARKS) and min(ids) >= 0
    assert shipped.ends(shipped.control(MARKS["end"]))
    assert shipped.bos_id == -1


def test_standard_words_are_single_tokens(shipped: Played) -> None:
    """Action words and emotions are one token each, no two the same."""
    standard = (*words.ACTION, *words.EMOTIONS)
    tokens = [shipped.encode(f" {word}") for word in standard]
    assert all(len(t) == 1 for t in tokens)
    assert len({t[0] for t in tokens}) == len(standard)


def test_text_of_marks_is_plain_text(shipped: Played) -> None:
    """Text that looks like marks encodes to no control token, and decodes to itself."""
    text = "x" + "".join(MARKS.values()) + " y"
    tokens = shipped.encode(text)
    assert not any(shipped.is_control(t) for t in tokens)
    assert shipped.decode(tokens) == text


@given(st.text(max_size=60))
def test_any_text_survives(text: str) -> None:
    """Any text encodes to plain tokens and decodes to itself."""
    tokens = _VOCAB.encode(text)
    assert not any(_VOCAB.is_control(t) for t in tokens)
    assert _VOCAB.decode(tokens) == text


def test_intents_beat_a_constant() -> None:
    """On worlds that no training saw the model chooses better than its archetype's most frequent intent would."""
    with Played(str(SHIPPED), context_len=512, threads=1) as played:
        score = intents(played, Layout(played), 120, seed=2)["all"]
    assert score.whole > 1.5 * score.majority_whole


_VOCAB = Played(str(SHIPPED), vocab_only=True)
