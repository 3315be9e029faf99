"""KV that does not fit is refused at the start, with a size that fits."""

from pathlib import Path

import pytest

from core.errors import ConfigError
from engines.llama import LlamaEngine, LlamaSettings, model
from engines.room import GIB, check_room, memory_free
from tests.engines.shapes import qwen2_like


def test_free_memory_is_the_lower_of_the_machines_and_the_containers(tmp_path: Path) -> None:
    """A container's limit counts where there is one. A file without a number does not count."""
    meminfo, group = tmp_path / "meminfo", tmp_path / "group"
    assert memory_free(meminfo, group) == 0
    meminfo.write_text("MemTotal:  9 kB\nMemAvailable:    2048 kB\n")
    assert memory_free(meminfo, group) == 2 << 20
    group.mkdir()
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("100\n")
    assert memory_free(meminfo, group) == 2 << 20
    (group / "memory.max").write_text("1100\n")
    assert memory_free(meminfo, group) == 1000
    (group / "memory.max").write_text("50\n")
    assert memory_free(meminfo, group) == 0
    assert memory_free() > 0


def test_the_error_for_too_much_kv_gives_a_size_that_fits() -> None:
    """The error for Qwen2.5-7B on 8 GiB has the numbers, and the settings to change."""
    check_room(40, 2048, 56 << 10, 8 * GIB)
    with pytest.raises(
        ConfigError, match=r"192 sequences of 2048 tokens take 21\.0 GiB .*8\.0 GiB are free; at most 73 sequences"
    ):
        check_room(192, 2048, 56 << 10, 8 * GIB)


def test_a_token_is_measured_on_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers with two heads of 16 for keys and as many for values, in f16, are 256 bytes a token, and a few for its
    place."""
    path = qwen2_like(tmp_path / "m.gguf")
    asked: list[tuple[int, int, int, int]] = []
    monkeypatch.setattr(model, "memory_free", lambda: 1000)
    monkeypatch.setattr(model, "check_room", lambda *numbers: asked.append(numbers))
    LlamaEngine(LlamaSettings(path, sequences=4, context_len=256)).close()
    [(sequences, context_len, token_bytes, free)] = asked
    assert (sequences, context_len, free) == (5, 256, 1000)
    assert 256 <= token_bytes <= 256 + 32
