"""Markers of a chat template that a file has as ordinary text (NORMAL) are markers for the template, and never for
players."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from engines.llama import LlamaVocab, load_vocab
from prompts.layout import Layout
from prompts.templates import find_markup
from tests.engines.shapes import (
    ADDED,
    CHATML,
    CONTROL,
    NORMAL,
    TURNS,
    UNKNOWN,
    WORDS,
    Shape,
    Tokens,
    byte_level,
    sentencepiece,
    write,
)

START, END, SPELLED = "<|im_start|>", "<|im_end|>", "<|end\u2581of\u2581turn|>"


def torn_bytes(path: Path, grown: bool) -> Path:
    """A byte-level vocabulary with START as ordinary text; with `grown`, the tokenizer assembles it from letters."""
    controls = [END, "<|endoftext|>"] if grown else [START, END, "<|endoftext|>"]
    words = [*WORDS, START] if grown else WORDS
    tokens = byte_level("qwen2", controls, "<|endoftext|>", starts="\u0120 ", words=words)
    if not grown:
        tokens.types[tokens.texts.index(START)] = NORMAL
    return write(path, Shape("qwen2", biases=True), tokens, CHATML)


def grown_pieces(tokens: Tokens, texts: Sequence[str], kind: int) -> Tokens:
    """The same vocabulary with texts that sentencepiece merges letter by letter, the last of each of this kind."""
    new, kinds, scores = list(tokens.texts), list(tokens.types), list(tokens.scores)
    for text in texts:
        for n in range(2, len(text) + 1):
            if text[:n] not in new:
                new.append(text[:n])
                kinds.append(kind if n == len(text) else NORMAL)
                scores.append(-0.001 * (100 - n))
    return replace(tokens, texts=new, types=kinds, scores=scores)


def torn_pieces(path: Path, template: str = TURNS, kind: int = NORMAL) -> Path:
    """A sentencepiece vocabulary that merges its way to the markers, which are of this kind."""
    first = [("<pad>", CONTROL), ("<eos>", CONTROL), ("<bos>", CONTROL), ("<unk>", UNKNOWN)]
    tokens = sentencepiece(first, "<eos>", "<bos>", space_prefix=False)
    tokens = grown_pieces(tokens, ["<start_of_turn>", SPELLED], kind)
    tokens.texts.append("<end_of_turn>")
    tokens.types.append(CONTROL)
    tokens.scores.append(0.0)
    return write(path, Shape("llama", tied=False), tokens, template)


def vocab_of(path: Path, template: str) -> tuple[LlamaVocab, Layout]:
    """The vocabulary as the daemon uses it, and the chat layout."""
    vocab = load_vocab(path)
    found = find_markup(template, vocab)
    assert found.markup is not None, found.why
    assert "as ordinary text (NORMAL), npcd reads a marker" in found.why
    return vocab, Layout(vocab, markup=found.markup)


SPOKEN = TURNS.replace("<end_of_turn>", SPELLED)


@pytest.mark.parametrize("kind", ["bytes", "bytes that grow", "pieces", "pieces with spaces"])
def test_a_template_has_them_whole_and_a_player_never(tmp_path: Path, kind: str) -> None:
    """The markers are single tokens in trunks and end an answer. A player who types one, in any spelling that the
    tokenizer reads as the same, writes ordinary text.
    """
    path = tmp_path / "m.gguf"
    if kind.startswith("bytes"):
        vocab, layout = vocab_of(torn_bytes(path, kind.endswith("grow")), CHATML)
        torn = [START]
    else:
        template = SPOKEN if kind.endswith("spaces") else TURNS
        vocab, layout = vocab_of(torn_pieces(path, template), template)
        torn = ["<start_of_turn>", *([SPELLED] if template is SPOKEN else [])]
    ids = [vocab.whole(text) for text in torn]
    trunk = [*layout.persona("Ana", "Small."), *layout.player_turn("hello").tokens, *layout.npc_turn("go north")]
    assert all(trunk.count(i) >= 1 for i in ids)
    assert set(ids) <= layout.stop_ids
    rng = random.Random(4)
    written = [*torn, *(text.replace("\u2581", " ") for text in torn), START, SPELLED, SPELLED.replace("\u2581", " ")]
    for _ in range(200):
        line = "".join(rng.choice([*written, "hello", " ", "<", "|>", "\u2581", "of", "é"]) for _ in range(9))
        tokens = vocab.encode(line)
        assert not any(map(vocab.is_marker, tokens))
        assert b"".join(map(vocab.piece, tokens)).decode().replace("\u2581", " ") == line.replace("\u2581", " ")
        assert not any(map(vocab.is_marker, layout.player_turn(line, line).tokens))


@pytest.mark.parametrize("kind", [CONTROL, ADDED])
def test_a_marker_with_spaces_in_it_is_kept_from_players_too(tmp_path: Path, kind: int) -> None:
    """Sentencepiece reads a space as the mark "\u2581", so "<|end of turn|>" is another spelling of the marker."""
    vocab = load_vocab(torn_pieces(tmp_path / "m.gguf", kind=kind))
    marker = vocab.whole(SPELLED)
    assert marker >= 0 and vocab.is_marker(marker)
    for line in ("<|end of turn|>", "a <|end of\u2581turn|> b", SPELLED, "<|end <|end of turn|>"):
        tokens = vocab.encode(line)
        assert not any(map(vocab.is_marker, tokens))
        assert b"".join(map(vocab.piece, tokens)).decode() == line.replace("\u2581", " ")


def test_ordinary_words_of_a_vocabulary_stay_words(tmp_path: Path) -> None:
    """Only what the template itself writes is adopted. "<start_of_turn>" is a word for everybody where the template
    writes another marker.
    """
    template = TURNS.replace("<start_of_turn>", "<bos>")
    vocab = load_vocab(torn_pieces(tmp_path / "m.gguf", template))
    found = find_markup(template, vocab)
    assert found.markup is not None and "NORMAL" not in found.why
    assert vocab.encode("<start_of_turn>") == [vocab.whole("<start_of_turn>")]
