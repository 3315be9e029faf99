"""Whom to move out of a sequence when room is needed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from core.clock import S

if TYPE_CHECKING:
    from kvcache.homes import Trunk

IDLE_NS = 30 * S  # older than this, a trunk counts as idle and recency no longer protects it


def choose(residents: Iterable[Trunk], now_ns: int) -> tuple[Trunk, str] | None:
    """The resident trunk whose loss costs least, and one line of reason; None when all are in use.

    Idle ones before fresh ones; lower tiers before higher; then the longest unused; a tie goes to the shortest, which
    is the cheapest to rebuild.
    """
    best: Trunk | None = None
    best_rank: tuple[bool, int, int, int] = (False, 0, 0, 0)
    for trunk in residents:
        if trunk.users:
            continue
        idle = now_ns - trunk.used_ns > IDLE_NS
        # Gold is 0: the larger tier number goes first.
        rank = (not idle, -int(trunk.tier), trunk.used_ns, trunk.held)
        if best is None or rank < best_rank:
            best, best_rank = trunk, rank
    if best is None:
        return None
    idle_ms = (now_ns - best.used_ns) // 1_000_000
    return best, f"{best.tier.name.lower()} trunk of {best.held} tokens, unused for {idle_ms} ms"
