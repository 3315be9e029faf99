"""The home beyond RAM: what has no room there goes to a store and comes back before it is needed, or not at all.

Runs on the engine thread and never waits: a Store moves bytes on a thread of its own, and what it fetched comes back
as a command. A work whose trunk is on its way waits for it for a few milliseconds at most; then it is computed anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from core.clock import MS, S
from core.words import NpcKey
from core.work import Work
from kvcache.homes import Homes, Trunk
from kvcache.verify import Sealed
from scheduler.loads import LoadCosts, LoadSettings

FETCH_MAX_NS = S  # a store answers well before that, or says that it is away
FETCH_PRIOR = LoadSettings(prior_fixed_ms=1.0, prior_mib_ms=2.0)


class Store(Protocol):
    """Keeps sealed bytes by number. Nothing here waits for anything; every fetch is answered once, by Fetched."""

    def park(self, number: int, header: bytes, payload: bytes) -> bool:
        """Takes bytes in; False when it is away or has too much to do already."""

    def fetch(self, number: int) -> None:
        """Gets bytes, which are then gone from the store."""

    def drop(self, number: int) -> None:
        """Removes bytes, whatever was asked for them before."""


class Shelf:
    """The part of a store that one of several engines uses: its numbers are `place`, `place` + `count`, and so on. Each
    engine counts from 1, and what was fetched goes to the engine whose number it is.
    """

    def __init__(self, store: Store, place: int, count: int) -> None:
        self._store = store
        self._place = place
        self._count = count

    def park(self, number: int, header: bytes, payload: bytes) -> bool:
        """As Store has it."""
        return self._store.park(self._numbered(number), header, payload)

    def fetch(self, number: int) -> None:
        """As Store has it."""
        self._store.fetch(self._numbered(number))

    def drop(self, number: int) -> None:
        """As Store has it."""
        self._store.drop(self._numbered(number))

    def _numbered(self, number: int) -> int:
        return number * self._count + self._place


class Fetched(NamedTuple):
    """The result of a fetch: header and bytes, or the reason why there are none ("away", "gone", "signature")."""

    at_ns: int
    number: int
    header: bytes
    payload: bytes
    fault: str = ""


class Parking:
    """The trunks that are in the store or on their way back. Owns the numbers under which they are there."""

    def __init__(self, homes: Homes, wait_ms: float) -> None:
        self.store: Store | None = None
        self.parked = 0
        self.fetched = 0
        self.lost = 0  # not there any more, or the store was away
        self.given_up = 0  # not there in time
        self.turned_down = 0
        self.costs = LoadCosts(FETCH_PRIOR)
        self.changes = 0  # grows when a trunk enters the store, leaves it or is fetched
        self._homes = homes
        self._wait_ns = round(wait_ms * MS)
        self._last = 0
        self._coming: dict[int, Trunk] = {}  # by number

    @property
    def coming(self) -> int:
        """How many trunks are on their way back."""
        return len(self._coming)

    def away(self) -> frozenset[NpcKey]:
        """The NPCs that have a trunk in the store which is not on its way back."""
        return frozenset(t.key.npc for t in self._homes.parked if not t.fetching_ns)

    def look_again_ns(self, now_ns: int) -> int:
        """When the next work that waits for a fetch will wait no longer, if nothing comes before."""
        ends = (t.wanted_ns + self._wait_ns for t in self._coming.values() if t.wanted_ns)
        return min((at for at in ends if at > now_ns), default=now_ns + FETCH_MAX_NS)

    def put_away(self, evicted: Iterable[tuple[Trunk, Sealed]]) -> None:
        """Parks what had no room in RAM, or loses it. Forks are too short-lived to be parked."""
        for trunk, sealed in evicted:
            number = self._last + 1
            wanted = self.store is not None and not trunk.key.fork and self._homes.parks(len(sealed))
            if wanted and self.store is not None and self.store.park(number, sealed.header, sealed.payload):
                self._last = number
                self.parked += 1
                self.changes += 1
                for other in self._homes.park(trunk, number, len(sealed)):
                    self.forget(other)
            else:
                self._homes.lose(trunk)

    def is_here(self, trunk: Trunk, work: Work, worth_ns: float, now_ns: int) -> bool:
        """True if a work need not wait for its trunk: it is not in the store, or not worth the time to fetch it.

        `worth_ns` is the time that computing again takes beyond loading from RAM. A trunk that is not fetched is lost.
        """
        if not trunk.parked:
            return True
        if not trunk.fetching_ns:
            if work.max_tokens:
                worth_ns = min(worth_ns, self._wait_ns)  # a work would not wait longer
            if not self._fits(trunk) or self.store is None or not self.costs.pays(trunk.parked_bytes, 0, worth_ns):
                self.turned_down += 1
                self.forget(trunk)
                return True
            self.fetch(trunk, now_ns)
        if not work.max_tokens:
            return False
        if not trunk.wanted_ns:
            trunk.wanted_ns = max(now_ns, 1)
        if now_ns - trunk.wanted_ns < self._wait_ns:
            return False
        self.given_up += 1
        self.costs.add(trunk.parked_bytes, now_ns - trunk.fetching_ns)  # at least so long
        self.forget(trunk)
        return True

    def fetch(self, trunk: Trunk, now_ns: int) -> None:
        """Has a parked trunk brought back to RAM; nothing happens when it is on its way, not parked, or larger than all
        RAM for KV.
        """
        if trunk.parked and not trunk.fetching_ns and self.store is not None and self._fits(trunk):
            trunk.fetching_ns = max(now_ns, 1)
            self.changes += 1
            self._coming[trunk.parked] = trunk
            self.store.fetch(trunk.parked)

    def arrived(self, what: Fetched) -> str:
        """Takes in what a fetch gave; why there was nothing to take in, if so."""
        trunk = self._coming.get(what.number)
        if trunk is None:
            return ""  # it was given up or forgotten meanwhile
        took_ns = max(0, what.at_ns - trunk.fetching_ns)  # not what the step took that ran then
        self._leave(trunk)
        if what.fault:
            self.lost += what.fault != "signature"
            self._homes.lose(trunk)
            return what.fault
        self.costs.add(len(what.header) + len(what.payload), took_ns)
        self.fetched += 1
        self.put_away(self._homes.put(trunk, Sealed(what.header, what.payload)))
        return ""

    def forget(self, trunk: Trunk) -> None:
        """Removes a trunk's bytes from the store; it holds nothing then. Nothing happens when it is not parked."""
        if trunk.parked:
            if self.store is not None:
                self.store.drop(trunk.parked)
            self._leave(trunk)
            self._homes.lose(trunk)

    def _fits(self, trunk: Trunk) -> bool:
        """True if it can come back at all: else it would be fetched and parked again without end."""
        return trunk.parked_bytes <= self._homes.ram_bytes_max

    def _leave(self, trunk: Trunk) -> None:
        self.changes += 1
        self._coming.pop(trunk.parked, None)
        self._homes.unpark(trunk)
