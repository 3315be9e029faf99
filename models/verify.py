"""Checks that an exported file computes the same as its network: tokens of any text, and logits."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from random import Random

import torch

from models.corpus import words
from models.corpus.render import make_tree, rng_of, texts
from models.net import Net, plain
from models.play import Played
from models.tokenizer import Bpe
from prompts.layout import Layout
from prompts.marks import MARKS


@dataclass(frozen=True, slots=True)
class Same:
    """The compared amounts: texts, logit rows, the largest and mean difference, how often the likeliest token
    agrees."""

    texts: int
    rows: int
    worst: float
    mean: float
    agree: float


def verify(net: Net, bpe: Bpe, path: str, seed: int) -> Same:
    """Compares both. Raises AssertionError where file and network differ by more than bf16 arithmetic explains."""
    with Played(path) as played:
        count = _tokens(bpe, played, seed)
        layout = Layout(bpe)
        worst, total, rows, agree = 0.0, 0.0, 0, 0
        for number in range(4):
            tree = make_tree(rng_of(seed, "verify", number), layout, 512)
            ids = (tree.pieces[0].tokens + tree.pieces[-1].tokens)[:256]
            ours = plain(net, ids)
            theirs = torch.from_numpy(played.logits(ids, every=True))
            gap = (ours - theirs).abs()
            worst, total, rows = max(worst, float(gap.max())), total + float(gap.mean()) * len(ids), rows + len(ids)
            agree += int((ours.argmax(1) == theirs.argmax(1)).sum())
    same = Same(count, rows, worst, total / rows, agree / rows)
    assert same.mean < 0.05 and same.agree > 0.97, f"the file does not compute what was trained: {same}"
    return same


def _tokens(bpe: Bpe, played: Played, seed: int) -> int:
    """Compares encodings of corpus texts and of random unicode, and returns their number."""
    rng = Random(f"verify:{seed}")
    checked = 0
    samples = [t for _, t in zip(range(3000), texts(seed + 1, 200), strict=False)]
    samples += ["".join(_any_character(rng) for _ in range(rng.randint(0, 40))) for _ in range(3000)]
    samples += [
        *MARKS.values(),
        *(f"a{m} b" for m in MARKS.values()),
        "  two  spaces ",
        "it's we'll I'M",
        "line\nbreak\n\n\tx",
        "\u00a0\u3000 x",
    ]
    for text in samples:
        ours, theirs = bpe.encode(text), played.encode(text)
        assert ours == theirs, f"{text!r} is {ours} in training and {theirs} in llama.cpp"
        assert not any(played.is_control(t) for t in theirs), f"{text!r} encodes to a control token"
        checked += 1
    for mark in MARKS.values():
        assert played.control(mark) == bpe.control(mark) >= 0, f"{mark} is not a control token"
    for word in (*words.ACTION, *words.EMOTIONS):
        assert len(played.encode(f" {word}")) == 1, f"' {word}' is not one token"
    return checked


def _any_character(rng: Random) -> str:
    """Mostly characters that people type, at times any character at all."""
    if rng.random() < 0.7:
        return rng.choice("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789 .,;!?'\"<>|-_\n\t")
    if rng.random() < 0.7:
        return chr(rng.randint(0xA0, 0x2FFF))
    code = rng.randint(0x3000, sys.maxunicode)
    return "\u4e2d" if 0xD800 <= code <= 0xDFFF else chr(code)
