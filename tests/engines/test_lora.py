"""Adapters are checked before llama.cpp loads them, and a stack of several acts as all of them together."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from core.errors import CallerError, ConfigError
from engines.base import NEVER, invoked_at, tokens_of
from engines.gguf_file import F16, F32, read_gguf, write_gguf
from engines.lora import Adapters, AdapterSettings, check, compose, read_pairs, written
from tests.engines.adapters import weights, write
from tests.engines.conftest import MODEL

FIRST = "blk.0.attn_q.weight"


def test_heads_are_read_as_the_gguf_package_reads_them() -> None:
    """Values, shapes, types and places of the shipped model are equal."""
    own, theirs = read_gguf(MODEL), gguf.GGUFReader(str(MODEL))
    assert own.values["general.architecture"] == "llama"
    assert {t.name for t in theirs.tensors} == set(own.tensors)
    for t in theirs.tensors:
        at = own.tensors[t.name]
        assert (list(reversed(at.shape)), at.kind, at.offset) == (t.shape.tolist(), t.tensor_type, t.data_offset)


def test_written_files_are_read_by_the_gguf_package(tmp_path: Path) -> None:
    """Values and tensors are aligned and equal."""
    tensors: dict[str, Any] = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones((5, 7), np.float16)}
    with (tmp_path / "x.gguf").open("wb") as file:
        write_gguf(file, {"general.type": "adapter", "n": 7, "x": 1.5}, tensors)
    read = gguf.GGUFReader(str(tmp_path / "x.gguf"))
    assert {t.name: t.data.tolist() for t in read.tensors} == {n: t.tolist() for n, t in tensors.items()}
    fields = {name: read.fields[name].contents() for name in ("general.type", "n", "x")}
    assert fields == {"general.type": "adapter", "n": 7, "x": 1.5}
    own = read_gguf(tmp_path / "x.gguf")
    assert own.array("a").tolist() == tensors["a"].tolist()
    assert own.values == fields


def test_an_invocation_is_read_and_found_where_it_begins_last(tmp_path: Path) -> None:
    """It comes from the file's array, as llama.cpp reads it. Values that cannot be tokens are refused with the file's
    name."""
    write(tmp_path / "alora.gguf", 1, invocation=[7, 8])
    write(tmp_path / "other.gguf", 2, invocation=[9])
    write(tmp_path / "plain.gguf", 3)
    adapters = Adapters(AdapterSettings(str(tmp_path)), MODEL)
    found = {name: adapters.find(name) for name in adapters.names}
    assert {n: (a.invocation, a.activated) for n, a in found.items()} == {
        "alora": ((7, 8), True), "other": ((9,), True), "plain": ((), False)
    }  # fmt: skip
    assert found["alora"].trunk_sha == ""
    for tail, at in (([7, 8, 1, 7, 8, 2], 3), ([1, 7, 7, 8], 2), ([7, 8], 0), ([8, 7], NEVER), ([7], NEVER)):
        assert invoked_at(tokens_of(tail), found["alora"].invocation) == at
    assert invoked_at(tokens_of([1, 2]), ()) == 0
    with pytest.raises(CallerError, match="turned on by different tokens"):
        adapters.find("alora+other")
    write(tmp_path / "long.gguf", 4, invocation=list(range(65)))
    with pytest.raises(ConfigError, match=r"long\.gguf: adapter\.alora\.invocation_tokens must be an array"):
        Adapters(AdapterSettings(str(tmp_path)), MODEL)


def test_files_that_are_cut_off_anywhere_are_refused(tmp_path: Path) -> None:
    """With any length of the head the error names the file."""
    whole = write(tmp_path / "whole.gguf", 1).read_bytes()
    path = tmp_path / "cut.gguf"
    head_len = read_gguf(tmp_path / "whole.gguf").tensors[f"{FIRST}.lora_a"].offset
    for length in [0, 3, 4, 7, *range(8, head_len - 64, 97)]:
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=r"cut\.gguf"):
            read_gguf(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="cut off"):
        check(read_gguf(path), read_gguf(MODEL), 64)


def two(shape_a: tuple[int, ...], shape_b: tuple[int, ...], name: str = FIRST) -> dict[str, Any]:
    """Tensors in place of one pair."""
    return {f"{name}.lora_a": np.zeros(shape_a, np.float32), f"{name}.lora_b": np.zeros(shape_b, np.float32)}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"architecture": "qwen2"}, "'qwen2', the model has 'llama'"),
        ({"kind": "model"}, "not an adapter"),
        ({"adapter_type": "ia3"}, "not an adapter"),
        ({"alpha": float("nan")}, "alpha"),
        ({"rank": 65}, "rank 65, the limit is 64"),
        ({"more": two((4, 192), (192, 5))}, FIRST),
        ({"more": two((4, 191), (192, 4))}, FIRST),
        ({"more": two((4, 192), (64, 4))}, FIRST),
        ({"more": two((2, 4, 192), (2, 192, 4))}, "dimensions"),
        ({"more": two((4, 192), (192, 4), "blk.9.attn_q.weight")}, "blk.9.attn_q.weight"),
        ({"more": two((2048, 4), (192, 4), "token_embd.weight")}, "embedding"),
        ({"more": {f"{FIRST}.lora_a": None}}, "one half only"),
        ({"more": {f"{FIRST}.lora_a": np.zeros((4, 192), np.int32)}}, "quantised"),
        ({"more": {f"{FIRST}.lora_a": np.full((4, 192), np.nan, np.float32)}}, "no numbers"),
        ({"more": {"classifier.weight": np.zeros((2, 2), np.float32)}}, "not part of a LoRA"),
    ],
)
def test_an_adapter_that_would_fail_or_abort_is_refused_by_name(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    """The message names the file and the fault."""
    write(tmp_path / "good.gguf", 1)
    write(tmp_path / "odd.gguf", 2, **changed)
    with pytest.raises(ConfigError, match=r"odd\.gguf") as raised:
        Adapters(AdapterSettings(str(tmp_path)), MODEL)
    assert said in str(raised.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven adapters."""
    for n, name in enumerate(("old", "angry", "north", "sly", "loud", "sad", "poet")):
        write(tmp_path / f"{name}.gguf", n, rank=8, dtype=np.float16 if n % 2 else np.float32)
    return tmp_path


