"""A spec becomes an NPC of its world: its persona, its script for every model, its adapters, lease and number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from core.errors import CallerError
from core.script import Script, Section
from core.texts import check_name, check_prose
from core.words import NpcKey
from daemon.worlds.personas import Personas
from daemon.worlds.world import NO_VOICES, Npc, Voice, World
from engines.lora import Adapter
from npcd.v1 import npcs_pb2
from prompts.layout import Layout


class Registration:
    """Makes NPCs. Owns their numbers: each is used by one NPC at a time."""

    def __init__(self, layouts: Sequence[Layout]) -> None:
        self._layouts = layouts
        self._next_number = 0
        self._free_numbers: list[int] = []

    def made(
        self,
        world: World,
        i: int,
        spec: npcs_pb2.NpcSpec,
        old: Npc | None,
        epoch: int,
        take_over: bool,
        personas: Personas,
    ) -> Npc:
        """The NPC of a spec, in no table yet: `old` itself when nothing changes. `epoch` is its lease if it is new or
        taken over.

        Raises CallerError naming the i-th NPC.
        """
        if spec.archetype_id not in world.prefixes:
            known = ", ".join(sorted(world.prefixes))
            raise CallerError(f"npcs[{i}].archetype_id", f"'{spec.archetype_id}' is not one of {known}")
        persona = self._persona(world, i, spec, personas)
        prefix = world.prefixes[spec.archetype_id]
        script = prefix.goes_on((persona,))
        voices = _voices(world.adapters.get(spec.archetype_id, {}))
        written = spec.SerializeToString()
        if old is not None and not take_over:
            if _is_same(old, written, script, voices):
                return old
            epoch = old.lease_epoch
        number = old.number if old else self._number()
        key = NpcKey(world.tenant, world.world_id, spec.npc_id)
        if not personas.found:
            self._render(script)
        return Npc(key, number, spec.archetype_id, spec.persona_id, persona, epoch, script, written, voices)

    def moved(self, npc: Npc, old: World, new: World) -> Npc:
        """The same NPC in the changed world; personas that the world no longer has keep their old text."""
        prefix = new.prefixes.get(npc.archetype_id, old.prefixes[npc.archetype_id])
        new.prefixes.setdefault(npc.archetype_id, prefix)
        voices = _voices(new.adapters.setdefault(npc.archetype_id, old.adapters.get(npc.archetype_id, {})))
        persona = new.personas.get(npc.persona_id, npc.persona)
        script = prefix.goes_on((persona,))
        self._render(script)
        return replace(npc, persona=persona, script=script, voices=voices)

    def _persona(self, world: World, i: int, spec: npcs_pb2.NpcSpec, personas: Personas) -> Section:
        if spec.persona_id:
            if spec.persona_id not in world.personas:
                raise CallerError(f"npcs[{i}].persona_id", f"'{spec.persona_id}' is not defined in the world")
            return world.personas[spec.persona_id]
        if not spec.persona.name:
            raise CallerError(f"npcs[{i}].persona.name", "is empty; give persona_id or an inline persona")
        check_name(f"npcs[{i}].persona.name", spec.persona.name)
        check_prose(f"npcs[{i}].persona.text", spec.persona.text)
        return personas.section(spec.persona, f"npcs[{i}].persona.text")

    def _render(self, script: Script) -> None:
        """Renders a script now, so that no intent waits for it."""
        for layout in self._layouts:
            layout.trunk(script)

    def give_back(self, npc: Npc) -> None:
        """An NPC is in no table any more, or came into none: its number is free."""
        self._free_numbers.append(npc.number)

    def _number(self) -> int:
        if self._free_numbers:
            return self._free_numbers.pop()
        self._next_number += 1
        return self._next_number - 1


def _is_same(npc: Npc, spec: bytes, script: Script, voices: Mapping[str, Voice]) -> bool:
    """True when an NPC is registered as this very spec makes it."""
    # Two specs may make the same script; the personas they name may change apart later.
    return npc.spec == spec and npc.voices == voices and npc.script == script


def _voices(adapters: Mapping[str, Adapter]) -> Mapping[str, Voice]:
    """The content hashes of an archetype's adapters, by engine."""
    return {engine: Voice(one.sha, one.trunk_sha) for engine, one in adapters.items()} if adapters else NO_VOICES
