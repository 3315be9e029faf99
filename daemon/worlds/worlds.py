"""Worlds and the NPCs in them: definitions checked against their caps, scripts of the NPCs, leases.

Owns both tables; used on the event loop only. Nothing here waits: long work is a generator of steps (core/slices.py),
which first makes all that is new and then puts it into the tables in one step, the last. Callers that rest between the
steps keep other changes of the same world away meanwhile (daemon/rpc/changes.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import structlog
from google.protobuf.message import DecodeError

from core.choice import Choice
from core.errors import CallerError, NotFound, Overloaded, Stale
from core.script import Script, Section, SectionKind
from core.steps import Steps, at_once, every
from core.texts import check_name, check_prose, cleaned, cleaned_line, cleaned_name, line_fault, name_fault
from core.words import NpcKey, TrunkKey
from daemon.wire import parsing, writing
from daemon.words import check_id, policy_rows
from daemon.worlds.language import check_language, texts_of, warnings_of, well_formed
from engines.lora import Adapter, Adapters
from npcd.v1 import npcs_pb2
from prompts.caps import TooLong
from prompts.choices import ActionWord, intents
from prompts.layout import Layout, world_sections
from tiers.policy import PolicyRow
from tiers.policy_table import Sections, WorldWords, compiling_table, why_not

NPCS_TOLD = 5  # in a warning
PERSONAS_TOLD_LEN = 200  # characters: a status is cut at 300
HASHED_BYTES = 64 << 10  # in one step
AT_ONCE = 256  # NPCs that are put into a table in one step

log = structlog.get_logger("npcd")


@dataclass(frozen=True, slots=True)
class WorldLimits:
    """How much one world may define, and how many worlds and NPCs this daemon takes in."""

    archetypes_max: int = 64
    """Archetypes of one world."""
    actions_max: int = 64
    """Action words of one world."""
    emotions_max: int = 32
    """Emotion words of one world."""
    personas_max: int = 4096
    """Personas of one world."""
    policy_rows_max: int = 512
    """Rule policy rows of one world."""
    worlds_max: int = 64
    """Worlds in this daemon, of all tenants together."""
    npcs_max: int = 20_000
    """NPCs in this daemon, of all tenants together."""
    npcs_per_call_max: int = 10_000
    """NPCs in one Register call."""
    policy_file: str = ""
    """TOML file with a rule policy for all worlds; its sections take the place of those that come with npcd."""


@dataclass(slots=True, eq=False)
class World:
    """One world as it is now. `prefixes` are the sections that an archetype's NPCs share; `choices` the allowed intents
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
    prefixes: dict[str, tuple[Section, ...]]
    personas: dict[str, Section]
    choices: list[Choice]
    policy: list[PolicyRow]
    sections: list[tuple[str, int, int]]
    definition: bytes
    # What the definition names; `prefixes` also has the archetypes that only registered NPCs still have.
    archetypes: frozenset[str]
    npcs: dict[str, Npc] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)  # what the model was not trained on
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
        """What the NPC is called."""
        return self.persona.name

    def trunk_key(self, partner: str) -> TrunkKey:
        """Names its trunk towards a partner (empty: none, for intents)."""
        return TrunkKey(self.key, partner, self.trunk_adapter)


class _TooLong:
    """The personas of one request that are too long for a model: all of them are told, not one at each try."""

    def __init__(self, layouts: Sequence[Layout]) -> None:
        self._layouts = layouts
        self.found: list[tuple[str, TooLong]] = []

    def persona(self, said: npcs_pb2.Persona) -> Section:
        """Its section; it is noted when it is too long."""
        section = Section(SectionKind.PERSONA, said.text, said.name)
        try:
            for layout in self._layouts:
                layout.render(section)
        except TooLong as error:
            self.found.append((said.name, error))
        return section

    def check(self) -> None:
        """Raises CallerError when there is one."""
        if not self.found:
            return
        if len(self.found) == 1:
            raise self.found[0][1]
        named, room = [], PERSONAS_TOLD_LEN
        for name, error in self.found:
            named.append(f"{name} ({error.size})")
            room -= len(named[-1]) + 2
            if room < 0:
                named.pop()
                break
        more = f" and {len(self.found) - len(named)} more" if len(named) < len(self.found) else ""
        most = min(layout.caps.persona for layout in self._layouts)
        raise CallerError("personas", f"the limit is {most} tokens (caps.persona); shorten {', '.join(named)}{more}")


