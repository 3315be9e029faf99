"""One timer for many moments: a function is called at the earliest of them, and never twice in a turn of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from core.clock import Clock, S

FAR_NS = 3600 * S  # moments further away are set again then: no timer takes those of a game that runs very slowly


class Alarm:
    """Owns the timer. On the running loop only."""

    def __init__(self, call: Callable[[], None], clock: Clock) -> None:
        self._call = call
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._soon = False

    def soon(self) -> None:
        """Calls in this turn of the loop, once however often this was wanted."""
        if not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._now)

    def at(self, at_ns: int) -> None:
        """Calls at a moment, unless it does so earlier anyway. It may be a millisecond early."""
        now_ns = self._clock()
        at_ns = min(at_ns, now_ns + FAR_NS)
        if self._timer is not None:
            if now_ns < self._timer_ns <= at_ns:
                return
            self._timer.cancel()
        self._timer_ns = max(at_ns, now_ns)
        self._timer = asyncio.get_running_loop().call_later(max(0, at_ns - now_ns) / 1e9, self._fire)

    def _now(self) -> None:
        self._soon = False
        self._call()

    def _fire(self) -> None:
        self._timer = None
        self._call()
