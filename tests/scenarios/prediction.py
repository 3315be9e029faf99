"""The interpreter of prediction.txt."""

from __future__ import annotations

import math

from core.observation import Observation, Percept
from prompts.sight import state_of
from tests.scenarios.attention import arguments
from tiers.prediction import Edges, Habits, Motion, PredictionSettings, approaches, expected


class PredictionScenario:
    """see [anew] for=MS [every=MS] [me=VX,VY] [at=X,Y] [health=NOW,PER_SECOND] [events=WORD,...] [day=WORD], then a
    line per percept: NAME KIND STANCE|- at=X,Y [by=VX,VY] [heard=yes], in metres from the NPC as the command begins.
    After it: what is expected, and which players come close. "anew" is another NPC of another world.
    """

    def __init__(self) -> None:
        self.motion = Motion(Habits())
        self.now_ms = 0

    def run(self, lines: list[str]) -> str:
        """The states that are expected at the end of the command."""
        words, given = arguments(lines[0])
        if "anew" in words:
            self.motion = Motion(Habits())
        health, health_slope = pair(given.get("health", "1,0"))
        me, at = pair(given.get("me", "0,0")), pair(given.get("at", "0,0"))
        every_ms = int(given.get("every", 100))
        seen: Observation
        for passed_ms in range(0, int(given["for"]), every_ms):
            self.now_ms += every_ms
            passed_s = passed_ms / 1000
            percepts = []
            for line in lines[1:]:
                (name, kind, stance), more = arguments(line)
                (x, y), (vx, vy) = pair(more["at"]), pair(more.get("by", "0,0"))
                distance_m = math.hypot(x + (vx - me[0]) * passed_s, y + (vy - me[1]) * passed_s)
                percepts.append(
                    Percept(name, kind, stance.strip("-"), round(distance_m, 2), more.get("heard") != "yes")
                )
            seen = Observation(
                tick=self.now_ms,
                percepts=tuple(percepts),
                events=tuple(given["events"].split(",")) if "events" in given else (),
                time_of_day=given.get("day", ""),
                health=health + health_slope * passed_s,
                position_m=(at[0] + me[0] * passed_s, 0.0, at[1] + me[1] * passed_s),
                velocity_mps=(me[0], 0.0, me[1]),
                game_time_ms=self.now_ms,
            )
            self.motion.saw(seen)
        edges, settings = Edges((2.0, 8.0, 20.0), (0.25, 0.7)), PredictionSettings(on=True)
        said = [
            f"in {round(e.in_ms, -2)} ms {e.kind}:{state_of(e.observation, edges.percepts) or ' nothing more'}"
            for e in expected(self.motion, seen, edges, settings)
        ]
        for percept in seen.percepts:
            in_ms = approaches(self.motion, seen, percept.entity_id, settings) if percept.kind == "player" else None
            if in_ms is not None:
                said.append(f"{percept.entity_id} is close in {round(in_ms, -2)} ms")
        return "\n".join(said) or "nothing"


def pair(text: str) -> tuple[float, float]:
    """Two numbers that a comma separates."""
    a, b = text.split(",")
    return float(a), float(b)
