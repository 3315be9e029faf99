"""All worlds and the NPCs in them: they are defined, registered, found, taken up again from earlier lives, removed.

Owns both tables; used on the event loop only. Nothing here waits: long work is a generator of steps (core/slices.py),
which first makes all that is new and then puts it into the tables in one step, the last. Callers that rest between the
steps keep other changes of the same world away meanwhile (daemon/rpc/changes.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import structlog
from google.protobuf.message import DecodeError

from core.errors import CallerError, NotFound, Overloaded, Stale
from core.steps import Steps, at_once, every
from core.words import NpcKey
from daemon.wire import parsing, writing
from daemon.words import check_id
from daemon.worlds.definitions import Definitions, hashing
from daemon.worlds.earlier import clean_persona, cleaning
from daemon.worlds.limits import WorldLimits
from daemon.worlds.personas import Personas
from daemon.worlds.registration import Registration
from daemon.worlds.world import Npc, World
from engines.lora import Adapters
from npcd.v1 import npcs_pb2
from prompts.layout import Layout
from tiers.policy_table import Sections

NPCS_TOLD = 5  # in a warning
AT_ONCE = 256  # NPCs that are put into a table in one step

log = structlog.get_logger("npcd")


class Worlds:
    """All worlds of all tenants."""

    def __init__(
        self,
        layouts: Sequence[Layout],
        limits: WorldLimits,
        policy: Sections,
        adapters: Mapping[str, Adapters] = MappingProxyType({}),
        first_lease: Callable[[], int] = lambda: 0,
    ) -> None:
        """`layouts` are those of all models that may read a world: each text is checked against all of them, and
        responses count the first one's tokens. `adapters` are by engine.

        A new world's leases are above `first_lease`: a world that is defined again after it was deleted takes nothing
        from a game server which still holds a lease of the old one.
        """
        self.layouts = layouts
        self.definitions = Definitions(layouts, limits, policy, adapters)
        self._registration = Registration(layouts)
        self._limits = limits
        self._first_lease = first_lease
        self._worlds: dict[tuple[str, str], World] = {}
        # Worlds that an earlier life of the daemon had and this one cannot have, and why.
        self.unusable: dict[tuple[str, str], str] = {}

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
        """True when callers find a world of this name."""
        world = self._worlds.get((tenant, world_id))
        return world is not None and not world.leaving

    def has(self, npc: Npc) -> bool:
        """True while it is registered, as this very NPC."""
        world = self._worlds.get((npc.key.tenant, npc.key.world))
        return world is not None and world.npcs.get(npc.key.npc) is npc

    def define(self, tenant: str, request: npcs_pb2.DefineWorldRequest) -> tuple[World, bool]:
        """Defines or changes a world; True when it changed. Nothing changes when an error is raised.

        Raises CallerError naming the section and its limit, Stale when expected_version is not the present one.
        """
        return at_once(self.defining(tenant, request))

    def defining(self, tenant: str, request: npcs_pb2.DefineWorldRequest) -> Steps[tuple[World, bool]]:
        """The same in steps."""
        check_id("world_id", request.world_id)
        old = self._worlds.get((tenant, request.world_id))
        assert old is None or not old.leaving, "a world is deleted to its end before it is defined again"
        content = yield from writing(request, leave_out="expected_version")
        content_hash = yield from hashing(content)
        if request.expected_version and request.expected_version != (old.version if old else 0):
            present = old.version if old else 0
            raise Stale("expected_version", f"is {request.expected_version}, the world has version {present}")
        if old is not None and old.content_hash == content_hash:
            return old, False
        if old is None:
            self._check_room()
        new = yield from self.definitions.compiling(tenant, request, content, content_hash)
        if old is not None:
            new.version = old.version + 1
            new.lease_last = old.lease_last
            for npc_id, npc in old.npcs.items():
                new.npcs[npc_id] = self._registration.moved(npc, old, new)
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
        personas = Personas(self.layouts)
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
                npc = self._registration.made(world, i, spec, old, epoch, request.take_over, personas)
                npcs.append(npc)
                if npc is not old:
                    changed.append(npc)
                    leased = leased or npc.lease_epoch == epoch
                    if old is None:
                        new.append(npc)
                yield
            personas.check()
            while named:
                named.pop()
                yield
            # Many are put into another table, which then takes the place of the present one.
            table = (yield from _table_with(world.npcs, changed)) if len(changed) > AT_ONCE else None
            self._check_npcs(len(new))
        except BaseException:
            for npc in new:
                self._registration.give_back(npc)
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

        A world or NPC that is here already stays as it is. Raises CallerError when this model or these limits
        cannot have it; NPCs have their leases until the daemon has as many as it may.
        """
        return at_once(self.reviving(tenant, definition, version, lease_last, npcs))

    def reviving(
        self, tenant: str, definition: bytes, version: int, lease_last: int, npcs: Sequence[tuple[bytes, int]]
    ) -> Steps[World]:
        """The same in steps."""
        request = yield from parsing(npcs_pb2.DefineWorldRequest, definition)
        yield from cleaning(request)
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
                clean_persona(parsed.persona)
                self._check_npcs(1)
                check_id("npcs[0].npc_id", parsed.npc_id)
                personas = Personas(self.layouts)
                npc = self._registration.made(world, 0, parsed, None, epoch, False, personas)
                try:
                    personas.check()
                except CallerError:
                    self._registration.give_back(npc)
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
            self._registration.give_back(npc)
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
                self._registration.give_back(npc)
        return removed, unknown


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
