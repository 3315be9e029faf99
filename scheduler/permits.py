"""How many works may wait for one backend, by tier: a full queue is known here, before anything is handed over.

Law: a permit is held by a work that waits and is not cancelled. A backend does what it is asked in order, so a
cancelled work has left its queue before a later one comes to it, and the permit is free at once.
"""

from __future__ import annotations

from core.clock import MS
from core.words import Tier
from core.work import Work
from scheduler.drain import Drain
from tiers.promises import RETRY_MAX_NS, Promises

LEAVING_MAX = 16_384  # cancelled works that the backend has not answered yet; they hold memory and no permit


class Permits:
    """The works that wait for one backend, oldest first, by tier, and how fast they drain."""

    def __init__(self, promises: Promises) -> None:
        self.refused = dict.fromkeys(Tier, 0)
        self.open = 0  # works that have not ended
        self.leaving = 0  # of these: cancelled
        self._promises = promises
        self._waiting: dict[Tier, dict[int, tuple[int, bool]]] = {tier: {} for tier in Tier}  # since when, silent
        self._drains = {tier: Drain() for tier in Tier}

    def waiting(self, tier: Tier) -> int:
        """Works that wait."""
        return len(self._waiting[tier])

    def oldest_ns(self, tier: Tier) -> int | None:
        """When the longest waiting work of a tier was submitted; None when none waits."""
        first = next(iter(self._waiting[tier].values()), None)
        return first[0] if first is not None else None

    def gives_way(self, tier: Tier, count: int, wanted: bool) -> list[int] | None:
        """The waiting works that must be cancelled for `count` more, mostly none; None when there is no room.

        Works that only make KV give way to `wanted` ones, the newest first.
        """
        if self.leaving >= LEAVING_MAX:
            return None
        waiting = self._waiting[tier]
        over = len(waiting) + count - self._promises.of(tier).waiting_max
        if over <= 0:
            return []
        silent = [ticket_id for ticket_id, (_, is_silent) in waiting.items() if is_silent][-over:] if wanted else []
        return silent if len(silent) == over else None

    def submitted(self, ticket_id: int, work: Work, now_ns: int) -> None:
        """A work begins to wait."""
        self.open += 1
        self._waiting[work.tier][ticket_id] = now_ns, not work.max_tokens
        self._drains[work.tier].submitted(now_ns)

    def taken(self, ticket_id: int, tier: Tier, now_ns: int) -> None:
        """A work runs for the first time."""
        self._waiting[tier].pop(ticket_id, None)
        self._drains[tier].taken(now_ns)

    def cancelled(self, ticket_id: int, tier: Tier) -> None:
        """A work will end as cancelled."""
        self.leaving += 1
        self._waiting[tier].pop(ticket_id, None)

    def ended(self, ticket_id: int, tier: Tier, ran: bool, finished: bool, was_cancelled: bool, now_ns: int) -> None:
        """A work is over. An end that is `finished` shows how fast works end."""
        self.open -= 1
        self.leaving -= was_cancelled
        self._waiting[tier].pop(ticket_id, None)
        self._drains[tier].ended(ran, finished, now_ns)

    def each_ns(self, tier: Tier, now_ns: int) -> float | None:
        """The time from one end of a tier's work to the next, while there are any; None while too few have ended."""
        return self._drains[tier].each_ns(now_ns)

    def retry_ms(self, tier: Tier, now_ns: int) -> int:
        """When a refused work should come again: half the queue's length at the drain rate while there was work."""
        each_ns = self._drains[tier].each_ns(now_ns)
        if each_ns is None:
            return self._promises.of(tier).first_ms
        half = self._promises.of(tier).waiting_max / 2
        return max(1, round(min(half * each_ns, RETRY_MAX_NS) / MS))
