"""Frames: the format of one segment of the journal, and how it is read when some bytes are wrong.

    <number as 16 digits>.journal     number: Unix time in ms when it was begun, and always more than all before

     0          8          12         16
     | magic    | version  | crc-32   | record | record | ...               all numbers are little-endian
                             of the 12 bytes before and the number

    record, at byte `at` of the file

     0          4          8          12                12 + length
     | marker   | length   | crc-32   | payload         |
                             of number, at and payload

The payload is memory.records.to_bytes. It is ASCII after its first byte, so the marker cannot occur in it. After a
broken record the next one is found by its marker and a checksum that includes its place.
Reads files and keeps nothing; any thread.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

from core.errors import StoreFailed

VERSION = 1
MAGIC = b"NPCDJRNL"
MARKER = b"\xf5\xfa\xfc\xf9"  # bytes that UTF-8 never has
SUFFIX = ".journal"
PAYLOAD_BYTES_MAX = 16 << 20
CHUNK_BYTES = 64 << 10

_BEGIN = struct.Struct("<8sII")
_HEAD = struct.Struct("<4sII")
_NUMBER = struct.Struct("<Q")
_PLACE = struct.Struct("<QQ")
HEADER_LEN = _BEGIN.size
HEAD_LEN = _HEAD.size


def name_of(number: int) -> str:
    """The file's name."""
    return f"{number:016d}{SUFFIX}"


def numbers_in(folder: Path) -> list[int]:
    """The numbers of the segments in a folder, oldest first."""
    stems = (p.stem for p in folder.glob(f"*{SUFFIX}"))
    return sorted(int(stem) for stem in stems if len(stem) == 16 and stem.isdecimal())


def header(number: int) -> bytes:
    """The first HEADER_LEN bytes."""
    return _BEGIN.pack(MAGIC, VERSION, _header_sum(MAGIC, VERSION, number))


def header_holds(data: bytes, number: int) -> bool:
    """True if the first bytes are whole. Raises StoreFailed if they are of a version that we cannot read."""
    if len(data) < HEADER_LEN:
        return False
    magic, version, said = _BEGIN.unpack_from(data)
    if magic != MAGIC or said != _header_sum(magic, version, number):
        return False
    if version != VERSION:
        raise StoreFailed(f"journal: {name_of(number)} has format {version}, this npcd reads {VERSION}")
    return True


def framed(number: int, at: int, payload: bytes) -> bytes:
    """A record's bytes for one place in one segment."""
    return _HEAD.pack(MARKER, len(payload), crc32(payload, crc32(_PLACE.pack(number, at)))) + payload


def walk(fd: int, number: int, at: int, limit: int) -> Iterator[tuple[int, bytes, int]]:
    """(where, payload, where it ends) of every record in [at, limit); a stretch without a whole one has payload b""."""
    window = _Window(fd, limit)
    while at < limit:
        payload = _whole(window, number, at, limit)
        if payload is not None:
            after = at + HEAD_LEN + len(payload)
            yield at, payload, after
        else:
            after = window.find(MARKER, at + 1)
            while after < limit and _whole(window, number, after, limit) is None:
                after = window.find(MARKER, after + 1)
            yield at, b"", after
        at = after


class _Window:
    """A piece of a file, moved along as it is read."""

    def __init__(self, fd: int, limit: int) -> None:
        self._fd = fd
        self._limit = limit
        self._from = 0
        self._data = b""

    def take(self, at: int, length: int) -> bytes:
        """These bytes of the file; fewer at the limit or when the file is shorter."""
        begin = at - self._from
        if begin < 0 or begin + length > len(self._data):
            self._data = _pread(self._fd, at, min(max(length, CHUNK_BYTES), self._limit - at))
            self._from, begin = at, 0
        return self._data[begin : begin + length]

    def find(self, what: bytes, at: int) -> int:
        """Where it stands next, at `at` or later; the limit when it does not."""
        while at < self._limit:
            self.take(at, min(CHUNK_BYTES, self._limit - at))
            begin = at - self._from
            found = self._data.find(what, begin)
            if found >= 0:
                return self._from + found
            seen = len(self._data) - begin
            if seen < len(what):
                break
            at += seen - len(what) + 1
        return self._limit


def _whole(window: _Window, number: int, at: int, limit: int) -> bytes | None:
    head = window.take(at, HEAD_LEN)
    if len(head) < HEAD_LEN or not head.startswith(MARKER):
        return None
    _, length, said = _HEAD.unpack(head)
    if not 0 < length <= min(PAYLOAD_BYTES_MAX, limit - at - HEAD_LEN):
        return None
    payload = window.take(at + HEAD_LEN, length)
    return payload if crc32(payload, crc32(_PLACE.pack(number, at))) == said else None


def _pread(fd: int, at: int, length: int) -> bytes:
    data = os.pread(fd, length, at)
    while data and len(data) < length:
        more = os.pread(fd, length - len(data), at + len(data))
        if not more:
            break
        data += more
    return data


def _header_sum(magic: bytes, version: int, number: int) -> int:
    return crc32(_NUMBER.pack(number), crc32(struct.pack("<8sI", magic, version)))
