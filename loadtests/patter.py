"""A player's lines to one NPC after another: a greeting, questions, a goodbye. Decides only."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from loadtests.scene import PlayerScript

# The event that a line gives the NPC besides its words.
MOODS: Mapping[str, str] = {"trade": "offered_trade", "threat": "threatened", "bye": "player_left"}
SPOKEN_TO = "spoken_to"


class Patter:
    """The lines of one conversation at a time; begin() starts the next one."""

    def __init__(self, script: PlayerScript, chance: Random) -> None:
        self._script = script
        self._chance = chance
        self._plan: list[str] = []  # situations of the remaining lines to this partner
        self._asked: set[str] = set()

    @property
    def over(self) -> bool:
        """True when every line was said to this partner."""
        return not self._plan

    def begin(self) -> None:
        """Plans the lines for a new partner."""
        between = [self._chance.choice(("ask", "ask", "ask", "trade", "threat")) for _ in range(32)]
        self._plan = ["greet", *between[: max(0, self._script.lines_per_talk - 2)], "bye"]
        self._asked = set()

    def next(self) -> tuple[str, str]:
        """The next line, and the event that the NPC notices with it. Call it only while not over."""
        situation = self._plan.pop(0)
        lines = [line for line in self._script.lines[situation] if line not in self._asked]
        line = self._chance.choice(lines or list(self._script.lines[situation]))
        self._asked.add(line)
        return line, MOODS.get(situation, SPOKEN_TO)
