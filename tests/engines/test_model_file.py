"""A file that is no usable model is refused with its kind and the remedy. A model in parts is one model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from core.errors import ConfigError
from engines.base import GREEDY_PICK, Slice, StepPlan, tokens_of
from engines.llama import LlamaEngine, LlamaSettings, load_vocab, read_file
from engines.model_file import look
from tests.engines.shapes import Shape, byte_level, mamba_like, qwen2_like, write

SMALL = Shape("qwen2", biases=True)
TOKENS = byte_level("qwen2", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole model's bytes."""
    return qwen2_like(tmp_path_factory.mktemp("good") / "m.gguf").read_bytes()


def refusal(path: Path, about: Path | None = None) -> str:
    """The reason why each way of reading a file refuses it: the same words in one line, with this file's name or
    another's."""
    said = set()
    for read in (read_file, load_vocab, lambda p: LlamaEngine(LlamaSettings(p, sequences=2, weights="file"))):
        with pytest.raises(ConfigError) as caught:
            read(path)
        said.add(str(caught.value))
    assert len(said) == 1, said
    (line,) = said
    assert line.startswith("model: ") and str(about or path) in line and "\n" not in line and "; " in line
    return line


def other(path: Path, arch: str, tensors: tuple[str, ...] = ("v.weight",), **values: str) -> Path:
    """A GGUF file of another kind, with a few values and small tensors."""
    w = gguf.GGUFWriter(str(path), arch)
    for key, value in values.items():
        w.add_string(key.replace("__", "."), value)
    for name in tensors:
        w.add_tensor(name, np.zeros((4, 4), np.float32))
    _finish(w)
    return path


def _finish(w: gguf.GGUFWriter) -> None:
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


@pytest.mark.parametrize(
    ("content", "what", "do"),
    [
        (b"", "it is empty", "download it again"),
        (b"hello, world", "it starts with b'hell'", "--model"),
        (b"PK\x03\x04" + bytes(60), "a zip archive, as PyTorch checkpoints are", "convert_hf_to_gguf.py"),
        (b"\x90\x01\0\0\0\0\0\0" + b'{"__metadata__":{}}', "a safetensors file", "convert_hf_to_gguf.py"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page", "download the file itself"),
        (b"tjgg" + bytes(60), "a GGML file from before GGUF", "convert_hf_to_gguf.py"),
        (b"\x1f\x8b" + bytes(60), "compressed with gzip", "unpack"),
        (b"GGUF\x03\0\0\0", "cut off", "download it again"),
    ],
)
def test_a_file_that_is_no_gguf_says_what_it_is(tmp_path: Path, content: bytes, what: str, do: str) -> None:
    """The error also says how to make a GGUF of it."""
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    line = refusal(path)
    assert what in line and do in line


def test_a_folder_and_a_file_that_is_not_there_are_named(tmp_path: Path) -> None:
    """The error has the system's reason."""
    assert "cannot read" in refusal(tmp_path) and "directory" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("version", "what"),
    [
        (b"\x01\0\0\0", "GGUF version 1"),
        (b"\x09\0\0\0", "GGUF version 9"),
        (b"\0\0\0\x03", "big-endian"),
    ],
)
def test_a_version_that_is_not_read_is_named(tmp_path: Path, good: bytes, version: bytes, what: str) -> None:
    """The version may be older, newer, or of the other byte order."""
    path = tmp_path / "model.gguf"
    path.write_bytes(good[:4] + version + good[8:])
    assert what in refusal(path)


@pytest.mark.parametrize("kept", [40, 3000, 0.5, 0.99])
def test_a_file_that_is_cut_off_says_so(tmp_path: Path, good: bytes, kept: float) -> None:
    """It may end in its head or among its tensors. A piece of a file that was cut for the download is named as one."""
    cut = good[: int(kept if kept > 1 else kept * len(good))]
    path = tmp_path / "model.gguf"
    path.write_bytes(cut)
    assert "is cut off: the file ends before its data does" in refusal(path)
    piece = tmp_path / "model.gguf.part1of3"
    piece.write_bytes(cut)
    with pytest.raises(ConfigError, match="one piece of a file; join the pieces with cat"):
        read_file(piece)


