"""Answers in time: the due slots of each NPC, and the source of each answer. Decides only.

Game time is cut into slots, per NPC by its attention: 500 ms for an active one, 2 s for a warm one. An ambient one has
none, because it only gets the rule policy. A slot is **due** when an observation in it has another state than the one
with which the slot before ended (see `state_of`); the first such observation is the one to answer. A slot is
**answered** by an intent that agrees with that observation or with a later one (observed_tick at least as high), that
arrives before its ttl, counted from that observation, is over, and that arrives within two slots. An intent for a later
observation counts even if the NPC's state has changed by then: per NPC the newest observation wins, so the older one
will never be answered. The number of such answers is reported beside the shares (`answered_for_newer`). A due slot
counts under the source of its answer. "model" and "predicted" settle it; "policy" stays only if no better answer comes
in time. A slot without any answer counts as policy, which is what the game then acts on, and is reported as
`unanswered` as well. If an NPC becomes ambient, its waiting slots are no longer due.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from npcd_client import Activation, Intent, IntentSource, Observation

SLOT_MS = 500
# By activation; 0: no slots. A daemon that reports no activation gives full attention to every NPC.
SLOTS_MS = {
    Activation.UNSPECIFIED: SLOT_MS,
    Activation.ACTIVE: SLOT_MS,
    Activation.WARM: 2_000,
    Activation.AMBIENT: 0,
}
ANSWER_SLOTS = 2  # later than that the game has moved on, even within the ttl
ANSWER_MAX_MS = ANSWER_SLOTS * SLOT_MS
PERCEPTS_MAX = 5  # as many as reach the model
EVENTS_MAX = 2


def state_of(observation: Observation) -> str:
    """An observation in words, as coarse as minds see it: equal states need equal intents."""
    health = 1.0 if observation.health is None else observation.health
    hurt = "dying" if health < 0.25 else "hurt" if health < 0.7 else ""
    words = [observation.time_of_day, observation.place, hurt, *observation.events[:EVENTS_MAX]]
    percepts = sorted(
        observation.percepts, key=lambda p: (p.stance != "hostile", not p.in_sight, p.distance_m, p.entity_id)
    )
    kept = percepts[:PERCEPTS_MAX]
    kept.sort(key=lambda p: (p.stance != "hostile", not p.in_sight, distance_word(p.distance_m), p.entity_id))
    for percept in kept:
        words.append(f"{percept.entity_id}:{percept.stance}:{distance_word(percept.distance_m)}:{percept.in_sight}")
    return "|".join(words)


def distance_word(distance_m: float) -> str:
    """Metres as npcd quantises them."""
    if distance_m < 2.0:
        return "close"
    if distance_m < 8.0:
        return "near"
    return "away" if distance_m < 20.0 else "far"


@dataclass(slots=True)
class _Due:
    """A changed observation that waits for its answer. `until_tick`: when the state changed again (0: not yet)."""

    tick: int
    state: str
    at_ms: float
    late_ms: float  # answers after this moment are too late
    until_tick: int = 0
    policy: bool = False


class _Npc:
    __slots__ = ("base", "due_in_slot", "last", "open", "slot")

    def __init__(self) -> None:
        self.slot = (0, -1)  # length and number of the slot
        self.base = ""  # the state at the end of the slot before
        self.last = ""
        self.due_in_slot = False
        self.open: deque[_Due] = deque()


class Slots:
    """The books of all NPCs, by number."""

    def __init__(self, npcs: int) -> None:
        self._npcs = [_Npc() for _ in range(npcs)]
        self.by_source = {"model": 0, "policy": 0, "predicted": 0}
        self.due = 0
        self.unanswered = 0
        self.answered_for_newer = 0

    @property
    def open(self) -> int:
        """The number of due slots that may still be answered."""
        return sum(len(npc.open) for npc in self._npcs)

    @property
    def model_share(self) -> float:
        """Share of the settled due slots that the model or a prediction answered; 0 when none was due."""
        settled = sum(self.by_source.values())
        return (self.by_source["model"] + self.by_source["predicted"]) / settled if settled else 0.0

    def observed(self, number: int, tick: int, state: str, now_ms: float, slot_ms: int = SLOT_MS) -> None:
        """An observation was sent to npcd. `slot_ms`: the NPC's slots at its present activation."""
        npc = self._npcs[number]
        if not slot_ms:
            self.due -= len(npc.open)
            npc.open.clear()
            npc.slot, npc.last = (0, -1), state
            return
        slot = (slot_ms, int(now_ms // slot_ms))
        if slot != npc.slot:
            npc.slot, npc.base, npc.due_in_slot = slot, npc.last, False
        for due in npc.open:
            if not due.until_tick and state != due.state:
                due.until_tick = tick
        if state != npc.base and not npc.due_in_slot:
            npc.due_in_slot = True
            npc.open.append(_Due(tick, state, now_ms, now_ms + ANSWER_SLOTS * slot_ms))
            self.due += 1
        npc.last = state

    def answered(self, number: int, intent: Intent, now_ms: float) -> None:
        """A new intent, or the confirmation of one, has arrived."""
        npc = self._npcs[number]
        if not npc.open:
            return
        self.expire(number, now_ms)
        for due in list(npc.open):
            if intent.observed_tick < due.tick or 0 < intent.ttl_ms < now_ms - due.at_ms:
                continue
            if intent.source is IntentSource.POLICY:
                due.policy = True
                continue
            npc.open.remove(due)
            self.by_source["predicted" if intent.source is IntentSource.PREDICTED else "model"] += 1
            if due.until_tick and intent.observed_tick >= due.until_tick:
                self.answered_for_newer += 1

    def expire(self, number: int, now_ms: float) -> None:
        """Settles slots that can no longer be answered in time."""
        waiting = self._npcs[number].open
        for due in [due for due in waiting if now_ms > due.late_ms]:
            waiting.remove(due)
            self._give_up(due)

    def close(self) -> None:
        """Settles all open slots."""
        for npc in self._npcs:
            while npc.open:
                self._give_up(npc.open.popleft())

    def include(self, other: Slots) -> None:
        """Adds the counts of other NPCs' books."""
        for source, number in other.by_source.items():
            self.by_source[source] += number
        self.due += other.due
        self.unanswered += other.unanswered
        self.answered_for_newer += other.answered_for_newer

    def _give_up(self, due: _Due) -> None:
        self.by_source["policy"] += 1
        if not due.policy:
            self.unanswered += 1
