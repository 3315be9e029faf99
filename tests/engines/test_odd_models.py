"""A model that llama.cpp would abort at, misread or answer with no numbers is refused, or used in another way, in
words."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.errors import ConfigError
from daemon.main import main
from engines.base import GREEDY_PICK, Slice, StepPlan, tokens_of
from engines.llama import LlamaEngine, LlamaSettings, read_file
from engines.llama.loading import OVERFLOW, UNBOUNDED
from tests.engines.shapes import (
    BYTE,
    CHATML,
    CONTROL,
    NORMAL,
    UNKNOWN,
    Shape,
    byte_level,
    sentencepiece,
    write,
)

SMALL = Shape("qwen2", biases=True)
TOKENS = byte_level("qwen2", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>")


def opened(path: Path, weights: str = "file") -> LlamaEngine:
    """A small engine."""
    return LlamaEngine(LlamaSettings(path, sequences=2, context_len=256, batch_len=64, micro_len=64, weights=weights))


def refusal(path: Path) -> str:
    """The reason why an engine refuses a file."""
    with pytest.raises(ConfigError) as caught:
        opened(path)
    line = str(caught.value)
    assert line.startswith(f"model: {path} ") and "; " in line and "\n" not in line
    return line


def renamed(path: Path, key: bytes, other: bytes) -> Path:
    """A whole model in which a key is called otherwise, so that it is missing."""
    raw = write(path, SMALL, TOKENS, CHATML).read_bytes()
    assert raw.count(key) == 1 and len(key) == len(other)
    path.write_bytes(raw.replace(key, other))
    return path


# -- vocabularies ----------------------------------------------------------------------------------------------------


def test_a_token_that_is_there_twice_is_named(tmp_path: Path) -> None:
    """llama.cpp would abort while it reads the vocabulary, and doctor with it."""
    texts = [*TOKENS.texts]
    texts[400] = texts[300]
    path = write(tmp_path / "m.gguf", SMALL, replace(TOKENS, texts=texts), "")
    assert f"has the token '{texts[300]}' twice in its vocabulary" in refusal(path)
    run = [sys.executable, "-m", "npcd", "doctor", "--model", str(path), "--set", "memory.keep=false", "--http", ""]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "twice in its vocabulary" in done.stdout


def test_a_vocabulary_without_bytes_is_refused(tmp_path: Path) -> None:
    """llama.cpp would abort at the first character of a player that the vocabulary lacks."""
    all_of = sentencepiece([("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)], "</s>", "<s>")
    for lost in (1, 256):
        bytes_ = [i for i, kind in enumerate(all_of.types) if kind == BYTE]
        kept = [i for i in range(len(all_of.texts)) if i not in bytes_[256 - lost :]]
        tokens = replace(
            all_of,
            texts=[all_of.texts[i] for i in kept],
            types=[all_of.types[i] for i in kept],
            scores=[all_of.scores[i] for i in kept],
        )
        path = write(tmp_path / "m.gguf", Shape("llama", tied=False), tokens, "")
        assert f"has tokens for {256 - lost} of 256 bytes" in refusal(path)


def test_a_tokenizer_without_its_rule_is_doubted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """doctor warns and says how to add it. A rule that llama.cpp does not know is refused by its name."""
    path = renamed(tmp_path / "m.gguf", b"tokenizer.ggml.pre", b"tokenizer.ggml.prx")

    def told(path: Path) -> dict[str, dict[str, str]]:
        main(["doctor", "--json", "--model", str(path), "--set", "memory.keep=false", "--http", ""])
        return {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}

    check = told(path)["tokenizer"]
    assert check["outcome"] == "warn" and "by which rule its tokenizer splits text" in check["says"]
    assert "gguf-new-metadata --pre-tokenizer NAME" in check["fix"]
    assert "tokenizer" not in told(write(tmp_path / "g.gguf", SMALL, TOKENS, CHATML))
    assert "tokenizer" not in told(
        write(
            tmp_path / "s.gguf", Shape("llama"), sentencepiece([("<unk>", UNKNOWN), ("<s>", CONTROL)], "<s>", "<s>"), ""
        )
    )
    path = write(tmp_path / "n.gguf", SMALL, replace(TOKENS, pre="flubber"), "")
    assert "(tokenizer.ggml.pre = flubber)" in refusal(path)


def test_the_start_log_says_that_the_rule_is_missing(tmp_path: Path) -> None:
    """One line in words stands there in place of llama.cpp's seven."""
    path = renamed(tmp_path / "m.gguf", b"tokenizer.ggml.pre", b"tokenizer.ggml.prx")
    code = (
        "from dataclasses import replace\nfrom daemon.config import Config\nfrom daemon.model import load_model\n"
        "from engines.llama import LlamaSettings\nfrom pathlib import Path\n"
        f"s = LlamaSettings(Path({str(path)!r}), sequences=38, context_len=256, threads=1, flash_attention='off', "
        "weights='file')\nload_model(replace(Config(), engine=s)).close()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if "tokenizer" in line]
    assert len(lines) == 1 and "gguf-new-metadata" in lines[0]
    assert "QUALITY" not in done.stdout + done.stderr


def without(path: Path, *names: str) -> Path:
    """A byte-level model whose file names no BOS or EOS, though its tokenizer wants a BOS."""
    tokens = byte_level("llama-bpe", ["<|start|>", "<|stop|>"], "<|stop|>", bos="<|start|>", add_bos=True)
    raw = write(path, Shape("llama"), tokens, "").read_bytes()
    for name in names:
        key = f"tokenizer.ggml.{name}_token_id".encode()
        raw = raw.replace(key, key.replace(b"_token_id", b"_tokem_id"))
    path.write_bytes(raw)
    return path


def test_a_word_is_no_end_because_the_file_names_none(tmp_path: Path) -> None:
    """llama.cpp would take token 11 of a byte-level vocabulary, a comma in many, for BOS and for EOS: each reply would
    end there.
    """
    vocab = read_file(without(tmp_path / "m.gguf", "bos", "eos"))[1]
    assert vocab.eog_ids == frozenset() and vocab.bos_id == -1
    assert (vocab.bos_text, vocab.eos_text) == ("", "")
    assert vocab.encode(vocab.piece(11).decode()) == [11]
    whole = read_file(without(tmp_path / "w.gguf"))[1]
    assert {whole.written(i) for i in whole.eog_ids} == {"<|stop|>"}
    assert whole.written(whole.bos_id) == whole.bos_text == "<|start|>"


def test_an_end_that_the_file_calls_text_is_an_end_and_no_text(tmp_path: Path) -> None:
    """A reply ends with it, and a player cannot write it."""
    first = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("~end", NORMAL), ("~e", NORMAL), ("~en", NORMAL)]
    tokens = sentencepiece(first, "~end", "<s>", space_prefix=False)
    for rank, i in enumerate((2, 4, 3)):
        tokens.scores[i] = -0.01 * rank
    vocab = read_file(write(tmp_path / "m.gguf", Shape("llama", tied=False), tokens, ""))[1]
    assert vocab.eog_ids == {2} and vocab.is_marker(2)
    assert 2 not in vocab.encode("a ~end b~end") and b"".join(map(vocab.piece, vocab.encode("~end"))) == b"~end"


