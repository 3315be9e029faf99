"""Finds the archetype of a line: naive Bayes over words, learned from the generator's text alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.corpus import words
from models.corpus.dialogue import make_talk
from models.corpus.render import rng_of
from models.corpus.worlds import make_npc, make_world
from prompts.layout import Layout

_TOKEN = re.compile(r"[a-z']+|\.\.\.|[!?,;:]")


def tokens_of(line: str) -> list[str]:
    """Words and signs of a line, and its pairs of words."""
    single = _TOKEN.findall(line.lower())
    return single + [f"{a} {b}" for a, b in pairwise(single)]


class Voice:
    """A trained classifier."""

    def __init__(self, lines: Mapping[str, Sequence[str]]) -> None:
        self.names = tuple(lines)
        known = sorted({t for group in lines.values() for line in group for t in tokens_of(line)})
        self._column = {token: i for i, token in enumerate(known)}
        counts = np.full((len(self.names), len(known)), 0.1)
        for row, group in enumerate(lines.values()):
            for line in group:
                for token in tokens_of(line):
                    counts[row, self._column[token]] += 1
        self._score: NDArray[np.float64] = np.log(counts / counts.sum(1, keepdims=True))

    def of(self, line: str) -> str:
        """The archetype that speaks like this. Words that the classifier never met do not count."""
        columns = [self._column[t] for t in tokens_of(line) if t in self._column]
        return self.names[int(self._score[:, columns].sum(1).argmax())]


def generated(layout: Layout, seed: int, talks: int, unseen: bool = False) -> dict[str, list[str]]:
    """Replies of the generator by archetype, from `talks` conversations each, without facts that were looked up."""
    out: dict[str, list[str]] = {name: [] for name in words.ARCHETYPES}
    for archetype, lines in out.items():
        for number in range(talks):
            rng = rng_of(seed, f"voice-{archetype}", number)
            world = make_world(rng, unseen)
            for turn in make_talk(rng, layout, world, make_npc(rng, archetype, unseen), 8).turns:
                lines.append(" ".join(w for w in turn.reply.split() if w.strip(".,:;!?") not in turn.found))
    return out
