"""A world and an NPC as they are now: values that the tables in daemon/worlds/worlds.py hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.choice import Choice
from core.script import Script, Section
from core.words import NpcKey, TrunkKey
from engines.lora import Adapter
from prompts.choices import ActionWord
from tiers.policy import PolicyRow


@dataclass(slots=True, eq=False)
class World:
    """One world as it is now. `prefixes` are the scripts that an archetype's NPCs share; `choices` the allowed intents
    by percepts; `definition` is the game's message as it came.
    """

    tenant: str
    world_id: str
    version: int
    content_hash: str
    language: str
    adapters: dict[str, Adapter | None]  # by archetype
    actions: list[ActionWord]
    emotions: list[str]
    prefixes: dict[str, Script]
    personas: dict[str, Section]
    choices: list[Choice]
    policy: list[PolicyRow]
    sections: list[tuple[str, int, int]]
    definition: bytes
    # Those of the definition; `prefixes` also has the archetypes that only registered NPCs still have.
    archetypes: frozenset[str]
    npcs: dict[str, Npc] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)  # about words that the model was not trained on
    lease_last: int = 0
    leaving: bool = False  # it is being deleted: no caller finds it any more


@dataclass(slots=True, eq=False)
class Npc:
    """One registered NPC. Its `script` is its archetype's prefix and its persona; `spec` is the game's message as it
    came. It speaks with `adapter`, and its trunks are computed with `trunk_adapter` (content hashes; empty: the base
    model).
    """

    key: NpcKey
    number: int
    archetype_id: str
    persona_id: str
    persona: Section
    lease_epoch: int
    script: Script
    spec: bytes
    adapter: str = ""
    trunk_adapter: str = ""

    @property
    def name(self) -> str:
        """The NPC's name."""
        return self.persona.name

    def trunk_key(self, partner: str) -> TrunkKey:
        """Names its trunk towards a partner (empty: none, for intents)."""
        return TrunkKey(self.key, partner, self.trunk_adapter)
