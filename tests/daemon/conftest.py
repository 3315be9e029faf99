"""The shipped model, loaded once for all tests of the daemon."""

from collections.abc import Iterator

import pytest

from daemon.config import SHIPPED_MODEL
from daemon.model import Model
from engines.llama import LlamaEngine, LlamaSettings


@pytest.fixture(scope="session")
def shipped() -> Iterator[Model]:
    """The real engine. Every test builds a daemon around it and leaves it idle."""
    engine = LlamaEngine(LlamaSettings(SHIPPED_MODEL, sequences=64, context_len=1024))
    yield Model(engine, engine.card.name, engine.card.sha256)
    engine.close()


@pytest.fixture
def real(shipped: Model) -> Model:
    """The real engine with empty sequences."""
    shipped.engine.rebuild()
    return shipped
