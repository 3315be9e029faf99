"""The rpcs about what NPCs remember: cards, recall, forgetting, and save games. Plain messages in and out, as calls.py.

Save files are read and written on a thread. A save that is restored or imported replaces all that the world's NPCs
remember, and begins another timeline, which every later record carries. What the journal does not take, because the
disk is full, is owed (daemon/rpc/owed.py), and tried again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import structlog

from core.clock import Clock
from core.errors import CallerError, NotBuilt, NotFound, Overloaded, StoreFailed
from core.slices import Pace, Slices
from core.words import NpcKey
from daemon.minds.table import Table
from daemon.rpc.changes import Changes
from daemon.rpc.owed import Forgotten, Owed
from daemon.talk.dialogue import Dialogue
from daemon.wire import parsing
from daemon.words import check_id, whole
from daemon.worlds.worlds import World, Worlds
from memory import cards, saves
from memory.bond import Bond, mood
from memory.cards import Card, Quest, Relationship
from memory.memory import Memory, new_timeline
from memory.noting import with_name
from memory.parked import Parked
from memory.records import Body, Kind
from memory.saves import Save
from npcd.v1 import npcs_pb2
from scheduler.ticket import Door

_Answer = TypeVar("_Answer")
CHUNK_BYTES = 512 << 10
IMPORT_BYTES_MAX = 256 << 20
SAVES_MAX = 64  # checkpoints of a world
FORGOTTEN_WITHIN_S = 1.0
NPCS_IN_A_RECORD = 100
SAVES = "saves"  # what changes one after the other: all save games
CARRIED_PARTS = 4  # so often in the time that the journal keeps a record
COPIES_KEPT = 2  # of what was restored: the recent store reads them when it comes to the record


log = structlog.get_logger("npcd")


class Remembering:
    """Owns the folder of save files. `saves` is None for a daemon that keeps nothing."""

    def __init__(
        self,
        worlds: Worlds,
        table: Table,
        dialogue: Dialogue,
        door: Door,
        memory: Memory,
        epoch: int,
        folder: Path | None,
        parked: Parked | None,
        changes: Changes,
        pace: Pace,
        clock: Clock,
    ) -> None:
        self._changes = changes
        self._pace = pace
        self.owed = Owed()
        self._table = table
        self._clock = clock
        self._carry_ms = 0
        self._trying: asyncio.Task[None] | None = None
        self._worlds = worlds
        self._dialogue = dialogue
        self._door = door
        self._parked = parked
        self._memory = memory
        self._epoch = epoch
        self._folder = folder

    async def set_cards(self, tenant: str, request: npcs_pb2.SetCardsRequest) -> npcs_pb2.SetCardsResponse:
        """Sets an NPC's cards about a player."""
        npc = self._worlds.npc(tenant, request.world_id, request.npc_id)
        player = check_id("player_id", request.player_id)
        body: Body = {}
        card: Card
        if request.HasField("relationship"):
            r = request.relationship
            card = Relationship(r.trust, r.affinity, tuple(r.promises), tuple(r.betrayals))
            cards.check("relationship", card)
            body["relationship"] = cards.to_body(card)
        if request.HasField("quest"):
            card = Quest(tuple(request.quest.active), tuple(request.quest.milestones))
            cards.check("quest", card)
            body["quest"] = cards.to_body(card)
        if not body:
            raise CallerError("relationship", "give relationship, quest, or both")
        accepted = await self._memory.keep(Kind.CARD, npc.key, player, body)
        return npcs_pb2.SetCardsResponse(accepted=accepted, accepted_known=self._memory.keeps)

    async def recall(self, tenant: str, request: npcs_pb2.RecallRequest) -> npcs_pb2.RecallResponse:
        """What an NPC remembers of a player."""
        npc = self._worlds.npc(tenant, request.world_id, request.npc_id)
        recalled = await self._memory.recall(npc.key, check_id("player_id", request.player_id))
        bond, now_ms = recalled.bond, self._memory.wall_ms()
        answer = npcs_pb2.RecallResponse(
            player_name=bond.name,
            facts=[
                npcs_pb2.Fact(
                    text=with_name(f.text, bond.name), importance=f.importance, age_ms=whole(now_ms - f.at_ms, 64)
                )
                for f in bond.facts
            ],
            summaries=[
                npcs_pb2.SessionSummary(text=with_name(s.text, bond.name), age_ms=whole(now_ms - s.at_ms, 64))
                for s in bond.summaries
            ],
            mood=mood(bond.moods, now_ms),
            stores=recalled.stores,
            late=recalled.late,
        )
        if (r := bond.relationship) is not None:
            answer.relationship.CopyFrom(
                npcs_pb2.RelationshipCard(
                    trust=r.trust, affinity=r.affinity, promises=r.promises, betrayals=r.betrayals
                )
            )
        if (q := bond.quest) is not None:
            answer.quest.CopyFrom(npcs_pb2.QuestCard(active=q.active, milestones=q.milestones))
        return answer

    async def forget(self, tenant: str, request: npcs_pb2.ForgetRequest) -> npcs_pb2.ForgetResponse:
        """Forgets a player in every store; the answer says which have by now, the others do when they are there.

        Raises StoreFailed while the journal or a save cannot be written. Then it is tried again until it is done.
        """
        self._worlds.world(tenant, request.world_id)
        player = check_id("player_id", request.player_id)
        if request.npc_id:
            check_id("npc_id", request.npc_id)
        who = Forgotten(tenant, request.world_id, request.npc_id, player)
        return await self._alone(self._forget_or_owe(who))

    async def _forget_or_owe(self, who: Forgotten) -> npcs_pb2.ForgetResponse:
        try:
            answer = await self._forget(who, redact=True)
        except StoreFailed as error:
            goes_on = "call Forget again later"
            if self.owed.forget(who):
                goes_on = "npcd goes on trying while it runs; call Forget again to hear that it is done"
            else:
                self._memory.forgotten_at_last(NpcKey(who.tenant, who.world, who.npc), who.player)
            raise StoreFailed(f"the player is not forgotten for good: {error}; {goes_on}") from error
        self.owed.paid(who)
        return answer

    async def _forget(self, who: Forgotten, redact: bool) -> npcs_pb2.ForgetResponse:
        """Raises StoreFailed when it does not stand in the journal, or in a save."""
        key = NpcKey(who.tenant, who.world, who.npc)
        sessions, turns = self._dialogue.forget(who.tenant, who.world, who.player, who.npc)
        written = self._memory.forget_here(key, who.player)
        await self._pace().run(self._table.forgetting(who.tenant, who.world, who.player, who.npc))
        parked = False
        if self._parked is not None:
            await self._door.obeyed()  # the engine thread has let go of the trunks, wherever they were
            parked = await asyncio.to_thread(self._parked.settled, FORGOTTEN_WITHIN_S)
        stores = await self._memory.forget(key, who.player, written, redact)
        stores += ["parked"] if parked else []
        if self._folder is not None:
            folder = saves.folder_of(self._folder, who.tenant, who.world)
            if await asyncio.to_thread(_forget_in, folder, who.player, who.npc):
                stores.append("saves")
        return npcs_pb2.ForgetResponse(sessions=sessions, turns=turns, trunks=sessions, stores=stores)

    # -- worlds and NPCs ---------------------------------------------------------------------------------------

    async def keep_defined(self, world: World, changed: bool, slices: Slices) -> bool:
        """Has a definition written if it changed; whether the journal has it. Nobody else may change the world."""
        if changed and not await _keep_world(self._memory, world, slices):
            self._owe(world, definition=True)
        return self._has(world, definition=True)

    async def keep_registered(
        self, world: World, npc_ids: Sequence[str], changed: Sequence[str], slices: Slices
    ) -> bool:
        """Has registrations that changed written; whether the journal has all of them. Nobody else may change the
        world.
        """
        if not await _keep_npcs(self._memory, world, changed, slices):
            self._owe(world, changed)
        return self._has(world, npc_ids, changed)

    async def keep_removed(self, world: World, npc_ids: Sequence[str], removed: Sequence[str]) -> bool:
        """Has it written that NPCs were taken out; whether the journal has it of all that were ever."""
        if removed:
            about = NpcKey(world.tenant, world.world_id, "")
            if not await self._memory.keep(Kind.REMOVED, about, "", {"npcs": list(removed)}):
                self._owe(world, removed)
        return self._has(world, npc_ids, removed)

    def _owe(self, world: World, npc_ids: Sequence[str] = (), definition: bool = False) -> None:
        if self._memory.keeps:
            self.owed.write(world.tenant, world.world_id, npc_ids, definition)

    def _has(self, world: World, *npc_ids: Sequence[str], definition: bool = False) -> bool:
        """Whether the journal has this of a world: nothing of it is owed."""
        owed = self.owed.worlds.get((world.tenant, world.world_id))
        known = owed is None or (not (definition and owed.definition) and all(map(owed.npcs.isdisjoint, npc_ids)))
        return self._memory.keeps and known

    # -- what is owed ------------------------------------------------------------------------------------------

    def look_after(self) -> None:
        """Once a second: tries again what is owed, in the background, when the journal can be written."""
        journal = self._memory.journal
        if (journal is not None and journal.degraded) or (self._trying is not None and not self._trying.done()):
            return
        if self.owed.due(self._clock()):
            self._trying = asyncio.create_task(self._try_again())
        elif journal is not None and self._memory.recent_feeder is None and self._memory.wall_ms() >= self._carry_ms:
            # The journal is all there is, and old segments are deleted: what must live longer is written once more.
            self._carry_ms = self._memory.wall_ms() + journal.keep_ms // CARRIED_PARTS
            self._trying = asyncio.create_task(self._carry_on())

    async def _carry_on(self) -> None:
        for world in list(self._worlds):
            key = (world.tenant, world.world_id)
            await self._changes.alone(key, self._carry_world_on(*key))
        await self._memory.carry_on(self._is_registered)

    async def _carry_world_on(self, tenant: str, world_id: str) -> None:
        if self._worlds.has_world(tenant, world_id):
            world, slices = self._worlds.world(tenant, world_id), self._pace()
            await self.keep_defined(world, True, slices)
            await self.keep_registered(world, (), list(world.npcs), slices)

    def _is_registered(self, key: NpcKey) -> bool:
        try:
            return bool(self._worlds.npc(*key))
        except NotFound:
            return False

    async def _try_again(self) -> None:
        try:
            for who in list(self.owed.forgets):
                await self._alone(self._forget(who, redact=False))
                self.owed.paid(who)
                log.info("forgotten at last", world=who.world, left=len(self.owed.forgets))
            for key in list(self.owed.worlds):
                await self._changes.alone(key, self._write_owed(*key))
        except StoreFailed as error:
            log.warning("owed to the journal", reason=str(error), forgets=len(self.owed.forgets))
            self.owed.tried(False, self._clock())
        else:
            self.owed.tried(True, self._clock())

    async def _write_owed(self, tenant: str, world_id: str) -> None:
        """Writes what the journal has not got of a world, as the world is now. Raises StoreFailed."""
        owed = self.owed.worlds[tenant, world_id]
        try:
            world = self._worlds.world(tenant, world_id)
        except NotFound:
            self.owed.paid((tenant, world_id))
            return
        self.owed.paid((tenant, world_id))
        removed = [npc for npc in owed.npcs if npc not in world.npcs]
        slices = self._pace()
        await self.keep_defined(world, owed.definition, slices)
        await self.keep_registered(world, (), [npc for npc in owed.npcs if npc in world.npcs], slices)
        await self.keep_removed(world, (), removed)
        if (tenant, world_id) in self.owed.worlds:
            raise StoreFailed("the journal cannot be written")

    # -- save games --------------------------------------------------------------------------------------------

    async def checkpoint(self, tenant: str, request: npcs_pb2.CheckpointRequest) -> npcs_pb2.CheckpointResponse:
        """Marks what a world's NPCs remember now under a name."""
        world = self._worlds.world(tenant, request.world_id)
        path = self._path(tenant, request.world_id, request.checkpoint_id)
        return await self._alone(self._checkpoint(world, path, request.checkpoint_id))

    async def _checkpoint(self, world: World, path: Path, checkpoint: str) -> npcs_pb2.CheckpointResponse:
        self._worlds.world(world.tenant, world.world_id)  # while this waited for its turn it may have been deleted
        # Looked at in the turn that writes: of calls that come together, each finds what those before it have written.
        if not await asyncio.to_thread(_has_room, path):
            raise Overloaded(
                f"world '{world.world_id}' has {SAVES_MAX} checkpoints; use one of their names again, or delete one",
                0,
            )
        save = await self._save(world)
        await _write(path, save)
        await _let_go(save, self._pace())
        body: Body = {"checkpoint": checkpoint, "file": self._within(path)}
        await self._memory.keep(Kind.CHECKPOINT, NpcKey(world.tenant, world.world_id, ""), "", body)
        return npcs_pb2.CheckpointResponse(timeline_id=save.timeline)

    async def restore(self, tenant: str, request: npcs_pb2.RestoreRequest) -> npcs_pb2.RestoreResponse:
        """Goes back to a checkpoint."""
        world = self._worlds.world(tenant, request.world_id)
        path = self._path(tenant, request.world_id, request.checkpoint_id)
        return await self._alone(self._restore(world, path, request.checkpoint_id))

    async def _restore(self, world: World, path: Path, checkpoint: str) -> npcs_pb2.RestoreResponse:
        self._worlds.world(world.tenant, world.world_id)  # as above
        try:
            save = await asyncio.to_thread(lambda: saves.unpack(path.read_bytes()))
        except FileNotFoundError:
            text = f"there is no checkpoint '{checkpoint}' of world '{world.world_id}'"
            raise NotFound("checkpoint_id", text) from None
        except (OSError, ValueError) as error:
            raise StoreFailed(f"the checkpoint cannot be read: {error}") from error
        timeline = await self._go_on_from(world.tenant, save, checkpoint)
        return npcs_pb2.RestoreResponse(timeline_id=timeline, daemon_epoch=self._epoch)

    async def list_checkpoints(
        self, tenant: str, request: npcs_pb2.ListCheckpointsRequest
    ) -> npcs_pb2.ListCheckpointsResponse:
        """A world's checkpoints, the newest last."""
        self._worlds.world(tenant, request.world_id)
        folder = saves.folder_of(self._folder_needed(), tenant, request.world_id)
        found, now_ms = await asyncio.to_thread(saves.listed, folder), self._memory.wall_ms()
        return npcs_pb2.ListCheckpointsResponse(
            checkpoints=[
                npcs_pb2.SavedCheckpoint(
                    checkpoint_id=c.checkpoint,
                    timeline_id=c.timeline,
                    age_ms=max(0, now_ms - c.at_ms),
                    bytes=c.size,
                )
                for c in found
            ],
            checkpoints_max=SAVES_MAX,
        )

    async def delete_checkpoint(
        self, tenant: str, request: npcs_pb2.DeleteCheckpointRequest
    ) -> npcs_pb2.DeleteCheckpointResponse:
        """Deletes a checkpoint."""
        self._worlds.world(tenant, request.world_id)
        path = self._path(tenant, request.world_id, request.checkpoint_id)
        return await self._alone(self._delete_checkpoint(request, path))

    async def _delete_checkpoint(
        self, request: npcs_pb2.DeleteCheckpointRequest, path: Path
    ) -> npcs_pb2.DeleteCheckpointResponse:
        try:
            return npcs_pb2.DeleteCheckpointResponse(bytes=await asyncio.to_thread(saves.delete, path))
        except FileNotFoundError:
            text = f"there is no checkpoint '{request.checkpoint_id}' of world '{request.world_id}'"
            raise NotFound("checkpoint_id", text) from None
        except OSError as error:
            raise StoreFailed(f"the checkpoint cannot be deleted: {error.strerror}") from error

    async def put_aside(self, tenant: str, world_id: str) -> int:
        """Takes the checkpoints of a world that is to be deleted out of sight; how many. Raises StoreFailed."""
        return await self._with_saves(tenant, world_id, saves.put_aside) or 0

    async def put_back(self, tenant: str, world_id: str) -> None:
        """Undoes put_aside(): the world is not deleted. Raises StoreFailed."""
        await self._with_saves(tenant, world_id, saves.put_back)

    async def remove_saves(self, tenant: str, world_id: str) -> None:
        """Removes all that a deleted world has saved. Raises StoreFailed."""
        await self._with_saves(tenant, world_id, saves.remove)

    async def _with_saves(self, tenant: str, world_id: str, act: Callable[[Path], _Answer]) -> _Answer | None:
        if self._folder is None:
            return None
        try:
            return await asyncio.to_thread(act, saves.folder_of(self._folder, tenant, world_id))
        except OSError as error:
            raise StoreFailed(f"the checkpoints of world '{world_id}': {error.strerror}") from error

    def alone(self, act: Coroutine[Any, Any, _Answer]) -> Coroutine[Any, Any, _Answer]:
        """Does one thing at a time with saves and worlds, to its end."""
        return self._alone(act)

    async def export(self, tenant: str, request: npcs_pb2.ExportRequest) -> AsyncGenerator[npcs_pb2.ExportChunk, None]:
        """A world's memory as the bytes of a save file."""
        save = await self._save(self._worlds.world(tenant, request.world_id))
        data = await asyncio.to_thread(lambda: b"".join(saves.pack(save)))
        await _let_go(save, self._pace())
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        for number, at in enumerate(range(0, len(data), CHUNK_BYTES)):
            last = at + CHUNK_BYTES >= len(data)
            yield npcs_pb2.ExportChunk(
                sequence=number,
                content=data[at : at + CHUNK_BYTES],
                last=last,
                content_hash=digest if last else "",
            )

    async def import_(self, tenant: str, chunks: AsyncIterator[npcs_pb2.ImportChunk]) -> npcs_pb2.ImportResponse:
        """Takes an export in: the world is defined and NPCs registered where they are not; memories are replaced."""
        self._folder_needed()
        data = bytearray()
        world_id = ""
        digest: str | None = None
        number = 0
        async for chunk in chunks:
            world_id = world_id or check_id("world_id", chunk.world_id)
            if chunk.sequence != number or digest is not None:
                raise CallerError("sequence", f"is {chunk.sequence}, expected {number} and nothing after the last")
            number += 1
            data += chunk.content
            if len(data) > IMPORT_BYTES_MAX:
                raise CallerError("content", f"more than {IMPORT_BYTES_MAX} bytes")
            if chunk.last:
                digest = chunk.content_hash
        if digest is None:
            raise CallerError("last", "the chunks ended before the last one")
        if digest and digest != await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest()):
            raise CallerError("content_hash", "the bytes are not those that were exported")
        try:
            save = await asyncio.to_thread(saves.unpack, data)
        except ValueError as error:
            raise CallerError("content", str(error)) from error
        try:
            defined = (await self._pace().run(parsing(npcs_pb2.DefineWorldRequest, save.definition))).world_id
        except CallerError as error:
            raise CallerError("content", str(error)) from error
        if (save.world, defined) != (world_id, world_id):
            raise CallerError("world_id", f"is '{world_id}', the export is of world '{save.world}'")
        npcs = len(save.npcs)
        timeline = await self._alone(self._import(tenant, save))
        return npcs_pb2.ImportResponse(npcs=npcs, bytes=len(data), timeline_id=timeline)

    async def _import(self, tenant: str, save: Save) -> str:
        await self._changes.alone((tenant, save.world), self._take_up(tenant, save))
        return await self._go_on_from(tenant, save, "")

    async def _take_up(self, tenant: str, save: Save) -> None:
        slices = self._pace()
        steps = self._worlds.reviving(tenant, save.definition, save.version, save.lease_last, save.npcs)
        world = await slices.run(steps)
        await self.keep_defined(world, True, slices)
        await self.keep_registered(world, (), list(world.npcs), slices)

    # -- pieces ------------------------------------------------------------------------------------------------

    async def _save(self, world: World) -> Save:
        slices = self._pace()
        bonds = await self._memory.bonds_of(world.tenant, world.world_id, slices)
        npcs = []
        for npc in list(world.npcs.values()):
            npcs.append((npc.spec, npc.lease_epoch))
            await slices.rest()
        return Save(
            world.world_id,
            self._memory.timeline(world.tenant, world.world_id),
            self._memory.wall_ms(),
            world.definition,
            world.version,
            world.lease_last,
            npcs,
            bonds,
        )

    async def _go_on_from(self, tenant: str, save: Save, checkpoint: str) -> str:
        """The world goes on from a save; its new timeline. Raises StoreFailed when that could not be written down."""
        before = self._memory.timeline(tenant, save.world)
        now = await asyncio.to_thread(saves.at, save, self._memory.wall_ms(), new_timeline())
        copy = saves.copy_path_of(self._folder_needed(), tenant, save.world, now.timeline)
        await _write(copy, now)
        slices = self._pace()
        await slices.run(self._dialogue.turning_back(tenant, save.world))
        body: Body = {"checkpoint": checkpoint, "file": self._within(copy), "from": before}
        accepted = await self._memory.turn_back(tenant, save.world, now.timeline, now.bonds, body, slices)
        await _let_go(now, slices)
        await _let_go(save, slices)
        if self._memory.keeps and not accepted:
            raise StoreFailed("restored in this process, but it could not be written to the journal")
        await self._memory.settled(1.0)
        await asyncio.to_thread(_drop_old, copy)
        return now.timeline

    async def _alone(self, act: Coroutine[Any, Any, _Answer]) -> _Answer:
        """Does one thing at a time with the saves, to its end, also when who asked for it goes away."""
        return await self._changes.alone(SAVES, act)

    def _within(self, path: Path) -> str:
        """A file as records name it: the data folder may be elsewhere tomorrow."""
        return path.relative_to(self._folder_needed()).as_posix()

    def _path(self, tenant: str, world: str, checkpoint: str) -> Path:
        return saves.path_of(self._folder_needed(), tenant, world, check_id("checkpoint_id", checkpoint))

    def _folder_needed(self) -> Path:
        if self._folder is None:
            raise NotBuilt("this daemon keeps nothing (memory.keep = false): there are no save games")
        return self._folder


