"""The book of trunks: the place where each trunk's KV is held.

A trunk's home is a resident sequence, or bytes in host RAM, or bytes in a store beyond it, or nothing (then it is
recomputed from its tokens). If a trunk was loaded into a sequence from RAM, its bytes stay there as a *clean copy*
while the two are equal and nobody needs the room. Evicting the trunk again then stores nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from core.choice import Tokens, common_len
from core.words import NpcKey, Tier, TrunkKey
from kvcache.verify import Sealed

NO_TOKENS: Tokens = np.empty(0, np.int32)


@dataclass(slots=True, eq=False)
class Trunk:
    """`held` committed tokens of `tokens` are in sequence `seq`, or in `blob`, or in the store as number `parked`.

    Invariant: of seq >= 0, blob is not None and parked > 0 one holds at most; held == 0 when none does. Only with
    seq >= 0 there may be a `copy`: the bytes of exactly those `held` tokens.
    While it comes back from the store it does so since `fetching_ns`, and a work waits for it since `wanted_ns`.
    `users` works stand on it now; `branched` says that one of them has tokens of its own above `held`.
    """

    key: TrunkKey
    tokens: Tokens = field(default_factory=lambda: NO_TOKENS)
    held: int = 0
    seq: int = -1
    blob: Sealed | None = None
    copy: Sealed | None = None
    parked: int = 0
    parked_bytes: int = 0
    fetching_ns: int = 0
    wanted_ns: int = 0
    users: int = 0
    branched: bool = False
    tier: Tier = Tier.BRONZE
    used_ns: int = 0
    hits: int = 0

    @property
    def home(self) -> str:
        """The home's name as the contract spells it."""
        if self.seq >= 0:
            return "sequence"
        return "ram" if self.blob is not None else "redis" if self.parked else "none"

    @property
    def bytes_away(self) -> int:
        """Bytes that it takes in RAM or in the store; 0 in a sequence."""
        return len(self.blob) if self.blob is not None else self.parked_bytes


