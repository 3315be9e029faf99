"""Game time as one game server runs it: wall time at a scale, with pauses. Cadence and prediction run on it.

It is not the game_time_ms of observations, which goes back when a save is loaded; this only grows. It begins as wall
time, and stays wall time as long as the scale is 1 and there is no pause.
"""

from __future__ import annotations

from core.clock import MS, S

SLOT_MIN_NS = 50 * MS  # of wall time: however fast a game runs, an NPC is asked 20 times a second at most
FAR_NS = 10**9 * S  # so slow that it means never


class GameTime:
    """Turns moments of wall time into game time and back. Both are nanoseconds; `scale` is game time per wall time."""

    __slots__ = ("_from_game_ns", "_from_wall_ns", "paused", "scale")

    def __init__(self, now_ns: int) -> None:
        self.scale = 1.0  # also while it is paused: what it was, or will be
        self.paused = False
        # The moment of the last change, in both times.
        self._from_wall_ns = now_ns
        self._from_game_ns = now_ns

    def tell(self, scale: float, paused: bool, now_ns: int) -> bool:
        """Sets scale and pause from now on; a scale of 0 counts as 1. Returns True if that changes anything."""
        scale = scale or 1.0
        if (scale, paused) == (self.scale, self.paused):
            return False
        self._from_game_ns = self.at(now_ns)
        self._from_wall_ns = now_ns
        self.scale, self.paused = scale, paused
        return True

    def at(self, wall_ns: int) -> int:
        """Game time at a moment; for a moment before the last change, the game time of that change."""
        passed_ns = wall_ns - self._from_wall_ns
        if self.paused or passed_ns <= 0:
            return self._from_game_ns
        return self._from_game_ns + (passed_ns if self.scale == 1.0 else int(passed_ns * self.scale))

    def wall(self, game_ns: int) -> int:
        """The first moment at which it is that game time, if it goes on like this; not before the last change."""
        assert not self.paused, "while it is paused no other game time ever comes"
        ahead_ns = game_ns - self._from_game_ns
        if ahead_ns <= 0:
            return self._from_wall_ns
        if self.scale == 1.0:
            return self._from_wall_ns + ahead_ns
        # Rounding down could name a moment at which it is not yet there.
        return self._from_wall_ns + int(min(ahead_ns / self.scale, FAR_NS)) + 1

    def slot_ns(self, slot_ns: int) -> int:
        """The least game time that a slot of the cadence lasts."""
        return slot_ns if self.scale <= 1.0 else max(slot_ns, round(SLOT_MIN_NS * self.scale))
