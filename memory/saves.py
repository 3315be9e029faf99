"""Save files: a world's memory as lines of JSON, without KV. Checkpoint writes them, Restore and Export read them.

    {"npcd_save": 1, "world": ..., "timeline": ..., "at_ms": ..., "definition": ..., "version": ..., "lease_last": ...}
    ["npc", spec in base64, lease epoch]        one line per registered NPC
    ["bond", npc id, player id, {...}]          one line per NPC and player (memory.bond.to_json)
    ["end", SHA-256 of all bytes before this line, hex]

A save is read whole or not at all. Times move with it: a memory that was three days old when it was saved is three
days old when it is restored.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

from core.steps import Steps
from memory.bond import Bond, from_json, moved, to_json

T = TypeVar("T")
FORMAT = 1
ENCODED_BYTES = 3 << 16  # in one step: groups of three bytes, or four characters, are not parted
AT_ONCE = 16  # lines between two rests for other threads: well below 1 ms
REST_S = 0.0002
HEAD_BYTES_MAX, LINE_BYTES_MAX = 32 << 20, 1 << 20
ID_BYTES_MAX = 64
ASIDE = ".deleted"  # ids have no dot in the names of folders
Pair = tuple[str, str]  # NPC and player of one world


@dataclass(frozen=True, slots=True)
class Save:
    """A world's memory at one moment: the game's definition, NPCs as (spec, lease epoch), bonds by NPC and player."""

    world: str
    timeline: str
    at_ms: int
    definition: bytes
    version: int
    lease_last: int
    npcs: list[tuple[bytes, int]] = field(default_factory=list)
    bonds: dict[Pair, Bond] = field(default_factory=dict)


def pack(save: Save) -> Iterator[bytes]:
    """The file's lines, each with its line break. Rests; never on the event loop."""
    sha = hashlib.sha256()
    for values in _rested(_lines(save)):
        line = _line(values)
        sha.update(line)
        yield line
    yield _line(["end", sha.hexdigest()])


def unpack(data: bytes | bytearray) -> Save:
    """The save of these bytes. Raises ValueError naming the error. Rests; never on the event loop."""
    # Megabytes are not copied: each copy would keep the interpreter from other threads.
    size = len(data)
    while size and data[size - 1] == 0x0A:
        size -= 1
    end_at = data.rfind(b"\n", 0, size) + 1
    if not end_at:
        raise ValueError("it is empty or cut off")
    try:
        last = bytes(data[end_at:size]) if size - end_at <= LINE_BYTES_MAX else b""
        end = json.loads(last) if last.startswith(b'["end",') and last.endswith(b"]") else None
        if end is None:
            raise ValueError("its end is missing: it was cut off")
        if end[1:] != [hashlib.sha256(memoryview(data)[:end_at]).hexdigest()]:
            raise ValueError("its bytes are not those that were saved")
        lines = _rested(_split(data, end_at))
        first = next(lines)
        if len(first) > HEAD_BYTES_MAX:
            raise ValueError("it has a line that is too long")
        head = json.loads(first)
        if head.get("npcd_save") != FORMAT:
            raise ValueError(f"it has format {head.get('npcd_save')}, this npcd reads {FORMAT}")
        npcs: list[tuple[bytes, int]] = []
        bonds: dict[Pair, Bond] = {}
        for line in lines:
            if len(line) > LINE_BYTES_MAX:
                raise ValueError("it has a line that is too long")
            said = json.loads(line)
            if not isinstance(said, list):
                continue
            if said[0] == "npc":
                _, spec, epoch = said
                npcs.append((base64.b64decode(spec, validate=True), _number(epoch)))
            elif said[0] == "bond":
                _, npc, player, bond = said
                bonds[_id(npc), _id(player)] = from_json(bond)
        return Save(
            _id(head["world"]),
            _id(head["timeline"]),
            _number(head["at_ms"]),
            base64.b64decode(head["definition"], validate=True),
            _number(head["version"]),
            _number(head["lease_last"]),
            npcs,
            bonds,
        )
    except RecursionError as error:
        raise ValueError("it is no save of npcd (nested too deep)") from error
    except (KeyError, IndexError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"it is no save of npcd ({type(error).__name__})") from error


def at(save: Save, now_ms: int, timeline: str) -> Save:
    """The save as if it were made now, on another timeline: everything in it keeps its age. Rests."""
    later_ms = now_ms - save.at_ms
    bonds = {pair: moved(bond, later_ms) for pair, bond in _rested(save.bonds.items())}
    return Save(save.world, timeline, now_ms, save.definition, save.version, save.lease_last, save.npcs, bonds)


def without(save: Save, player: str, npc: str) -> Save:
    """The save without the memory that one NPC, or with an empty id every NPC, has of a player."""
    kept = {(n, p): b for (n, p), b in save.bonds.items() if p != player or npc not in ("", n)}
    return Save(save.world, save.timeline, save.at_ms, save.definition, save.version, save.lease_last, save.npcs, kept)


def folder_of(saves: Path, tenant: str, world: str) -> Path:
    """The folder of a world's saves; ids become names that every file system takes."""
    return saves / _name(tenant) / _name(world)


