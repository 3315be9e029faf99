"""Attention: npcd asks the model most often about the NPCs near players.

Feeds tiers/activation.py with the distances of players, has it decide every 250 ms, and reports the changes. When a
player comes near, the NPC's memory of that player is fetched. The KV of an NPC that becomes ambient is evicted first
when others need its sequences. Owns no task: daemon/minds/intents.py runs the steps of deciding() when it is due, and
asks the model about promoted NPCs.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from core.clock import MS, Clock
from core.observation import Observation
from core.steps import Steps, every
from core.words import Activation, NpcKey
from daemon.minds.mind import Mind
from daemon.minds.npc_events import NpcEvents
from daemon.minds.pacing import Pacing
from daemon.minds.table import Table
from daemon.words import activation_message
from memory.memory import Memory
from npcd.v1 import npcs_pb2
from scheduler.ticket import Door
from tiers.activation import Activations, ActivationSettings, Change

PLAYER_KIND = "player"  # a percept of this kind is a player, and its entity_id the player_id of Dialogue
AT_ONCE = 8  # changes told in one step
NEWCOMERS_WITHIN_NS = 20 * MS  # somebody seen for the first time is not kept waiting for the next round


@dataclass(slots=True)
class AttentionCounts:
    """One tenant's: how many NPCs have a level now, and changes since start."""

    levels: Counter[Activation] = field(default_factory=Counter)
    promotions: int = 0
    demotions: int = 0


class Attention:
    """The attention of each mind of the table."""

    def __init__(
        self,
        settings: ActivationSettings,
        pacing: Pacing,
        table: Table,
        events: NpcEvents,
        memory: Memory,
        door: Door,
        clock: Clock,
    ) -> None:
        self.activations: Activations[Mind] = Activations(settings)
        self.pacing = pacing
        self.counts: defaultdict[str, AttentionCounts] = defaultdict(AttentionCounts)  # by tenant
        self._settings = settings
        self._table = table
        self._events = events
        self._memory = memory
        self._door = door
        self._clock = clock
        self._newcomers: dict[Mind, None] = {}
        self._decided_ns = 0
        self._news = False  # somebody was looked at since the last decision

    @property
    def newcomers(self) -> int:
        """How many NPCs were seen for the first time and are not decided about yet."""
        return len(self._newcomers)

    def saw(self, mind: Mind, seen: Observation) -> None:
        """Takes in what an NPC sees of players."""
        player, distance_m, in_sight = "", math.inf, True
        for percept in seen.percepts:
            if percept.kind == PLAYER_KIND and percept.distance_m < distance_m:
                player, distance_m, in_sight = percept.entity_id, percept.distance_m, percept.in_sight
        self._news = True
        self.activations.saw(mind, distance_m, in_sight, seen.override, seen.at_ns)
        if player and distance_m * self._settings.quest_x <= self._settings.warm_leave_m:
            key = mind.npc.key
            self._memory.near(key, player)
            self._door.coming_near(key)
            bond = self._memory.at_hand(key, player)
            quest = bond is not None and bond.quest is not None and bool(bond.quest.active)
            card = bond.relationship if bond is not None else None
            self.activations.knows(mind, quest, max(abs(card.trust), abs(card.affinity)) if card is not None else 0.0)
        if not mind.decided:
            self._newcomers[mind] = None

    def spoke(self, npc: NpcKey) -> None:
        """Somebody talks with the NPC, or just did."""
        mind = self._table.mind(npc)
        if mind is not None:
            self.activations.spoke(mind, self._clock())

    def remove(self, mind: Mind) -> None:
        """The NPC is gone."""
        self.counts[mind.npc.key.tenant].levels[mind.activation] -= 1
        self.activations.remove(mind)

    def due_ns(self) -> int | None:
        """When to decide next; None while there is nobody to decide about."""
        if self._newcomers:
            return self._decided_ns + NEWCOMERS_WITHIN_NS
        if self.activations.active or self.activations.warm or self._news:
            return self._decided_ns + self._settings.every_ms * MS
        return None

    def deciding(self, overdue: int, now_ns: int) -> Steps[tuple[list[Change[Mind]], list[Mind]]]:
        """Decides anew and acts on it: (what changed, who was seen for the first time). So many answers are overdue.

        An NPC that is seen for the first time between the steps is decided about the next time.
        """
        self._decided_ns, self._news = now_ns, False
        waiting, self._newcomers = self._newcomers, {}
        self.pacing.overdue(overdue)
        carried = self.pacing.intents
        self.activations.active_max, self.activations.warm_max = carried.active_max, carried.warm_max
        changes = yield from self.activations.deciding(now_ns)
        self.pacing.wanted = self.activations.wanted
        newcomers = [m for m in waiting if not m.removed]
        for mind in newcomers:
            mind.decided = True
        announced = []
        for change, pause in every(AT_ONCE, changes):
            if pause:
                yield
            mind = change.who
            if mind.removed:
                continue
            announced.append(change)
            mind.activation = change.now
            promoted = change.now < change.before
            self._count(change, promoted)
            if change.now is Activation.AMBIENT:
                self._door.moving_out(mind.npc.key)
            kind = npcs_pb2.NPC_EVENT_KIND_PROMOTED if promoted else npcs_pb2.NPC_EVENT_KIND_DEMOTED
            event = npcs_pb2.NpcEvent(
                kind=kind,
                npc_id=mind.npc.key.npc,
                activation=activation_message(change.now),
                reason=change.reason,
                lease_epoch=mind.npc.lease_epoch,
            )
            self._events.tell(mind.npc.key, event)
            self._table.attend(mind)
        return announced, newcomers

    def _count(self, change: Change[Mind], promoted: bool) -> None:
        counts = self.counts[change.who.npc.key.tenant]
        counts.levels[change.before] -= 1  # of those that are ambient nobody asks how many
        counts.levels[change.now] += 1
        counts.promotions += promoted
        counts.demotions += not promoted
