"""The drawn tokens that make a reply's words are found, however the text was cut."""

import random

import pytest

from core.work import Chunk
from daemon.talk.drawn import said_by
from daemon.talk.text import TextAssembler


def chunks(*pieces: bytes | str) -> list[Chunk]:
    """A chunk of one token for each piece; the tokens count from 0."""
    made = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]
    return [Chunk((n,), 0, text=piece) for n, piece in enumerate(made)]


@pytest.mark.parametrize(
    ("pieces", "said", "tokens", "rest", "cut"),
    [
        ((" Hello", ",", " you"), "Hello, you", 3, "", False),
        (("\n\n", " Hello", ".", "\n"), "Hello.", 3, "", False),
        ((" Hello", ". ", "Go"), "Hello.", 2, "", True),
        ((" Hel", "lo you"), "Hello", 1, "lo", True),
        ((" Go", " away", "\nTilda", ": yes"), "Go away", 2, "", True),
        (("Mira", ": Hello", " you"), "Hello you", 0, "Hello you", True),
        ((b" caf\xc3", b"\xa9", " here"), "café", 2, "", True),
        ((b" caf\xc3", b"\xa9 here"), "caf", 0, "caf", True),
        ((" a", b" \xf0\x9f", b"\x90\xba"), "a", 1, "", True),
        ((" Go", b"", " away"), "Go away", 1, " away", True),
        ((), "Hello", 0, "Hello", False),
        ((" Hello",), "", 0, "", True),
    ],
)
def test_tokens_stand_for_the_words_that_they_make(
    pieces: tuple[bytes | str, ...], said: str, tokens: int, rest: str, cut: bool
) -> None:
    """Words that no tokens make follow as text. White space around a reply is nobody's loss."""
    found = said_by(chunks(*pieces), said)
    assert (len(found.tokens), found.rest, found.cut) == (tokens, rest, cut)


def test_any_text_in_any_pieces_is_found_again() -> None:
    """The shown part of random bytes, cut anywhere, is made by the tokens that were found and the rest."""
    rng = random.Random(5)
    for _ in range(500):
        text = "".join(rng.choice("ab é世🐺 \n.") for _ in range(rng.randrange(1, 30)))
        data, pieces = text.encode(), []
        while data:
            n = rng.randrange(1, 5)
            pieces.append(data[:n])
            data = data[n:]
        assembler = TextAssembler()
        shown = len(pieces) if rng.random() < 0.5 else rng.randrange(len(pieces) + 1)
        for piece in pieces[:shown]:
            assembler.add(piece)
        assembler.end()
        said = assembler.said
        found = said_by(chunks(*pieces), said)
        made = b"".join(pieces[: len(found.tokens)]).decode("utf-8", "replace")
        assert (made.lstrip() + found.rest).rstrip() == said
        assert not found.rest or len(found.tokens) < len(pieces)
