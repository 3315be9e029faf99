"""Bonds in process: what NPCs hold of players who are about, as new as the last record.

A bond is *complete* when what is in the recent store was under it before records were folded in; otherwise it has what
happened here alone, and is asked for again when the store has caught up. A bond that the recent store does not have
yet in full is *unsaved* and is not put away, so that it cannot be read back old. Plain and synchronous; on the event
loop.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from core.words import NpcKey
from memory.bond import Bond, apply
from memory.records import Kind, Position, Record

Pair = tuple[NpcKey, str]
ABOUT_A_PLAYER = frozenset({Kind.TURN, Kind.ENDED, Kind.SUMMARY, Kind.CARD})


@dataclass(slots=True, eq=False)
class Held:
    """A bond in process. `writing` records are on their way to the journal; `unsaved_until` is the journal's position
    that the recent store must reach.
    """

    bond: Bond
    complete: bool
    writing: int = 0
    unsaved_until: Position | None = None

    @property
    def unsaved(self) -> bool:
        """Whether the recent store has less of it than we do."""
        return self.writing > 0 or self.unsaved_until is not None


class Bonds:
    """Invariant: at most held_max, except while the recent store is behind with more than that."""

    def __init__(self, held_max: int) -> None:
        self._held_max = held_max
        self._held: OrderedDict[Pair, Held] = OrderedDict()
        self._behind: set[Held] = set()  # with something unsaved, or that was so when it was looked at last

    def __len__(self) -> int:
        return len(self._held)

    def count(self, tenant: str) -> int:
        """How many are a tenant's."""
        return sum(1 for npc, _ in self._held if npc.tenant == tenant)

    def find(self, npc: NpcKey, player: str) -> Held | None:
        """The bond, if it is in process."""
        held = self._held.get((npc, player))
        if held is not None:
            self._held.move_to_end((npc, player))
        return held

    def put(self, npc: NpcKey, player: str, bond: Bond, complete: bool) -> Held:
        """Takes a bond in that a store gave."""
        held = self._held[npc, player] = Held(bond, complete)
        return held

    def fold(self, record: Record, complete: bool) -> Held:
        """Folds a record about a player in. A bond that was not here begins, `complete` if no store has more of it."""
        held = self.find(record.key, record.player) or self.put(record.key, record.player, Bond(), complete)
        apply(held.bond, record)
        return held

    def write(self, held: Held) -> None:
        """A record of this bond goes to the journal; written() follows."""
        held.writing += 1
        self._behind.add(held)

    def written(self, held: Held, until: Position) -> None:
        """The record stands before this position of the journal, or nowhere."""
        held.writing -= 1
        held.unsaved_until = until
        self._behind.add(held)

    def forget(self, tenant: str, world: str, player: str, npc: str = "") -> int:
        """Drops a player's bonds with one NPC, or with every NPC of a world; how many there were."""
        gone = [
            (key, who)
            for key, who in self._held
            if who == player and key[:2] == (tenant, world) and npc in ("", key.npc)
        ]
        for pair in gone:
            del self._held[pair]
        return len(gone)

    def of_world(self, tenant: str, world: str) -> dict[Pair, Held]:
        """The bonds of a world that are in process."""
        return {pair: held for pair, held in self._held.items() if pair[0][:2] == (tenant, world)}

    def drop_world(self, tenant: str, world: str) -> None:
        """Drops all bonds of a world."""
        for pair in self.of_world(tenant, world):
            del self._held[pair]

    def put_away(self, saved: Position | None) -> int:
        """Marks what the recent store has now (None: there is no such store) and makes room; how many are unsaved."""
        for held in list(self._behind):
            if held.unsaved_until is not None and saved is not None and saved >= held.unsaved_until:
                held.unsaved_until = None
            if not held.unsaved:
                self._behind.discard(held)
        if len(self._held) > self._held_max:
            for pair in list(self._oldest(len(self._held) - self._held_max)):
                del self._held[pair]
        return len(self._behind)

    def _oldest(self, count: int) -> Iterator[Pair]:
        for pair, held in self._held.items():
            if not count:
                return
            if not held.unsaved:
                count -= 1
                yield pair
