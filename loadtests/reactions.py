"""How long NPCs take to react: from an event that is sent to npcd to the model's intent for it.

An event makes an NPC due at once, so both sides know when its intent was due, and the client's measurements can be
compared with the daemon's own. Decides only.
"""

from __future__ import annotations

from npcd_client import Intent, IntentSource, Observation

FORGOTTEN_NS = 10_000_000_000  # an event without an answer for so long is given up


class Reactions:
    """The books of one world: the NPCs that wait for a reaction, since when and since which tick."""

    def __init__(self) -> None:
        self._events: dict[str, tuple[str, ...]] = {}
        self._waiting: dict[str, tuple[int, int]] = {}

    def observed(self, observation: Observation, now_ns: int) -> None:
        """An observation was sent to npcd."""
        npc_id = observation.npc_id
        before = self._events.get(npc_id, ())
        self._events[npc_id] = observation.events
        if all(event in before for event in observation.events):
            return
        waiting = self._waiting.get(npc_id)
        if waiting is None or now_ns - waiting[1] > FORGOTTEN_NS:
            self._waiting[npc_id] = (observation.tick, now_ns)

    def confirmed(self, npc_id: str, tick: int) -> None:
        """The present intent agrees with an observation, so no reaction was due."""
        waiting = self._waiting.get(npc_id)
        if waiting is not None and tick >= waiting[0]:
            del self._waiting[npc_id]

    def answered(self, intent: Intent, now_ns: int) -> tuple[float, float] | None:
        """A new version has arrived. If it is a reaction, returns its ms as seen here and as the daemon says."""
        waiting = self._waiting.get(intent.npc_id)
        if waiting is None or intent.source is not IntentSource.MODEL or not intent.latency_ms:
            return None
        tick, at_ns = waiting
        if intent.observed_tick < tick:
            return None
        del self._waiting[intent.npc_id]
        return (now_ns - at_ns) * 1e-6, float(intent.latency_ms)
