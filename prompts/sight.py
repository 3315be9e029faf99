"""An observation in words: the situation, the most notable percepts, and the state that equal observations share.

Every word begins with its space, so that words are put together as they stand.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

from core.observation import Observation, Percept

TARGETS_MAX = 8  # percepts that answers can name
PERCEPT_WORD_LEN_MAX = 24
DISTANCE_EDGES_M = (2.0, 8.0, 20.0)  # where distance_word changes
HEALTH_EDGES = (0.25, 0.7)
EVENTS_KEPT = 2


def distance_word(distance_m: float) -> str:
    """Metres as the model's word: close < 2 <= near < 8 <= away < 20 <= far."""
    close_m, near_m, away_m = DISTANCE_EDGES_M
    if distance_m < close_m:
        return "close"
    if distance_m < near_m:
        return "near"
    return "away" if distance_m < away_m else "far"


def health_word(health: float) -> str:
    """Health 0..1 as the model's word: dying < 0.25 <= hurt < 0.7 <= nothing."""
    dying, hurt = HEALTH_EDGES
    if health < dying:
        return "dying"
    return "hurt" if health < hurt else ""


def notable(percepts: Sequence[Percept], count: int) -> list[Percept]:
    """The percepts that matter most, first: hostile before others, then seen before heard, then the nearest.

    Those that are equally far in words keep an order of their own: of two wolves near, the nearer one changes nothing.
    """
    if len(percepts) > count:
        percepts = sorted(percepts, key=_importance)[:count]
    return sorted(percepts, key=_place)


def _importance(percept: Percept) -> tuple[bool, bool, float, str]:
    entity_id, _, stance, distance_m, in_sight = percept
    return stance != "hostile", not in_sight, distance_m, entity_id


def _place(percept: Percept) -> tuple[bool, bool, int, str, float]:
    entity_id, _, stance, distance_m, in_sight = percept
    return stance != "hostile", not in_sight, bisect_right(DISTANCE_EDGES_M, distance_m), entity_id, distance_m


def situation_words(seen: Observation) -> str:
    """Time, place, health and the newest two events, as words with a leading space each; may be empty."""
    return _situation(seen.time_of_day, seen.place, health_word(seen.health), *seen.events[:EVENTS_KEPT])


def percept_words(percept: Percept) -> str:
    """A percept in words: " player hostile near", or " wolf away heard" when it is out of sight."""
    _, kind, stance, distance_m, in_sight = percept
    return _sighting(kind, stance, distance_word(distance_m), in_sight)


def state_of(seen: Observation, percepts_max: int) -> str:
    """An observation quantised: equal states ask for equal intents, so this serves as its hash.

    Targets are part of it: another wolf at the same distance is another situation.
    """
    kept = notable(seen.percepts, min(percepts_max, TARGETS_MAX))
    return situation_words(seen) + "".join([f"|{percept_words(p)}@{p.entity_id}" for p in kept])


# Every observation is put into words, and they are few: finding what was put together before is a tenth of the cost.
@lru_cache(maxsize=8192)
def _situation(*said: str) -> str:
    return "".join(f" {_word(w)}" for w in said if w)


@lru_cache(maxsize=8192)
def _sighting(kind: str, stance: str, distance: str, in_sight: bool) -> str:
    words = (_word(kind), _word(stance), distance, "" if in_sight else "heard")
    return "".join(f" {w}" for w in words if w)


def _word(text: str) -> str:
    return " ".join(text.replace("_", " ").split())[:PERCEPT_WORD_LEN_MAX]