async def _keep_world(memory: Memory, world: World, slices: Slices) -> bool:
    """Has a world's definition written."""
    definition = await slices.run(saves.encoding(world.definition))
    body: Body = {"definition": definition, "version": world.version, "lease_last": world.lease_last}
    return await memory.keep(Kind.WORLD, NpcKey(world.tenant, world.world_id, ""), "", body)


async def _keep_npcs(memory: Memory, world: World, npc_ids: Sequence[str], slices: Slices) -> bool:
    """Has NPCs' registrations written, some in a record. Nobody else may change the world until this is over."""
    written = []
    for at in range(0, len(npc_ids), NPCS_IN_A_RECORD):
        npcs = [world.npcs[i] for i in npc_ids[at : at + NPCS_IN_A_RECORD] if i in world.npcs]
        body: Body = {"npcs": [[n.key.npc, saves.base64_of(n.spec), n.lease_epoch] for n in npcs]}
        written.append(memory.keep_soon(Kind.NPCS, NpcKey(world.tenant, world.world_id, ""), "", body))
        await slices.rest()
    return all(await asyncio.gather(*written))


async def _let_go(save: Save, slices: Slices) -> None:
    """Empties a save that nobody needs any more, in slices: to free it takes as long as to read it."""
    await slices.let_go(save.npcs)
    await slices.let_go(save.bonds)


