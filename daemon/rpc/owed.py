"""Records that could not be written to the journal when they were made, and are retried until they are in it.

A full disk refuses records. Then players to be forgotten, and worlds and NPCs that were defined, registered or removed,
are owed: daemon/rpc/upkeep.py retries them once a second, with longer pauses while it fails. Decides only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from core.clock import S

FORGETS_MAX = 10_000
WORLDS_MAX = 1_000
PAUSE_FIRST_NS, PAUSE_MOST_NS = 1 * S, 30 * S


class Forgotten(NamedTuple):
    """A player to be forgotten by one NPC of a world, or by all of them when `npc` is empty."""

    tenant: str
    world: str
    npc: str
    player: str


@dataclass(slots=True)
class OwedWorld:
    """The parts of a world that the journal lacks: its definition, and these NPCs, registered or removed."""

    definition: bool = False
    npcs: set[str] = field(default_factory=set)


class Owed:
    """Owns the list. Invariant: at most FORGETS_MAX players and WORLDS_MAX worlds."""

    def __init__(self) -> None:
        self.forgets: dict[Forgotten, None] = {}
        self.worlds: dict[tuple[str, str], OwedWorld] = {}
        self._again_ns = 0
        self._pause_ns = PAUSE_FIRST_NS

    def __bool__(self) -> bool:
        return bool(self.forgets or self.worlds)

    def forget(self, who: Forgotten) -> bool:
        """Notes a player to be forgotten. Returns False if there is no room for it."""
        if who not in self.forgets and len(self.forgets) >= FORGETS_MAX:
            return False
        self.forgets[who] = None
        return True

    def write(self, tenant: str, world: str, npcs: Iterable[str] = (), definition: bool = False) -> None:
        """Notes parts of a world that the journal did not take. Beyond WORLDS_MAX worlds nothing is noted."""
        if (tenant, world) in self.worlds or len(self.worlds) < WORLDS_MAX:
            owed = self.worlds.setdefault((tenant, world), OwedWorld())
            owed.definition |= definition
            owed.npcs.update(npcs)

    def paid(self, what: Forgotten | tuple[str, str]) -> None:
        """It is in the journal now, or no longer wanted."""
        if isinstance(what, Forgotten):
            self.forgets.pop(what, None)
        else:
            self.worlds.pop(what, None)

    def due(self, now_ns: int) -> bool:
        """True when it is time to retry."""
        return bool(self) and now_ns >= self._again_ns

    def tried(self, well: bool, now_ns: int) -> None:
        """A try is over: after one that failed the next pause is twice as long."""
        self._pause_ns = PAUSE_FIRST_NS if well else min(2 * self._pause_ns, PAUSE_MOST_NS)
        self._again_ns = now_ns + (0 if well else self._pause_ns)
