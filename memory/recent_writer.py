"""Writes the recent store: worlds, NPCs and thirty days of bonds, as memory/recent_keys.py lays them out.

RecentWriter owns one connection, on a feeder's thread. It alone writes, and one daemon writes a world.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TypeVar

from redis.exceptions import ResponseError

from core.errors import StoreFailed
from memory.bond import RECENT_MS
from memory.recent_keys import (
    FIRST,
    LAST,
    OF_A_BOND,
    Command,
    Found,
    Load,
    Pair,
    WorldId,
    bond_key,
    bond_of,
    bounds_of,
    bytes_of,
    cards_key,
    changes,
    ids_of,
    index_slice,
    key_of,
    pair_of,
    position_of,
)
from memory.records import START, Kind, Position, Record
from memory.redis_connection import Asking, RecentSettings
from memory.redis_reasons import unfit

AT_ONCE = 8  # bonds read, folded or written without a rest for other threads: below 1 ms
REST_S = 0.0002
SLICE = 32  # commands of one MULTI beside a batch's own: about 1 ms
INDEX_READ = 256  # entries of an index that are read at once
SWEEP_EVERY, SWEEP_COUNT = 16, 128  # writes, and entries of an index looked at then: they go faster than they come
SWEEP_EVERY_S = 10.0  # also when nothing is written

T = TypeVar("T")


class RecentWriter:
    """The Store of recent memory: folds records into the bonds it reads, and writes them with the position.

    Records follow on from what connect() gave. `load` gives the bonds in a save's file by (npc, player): none when the
    file is gone for good; its OSError says that it may come back. With `owes` it leaves word in the store that a player
    was forgotten, for memory.rewriting, and calls it.
    """

    name = "recent"

    def __init__(
        self, settings: RecentSettings, journal: str, load: Load, owes: Callable[[], None] | None = None
    ) -> None:
        """Does not connect yet. Raises ConfigError when the settings are not enough to connect."""
        self._asking = Asking(settings)
        self._ask = self._asking.ask
        self._key = key_of("at", journal)
        self._owed_key = key_of("rewrite", journal)
        self._load = load
        self._owes = owes
        self._at = START
        self._writes = 0
        self._swept: dict[WorldId, bytes] = {}
        self._to_sweep: deque[WorldId] = deque()
        self._sweep_at_s = 0.0
        self.broken = 0  # bonds that were not ours to read: they count as none

    def connect(self) -> Position:
        """Connects again. Returns the position up to which the store has this journal; START if it has nothing."""
        self._asking.open()
        reason = unfit(self.info())
        if reason:
            self._asking.close()
            raise StoreFailed(reason)
        (said,) = self._ask([("GET", self._key)])
        self._at = position_of(said)
        return self._at

    def info(self) -> dict[str, str]:
        """The server's INFO by name; empty when this user may not ask."""
        try:
            (info,) = self._ask([("INFO",)])
        except StoreFailed as error:
            if isinstance(error.__cause__, ResponseError):
                return {}
            raise
        pairs = (line.partition(":") for line in info.decode("utf-8", "replace").splitlines())
        return {name: value.strip() for name, _, value in pairs}

    def write(self, records: Sequence[Record], upto: Position) -> None:
        """Takes records in, all or none; those that it has already change nothing. Reads once, writes once.

        Players that a batch forgets, and worlds that it restores or deletes, may be written in slices before the rest:
        the result does not depend on the store before, also when the records come again.
        """
        found = self._read(records)
        if found.at >= upto:
            self._at = found.at
            return
        if found.at != self._at:
            raise StoreFailed(f"it has the journal up to {found.at}, not up to {self._at}: to be connected anew")
        try:
            made = changes(_rested(records), found, self._load)
        except OSError as error:
            raise StoreFailed(f"a save's file cannot be read: {error.strerror}") from error
        first = chain(made.kept(settled=True), made.registry)
        part = list(islice(first, SLICE))
        while len(part) == SLICE:
            self._commit(part, self._at)
            self._ask([("WATCH", self._key)])
            part = list(islice(first, SLICE))
        owed = self._owes is not None and any(r.kind in (Kind.FORGET, Kind.DELETED) for r in records)
        if owed:
            part.append(("SET", self._owed_key, str(upto)))
        self._commit([*part, *_rested(made.kept(settled=False))], upto)
        if owed and self._owes is not None:
            self._owes()
        self._at = upto
        self._writes += 1
        if self._writes % SWEEP_EVERY == 0 and records:
            self._sweep((records[-1].tenant, records[-1].world))
        self.sweep_by_clock()

    def close(self) -> None:
        """Ends the connection, if there is one."""
        self._asking.close()

    def _read(self, records: Sequence[Record]) -> Found:
        """The values that a batch is folded into, and those that it would drop."""
        pairs = list(dict.fromkeys((r.key, r.player) for r in records if r.kind in OF_A_BOND))
        worlds = list(dict.fromkeys((r.tenant, r.world) for r in records if r.kind in (Kind.WORLD, Kind.NPCS)))
        forgotten = dict.fromkeys((r.tenant, r.world, r.player) for r in records if r.kind is Kind.FORGET)
        keys = [key(*pair) for pair in pairs for key in (bond_key, cards_key)]
        commands: list[Command] = [("WATCH", self._key), ("MGET", self._key, *keys)]
        commands += [("HGET", key_of("world", *world), "lease_last") for world in worlds]
        _, (position, *kept), *leases = self._ask(commands)
        found = Found(position_of(position))
        for pair, said, cards in _rested(zip(pairs, kept[::2], kept[1::2], strict=True)):
            found.bonds[pair], broken = bond_of(said, cards)
            self.broken += broken
        found.leases = {world: int(lease or 0) for world, lease in zip(worlds, leases, strict=True)}
        for tenant, world, player in forgotten:
            found.indexed.update(dict.fromkeys(self._entries((tenant, world), player)))
        for record in records:
            if record.kind in (Kind.RESTORED, Kind.DELETED):
                found.indexed.update(dict.fromkeys(self._entries((record.tenant, record.world))))
        return found

    def _entries(self, world: WorldId, player: str | None = None) -> Iterator[Pair]:
        """The index's entries of a world, or of one player in it."""
        after, until = (FIRST, LAST) if player is None else bounds_of(player)
        while True:
            (entries,) = self._ask([index_slice(world, after, until, INDEX_READ)])
            yield from (pair_of(world, entry) for entry in entries)
            if len(entries) < INDEX_READ:
                return
            after = b"(" + entries[-1]

    def _commit(self, commands: Sequence[Command], at: Position) -> None:
        """Writes all commands and the position, or nothing. The position is always written, so that a transaction which
        hangs in an old connection, and watches the position, can no longer be executed.
        """
        whole = [("MULTI",), *commands, ("SET", self._key, str(at)), ("EXEC",)]
        done = self._ask(whole)[-1]
        if done is None:
            raise StoreFailed("another process wrote the journal's position")
        failed = next((answer for answer in done if isinstance(answer, Exception)), None)
        if failed is not None:
            raise self._asking.failed(failed)

    def sweep_by_clock(self) -> None:
        """Sweeps a part of the next world when it is time. Each world has its turn, also one without new records.
        Raises StoreFailed.
        """
        now_s = time.monotonic()
        if now_s < self._sweep_at_s:
            return
        self._sweep_at_s = now_s + SWEEP_EVERY_S
        if not self._to_sweep:
            (entries,) = self._ask([("SMEMBERS", key_of("worlds"))])
            self._to_sweep = deque((tenant, world) for tenant, world in map(ids_of, sorted(entries)))
        if self._to_sweep:
            world = self._to_sweep.popleft()
            self._sweep(world)
            if self._swept[world] != FIRST:  # there is more of it
                self._to_sweep.append(world)

    def _sweep(self, world: WorldId) -> None:
        """Looks at the next few entries of an index and takes those out whose bond and cards have expired. Cards begin
        to expire when their NPC is not registered any more, and stop to when it is again.
        """
        after = self._swept.get(world, FIRST)
        _, entries = self._ask([("WATCH", self._key), index_slice(world, after, LAST, SWEEP_COUNT)])
        self._swept[world] = b"(" + entries[-1] if len(entries) == SWEEP_COUNT else FIRST
        commands: list[Command] = []
        for entry in entries:
            npc, player = pair_of(world, entry)
            registered: Command = ("HEXISTS", key_of("npcs", *world), bytes_of(npc.npc))
            commands += [("EXISTS", bond_key(npc, player)), ("PTTL", cards_key(npc, player)), registered]
        said = self._ask(commands) if commands else []
        changed: list[Command] = []
        for entry, is_there, left_ms, is_registered in zip(entries, said[::3], said[1::3], said[2::3], strict=True):
            cards = cards_key(*pair_of(world, entry))
            if left_ms == -2 and not is_there:
                changed.append(("ZREM", key_of("bonds", *world), entry))
            elif left_ms == -1 and not is_registered:
                changed.append(("PEXPIRE", cards, RECENT_MS))
            elif left_ms >= 0 and is_registered:
                changed.append(("PERSIST", cards))
        if changed:
            self._commit(changed, self._at)


def look(settings: RecentSettings) -> tuple[str, str, str]:
    """The server's version, its appendonly ("yes", "no") and its eviction policy; values that it does not tell this
    user are empty. Changes nothing. Raises ConfigError, and StoreFailed when npcd could not read.
    """
    writer = RecentWriter(settings, "", lambda file: {})
    said: dict[str, str] = {}
    try:
        writer.connect()
        said = writer.info()
    finally:
        writer.close()
    version = said.get("valkey_version") or said.get("redis_version", "")
    return version, {"1": "yes", "0": "no"}.get(said.get("aof_enabled", ""), ""), said.get("maxmemory_policy", "")


def _rested(items: Iterable[T]) -> Iterator[T]:
    """The items, with rests in which other threads get the interpreter."""
    for i, item in enumerate(items, 1):
        yield item
        if i % AT_ONCE == 0:
            time.sleep(REST_S)
