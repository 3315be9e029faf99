"""The rpcs about one NPC's memory of one player: its cards are set, and its memories are recalled."""

from __future__ import annotations

from core.errors import CallerError
from daemon.words import check_id, whole
from daemon.worlds.worlds import Worlds
from memory import cards
from memory.bond import mood
from memory.cards import Card, Quest, Relationship
from memory.memory import Memory
from memory.noting import with_name
from memory.records import Body, Kind
from npcd.v1 import npcs_pb2


class Recalling:
    """Cards are written to the journal; a recall asks the stores within their budget."""

    def __init__(self, worlds: Worlds, memory: Memory) -> None:
        self._worlds = worlds
        self._memory = memory

    async def set_cards(self, tenant: str, request: npcs_pb2.SetCardsRequest) -> npcs_pb2.SetCardsResponse:
        """Sets an NPC's cards about a player."""
        npc = self._worlds.npc(tenant, request.world_id, request.npc_id)
        player = check_id("player_id", request.player_id)
        body: Body = {}
        card: Card
        if request.HasField("relationship"):
            r = request.relationship
            card = Relationship(r.trust, r.affinity, tuple(r.promises), tuple(r.betrayals))
            cards.check("relationship", card)
            body["relationship"] = cards.to_body(card)
        if request.HasField("quest"):
            card = Quest(tuple(request.quest.active), tuple(request.quest.milestones))
            cards.check("quest", card)
            body["quest"] = cards.to_body(card)
        if not body:
            raise CallerError("relationship", "give relationship, quest, or both")
        accepted = await self._memory.keep(Kind.CARD, npc.key, player, body)
        return npcs_pb2.SetCardsResponse(accepted=accepted, accepted_known=self._memory.keeps)

    async def recall(self, tenant: str, request: npcs_pb2.RecallRequest) -> npcs_pb2.RecallResponse:
        """The memories of an NPC about a player."""
        npc = self._worlds.npc(tenant, request.world_id, request.npc_id)
        recalled = await self._memory.recall(npc.key, check_id("player_id", request.player_id))
        bond, now_ms = recalled.bond, self._memory.wall_ms()
        answer = npcs_pb2.RecallResponse(
            player_name=bond.name,
            facts=[
                npcs_pb2.Fact(
                    text=with_name(f.text, bond.name), importance=f.importance, age_ms=whole(now_ms - f.at_ms, 64)
                )
                for f in bond.facts
            ],
            summaries=[
                npcs_pb2.SessionSummary(text=with_name(s.text, bond.name), age_ms=whole(now_ms - s.at_ms, 64))
                for s in bond.summaries
            ],
            mood=mood(bond.moods, now_ms),
            stores=recalled.stores,
            late=recalled.late,
        )
        if (r := bond.relationship) is not None:
            answer.relationship.CopyFrom(
                npcs_pb2.RelationshipCard(
                    trust=r.trust, affinity=r.affinity, promises=r.promises, betrayals=r.betrayals
                )
            )
        if (q := bond.quest) is not None:
            answer.quest.CopyFrom(npcs_pb2.QuestCard(active=q.active, milestones=q.milestones))
        return answer