class Homes:
    """Resident sequences first .. first + count - 1, at most `ram_bytes_max` bytes of blobs and clean copies, and
    `parked_bytes_max` in the store.

    Invariant: free + resident == count; the bytes of blobs and copies sum to ram_bytes, those in the store to
    parked_bytes; neither is above its bound; `forks` are the trunks whose key has one.
    """

    def __init__(self, first: int, count: int, ram_bytes_max: int, parked_bytes_max: int = 0) -> None:
        self.count = count
        self.ram_bytes = 0
        self.ram_bytes_max = ram_bytes_max
        self.parked_bytes = 0
        self.parked_bytes_max = parked_bytes_max
        self._in_ram: dict[int, Trunk] = {}  # by id, in the order in which they came
        self._copied: dict[int, Trunk] = {}  # by id: those in sequences that have a copy
        self._in_store: dict[int, Trunk] = {}  # by number, in the order in which they came
        self.ram_dropped = 0
        self._first = first
        self._free = set(range(first, first + count))
        self._resident: dict[int, Trunk] = {}  # by sequence
        self.forks: dict[TrunkKey, Trunk] = {}
        self._trunks: dict[TrunkKey, Trunk] = {}
        self._by_npc: dict[NpcKey, dict[TrunkKey, Trunk]] = {}

    def get(self, key: TrunkKey) -> Trunk:
        """The trunk of that key; a new, empty one when there is none."""
        trunk = self._trunks.get(key)
        if trunk is None:
            trunk = self._trunks[key] = Trunk(key)
            self._by_npc.setdefault(key.npc, {})[key] = trunk
            if key.fork:
                self.forks[key] = trunk
        return trunk

    def find(self, key: TrunkKey) -> Trunk | None:
        """The trunk of that key, if there is one."""
        return self._trunks.get(key)

    def of_npc(self, npc: NpcKey) -> list[Trunk]:
        """All trunks of one NPC."""
        return list(self._by_npc.get(npc, {}).values())

    def __iter__(self) -> Iterator[Trunk]:
        return iter(self._trunks.values())

    def __len__(self) -> int:
        return len(self._trunks)

    @property
    def copies(self) -> int:
        """How many trunks in sequences have a copy in RAM."""
        return len(self._copied)

    @property
    def free(self) -> int:
        """Resident sequences without a trunk."""
        return len(self._free)

    @property
    def residents(self) -> Iterable[Trunk]:
        """The trunks that have a sequence, in no particular order."""
        return self._resident.values()

    def settle(self, trunk: Trunk, near: int = -1) -> bool:
        """Gives the trunk a free sequence; False when there is none (move a victim out first).

        Trunks of neighbouring numbers `near` get neighbouring sequences while those are free; others fill from the end.
        """
        assert trunk.seq < 0, "a trunk has one sequence"
        if not self._free:
            return False
        wanted = self._first + near % self.count
        trunk.seq = wanted if near >= 0 and wanted in self._free else max(self._free)
        self._free.remove(trunk.seq)
        self._resident[trunk.seq] = trunk
        return True

    def vacate(self, trunk: Trunk, blob: Sealed | None) -> list[tuple[Trunk, Sealed]]:
        """Takes the trunk's sequence away; its KV lives on in `blob`, when there is one. Returns the trunks that were
        evicted from RAM for it, perhaps itself: each is to be parked or lost.
        """
        assert trunk.seq >= 0 and not trunk.users, "only an unused resident trunk is moved out"
        self.take_copy(trunk)
        self._leave(trunk)
        trunk.seq = -1
        if blob is None:
            self.lose(trunk)
            return []
        return self.put(trunk, blob)

    def holds(self, trunk: Trunk, tokens: Tokens, held: int) -> None:
        """Notes that a trunk's sequence now holds the first `held` of `tokens`; a copy of anything else is dropped."""
        if trunk.copy is not None:
            was = trunk.tokens[: trunk.held]
            if held != len(was) or common_len(was, tokens) < held:
                self.take_copy(trunk)
        trunk.tokens, trunk.held = tokens, held

    def put(self, trunk: Trunk, blob: Sealed) -> list[tuple[Trunk, Sealed]]:
        """Puts bytes into RAM. Until there is room, copies are dropped, then the trunk that came to RAM longest ago is
        evicted. Returns the evicted trunks, as vacate().
        """
        assert trunk.seq < 0 and trunk.blob is None and not trunk.parked, "a trunk has one home"
        if len(blob) > self.ram_bytes_max:
            return [(trunk, blob)]
        evicted = []
        while self.ram_bytes + len(blob) > self.ram_bytes_max:
            if self._copied:
                # The trunk that was used last will be evicted last, so its copy is of the least use.
                self.take_copy(max(self._copied.values(), key=lambda t: t.used_ns))
                continue
            oldest = next(iter(self._in_ram.values()))
            gone = self.take_blob(oldest)
            assert gone is not None, "a trunk in RAM has bytes"
            evicted.append((oldest, gone))
            self.ram_dropped += 1
        trunk.blob = blob
        self.ram_bytes += len(blob)
        self._in_ram[id(trunk)] = trunk
        return evicted

    def take_blob(self, trunk: Trunk) -> Sealed | None:
        """The trunk's bytes, taken out of RAM; None when it has none."""
        blob, trunk.blob = trunk.blob, None
        if blob is not None:
            self.ram_bytes -= len(blob)
            del self._in_ram[id(trunk)]
        return blob

    def loaded(self, trunk: Trunk) -> None:
        """Notes that a trunk's sequence holds what its bytes in RAM say: they are its copy from here on."""
        assert trunk.seq >= 0 and trunk.blob is not None and trunk.copy is None, "only a trunk in RAM is loaded"
        del self._in_ram[id(trunk)]
        trunk.blob, trunk.copy = None, trunk.blob
        self._copied[id(trunk)] = trunk

    def take_copy(self, trunk: Trunk) -> Sealed | None:
        """The trunk's clean copy, taken out of RAM; None when it has none."""
        copy, trunk.copy = trunk.copy, None
        if copy is not None:
            self.ram_bytes -= len(copy)
            del self._copied[id(trunk)]
        return copy

    def touch(self, trunk: Trunk) -> None:
        """Makes a trunk that is in RAM the last one to be evicted."""
        if self._in_ram.pop(id(trunk), None) is not None:
            self._in_ram[id(trunk)] = trunk

    @property
    def parked(self) -> Iterable[Trunk]:
        """The trunks that are in the store, in no particular order."""
        return self._in_store.values()

    def parks(self, size: int) -> bool:
        """True if so many bytes could be in the store at all."""
        return size <= self.parked_bytes_max

    def park(self, trunk: Trunk, number: int, size: int) -> list[Trunk]:
        """Notes that a trunk without a home is in the store under a number. Returns the trunks that must be removed
        there to keep its bound: those that came longest ago. A trunk that is on its way back is removed last, because
        it leaves anyway, and a work waits for it.
        """
        assert trunk.seq < 0 and trunk.blob is None and not trunk.parked, "a trunk has one home"
        gone: list[Trunk] = []
        room = self.parked_bytes_max - self.parked_bytes - size
        for coming in (False, True):
            for other in self._in_store.values():
                if room >= 0:
                    break
                if (other.fetching_ns > 0) is coming:
                    gone.append(other)
                    room += other.parked_bytes
        trunk.parked, trunk.parked_bytes = number, size
        self.parked_bytes += size
        self._in_store[number] = trunk
        return gone

    def unpark(self, trunk: Trunk) -> None:
        """Notes that a trunk is not in the store any more; it has no home then."""
        del self._in_store[trunk.parked]
        self.parked_bytes -= trunk.parked_bytes
        trunk.parked = trunk.parked_bytes = trunk.fetching_ns = trunk.wanted_ns = 0

    def remove(self, key: TrunkKey) -> int:
        """Forgets a trunk; its sequence (to be emptied) or -1. The trunk must be unused."""
        trunk = self._trunks.pop(key, None)
        if trunk is None:
            return -1
        assert not trunk.users and not trunk.parked, "a trunk in use, or in the store, cannot be removed"
        self.forks.pop(key, None)
        siblings = self._by_npc[key.npc]
        del siblings[key]
        if not siblings:
            del self._by_npc[key.npc]
        self.take_blob(trunk)
        self.take_copy(trunk)
        if trunk.seq >= 0:
            self._leave(trunk)
        return trunk.seq

    def commit(self, fork: Trunk) -> int:
        """Gives a fork's KV to the trunk that it is a fork of, and removes the fork; the sequence that the trunk
        had (to be emptied) or -1. Both must be unused. A fork that has lost its KV changes nothing.
        """
        trunk = self.get(fork.key.origin)
        assert trunk is not fork and not trunk.users and not fork.users, "only an unused fork is committed"
        if not fork.held:
            return self.remove(fork.key)
        self.take_blob(trunk)
        self.take_copy(trunk)
        gone = trunk.seq
        if gone >= 0:
            self._leave(trunk)
        trunk.tokens, trunk.held, trunk.seq, trunk.blob = fork.tokens, fork.held, fork.seq, fork.blob
        if trunk.seq >= 0:
            self._resident[trunk.seq] = trunk
        elif trunk.blob is not None:
            del self._in_ram[id(fork)]
            self._in_ram[id(trunk)] = trunk
        trunk.tier, trunk.used_ns = min(trunk.tier, fork.tier), max(trunk.used_ns, fork.used_ns)
        fork.seq, fork.blob = -1, None
        self.remove(fork.key)
        return gone

    def forget_sequences(self) -> list[tuple[Trunk, Sealed]]:
        """The engine was rebuilt, so the KV in sequences is gone. A trunk with a copy that is not in use rests in RAM
        now; the others keep their sequences. Returns the trunks that were evicted from RAM, as vacate().
        """
        evicted = []
        for trunk in list(self._resident.values()):
            copy = self.take_copy(trunk)
            if copy is not None and not trunk.users:
                evicted += self.vacate(trunk, copy)
            else:
                self.lose(trunk)
                trunk.branched = False
        return evicted

    def _leave(self, trunk: Trunk) -> None:
        del self._resident[trunk.seq]
        self._free.add(trunk.seq)

    @staticmethod
    def lose(trunk: Trunk) -> None:
        """Notes that a trunk's KV is nowhere."""
        trunk.held, trunk.tokens = 0, NO_TOKENS
