"""Sizes that are auto fit the memory and the model; numbers that were given stay as they are."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from core.words import AUTO
from daemon.config import SHIPPED_MODEL
from engines.llama import LlamaEngine, LlamaSettings
from engines.llama.sizes import (
    CONTEXT_LEAST,
    CONTEXT_WANTED,
    SEQUENCES_LEAST,
    SEQUENCES_WANTED,
    SHARE,
    Sizes,
    fit,
    fit_ram,
    fitted,
    kv_bytes,
    number,
)
from engines.model_file import look
from engines.room import GIB
from tests.engines.shapes import qwen2_like

BOTH = Sizes(AUTO, AUTO)


@pytest.mark.parametrize(
    ("trained", "token_bytes", "free", "sizes"),
    [
        (2048, 1 << 10, 8 * GIB, Sizes(255, 2048)),  # the model that ships, on a small machine
        (2048, 1 << 10, 512 * GIB, Sizes(255, 2048)),  # never beyond the trained context
        (8192, 22.5 * 1024, 20 * GIB, Sizes(112, 2048)),  # SmolLM2-135M on 20 GiB
        (32768, 56 << 10, 24 * GIB, Sizes(108, 1024)),  # Qwen2.5-7B: a shorter context before fewer sequences
        (32768, 36 << 10, 200 * GIB, Sizes(255, 4096)),  # room to spare: a longer context
        (0, 1 << 10, 8 * GIB, Sizes(255, 2048)),  # the file does not say how it was trained
        (8192, 0, 8 * GIB, Sizes(255, 2048)),  # or what a token takes
        (512, 1 << 10, 8 * GIB, Sizes(255, 512)),
    ],
)
def test_some_models_and_machines(trained: int, token_bytes: float, free: int, sizes: Sizes) -> None:
    """Sequences and context for models that people use."""
    assert fit(BOTH, trained, int(token_bytes), free) == sizes


@pytest.mark.parametrize("seed", range(20))
def test_laws(seed: int) -> None:
    """A given number is never changed. Nothing exceeds the trained context or the share of memory, unless it is the
    least that is useful. More memory never gives less.
    """
    rng = random.Random(seed)
    for _ in range(300):
        wanted = Sizes(rng.choice((AUTO, 40, 200)), rng.choice((AUTO, 700, 4096)))
        trained = rng.choice((0, 512, 2048, 8192, 131072))
        token_bytes, free = rng.choice((0, 500, 20_000, 200_000)), rng.choice((0, rng.randrange(1, 300 * GIB)))
        found = fit(wanted, trained, token_bytes, free)
        if wanted.sequences != AUTO:
            assert found.sequences == wanted.sequences
        else:
            assert SEQUENCES_LEAST <= found.sequences <= SEQUENCES_WANTED
        if wanted.context_len != AUTO:
            assert found.context_len == wanted.context_len
        else:
            assert min(CONTEXT_LEAST, trained or CONTEXT_WANTED) <= found.context_len <= (trained or CONTEXT_WANTED)
        takes = (found.sequences + 1) * found.context_len * token_bytes
        if free and takes > free * SHARE and wanted == BOTH:
            assert found.sequences == SEQUENCES_LEAST and found.context_len // 2 < CONTEXT_LEAST
        more = fit(wanted, trained, token_bytes, 2 * free)
        if free:
            assert more.context_len >= found.context_len
            assert more.sequences * more.context_len >= found.sequences * found.context_len


def test_kv_in_ram_is_as_before_for_small_models_and_bounded_for_large_ones() -> None:
    """512 MiB for the model that ships, more where a trunk takes more, and at most an eighth of what is free."""
    assert fit_ram(1 << 10, 16 * GIB) == 512
    assert fit_ram(22 << 10, 64 * GIB) == 256 * 512 * 22 // 1024
    assert fit_ram(56 << 10, 8 * GIB) == 1024
    assert fit_ram(1 << 10, 1 * GIB) == 128
    assert fit_ram(1 << 10, 0) == 512


def test_the_shipped_model_keeps_its_sizes_and_numbers_stay() -> None:
    """With 3 GiB free it has 255 sequences of 2048 tokens."""
    sized = fitted(LlamaSettings(SHIPPED_MODEL), 3 * GIB)
    assert (sized.sequences, sized.context_len) == (255, 2048)
    given = LlamaSettings(SHIPPED_MODEL, 40, 300)
    assert fitted(given, 1 << 20) is given
    assert fitted(replace(given, sequences=AUTO), 2 * GIB).context_len == 300


def test_an_engine_sizes_itself(tmp_path: Path) -> None:
    """Its geometry has the numbers, and the head of the file gives the size that llama.cpp allocates."""
    path = qwen2_like(tmp_path / "m.gguf")
    values = look(path).values
    engine = LlamaEngine(LlamaSettings(path, sequences=4, threads=1, flash_attention="off", weights="file"))
    try:
        assert CONTEXT_LEAST <= engine.geometry.context_len <= number(values, "context_length")
        assert engine.geometry.sequences == 4
    finally:
        engine.close()
    assert kv_bytes(values, "f16") == 256, "two layers with two heads of 16 for keys and as many for values"
    assert kv_bytes(values, "q8_0") == 136
    assert kv_bytes({"general.architecture": "x"}, "f16") == 0
