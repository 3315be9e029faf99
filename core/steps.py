"""Long work in steps: a generator that yields wherever other tasks may have a turn, and returns the result.

Plain code decides where it yields; core/slices.py rests there on the event loop.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]  # a step takes at most some 0.1 ms


def at_once(steps: Steps[T]) -> T:
    """The result, without a rest."""
    while True:
        try:
            next(steps)
        except StopIteration as over:
            result: T = over.value
            return result


def every(count: int, items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """The items, each with whether it is time to yield: before each `count`-th. For steps that are very short."""
    for number, item in enumerate(items, 1):
        yield item, not number % count
