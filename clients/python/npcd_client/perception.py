"""Plain values of the running game: observations go in, intents come out."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from enum import IntEnum

TIME_SCALE_MAX = 1e6
GAME_TIME_MAX_MS = 2**64 - 1


class Activation(IntEnum):
    """Attention that an NPC gets now."""

    UNSPECIFIED = 0
    ACTIVE = 1
    WARM = 2
    AMBIENT = 3


class IntentSource(IntEnum):
    """The origin of an intent."""

    UNSPECIFIED = 0
    MODEL = 1
    POLICY = 2
    PREDICTED = 3


@dataclass(frozen=True, slots=True)
class Percept:
    """One thing an NPC notices. `stance`: "hostile", "friendly", "neutral" or empty."""

    entity_id: str
    kind: str
    stance: str = ""
    distance_m: float = 0.0
    in_sight: bool = True


@dataclass(frozen=True, slots=True)
class Observation:
    """The game's report of one NPC at one moment. `tick` must grow; per NPC the highest wins.

    `health` is 0..1, None when not known; `events` newest first; `activation` overrides npcd's own decision.
    """

    npc_id: str
    tick: int
    position_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    velocity_mps: tuple[float, float, float] = (0.0, 0.0, 0.0)
    health: float | None = None
    time_of_day: str = ""
    place: str = ""
    percepts: tuple[Percept, ...] = ()
    events: tuple[str, ...] = ()
    activation: Activation | None = None


class GameClock:
    """Game time, reported once in a while and extrapolated between. One writer, any readers; no lock."""

    __slots__ = ("_told",)

    def __init__(self) -> None:
        # One tuple, replaced as a whole: (wall ns, game ms, scale, paused). Until the first report, game time is wall
        # time.
        self._told = (time.monotonic_ns(), 0.0, 1.0, False)

    def tell(self, game_time_ms: float, time_scale: float = 1.0, paused: bool = False) -> None:
        """Sets game time as of now; `time_scale` is game seconds per wall second. Raises ValueError."""
        if not math.isfinite(game_time_ms):
            raise ValueError(f"game_time_ms is {game_time_ms}, must be a finite number")
        if not 0.0 <= time_scale <= TIME_SCALE_MAX:
            raise ValueError(f"time_scale is {time_scale}, must be 0 to {TIME_SCALE_MAX:g}; use paused to stop time")
        self._told = (time.monotonic_ns(), float(game_time_ms), float(time_scale), bool(paused))

    def game_time_ms(self, now_ns: int | None = None) -> float:
        """Game time at `now_ns` (time.monotonic_ns()), extrapolated from the last `tell`; never below 0."""
        told_ns, told_ms, scale, paused = self._told
        if not paused:
            # A scale of 0 counts as 1 in the contract: `paused` stops time.
            told_ms += ((time.monotonic_ns() if now_ns is None else now_ns) - told_ns) * 1e-6 * (scale or 1.0)
        return min(max(0.0, told_ms), GAME_TIME_MAX_MS)

    def whole_ms(self) -> int:
        """Game time as the contract carries it."""
        return min(int(self.game_time_ms()), GAME_TIME_MAX_MS)

    @property
    def time_scale(self) -> float:
        """Game seconds per wall second, as last reported."""
        return self._told[2]

    @property
    def paused(self) -> bool:
        """True while game time stands still."""
        return self._told[3]


@dataclass(frozen=True, slots=True)
class Intent:
    """The next act of an NPC. It never changes: a newer version or a confirmation is a new object.

    `agreed_ns` is when the newest observation that it agrees with was given to observe(), on time.monotonic_ns();
    `observed_tick`, `lease_epoch` and `game_time_ms` are that observation's. `activation` is the NPC's attention when
    the daemon sent this version.
    """

    npc_id: str
    daemon_epoch: int
    version: int
    action: str
    target_entity_id: str
    emotion: str
    bark: str
    source: IntentSource
    observed_tick: int
    game_time_ms: int
    ttl_ms: int
    previous_action: str
    blend_ms: int
    latency_ms: int
    confidence: float
    agreed_ns: int
    clock: GameClock = field(repr=False, compare=False)
    activation: Activation = Activation.UNSPECIFIED
    lease_epoch: int = 0

    @property
    def age_ms(self) -> float:
        """Wall time since the newest observation that this intent agrees with; it grows between frames."""
        return (time.monotonic_ns() - self.agreed_ns) * 1e-6

    @property
    def expired(self) -> bool:
        """True when its time to live, in game time, is over. A `ttl_ms` of 0 never expires.

        When game time went back by more than the time to live (a save was loaded), the intent is over, too.
        """
        return 0 < self.ttl_ms < abs(self.clock.game_time_ms() - self.game_time_ms)
