"""The journal's writing thread, "journal": takes records from a queue, encodes them, and appends them in batches.

It owns the end of the newest segment and alone appends. A write that fails is cut off again, its records are refused,
and the next batch tries anew. A segment that it begins goes to the disk's thread (memory/journal_disk.py), which syncs
and closes the files.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from core.clock import S, now_ns
from memory.frames import HEADER_LEN, PAYLOAD_BYTES_MAX, framed, header, name_of
from memory.journal_disk import JournalDisk
from memory.journal_settings import JournalSettings
from memory.records import Position, Record, make_id, to_bytes
from memory.segments import Segments, write_all

log = structlog.get_logger("npcd")

# Encoding one batch takes well below 1 ms; while more waits, other threads get the interpreter for REST_S between.
BATCH_RECORDS_MAX = 64
BATCH_BYTES_MAX = 1 << 20
REST_S = 0.0002
PROBE_S = 0.5  # how often a disk that failed is tried when no record comes to try it
PROBE_BYTES = 4096
SLOW_NS = S  # a write that takes longer is told in `trouble`
# A segment with records stays open for this part of keep_hours. So a record is deleted at most that much later.
OPEN_PART, OPEN_MS_MIN = 24, 60_000
FULL = (errno.ENOSPC, errno.EDQUOT)

Answer = asyncio.Future[bool]


class _Close:
    """In the queue: the wish that the open segment is closed."""


class JournalWriter:
    """One thread and its queue. start() comes before anything else, close() ends it for good."""

    def __init__(
        self, segments: Segments, disk: JournalDisk, settings: JournalSettings, now_ms: Callable[[], int]
    ) -> None:
        self._segments = segments
        self._disk = disk
        self._settings = settings
        self._now_ms = now_ms
        self.counts = segments.counts
        self.open = False  # it takes records
        self._queue: queue.SimpleQueue[tuple[Record, Answer | None] | _Close | None] = queue.SimpleQueue()
        self._lost_lock = threading.Lock()

        # The thread's. Invariant: whole records up to `_at` in segment `_number`; `_uncut`: and rubbish behind.
        self._fd = -1
        self._number = 0
        self._at = 0
        self._uncut = False
        self._last_ms = 0  # when the last record of this life was written
        self._writing_since_ns = 0
        self._failed, self._failed_since_ns = "", 0
        self._thread = threading.Thread(target=self._main, name="journal", daemon=True)

    @property
    def started(self) -> bool:
        """True after start()."""
        return self._thread.ident is not None

    def start(self) -> None:
        """Takes records from now on, behind the segments that are there."""
        self._number = self._segments.end.segment
        self.open = True
        self._thread.start()

    def close(self) -> None:
        """Writes all that waits and ends the thread. Blocks for as long as the disk does."""
        self.open = False
        self._queue.put(None)
        self._thread.join()
        self._refuse_waiting()

    def offer(self, record: Record, answer: Answer | None) -> bool:
        """Puts a record in the row; False when too many wait or it is closed. At most a few microseconds."""
        if not self.open or self._queue.qsize() >= self._settings.waiting_max:
            return False
        self._queue.put((record, answer))
        return True

    def close_if_open_for_long(self) -> None:
        """Has a segment that has records and was begun long ago closed, when nothing else waits; on any thread."""
        if self.open and self._open_for_long() and self._queue.empty():
            self._queue.put(_Close())

    @property
    def trouble(self) -> str:
        """The reason why records are not written, or late, in words; empty when all is well."""
        now, since_ns = now_ns(), self._writing_since_ns
        if self._failed:
            return f"{self._failed} (accepted nothing for {(now - self._failed_since_ns) // S} s)"
        if since_ns and now - since_ns > SLOW_NS:
            return f"the disk has not answered for {(now - since_ns) // S} s"
        if self._queue.qsize() >= self._settings.waiting_max:
            return f"{self._settings.waiting_max} records wait for the disk, no more are taken"
        return ""

    def _main(self) -> None:
        try:
            while self._write_batch():
                if not self._queue.empty():
                    time.sleep(REST_S)
        except BaseException as error:
            self._failed, self._failed_since_ns = f"its thread died: {error!r}", now_ns()
            self.open = False
            self._refuse_waiting()
            log.exception("journal thread died")
            raise

    def _write_batch(self) -> bool:
        """Waits for records and writes some; False when the last ones are written."""
        payloads: list[bytes] = []
        waiting: list[Answer] = []
        size, nobody_waits, more, closes = 0, 0, True, False
        while len(payloads) < BATCH_RECORDS_MAX and size < BATCH_BYTES_MAX:
            try:
                item = self._queue.get(not payloads, PROBE_S if self._failed else None)
            except queue.Empty:
                break
            if item is None:
                more = False
                break
            if isinstance(item, _Close):
                closes = True
                break
            record, answer = item
            payload = _encoded(record)
            if payload is None:
                self._refuse(answer)
                continue
            payloads.append(payload)
            size += len(payload)
            if answer is not None:
                waiting.append(answer)
            else:
                nobody_waits += 1
        if payloads:
            written = self._try(lambda: self._append(payloads))
            if not written:
                self.count_lost(nobody_waits)
            if waiting:
                _answer(waiting, written)
        elif more and self._failed and not closes:
            self._try(self._probe)
        if closes:
            self._try(self._close_segment)
        return more

    def _try(self, act: Callable[[], None]) -> bool:
        """Does it; True when it worked, and the reason in `trouble` when it did not. On a full disk the oldest segment
        that every reader has passed is deleted, and it is tried again.
        """
        self._writing_since_ns = now_ns()
        try:
            while True:
                try:
                    act()
                    break
                except OSError as error:
                    if error.errno not in FULL or not self._segments.drop(self._segments.passed()[:1]):
                        raise
        except OSError as error:
            if not self._failed:
                self._failed_since_ns = now_ns()
                log.error("journal not writable", reason=error.strerror)
            self._failed = error.strerror or str(error)
            return False
        finally:
            self._writing_since_ns = 0
        if self._failed:
            log.info("journal writable again", after_s=(now_ns() - self._failed_since_ns) // S)
            self._failed = ""
        return True

    def _append(self, payloads: Sequence[bytes]) -> None:
        """Writes records behind the last one, all or none, in one go. Raises OSError."""
        if self._uncut:
            os.ftruncate(self._fd, self._at)
            self._uncut = False
        fresh = self._fd < 0 or self._at >= self._settings.segment_mib << 20
        number = max(self._number + 1, self._now_ms()) if fresh else self._number
        at = 0 if fresh else self._at
        data = bytearray(header(number) if fresh else b"")
        for payload in payloads:
            data += framed(number, at + len(data), payload)
        self._check_room(len(data))
        if fresh:
            self._begin(number, data)
        else:
            self._extend(data)
        self._at = at + len(data)
        self._last_ms = self._now_ms()
        self._segments.grew(Position(number, self._at))
        self.counts.records += len(payloads)
        self.counts.bytes += len(data)
        if fresh or self._settings.fsync_ms:
            self._disk.wake()

    def _extend(self, data: bytearray) -> None:
        try:
            write_all(self._fd, data, self._at)
            if not self._settings.fsync_ms:
                os.fdatasync(self._fd)
        except OSError:
            try:
                os.ftruncate(self._fd, self._at)
            except OSError:
                self._uncut = True
            raise

    def _close_segment(self) -> None:
        """Begins an empty segment behind one that has been open for long. Raises OSError."""
        if not self._open_for_long():  # a record has just begun another
            return
        number = max(self._number + 1, self._now_ms())
        data = bytearray(header(number))
        self._check_room(len(data))
        self._begin(number, data)
        self._at = len(data)
        self._segments.grew(Position(number, self._at))

    def _begin(self, number: int, data: bytearray) -> None:
        """Begins a segment with these bytes; the one before is sealed. Nothing is left of it on OSError."""
        path = self._segments.folder / name_of(number)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, data, 0)
            if not self._settings.fsync_ms:
                os.fdatasync(fd)
                self._segments.sync_folder()
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        if self._fd >= 0:
            self._segments.seal(self._number, self._at, self._last_ms)
        self._fd, self._number = fd, number
        self._disk.begun(fd)

    def _probe(self) -> None:
        """Raises OSError as long as there is no room."""
        self._check_room(PROBE_BYTES)
        path = self._segments.folder / "room"
        try:
            path.write_bytes(bytes(PROBE_BYTES))
        finally:
            path.unlink(missing_ok=True)

    def _check_room(self, size: int) -> None:
        limit = self._settings.bytes_max_mib << 20
        if limit and sum(self._segments.sealed.values()) + self._at + size > limit:
            raise OSError(errno.EDQUOT, f"its limit of {self._settings.bytes_max_mib} MiB is reached")

    def _refuse_waiting(self) -> None:
        while not self._queue.empty():
            item = self._queue.get()
            if isinstance(item, tuple):
                self._refuse(item[1])

    def _refuse(self, answer: Answer | None) -> None:
        if answer is not None:
            _answer([answer], False)
        else:
            self.count_lost(1)

    def count_lost(self, count: int) -> None:
        """Counts records of add() that are not written; on any thread."""
        with self._lost_lock:
            self.counts.lost += count

    def _open_for_long(self) -> bool:
        """True when the newest segment has records and was begun long ago."""
        end = self._segments.end
        open_ms = max(self._settings.keep_ms // OPEN_PART, OPEN_MS_MIN)
        return end.at > HEADER_LEN and self._now_ms() - end.segment >= open_ms


def _encoded(record: Record) -> bytes | None:
    """A record's bytes, with an id if it had none; None when there is no way to write it, which is a bug elsewhere."""
    try:
        payload = to_bytes(record if record.id else replace(record, id=make_id(record.at_ms)))
    except Exception:
        log.exception("record not encoded", kind=record.kind, world=record.world)
        return None
    if len(payload) > PAYLOAD_BYTES_MAX:
        log.error("record too large", kind=record.kind, world=record.world, bytes=len(payload))
        return None
    return payload


def _answer(answers: list[Answer], accepted: bool) -> None:
    """Tells those who wait, with one call to their event loop."""
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        answers[0].get_loop().call_soon_threadsafe(tell, answers, accepted)


def tell(answers: list[Answer], accepted: bool) -> None:
    """Answers those that have no answer yet; on their event loop."""
    for answer in answers:
        if not answer.done():
            answer.set_result(accepted)
