"""The choice of the trunk that is evicted from its sequence when room is needed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from core.clock import S
from core.words import Tier

if TYPE_CHECKING:
    from kvcache.homes import Trunk

IDLE_NS = 30 * S  # older than this, a trunk counts as idle and recency no longer protects it


def choose(residents: Iterable[Trunk], now_ns: int) -> tuple[Trunk, str] | None:
    """The resident trunk whose loss costs least, and one line of reason; None when all are in use.

    Idle ones before fresh ones; lower tiers before higher; then the longest unused; a tie goes to the shortest, which
    is the cheapest to rebuild.
    """
    best: Trunk | None = None
    fresh_ns = now_ns - IDLE_NS
    fresh, tier, used_ns = True, Tier.GOLD, 0
    for trunk in residents:  # each eviction looks at all: no tuples, one comparison for most
        if trunk.users:
            continue
        used, mine = trunk.used_ns, trunk.tier
        if best is not None:
            if (used >= fresh_ns) is not fresh:
                if not fresh:
                    continue
            elif mine != tier:
                # Gold is 0: the larger tier number goes first.
                if mine < tier:
                    continue
            elif used > used_ns or (used == used_ns and trunk.held >= best.held):
                continue
        best, fresh, tier, used_ns = trunk, used >= fresh_ns, mine, used
    if best is None:
        return None
    idle_ms = (now_ns - best.used_ns) // 1_000_000
    return best, f"{best.tier.name.lower()} trunk of {best.held} tokens, unused for {idle_ms} ms"
