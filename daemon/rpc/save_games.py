"""The rpcs about save games: checkpoints, going back to one, export and import of a world's memory.

Save files are read and written on a thread. A save that is restored or imported replaces all that the world's NPCs
remember, and begins another timeline, which every later record carries. All saves change one after the other (SAVES).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

from core.errors import CallerError, NotBuilt, NotFound, Overloaded, StoreFailed
from core.slices import Slicer, Slices
from core.words import NpcKey
from daemon.rpc.changes import SAVES, Changes
from daemon.rpc.world_records import WorldRecords
from daemon.talk.dialogue import Dialogue
from daemon.wire import parsing
from daemon.words import check_id
from daemon.worlds.world import World
from daemon.worlds.worlds import Worlds
from memory import saves
from memory.bond import Bond
from memory.memory import Memory, new_timeline
from memory.records import Body, Kind
from memory.saves import Save
from npcd.v1 import npcs_pb2

_Answer = TypeVar("_Answer")
CHUNK_BYTES = 512 << 10
IMPORT_BYTES_MAX = 256 << 20
SAVES_MAX = 64  # checkpoints of a world
COPIES_KEPT = 2  # of restored saves: the recent store reads them when it comes to the record


class SaveGames:
    """Owns the folder of save files. `folder` is None for a daemon that keeps nothing."""

    def __init__(
        self,
        worlds: Worlds,
        dialogue: Dialogue,
        memory: Memory,
        records: WorldRecords,
        epoch: int,
        folder: Path | None,
        changes: Changes,
        slicer: Slicer,
    ) -> None:
        self._worlds = worlds
        self._dialogue = dialogue
        self._memory = memory
        self._records = records
        self._epoch = epoch
        self._folder = folder
        self._changes = changes
        self._slicer = slicer

    async def checkpoint(self, tenant: str, request: npcs_pb2.CheckpointRequest) -> npcs_pb2.CheckpointResponse:
        """Marks what a world's NPCs remember now under a name."""
        world = self._worlds.world(tenant, request.world_id)
        path = self._path(tenant, request.world_id, request.checkpoint_id)
        return await self._changes.alone(SAVES, self._checkpoint(world, path, request.checkpoint_id))

    async def _checkpoint(self, world: World, path: Path, checkpoint: str) -> npcs_pb2.CheckpointResponse:
        self._worlds.world(world.tenant, world.world_id)  # while this waited for its turn it may have been deleted
        # Looked at in the turn that writes: of calls that come together, each finds the files of those before it.
        if not await asyncio.to_thread(_has_room, path):
            raise Overloaded(
                f"world '{world.world_id}' has {SAVES_MAX} checkpoints; use one of their names again, or delete one",
                0,
            )
        save = await self._save(world)
        await _write(path, save)
        await _let_go(save, self._slicer())
        body: Body = {"checkpoint": checkpoint, "file": self._within(path)}
        await self._memory.keep(Kind.CHECKPOINT, NpcKey(world.tenant, world.world_id, ""), "", body)
        return npcs_pb2.CheckpointResponse(timeline_id=save.timeline)

    async def restore(self, tenant: str, request: npcs_pb2.RestoreRequest) -> npcs_pb2.RestoreResponse:
        """Goes back to a checkpoint."""
        world = self._worlds.world(tenant, request.world_id)
        path = self._path(tenant, request.world_id, request.checkpoint_id)
        return await self._changes.alone(SAVES, self._restore(world, path, request.checkpoint_id))

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
        return await self._changes.alone(SAVES, self._delete_checkpoint(request, path))

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

    async def forget(self, tenant: str, world_id: str, player: str, npc: str) -> bool:
        """Takes a player out of every save of a world; False when there is none. Raises StoreFailed."""
        if self._folder is None:
            return False
        return await asyncio.to_thread(_forget_in, saves.folder_of(self._folder, tenant, world_id), player, npc)

    async def export(self, tenant: str, request: npcs_pb2.ExportRequest) -> AsyncGenerator[npcs_pb2.ExportChunk, None]:
        """A world's memory as the bytes of a save file."""
        save = await self._save(self._worlds.world(tenant, request.world_id))
        data = await asyncio.to_thread(lambda: b"".join(saves.pack(save)))
        await _let_go(save, self._slicer())
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
            defined = (await self._slicer().run(parsing(npcs_pb2.DefineWorldRequest, save.definition))).world_id
        except CallerError as error:
            raise CallerError("content", str(error)) from error
        if (save.world, defined) != (world_id, world_id):
            raise CallerError("world_id", f"is '{world_id}', the export is of world '{save.world}'")
        npcs = len(save.npcs)
        timeline = await self._changes.alone(SAVES, self._import(tenant, save))
        return npcs_pb2.ImportResponse(npcs=npcs, bytes=len(data), timeline_id=timeline)

    async def _import(self, tenant: str, save: Save) -> str:
        await self._changes.alone((tenant, save.world), self._take_up(tenant, save))
        return await self._go_on_from(tenant, save, "")

    async def _take_up(self, tenant: str, save: Save) -> None:
        slices = self._slicer()
        steps = self._worlds.reviving(tenant, save.definition, save.version, save.lease_last, save.npcs)
        world = await slices.run(steps)
        await self._records.keep_defined(world, True, slices)
        await self._records.keep_registered(world, (), list(world.npcs), slices)

    # -- pieces ------------------------------------------------------------------------------------------------

    async def _save(self, world: World) -> Save:
        slices = self._slicer()
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
        slices = self._slicer()
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

    def _within(self, path: Path) -> str:
        """A file as records name it: the data folder may be elsewhere tomorrow."""
        return path.relative_to(self._folder_needed()).as_posix()

    def _path(self, tenant: str, world: str, checkpoint: str) -> Path:
        return saves.path_of(self._folder_needed(), tenant, world, check_id("checkpoint_id", checkpoint))

    def _folder_needed(self) -> Path:
        if self._folder is None:
            raise NotBuilt("this daemon keeps nothing (memory.keep = false): there are no save games")
        return self._folder


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
    """True when a world may have this checkpoint: it has it already, or has fewer than SAVES_MAX."""
    return path.exists() or sum(1 for _ in path.parent.glob("*.npcd")) < SAVES_MAX


def _forget_in(folder: Path, player: str, npc: str) -> bool:
    """Takes a player out of every save of a world; False when there are no saves. A save that cannot be read is
    removed, and so is one that was only half written when npcd was killed.

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
