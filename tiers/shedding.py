"""Overload: the work that is put off or refused, the reason, and when to retry.

    work          put off or refused when                    effect in the game
    predictions   any work waits, or an NPC for its share    none: an intent is as late as without them
    barks         Gold waits long                            intents without words
    intents       Gold waits too long; the engine stalls     the last intent, or the policy's: never an error
    dialogue      Silver's queue is full; the engine stalls  the longest wait is kept, the newest gets a retry time
    stories       Bronze's queue is full, or waits long      they wait; the newest gets a retry time when it is full

Predictions are put off before barks, barks before intents. Work comes back when its reason has been well below its
bound for a while, so that it does not come and go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from core.clock import MS
from core.errors import ConfigError


class Sheddable(Enum):
    """Work as the status names it, in the order in which it is put off."""

    PREDICTIONS = "predictions"
    BARKS = "barks"
    INTENTS = "intents"
    DIALOGUE = "dialogue"
    STORIES = "stories"


@dataclass(frozen=True, slots=True)
class ShedSettings:
    """Overload: when a bound is reached npcd puts work off, predictions first, then barks, then intents. The work comes
    back when things have been calm for a while.
    """

    predictions_gold_ms: float = 25.0
    """If the oldest waiting Gold request has waited this long, predictions are put off; above 0."""
    predictions_queue: float = 0.125
    """If this share of Silver's or Bronze's queue is taken, predictions are put off; above 0, at most 1."""
    barks_gold_ms: float = 50.0
    """If the oldest waiting Gold request has waited this long, barks are put off; at least
    `shedding.predictions_gold_ms`.
    """
    intents_gold_ms: float = 100.0
    """If the oldest waiting Gold request has waited this long, intents are put off: the last one stands, or the rule
    policy answers; at least `shedding.barks_gold_ms`.
    """
    stories_ms: float = 5_000.0
    """If the oldest waiting Bronze request has waited this long, new long work is put off; above 0."""
    stalled_ms: float = 100.0
    """An engine that has not finished a step for this time, and for `shedding.stalled_x` times what the step should
    take, counts as stalled; above 0.
    """
    stalled_x: float = 4.0
    """Factor on a step's predicted time, for `shedding.stalled_ms`; above 0."""
    calm: float = 0.6
    """Work comes back when everything stands below this share of its bound; between 0 and 1."""
    calm_ms: int = 500
    """Work comes back after this time of calm; above 0."""


@dataclass(frozen=True, slots=True)
class Queued:
    """One tier's queue: works that wait, the most that may wait, the longest wait, and the retry time that a refused
    work is told.
    """

    waiting: int = 0
    waiting_max: int = 1
    oldest_ms: float = 0.0
    retry_ms: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """The load at a moment. `put_off` NPCs are due and wait for their share. The engine has not finished a step for
    `still_ms` though there is work, and its step should take `step_ms`.
    """

    gold: Queued = Queued()
    silver: Queued = Queued()
    bronze: Queued = Queued()
    put_off: int = 0
    still_ms: float = 0.0
    step_ms: float = 0.0
    draining: bool = False


class Shed(NamedTuple):
    """Work that is put off or refused now. `retry_ms` 0: it comes back by itself."""

    work: Sheddable
    reason: str
    retry_ms: int = 0


class _Cause(NamedTuple):
    """A value as a share of its bound (1: reached), and its message: a format and numbers, as few are printed."""

    share: float
    said: str
    numbers: tuple[float, ...] = ()
    retry_ms: int = 0


@dataclass(slots=True)
class _Gone:
    shed: Shed
    calm_since_ns: int | None = None


