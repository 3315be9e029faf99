"""Tiny models that give exactly the tokens of a script: after each token of it the next one, whatever came before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.engines.shapes import ADDED, Shape, byte_level, byte_texts, write

SEPARATOR, END = "<|im_sep|>", "<|im_end|>"
# The separator is the last token before an answer, and is nowhere else in the script's context.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)


def letters(text: str) -> list[str]:
    """Text as tokens of a byte each."""
    return [byte_texts()[byte] for byte in text.encode()]


def scripted(
    path: Path, script: Sequence[str], template: str = TEMPLATE, added: Sequence[str] = (), controls: Sequence[str] = ()
) -> Path:
    """A model whose answers are these tokens and then the end. No token may occur twice. `added` are more tokens of the
    vocabulary, as in files that call their markers "user defined"; `controls` are more control tokens.
    """
    tokens = byte_level("gpt-2", ["<|endoftext|>", "<|im_start|>", END, SEPARATOR, *added, *controls], END)
    for text in added:
        tokens.types[tokens.texts.index(text)] = ADDED
    size = len(tokens.texts)
    hidden = -(-size // 32) * 32
    ids = [tokens.texts.index(text) for text in (SEPARATOR, *script, END)]
    assert len(set(ids)) == len(ids), "each token once"
    # The input is one token, no layer changes it, and the output is the token that follows it.
    embedded = np.zeros((size, hidden), np.float16)
    embedded[np.arange(size), np.arange(size)] = 1
    output = np.zeros((size, hidden), np.float16)
    output[ids[1:], ids[:-1]] = 1
    shape = Shape("llama", hidden=hidden, layers=1, heads=1, kv_heads=1, head_len=32, inner=32, tied=False)
    return write(path, shape, tokens, template, matrices={"token_embd": embedded, "output": output})