# -- files -----------------------------------------------------------------------------------------------------------


def test_values_and_tokenizers_that_are_not_whole_are_named(tmp_path: Path) -> None:
    """The context length and the merges are the usual ones."""
    path = renamed(tmp_path / "m.gguf", b"qwen2.context_length", b"qwen2.kontext_length")
    assert "lacks the value 'qwen2.context_length'" in refusal(path)
    path = write(tmp_path / "n.gguf", SMALL, replace(TOKENS, merges=[]), "")
    assert "has an incomplete tokenizer" in refusal(path)


@pytest.mark.parametrize(
    ("kind", "why"), [(99, "weights of a type (99)"), (39, "its list of tensors contradicts itself")]
)
def test_a_quantization_that_is_not_known_is_named(tmp_path: Path, kind: int, why: str) -> None:
    """A type that this llama.cpp does not know is a newer one. A known type that does not fit the sizes is damage."""
    path = write(tmp_path / "m.gguf", SMALL, TOKENS, "")
    raw = bytearray(path.read_bytes())
    at = raw.index(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight")
    (dims,) = struct.unpack_from("<I", raw, at)
    struct.pack_into("<I", raw, at + 4 + 8 * dims, kind)
    path.write_bytes(raw)
    line = refusal(path)
    assert why in line and ("Q4_K_M" in line) == (kind == 99)
    with pytest.raises(ConfigError) as caught:
        read_file(path)
    assert str(caught.value) == line


# -- numbers ---------------------------------------------------------------------------------------------------------


def picked(engine: LlamaEngine) -> tuple[int, float]:
    """The likeliest token after a few, and its probability among three."""
    text = tokens_of(engine.vocab.encode("hello player"))
    engine.trim(0, 0)
    return engine.step(StepPlan([Slice(0, 0, text, GREEDY_PICK)])).picked[0], float(engine.state.logits(1).max())


def test_weights_too_large_for_f16_stay_as_they_are(tmp_path: Path) -> None:
    """One value above 65,504 is enough, and the reason is told."""
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((len(TOKENS.texts), 64)).astype(np.float32)
    matrix[5, 5] = 7e4
    shape = replace(SMALL, tied=False)
    path = write(tmp_path / "m.gguf", shape, TOKENS, "", matrices={"token_embd": matrix, "output": matrix})
    engine = opened(path, "f16")
    assert (engine.weights, engine.weights_why) == ("file", OVERFLOW)
    engine.close()


def test_weights_whose_values_would_overflow_as_f16_stay_as_they_are(tmp_path: Path) -> None:
    """All weights fit, but what is computed with them does not: the model is tried on a few tokens, and read anew."""
    rng = np.random.default_rng(1)

    def matrix(rows: int, columns: int, size: float) -> np.ndarray:
        return rng.standard_normal((rows, columns)).astype(np.float32) * np.float32(size)

    shape = replace(SMALL, tied=False)
    matrices = {
        "token_embd": matrix(len(TOKENS.texts), 64, 1.0),
        "output": matrix(len(TOKENS.texts), 64, 0.1),
        "blk.0.ffn_gate": matrix(96, 64, 100.0),
        "blk.0.ffn_up": matrix(96, 64, 100.0),
        "blk.0.ffn_down": matrix(64, 96, 0.001),
    }
    path = write(tmp_path / "m.gguf", shape, TOKENS, "", matrices=matrices)
    as_file = opened(path)
    assert as_file.weights_why == ""
    engine = opened(path, "f16")
    assert (engine.weights, engine.weights_why) == ("file", UNBOUNDED)
    assert np.isfinite(picked(engine)[1]) and picked(as_file) == picked(engine)
    for one in (as_file, engine):
        one.close()


def test_weights_that_fit_are_f16(tmp_path: Path) -> None:
    """Nothing falls back without a reason."""
    engine = opened(write(tmp_path / "m.gguf", SMALL, TOKENS, ""), "f16")
    assert (engine.weights, engine.weights_why) == ("f16", "")
    engine.close()


def test_a_model_that_computes_no_numbers_is_refused(tmp_path: Path) -> None:
    """With NaN among the weights every choice would be arbitrary."""
    wrong = np.full((len(TOKENS.texts), 64), np.nan, np.float32)
    path = write(tmp_path / "m.gguf", SMALL, TOKENS, "", matrices={"token_embd": wrong})
    assert "computes values that are no numbers" in refusal(path)
