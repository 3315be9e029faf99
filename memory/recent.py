"""The recent store: worlds, NPCs and thirty days of bonds in Redis (6.2 or newer) or Valkey.

What stands under which key is in memory/recent_keys.py.

RecentWriter owns a connection on a feeder's thread and alone writes; one daemon writes a world. Recent owns another on
the event loop and only reads: all reads share it and answers come in order, so a cancelled read leaves its place, which
is passed over, and nobody gets another's answer. A server that evicts keys without expiry would lose the position: its
maxmemory-policy must be noeviction or volatile-*. It may fail over, but is no cluster: a MULTI has keys of all kinds.
An ACL user needs ~npcd:* +@read +@write +@transaction +ping +select; with rewrite_aof also +bgrewriteaof +info.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from redis import connection as blocking
from redis.asyncio import connection as awaited
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from core.errors import ConfigError, StoreFailed
from core.steps import every
from core.words import NpcKey
from memory.bond import RECENT_MS, Bond, within
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
    text_of,
)
from memory.records import START, Kind, Position, Record
from memory.redis_reasons import refusal, unfit

AT_ONCE = 8  # bonds read, folded or written without a rest for other threads: below 1 ms
REST_S = 0.0002
SLICE = 32  # commands of one MULTI beside a batch's own: about 1 ms
INDEX_READ = 256  # entries of an index that are read at once
BONDS_READ = 8  # bonds parsed on the event loop between two waits: about 0.5 ms
NPCS_AT_ONCE = 500  # sorted and put together on the event loop without a rest: about 0.5 ms
SWEEP_EVERY, SWEEP_COUNT = 16, 128  # writes, and entries of an index looked at then: they go faster than they come
SWEEP_EVERY_S = 10.0  # also when nothing is written
WAITING_MAX = 512
AGAIN_FIRST_S, AGAIN_LAST_S = 0.05, 2.0
REASON_LEN_MAX = 160
URL_PARTS = frozenset("host port path db username password".split())
TLS_OPTIONS = frozenset("ssl_certfile ssl_keyfile ssl_password ssl_ca_certs ssl_check_hostname ssl_cert_reqs".split())

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RecentSettings:
    """`url` is redis://, rediss:// (TLS) or unix://; its user and password, or `user` and the line in `password_file`,
    are an ACL user's. `ca_file` is trusted besides the system's. A recall has `recall_ms`, any other request `op_s`.

    With `rewrite_aof` the server is asked to write its append-only file anew after a player was forgotten: until it
    does, what was deleted stands in that file. npcd's own server always is asked.
    """

    url: str = field(default="", repr=False)  # a password may stand in it
    user: str = ""
    password_file: str = ""
    ca_file: str = ""
    rewrite_aof: bool = False
    recall_ms: float = 20.0
    connect_s: float = 1.0
    op_s: float = 1.0


@dataclass(frozen=True, slots=True)
class KeptWorld:
    """A world as it was defined: base64 of the definition, its version, the last lease given, and its timeline."""

    tenant: str
    world: str
    definition: str
    version: int
    lease_last: int
    timeline: str


class Asking:
    """A connection whose questions block. Used by one thread at a time."""

    def __init__(self, settings: RecentSettings) -> None:
        """Does not connect. Raises ConfigError when the settings do not say how to."""
        scheme, self._options = connection_options(settings)
        self._options["socket_timeout"] = settings.op_s
        self._class: Any = BLOCKING[scheme]
        self._connection: Any = None  # untyped there
        self._password: str = self._options.get("password", "")

    def open(self) -> None:
        """Connects anew. Raises StoreFailed."""
        self.close()
        self._connection = self._class(**self._options)
        try:
            self._connection.connect()
        except (RedisError, OSError) as error:
            raise self.failed(error) from error

    def close(self) -> None:
        """Ends the connection, if there is one."""
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to commands that are sent together. After an error the connection is a new one. Raises
        StoreFailed.
        """
        connection = self._connection
        if connection is None:
            raise StoreFailed("is not connected")
        try:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            return [connection.read_response() for _ in commands]
        except (RedisError, OSError) as error:
            connection.disconnect()
            raise self.failed(error) from error

    def failed(self, error: Exception) -> StoreFailed:
        """The error in a line that may be logged."""
        return StoreFailed(reason_of(error, self._password))


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
        """Does not connect. Raises ConfigError when the settings do not say how to."""
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
        """Connects anew. Up to where the store has this journal; START when it has nothing, or lost all it had."""
        self._asking.open()
        reason = unfit(self.info())
        if reason:
            self._asking.close()
            raise StoreFailed(reason)
        (said,) = self._ask([("GET", self._key)])
        self._at = position_of(said)
        return self._at

    def info(self) -> dict[str, str]:
        """What the server says of itself; empty when this user may not ask."""
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

        Whom a batch forgets, and worlds that it sets back or deletes, may be written in slices before the rest: they
        become the same whatever was there, also when the records come again.
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
        """All that a batch is folded into, and what it would drop."""
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
        """All of it and the position, or nothing. The position is written in any case, so that a transaction which
        hangs in an old connection, and has watched it, can no longer happen."""
        whole = [("MULTI",), *commands, ("SET", self._key, str(at)), ("EXEC",)]
        done = self._ask(whole)[-1]
        if done is None:
            raise StoreFailed("somebody else wrote the journal's position")
        failed = next((answer for answer in done if isinstance(answer, Exception)), None)
        if failed is not None:
            raise self._asking.failed(failed)

    def sweep_by_clock(self) -> None:
        """Sweeps a part of the next world when it is time for that; each has its turn, also when nothing happens in it.
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


@dataclass(slots=True, eq=False)
class _Read:
    """Commands that were sent together: who asked, when it is too late, and what was answered so far."""

    answer: asyncio.Future[list[Any]]
    late: float
    commands: int
    said: list[Any] = field(default_factory=list)
    failed: StoreFailed | None = None


class Recent:
    """Reads of the recent store, on the event loop. While the store is away they fail at once, and a task of its own
    looks for it; only close() ends that.
    """

    def __init__(self, settings: RecentSettings) -> None:
        """Does not connect. Raises ConfigError when the settings do not say how to."""
        scheme, options = connection_options(settings)
        self._password: str = options.get("password", "")
        self._connection: awaited.AbstractConnection = _AWAITED[scheme](**options)
        if isinstance(self._connection, awaited.SSLConnection):
            self._connection.ssl_context.get()  # reads the certificates: not later, on the loop
        self._settings = settings
        self._away = "is not connected yet"
        self._here = asyncio.Event()
        self._waiting: deque[_Read] = deque()
        self._deadline: asyncio.Timeout | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.broken = 0  # bonds that were not ours to read: they count as none

    @property
    def away(self) -> str:
        """Why the store cannot be read now; empty while it can."""
        return self._away

    def start(self) -> None:
        """Begins to connect, in the background. Whoever reads first begins it too."""
        if (self._task is None or self._task.done()) and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def wait(self, timeout_s: float) -> bool:
        """Whether the store is there within this time."""
        self.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._here.wait()
        return not self._away

    async def recall(self, npc: NpcKey, player: str, now_ms: int) -> Bond | None:
        """What the NPC remembers of the player by now, None when nothing. Raises StoreFailed when the store is away."""
        said, cards = await self._ask_all(("GET", bond_key(npc, player)), ("GET", cards_key(npc, player)))
        bond = within(self._bond(said, cards), now_ms)
        return None if bond.empty else bond

    async def bonds(self, tenant: str, world: str) -> dict[tuple[str, str], Bond]:
        """All bonds of a world by (npc, player), read in slices. Raises StoreFailed."""
        out: dict[tuple[str, str], Bond] = {}
        after = FIRST
        while True:
            entries = await self._ask(*index_slice((tenant, world), after, LAST, BONDS_READ))
            if not entries:
                return out
            after = b"(" + entries[-1]
            pairs = [pair_of((tenant, world), entry) for entry in entries]
            found = await self._ask("MGET", *(key(*pair) for pair in pairs for key in (bond_key, cards_key)))
            for (npc, player), said, cards in zip(pairs, found[::2], found[1::2], strict=True):
                bond = self._bond(said, cards)
                if not bond.empty:
                    out[npc.npc, player] = bond

    async def worlds(self) -> list[KeptWorld]:
        """Every world that was defined. Raises StoreFailed."""
        out = []
        for entry in sorted(await self._ask("SMEMBERS", key_of("worlds"))):
            tenant, world = ids_of(entry)
            said = await self._ask("HGETALL", key_of("world", tenant, world))
            kept = {text_of(name): text_of(value) for name, value in zip(said[::2], said[1::2], strict=True)}
            version, lease_last = json.loads(kept.get("version", "0")), int(kept.get("lease_last", 0))
            out.append(
                KeptWorld(tenant, world, kept.get("definition", ""), version, lease_last, kept.get("timeline", ""))
            )
        return out

    async def npcs(self, tenant: str, world: str) -> list[tuple[str, str, int]]:
        """(npc id, base64 of its spec, lease epoch) of every registered NPC of a world, by id. Raises StoreFailed."""
        out: dict[str, tuple[str, int]] = {}
        cursor = b"0"
        while True:
            cursor, said = await self._ask("HSCAN", key_of("npcs", tenant, world), cursor, "COUNT", SLICE)
            for npc_id, value in zip(said[::2], said[1::2], strict=True):
                spec, lease_epoch = json.loads(value)
                out[text_of(npc_id)] = (spec, lease_epoch)
            if cursor == b"0":
                break
        npcs, ids, parts = [], list(out), []
        for first in range(0, len(ids), NPCS_AT_ONCE):
            parts.append(sorted(ids[first : first + NPCS_AT_ONCE]))
            await asyncio.sleep(0)
        for npc_id, pause in every(NPCS_AT_ONCE, merge(*parts)):
            npcs.append((npc_id, *out.pop(npc_id)))
            if pause:
                await asyncio.sleep(0)
        return npcs

    async def close(self) -> None:
        """Ends the connection; whoever waits hears that it is closed."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
        await self._lost("is closed")

    def _bond(self, said: bytes | None, cards: bytes | None) -> Bond:
        bond, broken = bond_of(said, cards)
        self.broken += broken
        return bond

    async def _ask(self, *command: str | bytes | int) -> Any:
        """The answer to one command."""
        (answer,) = await self._ask_all(command)
        return answer

    async def _ask_all(self, *commands: Command) -> list[Any]:
        """The answers to commands that are sent together; one that is an error is raised. A caller that is cancelled
        leaves its places in the row, see _answers().
        """
        if self._away or not self._connection.is_connected:
            self.start()
            raise StoreFailed(self._away or "the connection was lost")
        if len(self._waiting) >= WAITING_MAX:
            raise StoreFailed(f"{WAITING_MAX} reads are waiting")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Any]] = loop.create_future()
        late = loop.time() + self._settings.op_s
        if not self._waiting and self._deadline is not None:
            self._deadline.reschedule(late)
        self._waiting.append(_Read(answer, late, len(commands)))
        packed = [part for command in commands for part in self._connection.pack_command(*command)]
        try:
            # It writes before it waits for the first time, so the row is in the order of the wire.
            await self._connection.send_packed_command(packed, check_health=False)
        except BaseException as error:
            answer.cancel()
            if isinstance(error, RedisError | OSError):
                raise self._failed(error) from error
            raise
        return await answer

    async def _run(self) -> None:
        again_s = AGAIN_FIRST_S
        while True:
            try:
                async with asyncio.timeout(self._settings.connect_s):
                    await self._connection.connect()  # type: ignore[no-untyped-call]
                    await self._connection.send_command("PING", check_health=False)
                    await self._connection.read_response()  # an error while the server loads its data
                again_s, self._away = AGAIN_FIRST_S, ""
                self._here.set()
                await self._answers()
            except (RedisError, OSError, TimeoutError) as error:
                await self._lost(reason_of(error, self._password))
            except Exception as error:
                await self._lost(f"a bug: {error!r}")
                raise
            await asyncio.sleep(again_s)
            again_s = min(2 * again_s, AGAIN_LAST_S)

    async def _answers(self) -> None:
        """Gives answers out until the connection is lost, or until the oldest question has waited for too long."""
        async with asyncio.timeout(None) as self._deadline:
            while True:
                failed: StoreFailed | None = None
                said: Any = None
                try:
                    said = await self._connection.read_response()
                except ResponseError as error:
                    failed = self._failed(error)
                if not self._waiting:
                    raise RedisConnectionError("an answer that nobody asked for")
                read = self._waiting[0]
                read.said.append(said)
                read.failed = read.failed or failed
                if len(read.said) < read.commands:
                    continue
                self._waiting.popleft()
                self._deadline.reschedule(self._waiting[0].late if self._waiting else None)
                if read.answer.done():
                    continue
                if read.failed is not None:
                    read.answer.set_exception(read.failed)
                else:
                    read.answer.set_result(read.said)

    async def _lost(self, reason: str) -> None:
        self._away = reason
        self._here.clear()
        self._deadline = None
        for read in self._waiting:
            if not read.answer.done():
                read.answer.set_exception(StoreFailed(reason))
        self._waiting.clear()
        with contextlib.suppress(RedisError, OSError):
            await self._connection.disconnect(nowait=True)

    def _failed(self, error: Exception) -> StoreFailed:
        return StoreFailed(reason_of(error, self._password))