def test_a_stack_is_the_sum_of_its_adapters(folder: Path) -> None:
    """For every tensor B A of the composed one is the scaled sum, within float32's rounding."""
    heads = [read_gguf(folder / f"{name}.gguf") for name in ("old", "angry", "poet")]
    composed = compose([read_pairs(head) for head in heads])
    assert list(composed) == list(weights())
    for name, (a, b) in composed.items():
        wanted = sum(head.array(f"{name}.lora_b") @ head.array(f"{name}.lora_a") * (8.0 / 8) for head in heads)
        assert a.shape[0] == b.shape[1] == 24
        np.testing.assert_allclose(b @ a, wanted, rtol=1e-4, atol=1e-5)


def test_adapters_of_other_tensors_and_scales_compose(tmp_path: Path) -> None:
    """A tensor that only some of them change has only their ranks; alpha 0 means a scale of 1."""
    write(tmp_path / "a.gguf", 1, rank=2, alpha=0.0)
    write(tmp_path / "b.gguf", 2, rank=3, alpha=6.0, more={f"{FIRST}.lora_a": None, f"{FIRST}.lora_b": None})
    first, second = (read_gguf(tmp_path / f"{n}.gguf") for n in "ab")
    composed = compose([read_pairs(first), read_pairs(second)])
    assert composed[FIRST][0].shape[0] == 2
    other = "blk.1.ffn_up.weight"
    a, b = composed[other]
    wanted = first.array(f"{other}.lora_b") @ first.array(f"{other}.lora_a")
    wanted = wanted + 2.0 * second.array(f"{other}.lora_b") @ second.array(f"{other}.lora_a")
    np.testing.assert_allclose(b @ a, wanted, rtol=1e-4, atol=1e-5)


def test_the_loaded_adapter_is_the_same_with_ranks_that_llama_cpp_is_fast_with(tmp_path: Path) -> None:
    """Ranks are multiples of 32, in f16 as far as its range goes. The products are the adapter's, within f16's
    rounding."""
    rng = np.random.default_rng(1)
    plain = rng.normal(size=(7, 20)).astype(np.float32), rng.normal(size=(30, 7)).astype(np.float32)
    pairs = {"plain": plain, "large": (plain[0] * 1e5, plain[1]), "experts": (plain[0][None], plain[1][None])}
    file = written(pairs, "llama")
    file.seek(0)
    (tmp_path / "x.gguf").write_bytes(file.read())
    head = read_gguf(tmp_path / "x.gguf")
    for name, (a, b) in pairs.items():
        at = head.tensors[f"{name}.lora_a"], head.tensors[f"{name}.lora_b"]
        assert (at[0].shape[-2], at[1].shape[-1]) == (32, 32)
        assert (at[0].kind, at[1].kind) == (F32 if name == "large" else F16, F16)
        product = head.array(f"{name}.lora_b") @ head.array(f"{name}.lora_a")
        np.testing.assert_allclose(product, b @ a, rtol=3e-3, atol=3e-3 * np.abs(b @ a).max())


