"""Reads the recent store: worlds, NPCs and thirty days of bonds, as memory/recent_keys.py lays them out.

Recent owns one connection, on the event loop, and only reads. All reads share it and answers come in order. A cancelled
read keeps its place; its answer is skipped, so no other read gets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from dataclasses import dataclass, field
from heapq import merge
from typing import Any

from redis.asyncio import connection as awaited
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from core.errors import StoreFailed
from core.steps import every
from core.words import NpcKey
from memory.bond import Bond, within
from memory.recent_keys import (
    FIRST,
    LAST,
    Command,
    bond_key,
    bond_of,
    cards_key,
    ids_of,
    index_slice,
    key_of,
    pair_of,
    text_of,
)
from memory.redis_connection import AWAITED, RecentSettings, connection_options, reason_of

BONDS_READ = 8  # bonds parsed on the event loop between two waits: about 0.5 ms
NPCS_READ = 32  # asked for at once
NPCS_AT_ONCE = 500  # sorted and put together on the event loop without a rest: about 0.5 ms
WAITING_MAX = 512
AGAIN_FIRST_S, AGAIN_LAST_S = 0.05, 2.0


@dataclass(frozen=True, slots=True)
class KeptWorld:
    """A world as it was defined: base64 of the definition, its version, the last lease given, and its timeline."""

    tenant: str
    world: str
    definition: str
    version: int
    lease_last: int
    timeline: str


@dataclass(slots=True, eq=False)
class _Read:
    """Commands that were sent together: the caller's future, the deadline, and the answers so far."""

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
        """Does not connect yet. Raises ConfigError when the settings are not enough to connect."""
        scheme, options = connection_options(settings)
        self._password: str = options.get("password", "")
        self._connection: awaited.AbstractConnection = AWAITED[scheme](**options)
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
        """The reason why the store cannot be read now; empty while it can."""
        return self._away

    def start(self) -> None:
        """Begins to connect, in the background. The first read does so too."""
        if (self._task is None or self._task.done()) and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def wait(self, timeout_s: float) -> bool:
        """True if the store is connected within this time."""
        self.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._here.wait()
        return not self._away

    async def recall(self, npc: NpcKey, player: str, now_ms: int) -> Bond | None:
        """The NPC's memory of the player by now, None when it has none. Raises StoreFailed when the store is away."""
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
            cursor, said = await self._ask("HSCAN", key_of("npcs", tenant, world), cursor, "COUNT", NPCS_READ)
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
        """Ends the connection; reads that wait fail with StoreFailed."""
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
        """The answers to commands that are sent together; an error among them is raised. A cancelled caller keeps its
        places in the row, see _answers().
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
        """Hands out answers until the connection is lost, or until the oldest command has waited for too long."""
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
