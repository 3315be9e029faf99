"""How long NPCs take to react: from an event that was handed to npcd to the model's intent that knows of it.

An event makes an NPC due at once, so that the moment when its intent was due is known on both sides, and what the
client measures can be held against what the daemon says of itself. Decides only.
"""

from __future__ import annotations

from npcd_client import Intent, IntentSource, Observation

FORGOTTEN_NS = 10_000_000_000  # an event that nobody answered for so long is not waited for any more


class Reactions:
    """The books of one world: who waits for a reaction, since when and since which tick."""

    def __init__(self) -> None:
        self._events: dict[str, tuple[str, ...]] = {}
        self._waiting: dict[str, tuple[int, int]] = {}

    def observed(self, observation: Observation, now_ns: int) -> None:
        """An observation was handed to npcd."""
        npc_id = observation.npc_id
        before = self._events.get(npc_id, ())
        self._events[npc_id] = observation.events
        if all(event in before for event in observation.events):
            return
        waiting = self._waiting.get(npc_id)
        if waiting is None or now_ns - waiting[1] > FORGOTTEN_NS:
            self._waiting[npc_id] = (observation.tick, now_ns)

    def confirmed(self, npc_id: str, tick: int) -> None:
        """The intent that stands agrees with an observation: there was nothing to react to."""
        waiting = self._waiting.get(npc_id)
        if waiting is not None and tick >= waiting[0]:
            del self._waiting[npc_id]

    def answered(self, intent: Intent, now_ns: int) -> tuple[float, float] | None:
        """A new version has come: the reaction in ms as seen here, and as the daemon says, if it is one."""
        waiting = self._waiting.get(intent.npc_id)
        if waiting is None or intent.source is not IntentSource.MODEL or not intent.latency_ms:
            return None
        tick, at_ns = waiting
        if intent.observed_tick < tick:
            return None
        del self._waiting[intent.npc_id]
        return (now_ns - at_ns) * 1e-6, float(intent.latency_ms)
