"""Settings that are "auto" are measured; those that a person chose are kept."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import ConfigError
from daemon.config import SHIPPED_MODEL
from engines.base import GREEDY_PICK, Slice, StepPlan, tokens_of
from engines.llama import LlamaEngine, LlamaSettings
from engines.tune import candidates, tune


def test_only_what_is_open_is_tried() -> None:
    """Two attention settings times two weight types; on two cores one thread; what is given stays."""
    auto = LlamaSettings(SHIPPED_MODEL)
    assert len(candidates(auto, cores=2)) == 4 * len({c.threads for c in candidates(auto, cores=2)})
    fixed = replace(auto, threads=3, flash_attention="off", weights="file")
    assert candidates(fixed, cores=16) == [fixed]
    assert {c.flash_attention for c in candidates(replace(auto, flash_attention="on"), 2)} == {"on"}


def test_tuning_answers_with_what_was_fastest() -> None:
    """The chosen candidate has the smallest round; nothing is left "auto"."""
    chosen, tried = tune(LlamaSettings(SHIPPED_MODEL), time.monotonic_ns)
    best = min(tried, key=lambda t: t.round_ms)
    best_is = (best.threads, best.flash_attention, best.weights)
    assert (chosen.threads, chosen.flash_attention, chosen.weights) == best_is
    assert "auto" not in (chosen.flash_attention, chosen.weights) and chosen.threads > 0
    assert (chosen.sequences, chosen.context_len) == (255, 2048)


def test_a_missing_model_is_not_tuned(tmp_path: Path) -> None:
    """Loading it says what is wrong, and so does a value that there is not."""
    path = tmp_path / "none.gguf"
    assert tune(LlamaSettings(path), time.monotonic_ns)[1] == []
    with pytest.raises(ConfigError, match=r"none\.gguf"):
        LlamaEngine(LlamaSettings(path, weights="f16"))
    with pytest.raises(ConfigError, match="must be auto, off, on"):
        LlamaEngine(LlamaSettings(SHIPPED_MODEL, flash_attention="maybe"))


def test_weights_converted_to_f16_say_the_same() -> None:
    """The likeliest token after a prompt is the same, and no copy is left on the disk."""
    picked = []
    for weights in ("file", "f16"):
        engine = LlamaEngine(LlamaSettings(SHIPPED_MODEL, sequences=2, context_len=256, weights=weights))
        tokens = tokens_of(engine.vocab.encode("The village lies by the old road, and"))
        picked.append(engine.step(StepPlan([Slice(0, 0, tokens, GREEDY_PICK)])).picked)
        engine.close()
    assert picked[0] == picked[1]


@pytest.mark.parametrize("folder", ["full", "missing"])
def test_without_room_for_a_copy_the_weights_stay_as_they_are(
    folder: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temporary folder of 1 MiB, or none at all (a read-only file system): it serves, and says why not as f16."""
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk if folder == "full" else small_disk / "missing"))
    chosen, tried = tune(LlamaSettings(SHIPPED_MODEL), time.monotonic_ns)
    assert chosen.weights == "file" and {t.weights for t in tried} == {"file"}
    engine = LlamaEngine(LlamaSettings(SHIPPED_MODEL, sequences=2, context_len=256, weights="f16"))
    assert engine.settings.weights == "file"
    assert "copy with f16" in engine.weights_why and "set TMPDIR to a folder with room" in engine.weights_why
    tokens = tokens_of(engine.vocab.encode("The village"))
    assert engine.step(StepPlan([Slice(0, 0, tokens, GREEDY_PICK)])).picked
    engine.close()
    assert not list(small_disk.iterdir()), "nothing is left of the try"
