"""Feeders: what brings the journal's records to a store, on a thread of their own, however long the store is away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from memory.records import Position, Record


class Store(Protocol):
    """A store that is written from the journal alone. Used by one thread; every call may block.

    All raise StoreFailed when the store is away, slow or refuses; then the same records come again later.
    """

    @property
    def name(self) -> str:
        """ "recent" or "archive"."""

    def connect(self) -> Position | None:
        """Connects anew; up to where it has the journal, if the store itself keeps that."""

    def write(self, records: Sequence[Record], upto: Position) -> None:
        """Takes records in, all or none; those that it has already change nothing. `upto` is after the last one."""

    def close(self) -> None:
        """Ends the connection, if there is one."""
