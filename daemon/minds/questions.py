"""Questions about NPCs, and the works that ask them: what an NPC does, what it would do, and its trunk alone."""

from __future__ import annotations

from collections.abc import Callable

from core.observation import Observation
from core.words import NpcKey
from core.work import Work
from daemon.minds.attention import PLAYER_KIND
from daemon.minds.mind import Mind, Question
from daemon.worlds.guide import Guide
from daemon.worlds.works import Works
from daemon.worlds.world import Npc
from daemon.worlds.worlds import Worlds
from tiers.routing import WorkKind


class Questions:
    """Makes questions and works. `digest` gives the card digest of an NPC towards a player."""

    def __init__(self, worlds: Worlds, works: Works, guide: Guide, digest: Callable[[NpcKey, str], str]) -> None:
        self._worlds = worlds
        self._works = works
        self._guide = guide
        self._route = guide.own(WorkKind.INTENT)
        self._ahead_route = guide.own(WorkKind.PREDICTION)
        self._layout = guide.layout(self._route)
        self._digest = digest
        # The cost of a question, for the share: as much as its tail may hold, and the choice.
        self.tokens_each = self._layout.caps.intent_tail + self._route.output_max
        self.percepts_max = self._layout.caps.percepts  # of those that make an NPC's state

    def about(self, mind: Mind, seen: Observation, state: str, due_ns: int) -> Question:
        """A question about what an NPC sees, or may see soon. Nothing is asked yet."""
        world = self._worlds.of_npc(mind.npc.key)
        perception = self._layout.perceive(seen)
        nearest = next((p.entity_id for p in perception.percepts if p.kind == PLAYER_KIND), "")  # the most notable one
        digest = self._digest(mind.npc.key, nearest) if nearest else ""
        tail = self._layout.intent_tail(perception, digest)
        return Question(mind, mind.npc, world, seen, state, perception, tail, due_ns)

    def intent(self, q: Question) -> Work:
        """The work that asks what the NPC does."""
        npc, choice = q.mind.npc, q.world.choices[len(q.perception.percepts)]
        route = self._guide.route(WorkKind.INTENT, npc)
        return self._works.chooses(npc, route, q.tail, choice, q.due_ns, (npc.key, "intent"))

    def prediction(self, q: Question) -> Work:
        """The work that asks what the NPC would do."""
        npc, choice = q.mind.npc, q.world.choices[len(q.perception.percepts)]
        supersede = (npc.key, "prediction", q.state)
        route = self._guide.route(WorkKind.PREDICTION, npc)
        return self._works.chooses(npc, route, q.tail, choice, q.due_ns, supersede)

    def cost_ahead(self, q: Question) -> int:
        """Tokens that a prediction takes."""
        return len(q.tail.tokens) + self._ahead_route.output_max

    def trunk(self, npc: Npc, now_ns: int) -> Work:
        """The work that brings an NPC's trunk into place, and asks nothing."""
        route = self._guide.route(WorkKind.TRUNK, npc)
        return self._works.ready(npc, route, now_ns, (npc.key, "trunk"))