class Shedding:
    """Remembers the work that is put off. Law: predictions are put off while barks are, and barks while intents are."""

    def __init__(self, settings: ShedSettings) -> None:
        self._settings = settings
        self._gone: dict[Sheddable, _Gone] = {}

    @property
    def allows_predictions(self) -> bool:
        """True if predictions may be asked about."""
        return Sheddable.PREDICTIONS not in self._gone

    @property
    def allows_barks(self) -> bool:
        """True if barks may be generated."""
        return Sheddable.BARKS not in self._gone

    @property
    def shed(self) -> list[Shed]:
        """Everything that is put off or refused, as of the last look."""
        return [self._gone[work].shed for work in Sheddable if work in self._gone]

    def look(self, load: Load, now_ns: int) -> None:
        """Takes in the load as it is now."""
        for work in Sheddable:
            worst = max(self._causes(work, load))
            gone = self._gone.get(work)
            if worst.share >= 1:
                reason = worst.said.format(*worst.numbers)
                if work is Sheddable.INTENTS:
                    reason += "; the policy answers"
                self._gone[work] = _Gone(Shed(work, reason, worst.retry_ms))
            elif gone is None:
                continue
            elif worst.share >= self._settings.calm:
                gone.calm_since_ns = None
            elif gone.calm_since_ns is None:
                gone.calm_since_ns = now_ns
            elif now_ns - gone.calm_since_ns >= self._settings.calm_ms * MS:
                del self._gone[work]

    def _causes(self, work: Sheddable, load: Load) -> Iterator[_Cause]:
        """The reasons that may put a work off."""
        s, gold, silver, bronze = self._settings, load.gold, load.silver, load.bronze
        queue = {Sheddable.DIALOGUE: silver, Sheddable.STORIES: bronze}.get(work)
        retry_ms = queue.retry_ms if queue is not None else 0
        yield _Cause(2.0 * load.draining, "the daemon is going away", (), retry_ms)
        stalled_ms = max(s.stalled_ms, s.stalled_x * load.step_ms)
        yield _Cause(load.still_ms / stalled_ms, "the engine has not come round for {:.0f} ms", (load.still_ms,))
        if work is Sheddable.PREDICTIONS:
            yield from _gold_causes(gold, s.predictions_gold_ms)
            yield _Cause(float(load.put_off), "{} NPCs wait for their share of the engine", (load.put_off,))
            for name, other in (("Silver", silver), ("Bronze", bronze)):
                share = other.waiting / max(1.0, s.predictions_queue * other.waiting_max)
                yield _Cause(share, f"{{}} of {{}} {name} works wait", (other.waiting, other.waiting_max))
        elif work is Sheddable.BARKS:
            yield from _gold_causes(gold, s.barks_gold_ms)
        elif work is Sheddable.INTENTS:
            yield from _gold_causes(gold, s.intents_gold_ms)
        elif work is Sheddable.DIALOGUE:
            yield _Cause(_full(silver), "Silver's queue is full", (), silver.retry_ms)
        else:
            yield _Cause(bronze.oldest_ms / s.stories_ms, "Bronze has waited for {:.1f} s", (bronze.oldest_ms / 1e3,))
            yield _Cause(_full(bronze), "Bronze's queue is full", (), bronze.retry_ms)


def _gold_causes(gold: Queued, bound_ms: float) -> Iterator[_Cause]:
    yield _Cause(gold.oldest_ms / bound_ms, "Gold has waited for {:.0f} ms", (gold.oldest_ms,))
    yield _Cause(_full(gold), "Gold's queue is full")


def _full(queue: Queued) -> float:
    return queue.waiting / max(1, queue.waiting_max)


def check_shedding(settings: ShedSettings) -> None:
    """Raises ConfigError naming the setting."""
    s = settings
    if not 0 < s.predictions_gold_ms <= s.barks_gold_ms <= s.intents_gold_ms:
        raise ConfigError(
            f"shedding.predictions_gold_ms ({s.predictions_gold_ms:g}), barks_gold_ms ({s.barks_gold_ms:g}) and "
            f"intents_gold_ms ({s.intents_gold_ms:g}) must be above 0 and grow in this order: predictions go first"
        )
    if not 0 < s.predictions_queue <= 1:
        raise ConfigError(f"shedding.predictions_queue: {s.predictions_queue:g}, must be above 0 and at most 1")
    if not 0 < s.calm < 1:
        raise ConfigError(f"shedding.calm: {s.calm:g}, must be between 0 and 1")
    for name in ("stories_ms", "stalled_ms", "stalled_x", "calm_ms"):
        if not getattr(s, name) > 0:
            raise ConfigError(f"shedding.{name}: {getattr(s, name):g}, must be above 0")
