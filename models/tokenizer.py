"""The tokenizer: byte-level BPE over the corpus, the same as llama.cpp's "gpt-2", and the layout's marks behind it.

ids 0 .. 2026: bytes and merges     ids 2027 .. 2047: control tokens, which no text can ever encode to
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from models.corpus import words
from models.corpus.render import texts
from prompts.marks import MARKS

VOCAB_LEN = 2048
_TEXT_TREES = 3000
_WORD_WEIGHT = 500  # copies of each standard word on its own, so that it becomes one token


class Bpe:
    """A trained tokenizer as an Encoder. Texts are always encoded without control tokens."""

    bos_id = -1

    def __init__(self, text_tokens: Tokenizer) -> None:
        self._text = text_tokens
        self._control = {mark: text_tokens.get_vocab_size() + i for i, mark in enumerate(MARKS.values())}
        self._encode = lru_cache(maxsize=100_000)(lambda text: tuple(self._text.encode(text).ids))

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text, never a control token."""
        return list(self._encode(text))

    def control(self, text: str) -> int:
        """The id of a control token, or -1."""
        return self._control.get(text, -1)

    def tokens(self) -> list[str]:
        """All tokens by id, as GGUF stores them (bytes in GPT-2's printable alphabet)."""
        by_id = sorted(self._text.get_vocab().items(), key=lambda pair: pair[1])
        return [token for token, _ in by_id] + list(self._control)

    def merges(self) -> list[str]:
        """The merges in order, "left right"."""
        pairs = json.loads(self._text.to_str())["model"]["merges"]
        return [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; control tokens as they are written."""
        tokens = self.tokens()
        out = ""
        run: list[int] = []
        for i in [*ids, -1]:
            if 0 <= i < len(tokens) - len(MARKS):
                run.append(i)
                continue
            out += str(self._text.decode(run)) + (tokens[i] if i >= 0 else "")
            run = []
        return out


def train_tokenizer(seed: int) -> Bpe:
    """A new tokenizer from the corpus of this seed. Raises AssertionError when a standard word is not one token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_LEN - len(MARKS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    bpe.train_from_iterator(_all_texts(seed), trainer)
    made = Bpe(bpe)
    assert len(made.tokens()) == VOCAB_LEN, f"the corpus gave {len(made.tokens())} tokens"
    for word in (*words.ACTION, *words.EMOTIONS):
        assert len(made.encode(f" {word}")) == 1, f"'{word}' is not one token"
    return made


def _all_texts(seed: int) -> Iterable[str]:
    yield from texts(seed, _TEXT_TREES)
    standard = (
        *words.ACTION,
        *words.EMOTIONS,
        *words.KINDS,
        *words.STANCES,
        *words.TIMES,
        *words.PLACES,
        *words.ARCHETYPES,
    )
    for _ in range(_WORD_WEIGHT):
        yield from (f" {word}" for word in standard)
