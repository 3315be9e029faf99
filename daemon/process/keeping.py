"""All that outlives the process: the data folder with the journal, the stores behind it, and what came out of them.

Owns all of it from start to end. The embedded servers, the folder's lock and the journal's first look at its segments
block, and happen on a thread while the model is loaded.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import structlog

from core.clock import Clock, S
from core.errors import NpcdError, StoreFailed
from core.slices import Slices
from daemon.build import Daemon, wall_ms
from daemon.config import Config, engines_of
from daemon.process.datafolder import OWNER_URL, DataFolder
from daemon.process.embedded import Embedded
from daemon.process.own_servers import Urls
from daemon.rpc.save_games import load_copy
from kvcache.verify import SIGNATURE_BYTES, signer
from memory import saves
from memory.archive import ArchiveWriter
from memory.bonds import Bonds
from memory.feeder import Feeder
from memory.journal import Journal
from memory.memory import Memory
from memory.parked import Parked
from memory.recall import Recall
from memory.recent import Recent
from memory.recent_writer import RecentWriter
from memory.rewriting import Rewriting
from memory.state import State, WorldState

OFF = "off"
CAUGHT_UP_WITHIN_S = 5.0  # until the recent store has the last writes of an earlier life of the daemon
LATE_WITHIN_S, LATE_AGAIN_S = 60.0, 1.0  # the same for one that is late: in each try, and between two
READ_BACK_BYTES = 256 << 20  # of the journal, when there is no recent store to read the state from

log = structlog.get_logger("npcd")


@dataclass(slots=True)
class Keeping:
    """The open data folder and its stores. stop() ends all of it."""

    folder: DataFolder
    embedded: Embedded | None
    journal: Journal
    recent: Recent | None
    memory: Memory
    parked: Parked | None = None
    rewriting: Rewriting | None = None
    late: asyncio.Task[None] | None = None  # takes up the worlds of a recent store that was late

    def ill(self) -> list[str]:
        """Problems of the embedded stores, a line each."""
        return self.embedded.reasons if self.embedded is not None else []

    async def stop(self, limit_s: float) -> None:
        """Writes waiting records, ends feeders, journal and servers, and unlocks the folder."""
        if self.late is not None:
            self.late.cancel()
        await self.memory.close()
        if self.parked is not None:
            await asyncio.to_thread(self.parked.stop, limit_s)
        if self.rewriting is not None:
            await asyncio.to_thread(self.rewriting.stop, limit_s)
        if self.recent is not None:
            await self.recent.close()
        if self.embedded is not None:
            await asyncio.to_thread(self.embedded.stop, limit_s)
            (self.folder.path / OWNER_URL).unlink(missing_ok=True)
        self.folder.close()


async def open_keeping(
    config: Config, clock: Clock, wall_ms: Callable[[], int] = wall_ms, folder: DataFolder | None = None
) -> Keeping:
    """Opens the data folder (unless it is given open), starts its servers and the journal; `wall_ms` is Unix time.
    Raises ConfigError and StoreFailed; then the folder is closed.
    """
    if folder is None:
        folder = await asyncio.to_thread(DataFolder, config.memory.folder)
    embedded, urls, journal = await asyncio.to_thread(_open, config, folder, wall_ms)
    settings = config.memory
    recent: Recent | None = None
    parked: Parked | None = None
    rewriting: Rewriting | None = None
    feeders: list[Feeder] = []
    recent_feeder = archive_feeder = None
    if urls.redis_url:
        store = replace(settings.recent, url=urls.redis_url)
        recent = Recent(store)
        recent.start()
        own = not settings.redis
        if own or store.rewrite_aof:
            rewriting = Rewriting(store, folder.journal_id, folder.path / "redis" if own else None)
            rewriting.start()
        load, owed = partial(load_copy, folder.saves), rewriting.owed if rewriting is not None else None
        recent_writer = RecentWriter(store, folder.journal_id, load, owed)
        recent_feeder = Feeder(recent_writer, journal, settings.feeder, recent_writer.sweep_by_clock)
        feeders.append(recent_feeder)
        if any(setup.kv.redis_mib for setup in engines_of(config).values()):
            parked = Parked(settings.parked, store, folder.journal_id, signer(os.urandom(SIGNATURE_BYTES)))
    if urls.postgres_url:
        writer = ArchiveWriter(replace(settings.archive, url=urls.postgres_url), folder.pseudonym_key)
        archive_feeder = Feeder(writer, journal, settings.feeder)
        feeders.append(archive_feeder)
    for feeder in feeders:
        feeder.start()
    bonds = Bonds(settings.bonds_max)
    recall = Recall(bonds, recent, settings.recent.recall_ms, settings.reads_max, clock, wall_ms)
    memory = Memory(bonds, recall, journal, recent_feeder, archive_feeder, wall_ms, recent, rewriting)
    log.info(
        "memory",
        folder=str(folder.path),
        recent=_how_given(settings.redis, urls.redis_url),
        archive=_how_given(settings.postgres, urls.postgres_url),
    )
    for reason in embedded.reasons if embedded is not None else ():
        log.warning("store missing", reason=reason)
    return Keeping(folder, embedded, journal, recent, memory, parked, rewriting)


def _open(config: Config, folder: DataFolder, wall_ms: Callable[[], int]) -> tuple[Embedded | None, Urls, Journal]:
    settings = config.memory
    embedded: Embedded | None = None
    try:
        urls = Urls()
        if "" in (settings.redis, settings.postgres):
            embedded = Embedded(folder, redis=not settings.redis, postgres=not settings.postgres)
            urls = embedded.start()
            try:
                (folder.path / OWNER_URL).write_text(urls.postgres_owner_url, "utf-8")
            except OSError as error:  # a full disk: only npcd's own commands look for it
                log.warning("archive address not saved", file=OWNER_URL, why=error.strerror)
        urls = Urls(
            _url(settings.redis, urls.redis_url), _url(settings.postgres, urls.postgres_url), urls.postgres_owner_url
        )
        saves.sweep(folder.saves)
        readers = [name for name, url in (("recent", urls.redis_url), ("archive", urls.postgres_url)) if url]
        journal = Journal(folder.journal, settings.journal, wall_ms, readers)
        journal.start()
    except BaseException:
        if embedded is not None:
            embedded.stop()
        folder.close()
        raise
    return embedded, urls, journal


async def revive(keeping: Keeping, daemon: Daemon) -> None:
    """Gives the daemon the worlds and NPCs that an earlier life of it had; bonds come back when they are asked for.

    Without the recent store it is what the newest part of the journal says, bonds included. When that store is only
    late, worlds that the journal does not have any more are taken up as soon as it is there.
    """
    began_ns = daemon.clock()
    source = "recent"
    slices = daemon.calls.slicer()
    worlds = await _from_recent(keeping, slices, CAUGHT_UP_WITHIN_S)
    if worlds is None:
        source = "journal"
        state = await asyncio.to_thread(_from_journal, keeping.journal, keeping.folder.saves)
        worlds = state.worlds
        for (npc, player), bond in state.bonds.items():
            await slices.rest()
            held = keeping.memory.bonds.put(npc, player, bond, complete=keeping.recent is None)
            if keeping.recent is not None:
                keeping.memory.bonds.write(held)
                keeping.memory.bonds.written(held, keeping.journal.end)
        if keeping.recent is not None:
            keeping.late = asyncio.create_task(_revive_later(keeping, daemon))
    for (tenant, world_id), kept in worlds.items():
        await _take_up(keeping, daemon, tenant, world_id, kept, slices)
    if worlds:
        took_s = round((daemon.clock() - began_ns) / S, 2)
        log.info("worlds restored", worlds=len(worlds), npcs=daemon.worlds.npcs, source=source, seconds=took_s)


async def _revive_later(keeping: Keeping, daemon: Daemon) -> None:
    """Waits for the recent store, without a limit, and restores its worlds that no game has defined meanwhile."""
    while (worlds := await _from_recent(keeping, daemon.calls.slicer(), LATE_WITHIN_S)) is None:  # noqa: ASYNC110 - a server comes when it comes
        await asyncio.sleep(LATE_AGAIN_S)

    async def take_up(tenant: str, world_id: str, kept: WorldState) -> None:
        if daemon.worlds.find(tenant, world_id) is None:
            npcs = len(kept.npcs)
            await _take_up(keeping, daemon, tenant, world_id, kept, daemon.calls.slicer())
            log.info("world restored late", world=world_id, npcs=npcs)

    for key, kept in worlds.items():
        await daemon.calls.alone(key, take_up(*key, kept))


async def _take_up(
    keeping: Keeping, daemon: Daemon, tenant: str, world_id: str, kept: WorldState, slices: Slices
) -> None:
    if kept.timeline:
        keeping.memory.set_timeline(tenant, world_id, kept.timeline)
    if not kept.definition:
        return
    specs = []
    for spec, epoch in kept.npcs.values():
        specs.append((base64.b64decode(spec), epoch))
        await slices.rest()
    await slices.let_go(kept.npcs)
    try:
        definition = await slices.run(saves.decoding(kept.definition))
        steps = daemon.worlds.reviving(tenant, definition, kept.version, kept.lease_last, specs)
        world = await slices.run(steps)
        await slices.let_go(specs)
    except NpcdError as error:
        # Another model, or tighter limits than before: the game will define its world anew, or delete it.
        daemon.worlds.unusable[tenant, world_id] = str(error)
        log.warning("world not restored", world=world_id, reason=str(error))
        return
    await daemon.calls.revived(world)


async def _from_recent(keeping: Keeping, slices: Slices, within_s: float) -> dict[tuple[str, str], WorldState] | None:
    recent, feeder = keeping.recent, keeping.memory.recent_feeder
    if recent is None or feeder is None:
        return None
    there = await recent.wait(within_s)
    if not there or not await feeder.passed(keeping.journal.end, within_s):
        log.warning("recent store late", reason=recent.away or feeder.away or "it is behind")
        return None
    try:
        out = {}
        for w in await recent.worlds():
            npcs, said = {}, await recent.npcs(w.tenant, w.world)
            for npc_id, spec, epoch in said:
                npcs[npc_id] = (spec, epoch)
                await slices.rest()
            await slices.let_go(said)
            out[w.tenant, w.world] = WorldState(w.definition, w.version, w.lease_last, w.timeline, npcs)
        return out
    except StoreFailed as error:
        log.warning("recent store away", reason=str(error))
        return None


def _from_journal(journal: Journal, folder: Path) -> State:
    state = State(partial(load_copy, folder))
    at = journal.newest(READ_BACK_BYTES)
    while True:
        records, at = journal.read(at)
        if not records:
            return state
        for record in records:
            try:
                state.apply(record)
            except (KeyError, ValueError, TypeError, OSError) as error:
                log.warning("record skipped", record=record.id, reason=repr(error))


def _url(setting: str, embedded: str) -> str:
    """The URL to use: the setting's, none when it is off, the embedded server's when it is empty."""
    return "" if setting == OFF else setting or embedded


def _how_given(setting: str, url: str) -> str:
    if not url:
        return "off" if setting == OFF else "none"
    return "own" if not setting else "by URL"
