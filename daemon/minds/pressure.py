"""How much work waits, and how busy the backends are: reads queues and backends for tiers/shedding.

It runs on the event loop and looks when it is asked, so it needs no task of its own. With several backends the most
loaded one counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from core.clock import MS, Clock
from core.words import Tier
from engines.backend import Health
from scheduler.ticket import Door
from tiers.promises import Promises
from tiers.shedding import Load, Queued, Shed, Shedding, ShedSettings

LOOK_AGAIN_NS = 20 * MS

BUSY_OVER_NS = 100 * MS  # the stretch of time over which busy time is measured
BUSY_MAX = 0.5  # of that time; above, predictions would be in the way


@dataclass(slots=True)
class _Beats:
    """A backend's beat, and the first time at which it had work and this beat."""

    beat_ns: int = -1
    since_ns: int = 0

    def still_ns(self, health: Health, idle: bool, now_ns: int) -> int:
        """How long it has stood still. Without work that is no fault, and work that was submitted just now has not
        reached its thread yet.
        """
        if health.beat_ns != self.beat_ns or idle:
            self.beat_ns, self.since_ns = health.beat_ns, now_ns
        return now_ns - self.since_ns


class Pressure:
    """Ask before submitting optional work. `put_off` returns how many NPCs are due and wait for their share."""

    def __init__(
        self, door: Door, promises: Promises, settings: ShedSettings, clock: Clock, put_off: Callable[[], int] = int
    ) -> None:
        self._door = door
        self._promises = promises
        self._put_off = put_off
        self._busy = 0.0
        self._busy_at = (0, dict.fromkeys(door.backends, 0))  # moment, and time in steps until then
        self._clock = clock
        self._shedding = Shedding(settings)
        self._looked_ns: int | None = None
        self._beats = {name: _Beats() for name in door.backends}

    def allows_predictions(self) -> bool:
        """True when predictions may be made now."""
        self._look()
        return self._shedding.allows_predictions

    def spare(self) -> bool:
        """True when the engine was idle enough just now to take optional work too."""
        now_ns = self._clock()
        passed_ns = now_ns - self._busy_at[0]
        if passed_ns >= BUSY_OVER_NS:
            busy_ns = {name: backend.snapshot.busy_ns for name, backend in self._door.backends.items()}
            self._busy = max(ns - self._busy_at[1][name] for name, ns in busy_ns.items()) / passed_ns
            self._busy_at = (now_ns, busy_ns)
        return self._busy < BUSY_MAX and self.allows_predictions()

    def allows_barks(self) -> bool:
        """True when barks may be made now."""
        self._look()
        return self._shedding.allows_barks

    def shed(self) -> list[Shed]:
        """The kinds of work that are put off or refused now."""
        self._look()
        return self._shedding.shed

    def load(self, now_ns: int) -> Load:
        """Queues and backends as they are now."""
        still_ns = step_ns = 0
        for name, backend in self._door.backends.items():
            health, idle = backend.health, not self._door.permits[name].open
            still_ns = max(still_ns, self._beats[name].still_ns(health, idle, now_ns))
            step_ns = max(step_ns, health.expected_ns)
        return Load(
            gold=self._queued(Tier.GOLD, now_ns),
            silver=self._queued(Tier.SILVER, now_ns),
            bronze=self._queued(Tier.BRONZE, now_ns),
            put_off=self._put_off(),
            still_ms=still_ns / MS,
            step_ms=step_ns / MS,
            draining=self._door.draining,
        )

    def _queued(self, tier: Tier, now_ns: int) -> Queued:
        """The fullest queue of the tier."""
        fullest = max(self._door.permits.values(), key=lambda permits: permits.waiting(tier))
        oldest_ns = self._door.oldest_ns(tier)
        return Queued(
            waiting=fullest.waiting(tier),
            waiting_max=self._promises.of(tier).waiting_max,
            oldest_ms=(now_ns - oldest_ns) / MS if oldest_ns is not None else 0.0,
            retry_ms=fullest.retry_ms(tier, now_ns),
        )

    def _look(self) -> None:
        now_ns = self._clock()
        if self._looked_ns is None or now_ns - self._looked_ns >= LOOK_AGAIN_NS:
            self._looked_ns = now_ns
            self._shedding.look(self.load(now_ns), now_ns)
