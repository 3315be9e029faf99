"""What comes back from the engine that runs a work, by ticket: it was taken, a chunk, or its end."""

from __future__ import annotations

from typing import NamedTuple

from core.work import Chunk, Ended


class Taken(NamedTuple):
    """A work left its queue and runs."""

    at_ns: int


Delivery = tuple[int, Chunk | Ended | Taken]  # by ticket id
