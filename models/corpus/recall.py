"""Trees without meaning that teach one skill: to find text of the context and say it again.

Random tokens leave nothing to learn by heart, so the loss falls only when the network looks back. A share of the
training's trees is of this kind, most of them early (models.train).
"""

from __future__ import annotations

from random import Random

from models.corpus.tree import RECALL, Tree
from prompts.layout import Layout


def make_recall(rng: Random, layout: Layout, length_max: int) -> Tree:
    """A repeated string, or a list of keys and values with questions after the values, in random tokens."""
    plain = min(ids[0] for ids in layout.marks.values())  # the ids below are those of text
    return _repeats(rng, plain, length_max) if rng.random() < 0.4 else _pairs(rng, layout, plain, length_max)


def _string(rng: Random, plain: int, least: int, most: int) -> tuple[int, ...]:
    return tuple(rng.randrange(plain) for _ in range(rng.randint(least, most)))


def _repeats(rng: Random, plain: int, length_max: int) -> Tree:
    """Random strings, and below them branches that say pieces of them again."""
    tree = Tree()
    said = _string(rng, plain, 40, 160)
    root = tree.add(-1, (said, 0.0))
    while True:
        start = rng.randrange(len(said) - 12)
        piece = said[start : start + rng.randint(6, 40)]
        if tree.length + len(piece) > length_max:
            return tree
        tree.add(root, (piece[:1], 0.0), (piece[1:], RECALL))


def _pairs(rng: Random, layout: Layout, plain: int, length_max: int) -> Tree:
    """Lines of a key and a value, and below them a branch for each question."""
    tree = Tree()
    between, after = layout.word("is"), layout.word(".")
    pairs = {_string(rng, plain, 1, 2): _string(rng, plain, 1, 3) for _ in range(rng.randint(6, 20))}
    root = tree.add(-1, (sum((k + between + v + after for k, v in pairs.items()), ()), 0.0))
    asks = list(pairs.items())
    while True:
        key, value = rng.choice(asks)
        ask = layout.marks["player"] + layout.word("what") + between + key + layout.marks["end"] + layout.marks["npc"]
        if tree.length + len(ask) + len(value) + 1 > length_max:
            return tree
        tree.add(root, (ask, 0.0), (value + layout.marks["end"], RECALL))