class Worlds:
    """All worlds of all tenants."""

    def __init__(
        self,
        layouts: Sequence[Layout],
        limits: WorldLimits,
        policy: Sections,
        adapters: Adapters | None = None,
        first_lease: Callable[[], int] = lambda: 0,
    ) -> None:
        """`layouts` are those of all models that may read a world: each text is checked against all of them, and
        responses count the first one's tokens.

        A new world's leases are above `first_lease`: a world that is defined again after it was deleted takes nothing
        from a game server which still holds a lease of the old one.
        """
        self._layouts = layouts
        self._layout = layouts[0]
        self._limits = limits
        self._policy = policy
        self._adapters = adapters
        self._first_lease = first_lease
        self._worlds: dict[tuple[str, str], World] = {}
        # Worlds that an earlier life of the daemon had and this one cannot have, and why.
        self.unusable: dict[tuple[str, str], str] = {}
        self._next_number = 0
        self._free_numbers: list[int] = []

    def __iter__(self) -> Iterator[World]:
        return iter(self._worlds.values())

    def __len__(self) -> int:
        return len(self._worlds)

    def of(self, tenant: str) -> list[World]:
        """A tenant's worlds, by their ids."""
        mine = [world for world in self._worlds.values() if world.tenant == tenant and not world.leaving]
        return sorted(mine, key=lambda world: world.world_id)

    @property
    def worlds_max(self) -> int:
        """How many worlds there may be, of all tenants together."""
        return self._limits.worlds_max

    @property
    def npcs(self) -> int:
        """How many NPCs are registered."""
        return sum(len(w.npcs) for w in self._worlds.values())

    def world(self, tenant: str, world_id: str) -> World:
        """The world. Raises CallerError or NotFound."""
        check_id("world_id", world_id)
        world = self._worlds.get((tenant, world_id))
        if world is None or world.leaving:
            raise NotFound("world_id", f"no world '{world_id}' is defined; call DefineWorld first")
        return world

    def find(self, tenant: str, world_id: str) -> World | None:
        """The world, if it is defined."""
        return self._worlds.get((tenant, world_id))

    def npc(self, tenant: str, world_id: str, npc_id: str) -> Npc:
        """The NPC. Raises CallerError or NotFound."""
        world = self.world(tenant, world_id)
        found = world.npcs.get(check_id("npc_id", npc_id))
        if found is None:
            raise NotFound("npc_id", f"no NPC '{npc_id}' is registered in world '{world_id}'; call Register first")
        return found

    def of_npc(self, key: NpcKey) -> World:
        """The world of a registered NPC, also while it is being deleted."""
        return self._worlds[key.tenant, key.world]

    def has_world(self, tenant: str, world_id: str) -> bool:
        """Whether callers find a world of this name."""
        world = self._worlds.get((tenant, world_id))
        return world is not None and not world.leaving

    def has(self, npc: Npc) -> bool:
        """Whether it is still registered, as this very NPC."""
        world = self._worlds.get((npc.key.tenant, npc.key.world))
        return world is not None and world.npcs.get(npc.key.npc) is npc

    def define(self, tenant: str, request: npcs_pb2.DefineWorldRequest) -> tuple[World, bool]:
        """Defines or changes a world; whether it changed. Nothing changes when an error is raised.

        Raises CallerError naming the section and its limit, Stale when expected_version is not the present one.
        """
        return at_once(self.defining(tenant, request))

    def defining(self, tenant: str, request: npcs_pb2.DefineWorldRequest) -> Steps[tuple[World, bool]]:
        """The same in steps."""
        check_id("world_id", request.world_id)
        old = self._worlds.get((tenant, request.world_id))
        assert old is None or not old.leaving, "a world is deleted to its end before it is defined again"
        content = yield from writing(request, leave_out="expected_version")
        content_hash = yield from _hashing(content)
        if request.expected_version and request.expected_version != (old.version if old else 0):
            present = old.version if old else 0
            raise Stale("expected_version", f"is {request.expected_version}, the world has version {present}")
        if old is not None and old.content_hash == content_hash:
            return old, False
        if old is None:
            self._check_room()
        new = yield from self._compiling(tenant, request, content, content_hash)
        if old is not None:
            new.version = old.version + 1
            new.lease_last = old.lease_last
            for npc_id, npc in old.npcs.items():
                new.npcs[npc_id] = self._moved(npc, old, new)
                yield
        else:
            self._check_room()  # others may have been defined meanwhile
            new.lease_last = self._first_lease()
            self.unusable.pop((tenant, request.world_id), None)
        self._worlds[tenant, request.world_id] = new
        return new, True

    def left_out(self, world: World) -> Steps[list[str]]:
        """A warning each when registered NPCs have an archetype, or a persona by its id, that the world's definition
        does not have any more. They go on until the daemon starts again; then they cannot be taken up.
        """
        archetypes, personas = [], []
        for npc, pause in every(64, list(world.npcs.values())):
            if pause:
                yield
            if npc.archetype_id not in world.archetypes:
                archetypes.append(npc.key.npc)
            if npc.persona_id and npc.persona_id not in world.personas:
                personas.append(npc.key.npc)
        found = (("archetypes", "an archetype", archetypes), ("personas", "a persona", personas))
        return [_left_out(section, what, npc_ids) for section, what, npc_ids in found if npc_ids]

    def _check_room(self) -> None:
        most = self._limits.worlds_max
        if len(self._worlds) >= most:
            raise Overloaded(
                f"the daemon's limit of {most} worlds (worlds.worlds_max) is reached; delete one with DeleteWorld",
                60_000,
            )

    def _check_npcs(self, new: int) -> None:
        most = self._limits.npcs_max  # how many others have is theirs to know
        if self.npcs + new > most:
            raise Overloaded(f"{new} more NPCs exceed the daemon's limit of {most} (worlds.npcs_max)", 60_000)

    def needs_composing(self, request: npcs_pb2.DefineWorldRequest) -> bool:
        """Whether define() would read and write files first: let compose() do it, on another thread."""
        return self._adapters is not None and any(
            a.adapter not in self._adapters for a in request.archetypes if a.adapter
        )

    def compose(self, request: npcs_pb2.DefineWorldRequest) -> None:
        """Makes the stacks of adapters that a definition names. Any thread may call. Raises CallerError."""
        for i, archetype in enumerate(request.archetypes):
            self._adapter(i, archetype)

    def register(self, tenant: str, request: npcs_pb2.RegisterRequest) -> tuple[World, list[Npc], list[Npc]]:
        """(the world, the NPCs of the request, those of them that are new or changed). All or none.

        An NPC that is registered already keeps its lease, whatever its spec says now, unless take_over; with the same
        spec nothing changes.
        """
        return at_once(self.registering(tenant, request))

    def registering(self, tenant: str, request: npcs_pb2.RegisterRequest) -> Steps[tuple[World, list[Npc], list[Npc]]]:
        """The same in steps."""
        world = self.world(tenant, request.world_id)
        limit = self._limits.npcs_per_call_max
        if not 1 <= len(request.npcs) <= limit:
            raise CallerError("npcs", f"{len(request.npcs)} NPCs, must be 1 to {limit}")
        too_long = _TooLong(self._layouts)
        epoch = world.lease_last + 1
        npcs: list[Npc] = []
        named: set[str] = set()
        changed: list[Npc] = []
        new: list[Npc] = []
        leased = False
        try:
            for i, spec in enumerate(request.npcs):
                check_id(f"npcs[{i}].npc_id", spec.npc_id)
                if spec.npc_id in named:
                    raise CallerError(f"npcs[{i}].npc_id", f"'{spec.npc_id}' stands twice in the request")
                named.add(spec.npc_id)
                old = world.npcs.get(spec.npc_id)
                npc = self._made(world, i, spec, old, epoch, request.take_over, too_long)
                npcs.append(npc)
                if npc is not old:
                    changed.append(npc)
                    leased = leased or npc.lease_epoch == epoch
                    if old is None:
                        new.append(npc)
                yield
            too_long.check()
            while named:
                named.pop()
                yield
            # Many are put into another table, which then takes the place of the present one.
            table = (yield from _table_with(world.npcs, changed)) if len(changed) > AT_ONCE else None
            self._check_npcs(len(new))
        except BaseException:
            self._free_numbers += [npc.number for npc in new]
            raise
        if leased:
            world.lease_last = epoch
        if table is None:
            world.npcs.update((npc.key.npc, npc) for npc in changed)
        else:
            before, world.npcs = world.npcs, table
            while before:
                before.popitem()
                yield
        return world, npcs, changed

    def revive(
        self, tenant: str, definition: bytes, version: int, lease_last: int, npcs: Sequence[tuple[bytes, int]]
    ) -> World:
        """A world and its NPCs (spec, lease epoch) as an earlier life of the daemon, or a save, had them.

        What is defined or registered here already stays as it is. Raises CallerError when this model or these limits
        cannot have it; NPCs have their leases until the daemon has as many as it may.
        """
        return at_once(self.reviving(tenant, definition, version, lease_last, npcs))

    def reviving(
        self, tenant: str, definition: bytes, version: int, lease_last: int, npcs: Sequence[tuple[bytes, int]]
    ) -> Steps[World]:
        """The same in steps."""
        request = yield from parsing(npcs_pb2.DefineWorldRequest, definition)
        if not well_formed(request.language):
            request.language = ""  # earlier versions took any text, and a save is not to be lost for that
        yield from _cleaning(request)
        old = self._worlds.get((tenant, request.world_id))
        world = old or (yield from self.defining(tenant, request))[0]
        if old is None:
            world.version, world.lease_last = max(version, 1), lease_last
        for spec, epoch in npcs:
            yield
            npc_id = ""
            try:
                parsed = npcs_pb2.NpcSpec.FromString(spec)
                npc_id = parsed.npc_id
                if parsed.npc_id in world.npcs:
                    continue
                _clean_persona(parsed.persona)
                self._check_npcs(1)
                check_id("npcs[0].npc_id", parsed.npc_id)
                too_long = _TooLong(self._layouts)
                npc = self._made(world, 0, parsed, None, epoch, False, too_long)
                try:
                    too_long.check()
                except CallerError:
                    self._free_numbers.append(npc.number)
                    raise
                world.npcs[parsed.npc_id] = npc
            except (CallerError, DecodeError) as error:
                # The world has changed since it was registered; the others are not to suffer.
                why = str(error)
                log.warning("an NPC could not be taken up again", world=world.world_id, npc=npc_id, reason=why)
            world.lease_last = max(world.lease_last, epoch)
        return world

    def take_out(self, world: World) -> Iterator[Npc]:
        """Takes a leaving world's NPCs out one by one, and then the world itself."""
        assert world.leaving
        while world.npcs:
            _, npc = world.npcs.popitem()
            self._free_numbers.append(npc.number)
            yield npc
        del self._worlds[world.tenant, world.world_id]

    def remove(self, tenant: str, world_id: str, npc_ids: Sequence[str]) -> tuple[list[Npc], list[str]]:
        """(NPCs that were taken out, ids that nobody knows)."""
        return at_once(self.removing(tenant, world_id, npc_ids))

    def removing(self, tenant: str, world_id: str, npc_ids: Sequence[str]) -> Steps[tuple[list[Npc], list[str]]]:
        """The same in steps: they are taken out one after the other."""
        world = self.world(tenant, world_id)
        removed, unknown = [], []
        for npc_id, pause in every(32, npc_ids):
            if pause:
                yield
            npc = world.npcs.pop(npc_id, None)
            if npc is None:
                unknown.append(npc_id)
            else:
                removed.append(npc)
                self._free_numbers.append(npc.number)
        return removed, unknown

    def _made(
        self,
        world: World,
        i: int,
        spec: npcs_pb2.NpcSpec,
        old: Npc | None,
        epoch: int,
        take_over: bool,
        too_long: _TooLong,
    ) -> Npc:
        """The NPC of a spec, in no table yet: `old` itself when nothing changes. `epoch` is its lease if it is new or
        taken over.

        Raises CallerError naming the i-th NPC.
        """
        if spec.archetype_id not in world.prefixes:
            known = ", ".join(sorted(world.prefixes))
            raise CallerError(f"npcs[{i}].archetype_id", f"'{spec.archetype_id}' is not one of {known}")
        persona = self._persona(world, i, spec, too_long)
        prefix = world.prefixes[spec.archetype_id]
        script = Script((*prefix, persona), len(prefix))
        adapter, trunk_adapter = _hashes(world.adapters.get(spec.archetype_id))
        written = spec.SerializeToString()
        if old is not None and not take_over:
            if _is_same(old, written, script, adapter):
                return old
            epoch = old.lease_epoch
        number = old.number if old else self._number()
        key = NpcKey(world.tenant, world.world_id, spec.npc_id)
        if not too_long.found:
            self._render(script)
        return Npc(key, number, spec.archetype_id, spec.persona_id, persona, epoch, script, written, adapter,
                   trunk_adapter)  # fmt: skip

    def _render(self, script: Script) -> None:
        """Renders a script now, so that no intent waits for it."""
        for layout in self._layouts:
            layout.trunk(script)

    def _measured(self, section: Section) -> int:
        """Renders a section for every model; its tokens in the first one's. Raises TooLong."""
        for layout in self._layouts:
            layout.render(section)
        return len(self._layout.render(section).tokens)

    def _number(self) -> int:
        if self._free_numbers:
            return self._free_numbers.pop()
        self._next_number += 1
        return self._next_number - 1

    def _persona(self, world: World, i: int, spec: npcs_pb2.NpcSpec, too_long: _TooLong) -> Section:
        if spec.persona_id:
            if spec.persona_id not in world.personas:
                raise CallerError(f"npcs[{i}].persona_id", f"'{spec.persona_id}' is not defined in the world")
            return world.personas[spec.persona_id]
        if not spec.persona.name:
            raise CallerError(f"npcs[{i}].persona.name", "is empty; give persona_id or an inline persona")
        check_name(f"npcs[{i}].persona.name", spec.persona.name)
        check_prose(f"npcs[{i}].persona.text", spec.persona.text)
        return too_long.persona(spec.persona)

    def _moved(self, npc: Npc, old: World, new: World) -> Npc:
        """The same NPC in the changed world; personas that the world no longer has keep their old text."""
        prefix = new.prefixes.get(npc.archetype_id, old.prefixes[npc.archetype_id])
        new.prefixes.setdefault(npc.archetype_id, prefix)
        adapter, trunk_adapter = _hashes(new.adapters.setdefault(npc.archetype_id, old.adapters.get(npc.archetype_id)))
        persona = new.personas.get(npc.persona_id, npc.persona)
        script = Script((*prefix, persona), len(prefix))
        self._render(script)
        return replace(npc, persona=persona, script=script, adapter=adapter, trunk_adapter=trunk_adapter)

    def _compiling(
        self, tenant: str, request: npcs_pb2.DefineWorldRequest, content: bytes, content_hash: str
    ) -> Steps[World]:
        limits, layout = self._limits, self._layout
        _count("archetypes", len(request.archetypes), 1, limits.archetypes_max)
        _count("actions", len(request.actions), 1, limits.actions_max)
        _count("emotions", len(request.emotions), 1, limits.emotions_max)
        _count("personas", len(request.personas), 0, limits.personas_max)
        _count("policy.rows", len(request.policy.rows), 0, limits.policy_rows_max)
        actions = [
            ActionWord(_word(f"actions[{i}].word", a.word), a.needs_target, a.speaks)
            for i, a in enumerate(request.actions)
        ]
        emotions = [_word(f"emotions[{i}]", e) for i, e in enumerate(request.emotions)]
        _unique("actions", [a.word for a in actions])
        _unique("emotions", emotions)
        _unique("archetypes", [a.archetype_id for a in request.archetypes])
        base = world_sections(check_prose("lore", request.lore), actions, emotions)
        told = sum(self._measured(section) for section in base) - len(layout.ends.rules)
        sections = [("lore and words", told, layout.caps.lore + layout.caps.words)]
        prefixes: dict[str, tuple[Section, ...]] = {}
        adapters = {a.archetype_id: self._adapter(i, a) for i, a in enumerate(request.archetypes)}
        for i, a in enumerate(request.archetypes):
            yield
            check_id(f"archetypes[{i}].archetype_id", a.archetype_id)
            described = check_prose(f"archetypes[{i}].description", a.description)
            archetype = Section(SectionKind.ARCHETYPE, described, a.archetype_id)
            sections.append((f"archetype:{a.archetype_id}", self._measured(archetype), layout.caps.archetype))
            prefixes[a.archetype_id] = (*base, archetype)
        personas: dict[str, Section] = {}
        too_long = _TooLong(self._layouts)
        for i, p in enumerate(request.personas):
            yield
            check_id(f"personas[{i}].persona_id", p.persona_id)
            if p.persona_id in personas:
                raise CallerError("personas", f"'{p.persona_id}' stands twice")
            check_name(f"personas[{i}].name", p.name)
            check_prose(f"personas[{i}].text", p.text)
            personas[p.persona_id] = too_long.persona(p)
            if not too_long.found:
                tokens = self._measured(personas[p.persona_id])
                sections.append((f"persona:{p.persona_id}", tokens, layout.caps.persona))
        too_long.check()
        yield
        choices = intents(actions, emotions, layout.caps.percepts)
        for reader in self._layouts:
            yield from reader.graphs_in_steps(choices)
        policy = yield from self._table(request, actions, emotions)
        warnings = yield from self._warnings(request)
        return World(
            tenant=tenant,
            world_id=request.world_id,
            version=1,
            content_hash=content_hash,
            language=check_language("language", request.language),
            adapters=adapters,
            actions=actions,
            emotions=emotions,
            prefixes=prefixes,
            personas=personas,
            choices=choices,
            policy=policy,
            sections=sections,
            warnings=warnings,
            definition=content,
            archetypes=frozenset(a.archetype_id for a in request.archetypes),
        )

    def _warnings(self, request: npcs_pb2.DefineWorldRequest) -> Steps[list[str]]:
        if not self._layout.native:
            return []  # nobody knows what words another model was trained on
        texts = texts_of(request.lore, (a.description for a in request.archetypes), (p.text for p in request.personas))
        knows = self._layout.knows
        out = warnings_of(knows, [a.word for a in request.actions], request.emotions, {})
        for what, text in texts.items():
            yield
            out += warnings_of(knows, (), (), {what: text})
        return out

    def _adapter(self, i: int, archetype: npcs_pb2.Archetype) -> Adapter | None:
        if not archetype.adapter:
            return None
        if self._adapters is None:
            raise CallerError(f"archetypes[{i}].adapter", f"there is no adapter '{archetype.adapter}'; there are none")
        return self._adapters.find(archetype.adapter, f"archetypes[{i}].adapter")

    def _table(
        self, request: npcs_pb2.DefineWorldRequest, actions: Sequence[ActionWord], emotions: Sequence[str]
    ) -> Steps[list[PolicyRow]]:
        words = WorldWords(
            archetypes=[a.archetype_id for a in request.archetypes],
            actions=[a.word for a in actions],
            targeted=[a.word for a in actions if a.needs_target],
            emotions=emotions,
        )
        own = yield from policy_rows(request.policy)
        for i, row in enumerate(own):
            yield
            field_name, reason = why_not(row, words)
            if reason:
                raise CallerError(f"policy.rows[{i}]" + (f".{field_name}" if field_name else ""), reason)
        return (yield from compiling_table(own, self._policy, words)).rows