async def _write(path: Path, save: Save) -> None:
    try:
        await asyncio.to_thread(saves.write, path, save)
    except OSError as error:
        raise StoreFailed(f"the save cannot be written: {error.strerror}") from error


def _has_room(path: Path) -> bool:
    """Whether a world may have this checkpoint: it has it already, or has not as many as it may."""
    return path.exists() or sum(1 for _ in path.parent.glob("*.npcd")) < SAVES_MAX


def _forget_in(folder: Path, player: str, npc: str) -> bool:
    """Takes a player out of every save of a world; whether there were saves. One that cannot be read is removed, and
    what is left of one that was being written when npcd was killed.

    Raises StoreFailed when one could not be written; the others are done all the same.
    """
    found = sorted(folder.rglob("*.npcd")) if folder.is_dir() else []
    needle, failed = json.dumps(player).encode(), ""
    for half in folder.rglob("*.new") if folder.is_dir() else ():
        half.unlink(missing_ok=True)
    for path in found:
        try:
            data = path.read_bytes()
            if needle in data:
                saves.write(path, saves.without(saves.unpack(data), player, npc))
        except ValueError:
            path.unlink(missing_ok=True)
        except OSError as error:
            failed = f"the save {path.name} cannot be written anew: {error.strerror}"
    if failed:
        raise StoreFailed(failed)
    return bool(found)


def _drop_old(copy: Path) -> None:
    copies = sorted(copy.parent.glob("*.npcd"), key=lambda p: p.stat().st_mtime)
    for old in copies[:-COPIES_KEPT]:
        old.unlink(missing_ok=True)


def load_copy(folder: Path, file: str) -> dict[tuple[str, str], Bond]:
    """The bonds of a save's file below the saves' folder, for the stores; empty when it is gone or broken for good.

    Raises OSError.
    """
    try:
        return dict(saves.unpack((folder / file).read_bytes()).bonds)
    except (FileNotFoundError, ValueError):
        return {}