def path_of(saves: Path, tenant: str, world: str, checkpoint: str) -> Path:
    """The file of a checkpoint."""
    return folder_of(saves, tenant, world) / f"{_name(checkpoint)}.npcd"


def copy_path_of(saves: Path, tenant: str, world: str, timeline: str) -> Path:
    """The file of the checkpoint that a world went on from; the stores read it when they come to its record."""
    return folder_of(saves, tenant, world) / "restored" / f"{_name(timeline)}.npcd"


def write(path: Path, save: Save) -> None:
    """Writes a save so that it is there whole or not at all. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(f".{secrets.token_hex(4)}.new")
    try:
        with open(new, "wb") as file:
            file.writelines(pack(save))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Listed:
    """A save as a list of them shows it; `timeline` is empty when the file cannot be read."""

    checkpoint: str
    timeline: str
    at_ms: int
    size: int


def listed(folder: Path) -> list[Listed]:
    """A world's checkpoints, the newest last. Reads only the first line of each."""
    found = []
    for path in folder.glob("*.npcd"):
        try:
            stat = path.stat()
            with open(path, "rb") as file:
                head = file.readline(HEAD_BYTES_MAX)
        except OSError:  # it was deleted meanwhile
            continue
        try:
            said = json.loads(head)
            timeline, at_ms = _id(said["timeline"]), _number(said["at_ms"])
        except (ValueError, KeyError, TypeError, RecursionError):
            timeline, at_ms = "", stat.st_mtime_ns // 1_000_000
        found.append(Listed(unquote(path.stem), timeline, at_ms, stat.st_size))
    return sorted(found, key=lambda one: (one.at_ms, one.checkpoint))


def delete(path: Path) -> int:
    """Deletes a save, durably when it returns. Returns its bytes. Raises OSError."""
    size = path.stat().st_size
    path.unlink()
    _sync(path.parent)
    return size


def put_aside(folder: Path) -> int:
    """Moves a world's checkpoints aside, so that they are gone at once. Returns their number. Raises OSError.

    put_back() undoes it, remove() ends it. When the process dies between, sweep() removes them at the next start: their
    world was to be deleted. The checkpoint that the world went on from stays: the stores may still have to read it.
    """
    aside = _aside(folder)
    shutil.rmtree(aside, ignore_errors=True)
    paths = list(folder.glob("*.npcd"))
    if paths:
        aside.mkdir(mode=0o700)
    for path in paths:
        path.rename(aside / path.name)
    return len(paths)


def put_back(folder: Path) -> None:
    """Undoes put_aside(). Raises OSError."""
    for path in _aside(folder).glob("*.npcd"):
        path.rename(folder / path.name)


def remove(folder: Path) -> None:
    """Removes all saves of a world, and those that were put aside."""
    for gone in (_aside(folder), folder):
        shutil.rmtree(gone, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(folder.name + ASIDE)


def sweep(saves: Path) -> None:
    """Removes saves that were put aside by a process that died before it could remove them."""
    for aside in saves.glob(f"*/*{ASIDE}") if saves.is_dir() else ():
        shutil.rmtree(aside, ignore_errors=True)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def base64_of(data: bytes) -> str:
    """Bytes as text, as records and saves have them."""
    return base64.b64encode(data).decode()


def encoding(data: bytes) -> Steps[str]:
    """The same of many bytes, in steps."""
    out = []
    for at in range(0, len(data), ENCODED_BYTES):
        out.append(base64_of(data[at : at + ENCODED_BYTES]))
        yield
    return "".join(out)


def decoding(text: str) -> Steps[bytes]:
    """Decodes a text of base64_of() or encoding(), in steps. Raises ValueError."""
    out = []
    for at in range(0, len(text), ENCODED_BYTES):
        out.append(base64.b64decode(text[at : at + ENCODED_BYTES]))
        yield
    return b"".join(out)


def _lines(save: Save) -> Iterator[object]:
    yield {
        "npcd_save": FORMAT,
        "world": save.world,
        "timeline": save.timeline,
        "at_ms": save.at_ms,
        "definition": base64_of(save.definition),
        "version": save.version,
        "lease_last": save.lease_last,
    }
    for spec, epoch in save.npcs:
        yield ["npc", base64_of(spec), epoch]
    for (npc, player), bond in save.bonds.items():
        yield ["bond", npc, player, to_json(bond)]


def _split(data: bytes | bytearray, end: int) -> Iterator[bytes]:
    """The lines before `end`, without their line breaks."""
    at = 0
    while at < end:
        stop = data.index(b"\n", at)
        yield bytes(data[at:stop])
        at = stop + 1


def _rested(items: Iterable[T]) -> Iterator[T]:
    """The items, with rests in which other threads get the interpreter."""
    for i, item in enumerate(items, 1):
        yield item
        if i % AT_ONCE == 0:
            time.sleep(REST_S)


def _id(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value.encode("utf-8", "replace")) <= ID_BYTES_MAX:
        raise ValueError(f"an id in it has not 1 to {ID_BYTES_MAX} bytes")
    return value


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 53:
        raise ValueError("a number in it is none")
    return value


def _line(values: object) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def _name(text: str) -> str:
    return quote(text, safe="").replace(".", "%2E") or "%"