def test_a_file_that_belongs_to_a_model_is_no_model(tmp_path: Path) -> None:
    """A LoRA adapter, a projector for images, and an importance matrix are refused, each with the file to give
    instead."""
    pair = ("blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b")
    for kind in ("adapter", "model"):
        line = refusal(other(tmp_path / "lora.gguf", "llama", pair, general__type=kind))
        assert "is a LoRA adapter" in line and "adapters.folder" in line
    for kind in ("model", "mmproj"):
        line = refusal(other(tmp_path / "clip.gguf", "clip", general__type=kind))
        assert "a multimodal projector (mmproj)" in line and "the language model" in line
    assert "importance matrix" in refusal(other(tmp_path / "im.gguf", "llama", general__type="imatrix"))


def test_an_architecture_that_llama_cpp_does_not_know_is_named(tmp_path: Path) -> None:
    """The error has the version that does not know it; the same holds for a tokenizer."""
    line = refusal(write(tmp_path / "m.gguf", Shape("flubber"), TOKENS, ""))
    assert "the architecture 'flubber', which this llama.cpp (llama-cpp-python" in line and "newer" in line
    strange = byte_level("nobody-knows-me", ["<|im_end|>"], "<|im_end|>")
    assert "a tokenizer that this llama.cpp" in refusal(write(tmp_path / "t.gguf", SMALL, strange, ""))


# -- models that do not write ----------------------------------------------------------------------------------------


def pooled(path: Path) -> Path:
    """An embedding model of a causal family."""
    return write(path, SMALL, TOKENS, "", ints={"pooling_type": 3})


def ranking(path: Path) -> Path:
    """A ranking model."""
    return write(path, SMALL, TOKENS, "", ints={"pooling_type": 4})


def backwards(path: Path) -> Path:
    """A causal family whose file says that its attention is not causal."""
    return write(path, SMALL, TOKENS, "", ints={"attention.causal": False})


def encoder(path: Path) -> Path:
    """A family of encoders."""
    return write(path, Shape("bert"), TOKENS, "")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (pooled, "made for embeddings or for ranking"),
        (ranking, "made for embeddings or for ranking"),
        (backwards, "its attention is not causal"),
        (encoder, "its attention is not causal"),
        (mamba_like, "is recurrent"),
    ],
)
def test_a_model_that_does_not_write_is_refused(tmp_path: Path, make: Callable[[Path], Path], why: str) -> None:
    """Every way of reading it refuses it, before any of its weights are read."""
    assert why in refusal(make(tmp_path / "m.gguf"))


