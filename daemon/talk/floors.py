"""Floors: which NPCs are talked with now, who waits for them, and when a place in the line is free. Decides; `now_ns`
comes in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from core.clock import MS
from core.words import NpcKey
from daemon.talk.turns import Floor, Stage, Turn
from tiers.promises import RETRY_MAX_NS

TURNS_TIMED = 16  # the last turns tell how long a turn takes now


class Floors:
    """One floor for each NPC that is talked with. A turn counts as `first_ns` long until one was timed."""

    def __init__(self, first_ns: int) -> None:
        self._floors: dict[NpcKey, Floor] = {}
        self._first_ns = first_ns
        self._turns_ns: deque[int] = deque(maxlen=TURNS_TIMED)  # how long the last turns kept an NPC

    @property
    def by_npc(self) -> Mapping[NpcKey, Floor]:
        """All floors, to look at."""
        return MappingProxyType(self._floors)

    def of(self, npc: NpcKey) -> Floor:
        """An NPC's floor, made if it has none."""
        return self._floors.setdefault(npc, Floor())

    def turns(self, npc: NpcKey, player: str | None = None) -> list[Turn]:
        """All turns with an NPC, or those of one player, in whatever stage; the one that has the floor comes first."""
        floor = self._floors.get(npc, ())
        return [t for t in floor if player is None or t.request.player_id == player]

    def speaking(self, tenant: str | None = None) -> Iterator[Turn]:
        """The turns that an NPC speaks in now; with a tenant: those of its NPCs."""
        for npc, floor in self._floors.items():
            if tenant in (None, npc.tenant):
                yield from (turn for turn in floor if turn.stage is Stage.SPEAKS)

    def in_world(self, tenant: str, world_id: str) -> list[NpcKey]:
        """The NPCs of a world that are talked with now."""
        return [npc for npc in self._floors if npc[:2] == (tenant, world_id)]

    def leave(self, turn: Turn, now_ns: int) -> None:
        """Takes a turn out; the floor goes to the next. Nothing happens when it is out already."""
        if turn is turn.floor.speaker and turn.ticket is not None:  # others say nothing about how long turns take
            self._turns_ns.append(now_ns - turn.called_ns)
        turn.floor.leave(turn)
        if turn.floor.speaker is None and self._floors.get(turn.npc) is turn.floor:
            del self._floors[turn.npc]

    def retry_ms(self, floor: Floor, now_ns: int) -> int:
        """When a turn that a full line refused should come again: when half the line has had its turn, each as long as
        the last turns of all NPCs. A present turn that has taken longer already counts as one of them.
        """
        turns_ns, speaker = list(self._turns_ns), floor.speaker
        present_ns = now_ns - speaker.called_ns if speaker is not None and speaker.called_ns else 0
        if not turns_ns:
            turns_ns = [self._first_ns]
        if present_ns * len(turns_ns) > sum(turns_ns):
            turns_ns.append(present_ns)
        half_ns = floor.waiting / 2 * sum(turns_ns) / len(turns_ns)
        return max(1, round(min(half_ns, RETRY_MAX_NS) / MS))