def look(settings: RecentSettings) -> tuple[str, str, str]:
    """The server's version, whether it keeps all in a file ("yes", "no"), and what it throws out when it is full; empty
    what it does not tell this user. Changes nothing. Raises ConfigError, and StoreFailed when npcd could not read.
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


BLOCKING = {
    "redis": blocking.Connection,
    "rediss": blocking.SSLConnection,
    "unix": blocking.UnixDomainSocketConnection,
}
_AWAITED: Mapping[str, Callable[..., awaited.AbstractConnection]] = {
    "redis": awaited.Connection,
    "rediss": awaited.SSLConnection,
    "unix": awaited.UnixDomainSocketConnection,
}


def connection_options(settings: RecentSettings) -> tuple[str, dict[str, Any]]:
    """The URL's scheme, and what a connection is made with. Raises ConfigError."""
    scheme = settings.url.partition(":")[0].lower()
    try:
        if "://" not in settings.url:
            raise ValueError("redis-py reads redis:HOST as a URL without a host")
        options: dict[str, Any] = {**awaited.parse_url(settings.url)}
    except ValueError:
        must = "redis://host:port, rediss://host:port or unix:///path, with %40 for @ and %2F for / in a password"
        raise ConfigError(f"Redis's URL must be {must}") from None  # the error may have a part of the password
    options.pop("connection_class", None)
    unknown = set(options) - URL_PARTS - (TLS_OPTIONS if scheme == "rediss" else frozenset())
    if unknown:
        raise ConfigError(f"Redis's URL has options that nobody knows: {', '.join(sorted(unknown))}")
    if settings.user:
        options["username"] = settings.user
    if settings.password_file:
        try:
            options["password"] = Path(settings.password_file).read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            raise ConfigError(f"Redis's password_file cannot be read: {error}") from error
    if settings.ca_file and scheme == "rediss":
        if not Path(settings.ca_file).is_file():
            raise ConfigError(f"Redis's ca_file is not a file: {settings.ca_file}")
        options["ssl_ca_certs"] = settings.ca_file
    own = {"socket_connect_timeout": settings.connect_s, "socket_timeout": None, "protocol": 2, "driver_info": None}
    return scheme, options | own


def reason_of(error: BaseException, password: str) -> str:
    """Why something failed, in a line that may be logged: without the password, without keys."""
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return "did not answer in time"
    text = " ".join(str(error).split()).partition(", with args")[0] or type(error).__name__
    known = refusal(type(error).__name__, text)
    if known:
        return known
    return (text.replace(password, "***") if password else text)[:REASON_LEN_MAX]
