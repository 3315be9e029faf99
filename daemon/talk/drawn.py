"""Finds which of the drawn tokens make the words that were said, so that they need not be computed again. Decides."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import NamedTuple

from core.work import Chunk


class Drawn(NamedTuple):
    """The first tokens of a reply, and the text that follows them (empty: they are the whole reply). `cut`: more was
    drawn than was said.
    """

    tokens: tuple[int, ...]
    rest: str
    cut: bool


def said_by(chunks: Sequence[Chunk], said: str) -> Drawn:
    """The drawn tokens that make `said`, as far as they do. White space before and after it makes no difference. A
    chunk is taken whole or not at all. A token without text is a control token: it is never taken, nor what follows.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text, taken, made = "", 0, 0  # `taken` chunks make `made` characters of `said`
    for count, chunk in enumerate(chunks, 1):
        if chunk.tokens and not chunk.text:
            break
        text += decoder.decode(chunk.text)
        begun = text.lstrip()
        if not said.startswith(begun.rstrip()):
            break
        if decoder.getstate()[0]:
            continue  # it ends within a character
        if begun.rstrip() == said and said:
            more = b"".join(c.text for c in chunks[count:]).strip()
            return Drawn(_tokens(chunks[:count]), "", bool(more))
        if said.startswith(begun):
            taken, made = count, len(begun)
    if not made:
        return Drawn((), said, bool(chunks))
    return Drawn(_tokens(chunks[:taken]), said[made:], True)


def _tokens(chunks: Sequence[Chunk]) -> tuple[int, ...]:
    return tuple(token for chunk in chunks for token in chunk.tokens)
