"""The shipped model, loaded once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.llama import LlamaEngine, LlamaSettings
from tests.memory.disk_fixture import small_disk

__all__ = ["small_disk"]

MODEL = Path(__file__).parents[2] / "models" / "npcd-demo.gguf"


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaEngine]:
    """A small engine. Tests leave its sequences as they like and clear those that they use."""
    engine = LlamaEngine(LlamaSettings(MODEL, sequences=24, context_len=512, batch_len=512, micro_len=128))
    yield engine
    engine.close()
