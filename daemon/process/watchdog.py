"""A hanging engine is not waited for: the process ends, and its parent or orchestrator starts it again.

Owns one task of the event loop. A native call cannot be interrupted from within, so there is no gentler way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from core.clock import Clock, S
from engines.backend import Health

LOOK_EVERY_S = 0.1
SLOWER_X = 20  # a step may take this many times its predicted time: large models on small machines


class Hang:
    """Decides whether the engine thread hangs. Looks are counted, not time alone: a machine that slept, or a process
    that was stopped, has not hung.
    """

    def __init__(self, hang_ns: int, look_every_ns: int) -> None:
        self._hang_ns = hang_ns
        self._gap_max_ns = 2 * look_every_ns
        self._beat_ns = -1
        self._looked_ns = 0
        self.still_ns = 0

    def look(self, now_ns: int, beat_ns: int, expected_ns: int) -> bool:
        """True if the beat has stood still for too long; `expected_ns` is the predicted time of the present step."""
        gap_ns, self._looked_ns = now_ns - self._looked_ns, now_ns
        if beat_ns != self._beat_ns:
            self._beat_ns, self.still_ns = beat_ns, 0
            return False
        self.still_ns += min(gap_ns, self._gap_max_ns)
        return self.still_ns > max(self._hang_ns, SLOWER_X * expected_ns)


async def watch(health: Callable[[], Health], hang_s: float, on_hang: Callable[[float], None], clock: Clock) -> None:
    """Looks for ever; calls `on_hang` with the seconds that the engine has not moved."""
    hang = Hang(round(hang_s * S), round(LOOK_EVERY_S * S))
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        if hang.look(clock(), health().beat_ns, health().expected_ns):
            on_hang(hang.still_ns / S)
