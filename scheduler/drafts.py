"""Guesses without a model: what followed the same few tokens before, in the work's own trunk, tail and output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.choice import Tokens
from core.work import Work
from engines.base import Asked
from kvcache.homes import NO_TOKENS


class Text:
    """All tokens of one work in one array that grows as it speaks.

    Invariant: the array is trunk + tail + what was said so far.
    """

    __slots__ = ("_first", "_len", "_tokens")

    def __init__(self, work: Work) -> None:
        self._first = self._len = len(work.trunk) + len(work.tail)
        self._tokens = np.concatenate([work.trunk, work.tail, np.empty(work.max_tokens, np.int32)])

    def upto(self, made: Sequence[int]) -> Tokens:
        """The tokens, with all that was made; a view that the next call goes on with."""
        length = self._first + len(made)
        if length > self._len:
            self._tokens[self._len : length] = made[self._len - self._first :]
            self._len = length
        return self._tokens[:length]


class Ngrams:
    """A Drafter that looks the last `match_max` tokens up, or fewer down to `match_min`."""

    def __init__(self, match_min: int, match_max: int) -> None:
        self.took_ns = 0  # microseconds
        self._match_min = match_min
        self._match_max = match_max

    def draft(self, asked: Sequence[Asked], room_ns: float) -> list[Tokens]:
        """For each what followed where its last tokens stood before; changes nothing."""
        return [followed(a.text, a.most, self._match_min, self._match_max) for a in asked]

    def forget(self) -> None:
        """Knows no works."""

    def close(self) -> None:
        """Holds nothing."""


def followed(text: Tokens, count: int, match_min: int, match_max: int) -> Tokens:
    """At most `count` tokens that followed where the text's last tokens stood before, a longer likeness first.

    Of equals it takes the latest that has `count` tokens after it. Empty when fewer than `match_min` tokens are alike.
    """
    last = len(text) - 1
    # Where earlier likenesses end: at the same token, which must have `match_min` - 1 tokens before it.
    ends = (
        np.flatnonzero(text[match_min - 1 : last] == text[last]) + (match_min - 1) if last >= match_min else NO_TOKENS
    )
    for back in range(1, match_max):
        if not len(ends):
            return NO_TOKENS
        ends_far = ends[ends >= back]
        alike = ends_far[text[ends_far - back] == text[last - back]]
        if not len(alike):
            if back < match_min:
                return NO_TOKENS
            break
        ends = alike
    if not len(ends):
        return NO_TOKENS
    whole = ends[ends + count <= last]
    end = int(whole[-1] if len(whole) else ends[0])
    return text[end + 1 : end + 1 + count]