@pytest.mark.parametrize("make", [pooled, backwards, mamba_like])
def test_serve_and_doctor_refuse_it_in_one_line(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """Both end with status 2, and nothing is restarted."""
    path = make(tmp_path / "m.gguf")
    sets = ["--model", str(path), "--listen", f"unix:{tmp_path}/n.sock", "--http", "127.0.0.1:0"]
    sets += ["--set", "memory.keep=false"]
    ends = {}
    for command in ("serve", "doctor"):
        run = [sys.executable, "-m", "npcd", command, *sets]
        ends[command] = subprocess.run(run, capture_output=True, text=True, check=False)
        assert ends[command].returncode == 2
    said = ends["serve"].stderr
    (line,) = (line for line in said.splitlines() if str(path) in line)
    assert line.startswith(f"npcd: model: {path} ")
    assert "starting it again" not in said and "Traceback" not in said
    (line,) = (line for line in ends["doctor"].stdout.splitlines() if str(path) in line)
    assert line.startswith("fail ")


def test_q8_0_goes_by_the_head_length_of_the_file(tmp_path: Path) -> None:
    """Two heads of 128 in a model that is 160 wide serve. Heads of 80 do not, and the message says so."""
    wide = Shape("qwen3", hidden=160, heads=2, kv_heads=1, head_len=128, head_norms=True)
    path = write(tmp_path / "w.gguf", wide, TOKENS, "")
    engine = LlamaEngine(LlamaSettings(path, sequences=4, context_len=256, kv_type="q8_0"))
    text = tokens_of(engine.vocab.encode("hello player, what is the road?"))
    first = engine.step(StepPlan([Slice(0, 0, text, GREEDY_PICK)])).picked[0]
    assert engine.load(1, engine.store(0))
    engine.trim(1, len(text) - 1)
    assert engine.step(StepPlan([Slice(1, len(text) - 1, text[-1:], GREEDY_PICK)])).picked[0] == first
    engine.close()
    narrow = Shape("qwen3", hidden=160, heads=2, kv_heads=1, head_len=80, head_norms=True)
    path = write(tmp_path / "n.gguf", narrow, TOKENS, "")
    with pytest.raises(ConfigError, match=r"engine\.kv_type: q8_0 .* have 80; take f16"):
        LlamaEngine(LlamaSettings(path, sequences=4, context_len=256, kv_type="q8_0"))


# -- models in parts -------------------------------------------------------------------------------------------------


def split(folder: Path, last: int = 3) -> list[Path]:
    """A model in three parts, as llama.cpp's gguf-split cuts it; `last` tensors are in the last one."""
    folder.mkdir(exist_ok=True)
    whole = write(folder / "whole.gguf", SMALL, TOKENS, "")
    reader = gguf.GGUFReader(str(whole))
    count = len(reader.tensors)
    cuts = [0, 8, count - last, count]
    paths = []
    for i in range(3):
        paths.append(folder / f"m-{i + 1:05}-of-00003.gguf")
        w = gguf.GGUFWriter(str(paths[-1]), "qwen2")
        for key, field in reader.fields.items() if i == 0 else ():
            if not key.startswith(("GGUF.", "general.architecture")):
                w.add_key_value(key, field.contents(), field.types[0], field.types[-1])
        w.add_uint16("split.no", i)
        w.add_uint16("split.count", 3)
        w.add_int32("split.tensors.count", count)
        for tensor in reader.tensors[cuts[i] : cuts[i + 1]]:
            w.add_tensor(tensor.name, np.array(tensor.data))
        _finish(w)
    whole.unlink()
    return paths


def opened(path: Path) -> LlamaEngine:
    """A small engine."""
    return LlamaEngine(LlamaSettings(path, sequences=2, context_len=256, weights="file"))


def test_a_model_in_parts_is_hashed_as_a_whole(tmp_path: Path) -> None:
    """Two models that differ only in their last part are two models: their KV is kept apart."""
    first, _, last = split(tmp_path / "a")
    engine = opened(first)
    before, kind = engine.card.sha256, engine.kv_kind
    engine.close()
    raw = bytearray(last.read_bytes())
    raw[-100] ^= 1
    last.write_bytes(raw)
    engine = opened(first)
    assert engine.card.sha256 != before and engine.kv_kind != kind
    engine.close()
    assert len(look(first).parts) == 3
    assert look(first).size == sum(part.stat().st_size for part in (tmp_path / "a").iterdir())


def test_the_first_part_is_to_be_given(tmp_path: Path) -> None:
    """The error for a later part names the first, whether it exists or not."""
    first, second, third = split(tmp_path / "a")
    for number, part in ((2, second), (3, third)):
        assert f"is part {number} of 3; give the first one: {first}" in refusal(part)
    first.unlink()
    assert f"give the first one: {first} (it is missing" in refusal(third)


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    """One or two of them may be missing."""
    first, second, third = split(tmp_path / "a")
    third.unlink()
    assert f"{third.name} is missing; put all parts into {first.parent}" in refusal(first)
    second.unlink()
    assert f"{second.name}, {third.name} are missing" in refusal(first)


def test_parts_of_different_sets_are_found_out(tmp_path: Path) -> None:
    """The error finds a part with tensors of an earlier one, without some that no other has, of another number, or no
    part."""
    first, second, third = split(tmp_path / "a")
    mine = third.read_bytes()
    third.write_bytes(split(tmp_path / "b", last=5)[2].read_bytes())
    assert f"{third} belongs to another model than {first.name}" in refusal(first, third)
    third.write_bytes(split(tmp_path / "c", last=2)[2].read_bytes())
    assert "they are of different sets" in refusal(first)
    third.write_bytes(second.read_bytes())
    assert "it says that it is part 2 of 3" in refusal(first, third)
    third.write_bytes(qwen2_like(tmp_path / "w.gguf").read_bytes())
    assert "it says that it is a whole model" in refusal(first, third)
    third.write_bytes(mine[: len(mine) // 2])
    assert f"{third} is cut off" in refusal(first, third)
    third.write_bytes(mine)
    opened(first).close()


def test_parts_keep_their_names(tmp_path: Path) -> None:
    """llama.cpp finds the others by their names."""
    first, *_ = split(tmp_path / "a")
    named = first.rename(tmp_path / "a" / "renamed.gguf")
    assert "is part 1 of 3, and llama.cpp finds the others by their names" in refusal(named)
    wrong = named.rename(tmp_path / "a" / "m-00002-of-00004.gguf")
    assert "is part 1 of 3, by another name; name it m-00001-of-00003.gguf" in refusal(wrong)
