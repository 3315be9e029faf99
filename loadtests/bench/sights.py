"""The sights of the demo village's NPCs in benchmarks: every observation differs from the one before.

There are three percepts each, so that an intent has three tokens and none of them is forced: action, target, emotion.
"""

from __future__ import annotations

from npcd_client import Observation, Percept

KINDS = ("wolf", "corpse", "lantern", "villager", "grave", "well", "chest")
STANCES = ("hostile", "friendly", "neutral")
DISTANCES_M = (1.0, 5.0, 14.0, 30.0)
TIMES = ("day", "dusk", "night", "dawn")
PLACES = ("tavern", "crypt", "market", "forest", "gate", "mill")


def sight(npc_id: str, number: int, tick: int, urgent: bool = False) -> Observation:
    """The sight of NPC `number` at its `tick`-th look. `urgent` adds an event, so that npcd does not wait for a
    slot."""
    n = number * 7 + tick
    percepts = (
        Percept("player-1", "player", STANCES[n % 3], DISTANCES_M[n % 4]),
        Percept("thing-1", KINDS[n % 7], STANCES[(n // 3) % 3], DISTANCES_M[(n // 2) % 4]),
        Percept("thing-2", KINDS[(n + 3) % 7], STANCES[(n // 5) % 3], DISTANCES_M[(n // 4) % 4]),
    )
    events = (("attacked", "spoken_to", "heard_noise")[n % 3],) if urgent else ()
    return Observation(
        npc_id,
        tick,
        health=1.0,
        time_of_day=TIMES[(n // 7) % 4],
        place=PLACES[n % 6],
        percepts=percepts,
        events=events,
    )
