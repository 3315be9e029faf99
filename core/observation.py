"""One NPC at one moment, as the game sees it, in plain values.

Named tuples: thousands of them are made per second, and making a frozen dataclass costs four times as much.
"""

from __future__ import annotations

from typing import NamedTuple

from core.words import Activation

STANCES = ("hostile", "friendly", "neutral")
TIMES_OF_DAY = ("day", "dusk", "night")


class Percept(NamedTuple):
    """One thing an NPC notices; `distance_m` in metres, `stance` "hostile", "friendly", "neutral" or empty."""

    entity_id: str
    kind: str
    stance: str = ""
    distance_m: float = 0.0
    in_sight: bool = True


class Observation(NamedTuple):
    """One NPC's view: `health` 0..1, `events` newest first, `at_ns` when it was received, game time in milliseconds.

    `tick` counts within the lease of `lease_epoch`. `override` is the activation that the game wants, if it wants one.
    """

    tick: int
    percepts: tuple[Percept, ...] = ()
    events: tuple[str, ...] = ()
    time_of_day: str = ""
    place: str = ""
    health: float = 1.0
    position_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    velocity_mps: tuple[float, float, float] = (0.0, 0.0, 0.0)
    game_time_ms: int = 0
    at_ns: int = 0
    override: Activation | None = None
    lease_epoch: int = 0