def _left_out(section: str, what: str, npc_ids: Sequence[str]) -> str:
    """The warning about registered NPCs that have what a section does not define any more."""
    count, named = len(npc_ids), ", ".join(sorted(npc_ids)[:NPCS_TOLD])
    more = f" and {count - NPCS_TOLD} more" if count > NPCS_TOLD else ""
    npcs, have, them = ("NPC", "has", "it") if count == 1 else ("NPCs", "have", "them")
    return (
        f"{section}: {count} registered {npcs} {have} {what} that this definition leaves out: {named}{more}; "
        f"npcd keeps {them} until it restarts, and cannot take {them} up again then; "
        f"define it again, or register {them} with another one"
    )


def _table_with(npcs: dict[str, Npc], changed: Sequence[Npc]) -> Steps[dict[str, Npc]]:
    """A world's NPCs with those that changed, as another table."""
    table: dict[str, Npc] = {}
    for (npc_id, npc), pause in every(64, npcs.items()):
        table[npc_id] = npc
        if pause:
            yield
    for npc, pause in every(64, changed):
        table[npc.key.npc] = npc
        if pause:
            yield
    return table


def _is_same(npc: Npc, spec: bytes, script: Script, adapter: str) -> bool:
    """True when an NPC is registered as this very spec makes it."""
    # Two specs may make the same script; the personas they name may change apart later.
    return npc.spec == spec and npc.adapter == adapter and npc.script == script