@pytest.mark.parametrize("folder", ["full", "missing"])
def test_without_a_temporary_folder_that_has_room_an_adapter_is_held_in_memory(
    folder: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp gets the same file."""
    pairs = {"plain": (np.ones((4, 20_000), np.float32), np.ones((30_000, 4), np.float32))}
    with written(pairs, "llama") as file:
        file.seek(0)
        wanted = file.read()
    assert len(wanted) > 1 << 20
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk if folder == "full" else small_disk / "missing"))
    with written(pairs, "llama") as file:
        file.seek(0)
        assert file.read() == wanted
    assert not list(small_disk.iterdir())


def test_stacks_are_found_by_name_and_named_by_content(folder: Path) -> None:
    """A stack is composed once. Another order is another adapter, and the same files give the same hash."""
    adapters, again = (Adapters(AdapterSettings(str(folder)), MODEL) for _ in range(2))
    stack = adapters.find("old+angry")
    assert adapters.find("old+angry") is stack
    assert adapters.of_sha(stack.sha) is stack
    assert stack.rank == 16
    assert len({stack.sha, adapters.find("angry+old").sha, adapters.find("old").sha, adapters.find("angry").sha}) == 4
    assert again.find("old+angry").sha == stack.sha
    write(folder / "old.gguf", 99, rank=8)
    assert Adapters(AdapterSettings(str(folder)), MODEL).find("old+angry").sha != stack.sha


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("nobody", {}, "there is no adapter 'nobody'; there are: angry, loud"),
        ("old+nobody", {}, "there is no adapter 'nobody'"),
        ("old+", {}, "there is no adapter ''"),
        ("old+angry+north", {"rank_max": 23}, "sum to 24, the limit is 23"),
        ("old+angry", {"activated": ("old",)}, "of two kinds"),
        ("old+angry", {"stacks_max": 0}, "there are 0 stacks already"),
    ],
)
def test_an_adapter_that_cannot_be_had_is_the_callers_error(
    folder: Path, name: str, settings: dict[str, Any], said: str
) -> None:
    """The message gives the reason."""
    adapters = Adapters(AdapterSettings(str(folder), **settings), MODEL)
    with pytest.raises(CallerError, match="archetypes") as raised:
        adapters.find(name, "archetypes[0].adapter")
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: AdapterSettings(str(folder / "nowhere")), "not a folder"),
        (lambda folder: AdapterSettings(str(folder), activated=("nobody",)), "no 'nobody'"),
        (lambda folder: AdapterSettings(str(folder), loaded_max=0), "loaded_max"),
        (lambda folder: AdapterSettings(str(folder), rank_max=0), "rank_max"),
    ],
)
def test_settings_that_cannot_be_are_refused(folder: Path, make: Callable[[Path], AdapterSettings], said: str) -> None:
    """They are refused at start, by name."""
    with pytest.raises(ConfigError, match=said):
        Adapters(make(folder), MODEL)
    assert len(Adapters(AdapterSettings(), MODEL)) == 0


def test_a_strength_is_part_of_an_adapter(tmp_path: Path) -> None:
    """It multiplies what the adapter adds, alone and in a stack, and makes another adapter of it for KV that is kept.
    With 1 nothing changes.
    """
    folder = tmp_path / "a"
    folder.mkdir()
    write(folder / "old.gguf", 1)
    write(folder / "new.gguf", 2)

    def pairs(name: str, *strength: str) -> tuple[str, dict[str, Any]]:
        adapter = Adapters(AdapterSettings(str(folder), strength=strength), MODEL).find(name)
        head = read_gguf(Path(f"/dev/fd/{adapter.file.fileno()}"))
        return adapter.sha, {n: a.T @ b.T for n, (a, b) in read_pairs(head).items()}

    sha, plain = pairs("old")
    assert pairs("old", "old=1")[0] == pairs("old", "new=0.5")[0] == sha
    half_sha, half = pairs("old", "old=0.5")
    assert half_sha != sha and half_sha != pairs("old", "old = -2")[0]
    assert np.allclose(half[FIRST], plain[FIRST] / 2, atol=1e-3)
    stack_sha, stack = pairs("old+new")
    weighed_sha, weighed = pairs("old+new", "old=0.5", "new=-1")
    assert weighed_sha != stack_sha
    assert np.allclose(weighed[FIRST], plain[FIRST] / 2 - (stack[FIRST] - plain[FIRST]), atol=2e-2)


@pytest.mark.parametrize(
    ("strength", "why"),
    [
        (("old",), "'old' must be NAME=NUMBER, from -4 to 4"),
        (("old=",), "must be NAME=NUMBER"),
        (("=1",), "must be NAME=NUMBER"),
        (("old=5",), "must be NAME=NUMBER"),
        (("old=nan",), "must be NAME=NUMBER"),
        (("old=1", "old=2"), "'old' is there twice"),
        (("young=1",), "there is no 'young' in"),
    ],
)
def test_a_strength_that_is_none_is_refused(tmp_path: Path, strength: tuple[str, ...], why: str) -> None:
    """The error names the setting and the bounds."""
    write(tmp_path / "old.gguf", 1)
    with pytest.raises(ConfigError, match=r"^adapters\.strength: ") as caught:
        Adapters(AdapterSettings(str(tmp_path), strength=strength), MODEL)
    assert why in str(caught.value)
