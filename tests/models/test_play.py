"""The shipped files."""

from hypothesis import given
from hypothesis import strategies as st

from models.corpus import words
from models.play import DRAFT, SHIPPED, Played
from prompts.layout import Layout
from prompts.marks import MARKS


def test_files_are_small() -> None:
    """The shipped files have 10 MB at most together."""
    assert SHIPPED.stat().st_size + DRAFT.stat().st_size <= 10_000_000


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
    """Any text is encoded to plain tokens and decoded to itself."""
    tokens = _VOCAB.encode(text)
    assert not any(_VOCAB.is_control(t) for t in tokens)
    assert _VOCAB.decode(tokens) == text


def test_draft_has_the_same_tokens(shipped: Played) -> None:
    """The draft model's vocabulary is the model's, token by token, and it has 0.3 million parameters at most."""
    with Played(str(DRAFT), vocab_only=True) as draft:
        assert draft.size == shipped.size
        assert all(draft.token_text(i) == shipped.token_text(i) for i in range(shipped.size))
        assert all(draft.control(mark) == shipped.control(mark) for mark in MARKS.values())
    with Played(str(DRAFT), context_len=256) as draft:
        assert draft.parameters <= 300_000


_VOCAB = Played(str(SHIPPED), vocab_only=True)