def _hashes(adapter: Adapter | None) -> tuple[str, str]:
    """What is spoken with, and what trunks are computed with."""
    return ("", "") if adapter is None else (adapter.sha, adapter.trunk_sha)


def _hashing(content: bytes) -> Steps[str]:
    sha = hashlib.sha256()
    for at in range(0, len(content), HASHED_BYTES):
        sha.update(content[at : at + HASHED_BYTES])
        yield
    return sha.hexdigest()


def _cleaning(request: npcs_pb2.DefineWorldRequest) -> Steps[None]:
    """Takes out what earlier versions took as text: a save, or a world of an earlier life, is not to be lost for it."""
    request.lore = cleaned(request.lore)
    for archetype in request.archetypes:
        archetype.description = cleaned(archetype.description)
    for persona in request.personas:
        yield
        _clean_persona(persona)
    for row in request.policy.rows:
        for name in ("percept_kind", "percept_stance", "event", "time_of_day", "bark"):
            if line_fault(getattr(row, name)):
                setattr(row, name, cleaned_line(getattr(row, name)))


def _clean_persona(persona: npcs_pb2.Persona) -> None:
    if name_fault(persona.name):
        persona.name = cleaned_name(persona.name)
    persona.text = cleaned(persona.text)


def _word(field: str, value: str) -> str:
    check_name(field, value)
    if value != " ".join(value.split()) or len(value.split()) > 3:
        raise CallerError(field, f"'{value}' must be one to three words with single spaces")
    return value


def _count(field: str, count: int, low: int, high: int) -> None:
    if not low <= count <= high:
        raise CallerError(field, f"{count} given, must be {low} to {high}")


def _unique(field: str, values: Sequence[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise CallerError(field, f"'{value}' stands twice")
        seen.add(value)
