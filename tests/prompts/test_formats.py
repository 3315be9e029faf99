"""The formats that engine.chat_template names are chat templates that npcd takes."""

from __future__ import annotations

import re

import pytest

from engines.sim import SimVocab
from prompts.formats import FORMATS, PLAIN
from prompts.templates import compiled, conversation, find_markup

MARKER = re.compile(r"<\|\w+\|>|<[a-z_]{2,}>|\[/?[A-Za-z_]+\]|<｜\w+｜>")
NAMED = [name for name in FORMATS if name != PLAIN]


def vocab_of(text: str) -> SimVocab:
    """A vocabulary with every marker of a text, BOS and EOS."""
    vocab = SimVocab(["<s>", "</s>", *dict.fromkeys(MARKER.findall(text))], end="")
    vocab.bos_id, vocab.bos_text, vocab.eos_text = 0, "<s>", "</s>"
    return vocab


@pytest.mark.parametrize("name", NAMED)
def test_every_format_passes_the_proof(name: str) -> None:
    """It has a place for the world, and a marker ends each answer."""
    rendered = compiled(FORMATS[name], "<s>", "</s>")(conversation("World.", ["One", "Two", "Three"], True))
    found = find_markup(FORMATS[name], vocab_of(rendered))
    assert found.markup is not None, found.why
    assert found.why.startswith("world in a message of its own")


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("chatml", "<|im_start|>system\nW<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
                   "b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"),
        ("llama2", "<s>[INST] <<SYS>>\nW\n<</SYS>>\n\na [/INST] b </s><s>[INST] c [/INST]"),
        ("llama3", "<s><|start_header_id|>system<|end_header_id|>\n\nW<|eot_id|><|start_header_id|>user"
                   "<|end_header_id|>\n\na<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|><|start_header_id|>user"
                   "<|end_header_id|>\n\nc<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("gemma", "<s><start_of_turn>user\nW\n\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n"
                  "<start_of_turn>user\nc<end_of_turn>\n<start_of_turn>model\n"),
        ("mistral", "<s>[INST] W\n\na [/INST] b</s>[INST] c [/INST]"),
        ("mistral-v7", "<s>[SYSTEM_PROMPT]W[/SYSTEM_PROMPT][INST]a[/INST]b</s>[INST]c[/INST]"),
        ("phi4", "<|im_start|>system<|im_sep|>W<|im_end|><|im_start|>user<|im_sep|>a<|im_end|><|im_start|>assistant"
                 "<|im_sep|>b<|im_end|><|im_start|>user<|im_sep|>c<|im_end|><|im_start|>assistant<|im_sep|>"),
    ],
)  # fmt: skip
def test_a_format_reads_as_its_family_writes(name: str, whole: str) -> None:
    """A conversation is written exactly so."""
    assert compiled(FORMATS[name], "<s>", "</s>")(conversation("W", ["a", "b", "c"], True)) == whole
