"""The port: what the daemon asks of whatever runs a model, and what comes back."""

from __future__ import annotations

from typing import NamedTuple

from core.work import Chunk, Ended


class Taken(NamedTuple):
    """A work left its queue and runs."""

    at_ns: int


Delivery = tuple[int, Chunk | Ended | Taken]  # by ticket id
