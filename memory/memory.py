"""Memory: the one door of the daemon to the memory of NPCs. On the event loop; nothing here waits for a disk.

New records are folded into the bonds in process and appended to the journal; the feeders write them into the stores.
Reads are answered from the process, or from the recent store within a budget. Without a journal (`memory.keep = false`)
only this process remembers.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from core.errors import StoreFailed
from core.slices import Slices
from core.steps import Steps
from core.words import NpcKey
from memory.bond import Bond, within
from memory.bonds import ABOUT_A_PLAYER, Bonds, Held
from memory.cards import to_body
from memory.feeder import Feeder
from memory.journal import Journal
from memory.recall import Recall, Recalled
from memory.records import START, Body, Kind, Position, Record

FORGET_WITHIN_S = 5.0
SETTLED_WITHIN_S = 5.0
FIRST_TIMELINE = "first"
NEVER = Position(1 << 62, 0)


@dataclass(frozen=True, slots=True)
class StoreState:
    """The state of a store: the reason why it is `away` (empty: it is not), and the bytes of the journal it lacks."""

    name: str
    away: str
    written: int
    behind_bytes: int


class FileRewriter(Protocol):
    """The part of memory.rewriting.Rewriting that forgetting needs."""

    @property
    def away(self) -> str:
        """The reason why the file still has deleted text; empty when it has none."""

    async def clean(self, timeout_s: float) -> bool:
        """True if the file has none of the text deleted before, within this time."""


class RecentReader(Protocol):
    """The part of memory.recent.Recent that save games need."""

    async def bonds(self, tenant: str, world: str) -> dict[tuple[str, str], Bond]:
        """All bonds of a world by NPC and player. Raises StoreFailed."""


class Memory:
    """Owns the bonds in process and the worlds' timelines; hands records to the journal's thread."""

    def __init__(
        self,
        bonds: Bonds,
        recall: Recall,
        journal: Journal | None,
        recent: Feeder | None,
        archive: Feeder | None,
        wall_ms: Callable[[], int],
        reader: RecentReader | None = None,
        rewriting: FileRewriter | None = None,
    ) -> None:
        self.bonds = bonds
        self._rewriting = rewriting
        # Players that are forgotten here and not yet in the journal: the recent store's answers do not count.
        self._forgetting: set[tuple[NpcKey, str]] = set()
        self.recaller = recall
        self._reader = reader
        self.journal = journal
        self.recent_feeder = recent
        self.archive_feeder = archive
        self.wall_ms = wall_ms
        self._timelines: dict[tuple[str, str], str] = {}
        # Worlds of which the recent store still has forgotten or undone records, and the position up to which.
        self._undone: dict[tuple[str, str], Position] = {}
        recall.readable = self._readable
        # True if there is such a world. Of a deleted world no memory is kept any more.
        self.has_world: Callable[[str, str], bool] = lambda tenant, world: True
        recall.forgotten = self._is_forgotten
        recall.catch_up = self._catch_up
        self._pending: set[asyncio.Future[bool]] = set()

    @property
    def keeps(self) -> bool:
        """True if memory outlives this process."""
        return self.journal is not None

    def timeline(self, tenant: str, world: str) -> str:
        """The world's present timeline."""
        return self._timelines.get((tenant, world), FIRST_TIMELINE)

    def set_timeline(self, tenant: str, world: str, timeline: str) -> None:
        """Begins a timeline, or goes on with one."""
        self._timelines[tenant, world] = timeline

    async def recall(self, npc: NpcKey, player: str) -> Recalled:
        """An NPC's memory of a player (memory.recall)."""
        return await self.recaller.recall(npc, player)

    def at_hand(self, npc: NpcKey, player: str) -> Bond | None:
        """The same from this process alone; None when nothing is here."""
        return self.recaller.at_hand(npc, player)

    def is_whole(self, npc: NpcKey, player: str) -> bool:
        """True if this process has all of the memory."""
        return self.recaller.is_whole(npc, player)

    def near(self, npc: NpcKey, player: str) -> None:
        """A player comes near an NPC: its memory will be needed."""
        self.recaller.prefetch(npc, player)

    async def keep(self, kind: Kind, npc: NpcKey, player: str = "", body: Body | None = None) -> bool:
        """Folds a record in and writes it to the journal. Returns True if it is in there. Never waits for a store.

        It is written also when the caller is cancelled.
        """
        return await asyncio.shield(self.keep_soon(kind, npc, player, body))

    def keep_soon(self, kind: Kind, npc: NpcKey, player: str = "", body: Body | None = None) -> asyncio.Future[bool]:
        """The same for a caller that does not wait. It is folded in and queued for the journal at once."""
        record = self._record(kind, npc, player, body)
        held: Held | None = None
        if kind in ABOUT_A_PLAYER:
            if not self.has_world(npc.tenant, npc.world):
                return _refused()
            held = self.bonds.fold(record, complete=self.recent_feeder is None)
        return self._put(record, held)

    def archive(self, kind: Kind, npc: NpcKey, body: Body) -> None:
        """A record about an NPC alone, for the archive: nobody waits for it, and on a full disk it is lost."""
        if self.journal is not None and self.archive_feeder is not None:
            self.journal.add(self._record(kind, npc, "", body))

    def forget_here(self, npc: NpcKey, player: str) -> asyncio.Future[bool]:
        """Forgets a player by one NPC, or by its whole world when npc.npc is empty: in this process, at once. The
        record of it is queued for the journal; the future is True once it is there. forget() does the rest.
        """
        self.recaller.forget(npc, player)
        self.bonds.forget(npc.tenant, npc.world, player, npc.npc)  # freed by looking_after()
        if self.journal is None:
            return _refused()
        self._forgetting.add((npc, player))
        written = self._undo_soon(self._record(Kind.FORGET, npc, player, None))
        return written

    def forgotten_at_last(self, npc: NpcKey, player: str) -> None:
        """Drops a forget_here() that did not get into the journal: another one did."""
        self._forgetting.discard((npc, player))

    async def forget(self, npc: NpcKey, player: str, written: asyncio.Future[bool], redact: bool = True) -> list[str]:
        """Forgets in every store a player who was forgotten here. Returns the stores that have forgotten by now. The
        others forget as soon as they are back, because the journal has the record of it, after all that it is about.

        Raises StoreFailed if the journal has not. Then the journal has been overwritten all the same (which takes no
        room) unless `redact` is false, and nothing is recalled from the recent store until forgotten_at_last().
        """
        reached = ["hot"]
        if self.journal is None:
            return reached
        journal = self.journal
        accepted = await asyncio.shield(written)
        if not accepted and not redact:
            raise StoreFailed(self._unwritten())
        until = journal.end

        def about(record: Record) -> bool:
            return (
                player in (record.player, record.body.get("target"))
                and (record.tenant, record.world) == npc[:2]
                and npc.npc in ("", record.npc)
                and record.kind is not Kind.FORGET
            )  # fmt: skip

        # Records that a store has not got yet never reach it.
        await asyncio.to_thread(journal.redact, about, player)
        if not accepted:
            raise StoreFailed(self._unwritten())
        self.forgotten_at_last(npc, player)
        feeders = [f for f in (self.recent_feeder, self.archive_feeder) if f is not None]
        done = await asyncio.gather(*(f.passed(until, FORGET_WITHIN_S) for f in feeders))
        have = [f.name for f, passed in zip(feeders, done, strict=True) if passed]
        if "recent" in have and self._rewriting is not None and not await self._rewriting.clean(FORGET_WITHIN_S):
            have.remove("recent")
        return reached + have + ["journal"]

    def _unwritten(self) -> str:
        why = self.journal.degraded if self.journal is not None else ""
        return f"the journal cannot be written{f' ({why})' if why else ''}"

    def _is_forgotten(self, npc: NpcKey, player: str) -> bool:
        return not self._forgetting.isdisjoint(((npc, player), (npc._replace(npc=""), player)))

    async def carry_on(self, is_registered: Callable[[NpcKey], bool]) -> None:
        """Writes the cards of registered NPCs once more: they outlive the journal's segments."""
        for (npc, player), held in self.bonds.pairs():
            body: Body = {}
            if held.bond.relationship is not None:
                body["relationship"] = to_body(held.bond.relationship)
            if held.bond.quest is not None:
                body["quest"] = to_body(held.bond.quest)
            if body and is_registered(npc):
                await self._put(self._record(Kind.CARD, npc, player, body), None)

    async def bonds_of(self, tenant: str, world: str, slices: Slices) -> dict[tuple[str, str], Bond]:
        """All memory of a world, by NPC and player. Raises StoreFailed when the recent store is away."""
        if not await self.settled(SETTLED_WITHIN_S):
            raise StoreFailed("the recent store is away or behind, so the memory of NPCs cannot be read in full")
        out = await self._reader.bonds(tenant, world) if self._reader is not None else {}
        for (npc, player), held in self.bonds.of_world(tenant, world).items():
            if held.complete:
                out[npc.npc, player] = held.bond
            await slices.rest()
        now_ms = self.wall_ms()
        for pair in list(out):
            out[pair] = within(out[pair], now_ms)
            if out[pair].empty or self._is_forgotten(NpcKey(tenant, world, pair[0]), pair[1]):
                del out[pair]
            await slices.rest()
        return out

    async def turn_back(
        self,
        tenant: str,
        world: str,
        timeline: str,
        bonds: Mapping[tuple[str, str], Bond],
        body: Body,
        slices: Slices,
    ) -> bool:
        """A world goes on with these bonds, on another timeline. Returns True if that is in the journal.

        All other memory of its NPCs is gone at once, and from the recent store when it comes to this record.
        """
        made = await slices.run(self.bonds.made(tenant, world, bonds, write=self.recent_feeder is not None))
        # From here until the record is queued for the journal no other task gets a turn.
        self.recaller.forget_world(tenant, world)
        dropped = self.bonds.exchange(tenant, world, made)
        self.set_timeline(tenant, world, timeline)
        accepted = await self._undo(self._record(Kind.RESTORED, NpcKey(tenant, world, ""), "", body))
        if self.recent_feeder is not None:
            until = self._undone.get((tenant, world), START)  # gone when the recent store has it already
            for held in list(made.values()):
                self.bonds.written(held, until)
                await slices.rest()
        await slices.let_go(dropped)
        return accepted

    async def delete_world(self, tenant: str, world: str, version: int) -> bool:
        """Records that a world is deleted. Returns True if that is in the journal (always, when nothing is kept).

        The memory of its NPCs stays in this process until drop_world(); the recent store drops it when it comes to
        this record.
        """
        if self.journal is None:
            return True
        return await self._undo(self._record(Kind.DELETED, NpcKey(tenant, world, ""), "", {"version": version}))

    async def drop_world(self, tenant: str, world: str, slices: Slices) -> None:
        """Drops the memory of a deleted world's NPCs from this process, and its timeline."""
        self.recaller.forget_world(tenant, world)
        dropped = self.bonds.drop_world(tenant, world)
        self._timelines.pop((tenant, world), None)
        await slices.let_go(dropped)

    async def settled(self, timeout_s: float) -> bool:
        """True if the recent store has all earlier records within this time."""
        if self.journal is None or self.recent_feeder is None:
            return True
        if self._pending:
            await asyncio.wait(self._pending)
        return await self.recent_feeder.passed(self.journal.end, timeout_s)

    def looking_after(self) -> Steps[int]:
        """Once a second: makes room in process. Returns the number of bonds that the recent store lacks in part."""
        yield from self.bonds.freeing()
        yield from self.bonds.ageing(self.wall_ms())
        feeder = self.recent_feeder
        return (yield from self.bonds.putting_away(feeder.position if feeder is not None else None))

    def states(self) -> list[StoreState]:
        """The stores in use, the journal first."""
        journal = self.journal
        if journal is None:
            return []
        out = [StoreState("journal", journal.degraded, journal.counts.records, 0)]
        for feeder in (self.recent_feeder, self.archive_feeder):
            if feeder is not None:
                behind = journal.behind(feeder.position) if feeder.position is not None else 0
                out.append(StoreState(feeder.name, feeder.away, feeder.written, behind))
        return out

    def degraded(self) -> list[str]:
        """The problems, a line each."""
        away = [
            s.away if s.name == "journal" else f"{s.name} memory is away: {s.away}" for s in self.states() if s.away
        ]
        if self._rewriting is not None and self._rewriting.away:
            away.append(f"Redis's file still has forgotten text: {self._rewriting.away}")
        return away

    async def close(self) -> None:
        """Waits for records under way and for the journal's last one; the feeders end where they are."""
        if self._pending:
            await asyncio.wait(self._pending)
        for feeder in (self.recent_feeder, self.archive_feeder):
            if feeder is not None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.to_thread(feeder.stop)
        if self.journal is not None:
            await asyncio.to_thread(self.journal.close)

    async def _undo(self, record: Record) -> bool:
        """Writes a record that undoes earlier ones. Returns True if it is in the journal."""
        return await asyncio.shield(self._undo_soon(record))

    def _undo_soon(self, record: Record) -> asyncio.Future[bool]:
        """The same for a caller that does not wait. The recent store is not read until it has the record too."""
        if self.journal is None:
            return _refused()
        world = (record.tenant, record.world)
        before = self._undone.get(world)
        self._undone[world] = NEVER
        written = self._put(record, None)

        def answered(done: asyncio.Future[bool]) -> None:
            assert self.journal is not None
            if not done.cancelled() and done.result():
                self._undone[world] = self.journal.end
            elif record.kind is not Kind.RESTORED:  # the caller hears of it; no store has it
                self._undone[world] = before if before is not None else START

        written.add_done_callback(answered)
        return written

    async def _catch_up(self, held: Held) -> None:
        """Waits until the recent store has a bond in full. Raises StoreFailed when it is away."""
        feeder = self.recent_feeder
        while feeder is not None and held.unsaved:
            if feeder.away:
                raise StoreFailed(feeder.away)
            if held.unsaved_until is None or held.writing:
                await (asyncio.wait(self._pending) if self._pending else asyncio.sleep(0))
            elif not await feeder.passed(held.unsaved_until, SETTLED_WITHIN_S):
                raise StoreFailed(feeder.away or "it is behind")
            self.bonds.saved(held, feeder.position)

    def _readable(self, npc: NpcKey) -> bool:
        until = self._undone.get(npc[:2])
        if until is None:
            return True
        feeder = self.recent_feeder
        if feeder is None or feeder.position is None or feeder.position < until:
            return False
        del self._undone[npc[:2]]
        return True

    def _record(self, kind: Kind, npc: NpcKey, player: str, body: Body | None) -> Record:
        timeline = self.timeline(npc.tenant, npc.world)
        return Record(kind, self.wall_ms(), npc.tenant, npc.world, npc.npc, player, timeline, body or {})

    def _put(self, record: Record, held: Held | None) -> asyncio.Future[bool]:
        if self.journal is None:
            return _refused()
        journal, bonds = self.journal, self.bonds
        written = journal.put(record)
        self._pending.add(written)
        written.add_done_callback(self._pending.discard)
        if held is not None and self.recent_feeder is not None:
            bond = held
            bonds.write(bond)
            written.add_done_callback(lambda _: bonds.written(bond, journal.end))
        return written


def _refused() -> asyncio.Future[bool]:
    answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    answer.set_result(False)
    return answer


def new_timeline() -> str:
    """An id for a new timeline."""
    return secrets.token_hex(8)
