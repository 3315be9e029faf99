"""The journal's segments as readers see them: reading, readers' positions, redaction, and retention.

    1763712345678              1763715945901                 (numbers: memory/frames.py)
    ┌───────────────────┐      ┌───────────────┬ ─ ─ ┐
    │ sealed, size known│      │ written       ╎ being written
    └───────────────────┘      └───────────────┴ ─ ─ ┘
                                               ╰ end: readers see nothing behind it

One writer says how it grows (grew, seal); everything else is for any thread. Each segment number is used once, also
when a power loss took back what a store has had, so a Position never means two things.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import structlog

from core.clock import MS, now_ns
from core.errors import StoreFailed
from memory.frames import HEADER_LEN, framed, header_holds, name_of, numbers_in, walk
from memory.records import START, Kind, Position, Record, from_bytes, to_bytes

log = structlog.get_logger("npcd")

SEEN_EVERY_NS = 100 * MS
PLACES_KEPT = 10_000
# redact() reads so many records in one go, well below 1 ms; then other threads get the interpreter for REST_S.
REDACTED_AT_ONCE = 64
REST_S = 0.0002


@dataclass(slots=True)
class Counts:
    """Since the start. `lost` are records of add() that were not written, `refused` those of accept().

    `flipped` stretches of the files were unreadable, `unknown` records are of a kind that only a newer npcd knows,
    `gaps` times a reader asked for what is gone.
    """

    records: int = 0
    bytes: int = 0
    refused: int = 0
    lost: int = 0
    torn_bytes: int = 0
    flipped: int = 0
    unknown: int = 0
    gaps: int = 0


class Segments:
    """All segments of one folder."""

    def __init__(self, folder: Path, readers: Sequence[str]) -> None:
        self.folder = folder
        self.counts = Counts()
        # Invariant: a segment in `sealed` is whole before `end` is behind it. Replaced, never changed.
        self.sealed: Mapping[int, int] = {}
        self.end = START
        self._last_ms: Mapping[int, int] = {}  # of this life's sealed segments; replaced, never changed
        self._grown = threading.Condition()
        self._counted: set[Position] = set()  # damage and gaps
        self._seen: Mapping[str, Position | None] = dict.fromkeys(readers)
        self._saved: dict[str, tuple[Position, int]] = {}
        self._redacting = threading.Lock()
        self._overwriting = threading.Lock()

    def open(self) -> None:
        """Finds the segments and cuts a torn tail off. Raises OSError, and StoreFailed for a format we cannot read."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sealed = {number: self._size_of(number) for number in numbers_in(self.folder)}
        if sealed:
            last = max(sealed)
            sealed[last] = self._cut_tail(last, sealed[last])
            self.end = Position(last, sealed[last])
        self.sealed = sealed
        self._seen = {reader: self._load(reader) for reader in self._seen}

    # --- for the writer

    def grew(self, end: Position) -> None:
        """Readers may read up to here from now on."""
        with self._grown:
            self.end = end
            self._grown.notify_all()

    def seal(self, number: int, size: int, last_ms: int) -> None:
        """Nothing more will come to a segment; its last record was written at `last_ms`."""
        with self._grown:
            self.sealed = {**self.sealed, number: size}
            self._last_ms = {**self._last_ms, number: last_ms}

    def passed(self) -> list[int]:
        """The sealed segments that every reader has left behind, oldest first."""
        seen, end = self._seen.values(), self.end
        until = min([end.segment, *(0 if position is None else position.segment for position in seen)])
        return [number for number in self.sealed if number < until]

    def older(self, at_ms: int) -> set[int]:
        """The segments whose last record is older. For segments of an earlier life the begin of the next one counts."""
        numbers, last_ms = sorted({*self.sealed, self.end.segment}), self._last_ms
        return {number for number, following in pairwise(numbers) if last_ms.get(number, following) < at_ms}

    def drop(self, numbers: Sequence[int]) -> bool:
        """Deletes segments. Returns True if there were any."""
        with self._grown:
            self.sealed = {number: size for number, size in self.sealed.items() if number not in numbers}
            self._last_ms = {number: ms for number, ms in self._last_ms.items() if number not in numbers}
        for number in numbers:
            with contextlib.suppress(OSError):
                (self.folder / name_of(number)).unlink()
            log.info("journal segment deleted", segment=number)
        return bool(numbers)

    def save_seen(self) -> None:
        """Writes every reader's place down."""
        for reader, position in self._seen.items():
            if position is not None:
                self._save(reader, position)

    # --- for readers

    @property
    def first(self) -> Position:
        """Before the oldest record that is kept."""
        end = self.end
        return Position(min(self.sealed, default=end.segment), HEADER_LEN) if end != START else START

    def behind(self, position: Position) -> int:
        """Bytes from a position to the end."""
        total = 0
        for number, size in self._sizes().items():
            if number >= position.segment:
                total += max(0, size - (position.at if number == position.segment else HEADER_LEN))
        return total

    def newest(self, bytes_max: int) -> Position:
        """The beginning of the oldest segment from which there are at most so many bytes; at least of the last one."""
        left, at = bytes_max, self.end
        for number, size in sorted(self._sizes().items(), reverse=True):
            left -= size
            if left < 0 and at != self.end:
                break
            at = Position(number, HEADER_LEN)
        return at

    def standing(self, position: Position) -> Position:
        """The position at which a reader at a position reads on: deleted records are skipped and counted."""
        end = self.end
        return self._on_from(position, end, self.sealed)

    def wait(self, position: Position, timeout_s: float) -> bool:
        """Blocks until there are records after a position. Returns True if there are."""
        with self._grown:
            return self._grown.wait_for(lambda: self.end > position, timeout_s)

    def read(self, position: Position, count_max: int, bytes_max: int) -> tuple[list[Record], Position]:
        """The records from a position on, and the position after them; none only at the end. Raises StoreFailed.

        Unreadable and deleted records are skipped and counted. A record comes also when it alone is above bytes_max.
        """
        records: list[Record] = []
        while len(records) < count_max and bytes_max > 0:
            end, sealed = self.end, self.sealed  # in this order, see the invariant
            position = self._on_from(position, end, sealed)
            if position >= end:
                break
            number, limit = position.segment, sealed.get(position.segment, end.at)
            try:
                with self._descriptor(number, os.O_RDONLY) as fd:
                    for at, payload, after in self._sound(fd, number, position.at, limit):
                        position = Position(number, after)
                        record = self._decoded(number, at, payload)
                        if record is not None:
                            records.append(record)
                            bytes_max -= len(payload)
                            if len(records) >= count_max or bytes_max <= 0:
                                break
            except FileNotFoundError:
                self._miss(position)
                position = Position(number, limit)
            except OSError as error:
                raise StoreFailed(f"journal: {name_of(number)}: {error.strerror}") from error
        return records, position

    def seen(self, reader: str, position: Position) -> None:
        """A reader needs nothing before this any more; on its own thread. On disk at times later: an old one is kept
        by a kill, and the reader has some records twice.
        """
        with self._grown:
            self._seen = {**self._seen, reader: position}
        now = now_ns()
        saved, saved_ns = self._saved.get(reader, (None, -SEEN_EVERY_NS))
        if position != saved and now - saved_ns >= SEEN_EVERY_NS:
            self._saved[reader] = position, now
            self._save(reader, position)

    def seen_by(self, reader: str) -> Position | None:
        """The reader's last seen(), in this life or before; None when there is none, or it is unreadable."""
        return self._seen.get(reader) or self._load(reader)

    def redact(self, match: Callable[[Record], bool], containing: str) -> int:
        """Overwrites matching records. Returns their number. Everything before is on the disk when it returns. Blocks.
        Raises StoreFailed.

        Unreadable records are overwritten too: nobody knows whom they are about.
        """
        needle = json.dumps(containing)[1:-1].encode()
        count = 0
        with self._redacting:
            for number, limit in self._sizes().items():
                try:
                    with self._descriptor(number, os.O_RDWR) as fd:
                        count += self._redact(fd, number, limit, match, needle)
                except FileNotFoundError:
                    continue  # it was deleted, or nothing was ever written
                except OSError as error:
                    raise StoreFailed(f"journal: {name_of(number)}: {error.strerror}") from error
            try:
                self.sync_folder()
            except OSError as error:
                raise StoreFailed(f"journal: {self.folder}: {error.strerror}") from error
        return count

    def sync_folder(self) -> None:
        """Brings the segments' names to the disk. Raises OSError."""
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # --- inside

    def _sizes(self) -> dict[int, int]:
        end, sealed = self.end, self.sealed
        return {**sealed, end.segment: end.at}

    def _on_from(self, position: Position, end: Position, sealed: Mapping[int, int]) -> Position:
        number, at = position
        here = end.at if number == end.segment else sealed.get(number)
        if here is not None and (at < here or number == end.segment):
            return Position(number, min(max(at, HEADER_LEN), here))
        if here is None and position != START:
            self._miss(position)
        if position > end:
            return self.first
        return Position(min((n for n in sealed if n > number), default=end.segment), HEADER_LEN)

    def _sound(self, fd: int, number: int, at: int, limit: int) -> Iterator[tuple[int, bytes, int]]:
        """frames.walk(), with what is being overwritten at this moment read again, and damage counted."""
        while at < limit:
            for found in walk(fd, number, at, limit):
                if not found[1]:
                    break
                at = found[2]
                yield found
            else:
                return
            with self._overwriting:
                found = next(walk(fd, number, at, limit))
            if not found[1] and self._is_new(Position(number, at)):
                self.counts.flipped += 1
                log.warning("journal damaged", segment=number, at=at, skipped_bytes=found[2] - at)
            at = found[2]
            yield found

    def _decoded(self, number: int, at: int, payload: bytes) -> Record | None:
        if not payload or payload[0] == Kind.REDACTED:
            return None
        try:
            return from_bytes(payload)
        except ValueError as error:
            if self._is_new(Position(number, at)):
                self.counts.unknown += 1
                log.warning("journal record of unknown kind", segment=number, at=at, reason=str(error))
            return None

    def _redact(self, fd: int, number: int, limit: int, match: Callable[[Record], bool], needle: bytes) -> int:
        count = 0
        for n, (at, payload, after) in enumerate(self._sound(fd, number, HEADER_LEN, limit), 1):
            if n % REDACTED_AT_ONCE == 0:
                time.sleep(REST_S)
            if not payload:
                self._overwrite(fd, bytes(after - at), at)
                continue
            record = self._decoded(number, at, payload) if needle in payload else None
            if record is None or not match(record):
                continue
            left = to_bytes(Record(Kind.REDACTED, record.at_ms, "", "", id=record.id))
            assert len(left) <= len(payload), "a redacted record is never the longer one"
            self._overwrite(fd, framed(number, at, left.ljust(len(payload))), at)
            count += 1
        os.fdatasync(fd)  # also without a match: the wish to forget stands here
        return count

    def _overwrite(self, fd: int, data: bytes, at: int) -> None:
        # A reader that meets half of it finds damage; then it waits for this lock and looks again.
        with self._overwriting:
            write_all(fd, data, at)

    def _miss(self, position: Position) -> None:
        if self._is_new(position):
            self.counts.gaps += 1
            log.warning("journal records deleted unread", position=str(position), oldest=str(self.first))

    def _is_new(self, place: Position) -> bool:
        """True if this damage or gap was not counted before: readers come by it more than once."""
        with self._grown:
            if place in self._counted or len(self._counted) >= PLACES_KEPT:
                return False
            self._counted.add(place)
            return True

    @contextlib.contextmanager
    def _descriptor(self, number: int, flags: int) -> Iterator[int]:
        fd = os.open(self.folder / name_of(number), flags | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def _save(self, reader: str, position: Position) -> None:
        """Atomic against a kill. One that a power loss left unreadable counts as none: the records come again."""
        line = str(position)
        new = self.folder / f"{reader}.seen.new"
        try:
            new.write_text(f"{line} {crc32(line.encode()):08x}\n")
            new.replace(self.folder / f"{reader}.seen")
        except OSError:  # the old one stays, which is harmless
            with contextlib.suppress(OSError):
                new.unlink()

    def _load(self, reader: str) -> Position | None:
        try:
            line, _, said = (self.folder / f"{reader}.seen").read_text("ascii").strip().partition(" ")
            return Position.parse(line) if f"{crc32(line.encode()):08x}" == said else None
        except (OSError, ValueError):
            return None

    def _size_of(self, number: int) -> int:
        """A segment's bytes; names a header that is damaged."""
        with self._descriptor(number, os.O_RDONLY) as fd:
            size = os.fstat(fd).st_size
            if size >= HEADER_LEN and not header_holds(os.pread(fd, HEADER_LEN, 0), number):
                self.counts.flipped += 1
                log.warning("journal damaged", segment=number, at=0, skipped_bytes=HEADER_LEN)
        return size

    def _cut_tail(self, number: int, size: int) -> int:
        """Cuts off the bytes after the last whole record: a write was interrupted. Returns the size that is left."""
        whole = HEADER_LEN if size >= HEADER_LEN else 0
        with self._descriptor(number, os.O_RDONLY) as fd:
            for _, payload, after in walk(fd, number, HEADER_LEN, size):
                whole = after if payload else whole
        if whole < size:
            self.counts.torn_bytes += size - whole
            log.warning("journal tail cut off", segment=number, at=whole, bytes=size - whole)
            with contextlib.suppress(OSError), self._descriptor(number, os.O_RDWR) as fd:
                os.ftruncate(fd, whole)
                os.fsync(fd)
        return whole


def write_all(fd: int, data: bytes | bytearray, at: int) -> None:
    """Writes all of it at one place of a file. Raises OSError, with a part of it written."""
    done = os.pwrite(fd, data, at)
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], at + done)
