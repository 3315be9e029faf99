"""The state that the journal alone gives: worlds, NPCs and bonds, folded from its records.

For a daemon that starts again without the recent store. Plain: records come in one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from core.words import NpcKey
from memory.bond import Bond, apply
from memory.bonds import ABOUT_A_PLAYER
from memory.records import Kind, Record

WorldKey = tuple[str, str]  # tenant and world


@dataclass(slots=True)
class WorldState:
    """A world: base64 of its definition, NPCs as id -> (base64 of the spec, lease epoch)."""

    definition: str = ""
    version: int = 0
    lease_last: int = 0
    timeline: str = ""
    npcs: dict[str, tuple[str, int]] = field(default_factory=dict)


class State:
    """A fold over records, the oldest first. `load` gives the bonds of a save's file."""

    def __init__(self, load: Callable[[str], Mapping[tuple[str, str], Bond]]) -> None:
        self.worlds: dict[WorldKey, WorldState] = {}
        self.bonds: dict[tuple[NpcKey, str], Bond] = {}
        self._load = load

    def apply(self, record: Record) -> None:
        """Takes one record in."""
        key = (record.tenant, record.world)
        if record.kind in ABOUT_A_PLAYER:
            apply(self.bonds.setdefault((record.key, record.player), Bond()), record)
        elif record.kind is Kind.FORGET:
            self._drop(lambda npc, who: who == record.player and record.npc in ("", npc.npc), key)
        elif record.kind is Kind.DELETED:
            self.worlds.pop(key, None)
            self._drop(lambda npc, who: True, key)
        elif record.kind in (Kind.WORLD, Kind.NPCS, Kind.REMOVED, Kind.RESTORED):
            self._world(self.worlds.setdefault(key, WorldState()), record)

    def _world(self, world: WorldState, record: Record) -> None:
        body = record.body
        if record.kind is Kind.WORLD:
            world.definition, world.version = body["definition"], body["version"]
            world.timeline = record.timeline or world.timeline
            world.lease_last = max(world.lease_last, body["lease_last"])
        elif record.kind is Kind.NPCS:
            for npc_id, spec, epoch in body["npcs"]:
                world.npcs[npc_id] = (spec, epoch)
                world.lease_last = max(world.lease_last, epoch)
        elif record.kind is Kind.REMOVED:
            for npc_id in body["npcs"]:
                world.npcs.pop(npc_id, None)
        else:
            world.timeline = record.timeline
            key = (record.tenant, record.world)
            self._drop(lambda npc, who: True, key)
            for (npc_id, player), bond in self._load(body["file"]).items():
                self.bonds[NpcKey(*key, npc_id), player] = bond

    def _drop(self, of: Callable[[NpcKey, str], bool], world: WorldKey) -> None:
        for pair in [p for p in self.bonds if p[0][:2] == world and of(*p)]:
            del self.bonds[pair]
