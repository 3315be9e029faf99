"""Says which route a work takes: that of its kind, to the engine that the route's rows name for this NPC now.

It gathers the facts that rows ask about; tiers/routing.py decides.
"""

from __future__ import annotations

from collections.abc import Callable

from core.script import Script
from core.words import Activation, NpcKey
from daemon.worlds.works import Works
from daemon.worlds.world import Npc
from prompts.layout import Layout
from tiers.conditions import Facts
from tiers.routing import Directions, Route, Routes, WorkKind


class Guide:
    """Routes for NPCs. `activation` says how much attention an NPC gets now."""

    def __init__(self, routes: Routes, works: Works, activation: Callable[[NpcKey], Activation]) -> None:
        self._directions = Directions(routes)
        self._works = works
        self._activation = activation

    def own(self, kind: WorkKind) -> Route:
        """The route of a kind to its own engine, whatever its rows say."""
        return self._directions.own(kind)

    def to(self, kind: WorkKind, engine: str) -> Route:
        """The route of a kind to one of the engines."""
        return self._directions.to(kind, engine)

    def follows(self, kind: WorkKind) -> bool:
        """True if works of this kind go where those go that they belong to."""
        return self._directions.follows(kind)

    def layout(self, route: Route) -> Layout:
        """The layout of the model that works of a route go to."""
        return self._works.layout(route)

    def route(self, kind: WorkKind, npc: Npc, script: Script | None = None) -> Route:
        """The route of a work about an NPC. `script` is what its trunk has (None: the NPC's own)."""
        own = self._directions.own(kind)
        if not self._directions.asks(kind):
            return own
        context = len(self._works.layout(own).trunk(script or npc.script).tokens)
        activation = self._activation(npc.key).name.lower()
        facts = Facts(npc.key.world, npc.archetype_id, npc.persona_id, activation, context)
        return self._directions.of(kind, facts)
