"""The shipped model's vocabulary, and the layout that it makes."""

from collections.abc import Iterator

import pytest

from models.play import SHIPPED, Played
from prompts.layout import Layout


@pytest.fixture(scope="session")
def shipped() -> Iterator[Played]:
    """The vocabulary of the GGUF that ships."""
    with Played(str(SHIPPED), vocab_only=True) as played:
        yield played


@pytest.fixture(scope="session")
def layout(shipped: Played) -> Layout:
    """The layout in the shipped model's tokens."""
    return Layout(shipped)
