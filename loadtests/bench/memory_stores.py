"""A daemon's data folder seen from outside: its servers' processes, and the contents of journal, recent store and
archive.

Benchmarks compare them with each other and with the clients' notes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from core.words import NpcKey
from daemon.commands import archive as archive_command
from daemon.process.children import eldest, holders
from memory.bond import Bond
from memory.recent import Recent
from memory.records import Kind, Record
from memory.redis_connection import RecentSettings
from memory.segments import Segments
from memory.state import State
from npcd_client import Client, NpcdError

OWNER, DATABASE, PORT = "npcd_owner", "npcd", 5432
READ_AT_ONCE, READ_BYTES = 1_000, 16 << 20
EVENTS_MAX = 1_000_000  # as many as `npcd archive show` prints; a run has some ten thousand
LOOK_S = 0.1
T = TypeVar("T")
TENANT = ""  # a daemon without a tokens file has no tenants


@contextlib.contextmanager
def data_folder() -> Iterator[Path]:
    """A new data folder that is removed afterwards; its path is short, so that sockets fit into it."""
    folder = Path(tempfile.mkdtemp(prefix="npcd-data-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def serving_pid(data: Path) -> int:
    """The process id of the serving process, from the folder's lock."""
    return int((data / "lock").read_text("ascii"))


def signal_server(data: Path, name: str, number: signal.Signals) -> int:
    """Sends a signal to every process of "redis" or "postgres", the oldest first. Returns their number."""
    pids = holders(data / name / "lock")
    first = eldest(pids)
    for pid in (*first, *(pid for pid in pids if pid not in first)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return len(pids)


async def caught_up(client: Client, timeout_s: float) -> None:
    """Waits until every store is up and has the whole journal. Raises NpcdError."""
    until_s = time.monotonic() + timeout_s
    while True:
        stores = (await client.status()).stores
        if stores and not any(store.away or store.behind_bytes for store in stores):
            return
        if time.monotonic() > until_s:
            said = ", ".join(f"{s.store}: {s.away or 'there'}, {s.behind_bytes} bytes behind" for s in stores)
            raise NpcdError(f"the stores did not catch up in {timeout_s:g} s ({said})")
        await asyncio.sleep(LOOK_S)


async def behind_bytes(client: Client, name: str) -> int:
    """The bytes of the journal that a store still lacks."""
    return next((s.behind_bytes for s in (await client.status()).stores if s.store == name), 0)


def journal(data: Path) -> list[Record]:
    """Every record, in order. Reads a copy, because a journal has one owner."""
    copy = Path(tempfile.mkdtemp(prefix="npcd-journal-"))
    try:
        for segment in sorted((data / "journal").glob("*.journal")):
            shutil.copy(segment, copy)
        segments = Segments(copy, ())
        segments.open()
        records: list[Record] = []
        at = segments.first
        while at < segments.end:
            found, at = segments.read(at, READ_AT_ONCE, READ_BYTES)
            records += found
        return records
    finally:
        shutil.rmtree(copy, ignore_errors=True)


async def at_rest(
    data: Path, client: Client, read: Callable[[], Awaitable[T]], timeout_s: float
) -> tuple[list[Record], T]:
    """The journal and the result of `read`, of one and the same moment: no record was written between. A record that is
    still under way when the load has ended (a summary, on a slow machine) would otherwise be in only one of them.
    Raises NpcdError when the journal does not stop growing.
    """
    until_s = time.monotonic() + timeout_s
    while True:
        before = await asyncio.to_thread(journal, data)
        await caught_up(client, timeout_s)
        found = await read()
        after = await asyncio.to_thread(journal, data)
        if [record.id for record in before] == [record.id for record in after]:
            return after, found
        if time.monotonic() > until_s:
            raise NpcdError(f"the journal still grows {timeout_s:g} s after the load")


def owner_url(data: Path) -> str:
    """The URL of a data folder's PostgreSQL for a role that may read."""
    return f"postgresql://{OWNER}@/{DATABASE}?host={quote(str(data / 'run' / 'postgres'), safe='')}&port={PORT}"


def archive_ids(url: str, world: str, npcs: Iterable[str]) -> Counter[str]:
    """The number of each event's copies in the archive, by the record's id: of these NPCs, and of the world itself."""
    parser = argparse.ArgumentParser()
    archive_command.add_to(parser.add_subparsers(dest="command"))
    found: Counter[str] = Counter()
    for npc in ("", *npcs):
        words = ["archive", "show", npc, "--world", world, "--json", "--limit", str(EVENTS_MAX), "--postgres", url]
        for line in archive_command.run(parser.parse_args(words)):
            found[json.loads(line)["event_id"].replace("-", "")] += 1
    return found


async def recent_bonds(data: Path, world: str) -> dict[tuple[str, str], Bond]:
    """The recent store's bonds of a world, by NPC and player. Raises StoreFailed."""
    recent = Recent(RecentSettings(url=f"unix://{quote(str(data / 'run' / 'redis' / 'redis.sock'))}", op_s=10.0))
    try:
        if not await recent.wait(10.0):
            raise NpcdError(f"Redis cannot be read: {recent.away}")
        return await recent.bonds(TENANT, world)
    finally:
        await recent.close()


def folded_bonds(records: Sequence[Record], world: str) -> dict[tuple[str, str], Bond]:
    """The bonds of a world that the journal yields, by NPC and player."""
    state = State(lambda _: {})  # no save is restored here
    for record in records:
        state.apply(record)
    bonds: dict[tuple[NpcKey, str], Bond] = state.bonds
    return {(npc.npc, who): bond for (npc, who), bond in bonds.items() if npc.world == world and not bond.empty}


def different(one: dict[tuple[str, str], Bond], other: dict[tuple[str, str], Bond]) -> list[tuple[str, str]]:
    """The pairs whose bonds differ."""
    return [pair for pair in one.keys() | other.keys() if one.get(pair) != other.get(pair)]


def turn_ids(records: Iterable[Record]) -> Counter[str]:
    """The number of each turn's copies in the journal, by the client's id."""
    return Counter(record.body.get("turn_id", "") for record in records if record.kind is Kind.TURN)
