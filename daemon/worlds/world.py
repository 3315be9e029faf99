"""A world and an NPC as they are now: values that the tables in daemon/worlds/worlds.py hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from core.choice import Choice
from core.script import Script, Section
from core.words import NpcKey, TrunkKey
from engines.lora import Adapter
from prompts.choices import ActionWord
from tiers.policy import PolicyRow


class Voice(NamedTuple):
    """The adapter that an NPC speaks with on one engine, and the one that computes its trunks (content hashes; empty:
    the base model).
    """

    adapter: str = ""
    trunk_adapter: str = ""


BASE = Voice()
NO_VOICES: Mapping[str, Voice] = MappingProxyType({})  # most NPCs', so that they share one


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
    adapters: dict[str, Mapping[str, Adapter]]  # by archetype, and then by engine: those that have one for it
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
    came. `voices` are by engine; on an engine that is not there the base model speaks.
    """

    key: NpcKey
    number: int
    archetype_id: str
    persona_id: str
    persona: Section
    lease_epoch: int
    script: Script
    spec: bytes
    voices: Mapping[str, Voice] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The NPC's name."""
        return self.persona.name

    def voice(self, engine: str) -> Voice:
        """The voice that the NPC speaks with on an engine."""
        return self.voices.get(engine, BASE)

    def trunk_key(self, partner: str, engine: str = "") -> TrunkKey:
        """Names its trunk on an engine towards a partner (empty: none, for intents)."""
        return TrunkKey(self.key, partner, self.voice(engine).trunk_adapter)
