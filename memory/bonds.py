"""Bonds in process: the memory of players who are about, as new as the last record.

A bond is *complete* when it was read from the recent store before records were folded in. Otherwise it has only the
records of this process, and is read again when the store has caught up. A bond that the recent store does not have
yet in full is *unsaved*. It is not evicted, so that an old version of it cannot be read back. Plain and synchronous; on
the event loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from heapq import merge

from core.steps import Steps, at_once, every
from core.words import NpcKey
from memory.bond import Bond, apply, cards_of, within
from memory.records import Kind, Position, Record

Pair = tuple[NpcKey, str]
WorldKey = tuple[str, str]  # tenant and world
AGED_AT_ONCE = 200
FREED_AT_ONCE = 16
LOOKED_AT_ONCE = 32
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
    used: int = 0  # grows with every use of any bond

    @property
    def unsaved(self) -> bool:
        """True if the recent store has less of it than this process."""
        return self.writing > 0 or self.unsaved_until is not None


class Bonds:
    """Invariant: at most held_max, except while the recent store is behind with more than that."""

    def __init__(self, held_max: int) -> None:
        self._held_max = held_max
        # By world, so that a world's can be exchanged at once; in each the one that was used last is last.
        self._worlds: dict[WorldKey, dict[Pair, Held]] = {}
        self._to_age: list[Pair] = []
        self._uses = 0
        self._behind: set[Held] = set()  # those that were unsaved at the last look
        self._gone: list[Held] = []  # no longer found; freeing many takes time, see freeing()

    def __len__(self) -> int:
        return sum(len(held) for held in self._worlds.values())

    def count(self, tenant: str) -> int:
        """The number of a tenant's bonds."""
        return sum(len(held) for (owner, _), held in self._worlds.items() if owner == tenant)

    def find(self, npc: NpcKey, player: str) -> Held | None:
        """The bond, if it is in process."""
        world = self._worlds.get(npc[:2])
        held = world.get((npc, player)) if world is not None else None
        if world is not None and held is not None:
            del world[npc, player]
            world[npc, player] = held
            held.used = self._use()
        return held

    def put(self, npc: NpcKey, player: str, bond: Bond, complete: bool) -> Held:
        """Takes a bond in that a store gave."""
        held = Held(bond, complete, used=self._use())
        world = self._worlds.setdefault(npc[:2], {})
        world.pop((npc, player), None)
        world[npc, player] = held
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
        """The record is before this position of the journal, or was not written."""
        held.writing -= 1
        held.unsaved_until = until
        self._behind.add(held)

    def forget(self, tenant: str, world: str, player: str, npc: str = "") -> int:
        """Drops a player's bonds with one NPC, or with every NPC of a world, at once. Returns their number."""
        there = self._worlds.get((tenant, world), {})
        if npc:
            pair = (NpcKey(tenant, world, npc), player)
            gone = [pair] if pair in there else []
        else:
            gone = [pair for pair in there if pair[1] == player]
        self._gone += map(there.pop, gone)
        if not there:
            self._worlds.pop((tenant, world), None)
        return len(gone)

    def freeing(self) -> Steps[None]:
        """Frees the bonds that forget() dropped, a few in each step."""
        while self._gone:
            del self._gone[-FREED_AT_ONCE:]
            yield

    def of_world(self, tenant: str, world: str) -> dict[Pair, Held]:
        """The bonds of a world that are in process."""
        return dict(self._worlds.get((tenant, world), {}))

    def made(
        self, tenant: str, world: str, bonds: Mapping[tuple[str, str], Bond], write: bool
    ) -> Steps[dict[Pair, Held]]:
        """Bonds for a world (NPC id and player), complete and not to be found yet; with `write`, as after write()."""
        out: dict[Pair, Held] = {}
        for (npc, player), bond in bonds.items():
            held = out[NpcKey(tenant, world, npc), player] = Held(bond, True, writing=int(write), used=self._use())
            if write:
                self._behind.add(held)
            yield
        return out

    def exchange(self, tenant: str, world: str, bonds: dict[Pair, Held]) -> dict[Pair, Held]:
        """Drops all bonds of a world and takes these in, as made() gave them; those that were dropped."""
        dropped = self._worlds.pop((tenant, world), {})
        if bonds:
            self._worlds[tenant, world] = bonds
        return dropped

    def drop_world(self, tenant: str, world: str) -> dict[Pair, Held]:
        """Drops all bonds of a world; those that were dropped."""
        return self._worlds.pop((tenant, world), {})

    def put_away(self, saved: Position | None) -> int:
        """Marks bonds that the recent store has now (None: no such store), makes room, and counts the unsaved ones."""
        return at_once(self.putting_away(saved))

    def putting_away(self, saved: Position | None) -> Steps[int]:
        """The same in steps."""
        behind = list(self._behind)
        while behind:  # one after the other: of a world that was dropped nobody else has them
            for held in behind[-LOOKED_AT_ONCE:]:
                self.saved(held, saved)
            del behind[-LOOKED_AT_ONCE:], held
            yield
        too_many = len(self) - self._held_max
        # Where no store has them, bonds with cards go last: cards live longer than talk.
        for spares_cards in (True, False) if saved is None else (False,):
            if too_many <= 0:
                break
            # The longest unused first, as it was when this began: what was used since is the newest of its world.
            began = self._uses
            by_use = merge(*(self._in_use(list(world)) for world in self._worlds.values()))
            for (used, pair), pause in every(64, by_use):
                if pause:
                    yield
                there = self._worlds.get(pair[0][:2], {}).get(pair)
                if there is None or not there.used == used <= began:
                    continue
                if not there.unsaved and not (spares_cards and not cards_of(there.bond).empty):
                    self._drop(pair)
                    too_many -= 1
                if not too_many:
                    break
        return len(self._behind)

    def saved(self, held: Held, saved: Position | None) -> None:
        """Marks whether the recent store has one bond in full, when it has the journal up to here."""
        if held.unsaved_until is not None and saved is not None and saved >= held.unsaved_until:
            held.unsaved_until = None
        if not held.unsaved:
            self._behind.discard(held)

    def ageing(self, now_ms: int) -> Steps[None]:
        """Takes memories that are too old out of some bonds; repeated calls come to all of them."""
        if not self._to_age:
            self._to_age = [pair for world in self._worlds.values() for pair in world]
        for _ in range(min(AGED_AT_ONCE, len(self._to_age))):
            pair = self._to_age.pop()
            held = self._worlds.get(pair[0][:2], {}).get(pair)
            if held is not None:
                held.bond = within(held.bond, now_ms)
            yield

    def pairs(self) -> list[tuple[Pair, Held]]:
        """All bonds that are in process now."""
        return [item for world in self._worlds.values() for item in world.items()]

    def _in_use(self, pairs: list[Pair]) -> Iterator[tuple[int, Pair]]:
        """Those of the pairs that are in process when it is their turn, each with its last use."""
        for pair in pairs:
            held = self._worlds.get(pair[0][:2], {}).get(pair)
            if held is not None:
                yield held.used, pair

    def _use(self) -> int:
        self._uses += 1
        return self._uses

    def _drop(self, pair: Pair) -> None:
        key = pair[0][:2]
        world = self._worlds[key]
        del world[pair]
        if not world:
            del self._worlds[key]
