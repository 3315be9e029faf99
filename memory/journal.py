"""The journal: an append-only, checksummed local file through which everything goes that is accepted.

    event loop                   thread "journal"                thread "journal-disk"
    accept(), add() ──queue──▶   encode, write, say the end ──▶  fdatasync every fsync_ms, retention by the clock
          ▲                          │                 │
          └── one callback a batch ──┘                 └──▶ wait(), read(), seen(): each reader's own thread

Written means that the kernel has it: a kill loses nothing, a power loss at most fsync_ms. Every start begins a new
segment with its first record. A segment that has been open for long is closed also when nothing more comes, so that
retention reaches what stands in it.

    <folder>/<number as 16 digits>.journal   segments (memory/frames.py: their bytes; memory/segments.py: reading them)
             <reader>.seen                   how far a reader is: a Position and its crc-32

The thread "journal" owns the newest segment's descriptor and alone appends. A write that fails is cut off again, its
records are refused, and the next batch tries anew. Whoever is cancelled in accept(), or waited too long there, may
find the record written all the same.
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
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from core.clock import S, now_ns
from core.errors import StoreFailed
from memory.frames import HEADER_LEN, PAYLOAD_BYTES_MAX, framed, header, name_of
from memory.records import Position, Record, make_id, to_bytes
from memory.segments import Counts, Segments, write_all

log = structlog.get_logger("npcd")

# What is encoded in one go is well below 1 ms; while more waits, other threads get the interpreter for REST_S between.
BATCH_RECORDS_MAX = 64
BATCH_BYTES_MAX = 1 << 20
REST_S = 0.0002
PROBE_S = 0.5  # how often a disk that failed is tried when no record comes to try it
PROBE_BYTES = 4096
SLOW_NS = S  # a write that takes longer is told in `degraded`
# Retention: how often it looks at the wall clock, and how long a segment with records stays open, as a part of
# keep_hours. So a record is deleted at most that much later than keep_hours.
CLOCK_S = 1.0
OPEN_PART, OPEN_MS_MIN = 24, 60_000
FULL = (errno.ENOSPC, errno.EDQUOT)

Answer = asyncio.Future[bool]


class _Close:
    """In the queue: the wish that the open segment is closed."""


@dataclass(frozen=True, slots=True)
class JournalSettings:
    """The local journal, to which everything is written before it counts as accepted."""

    segment_mib: int = 64
    """Size at which a new file (segment) is begun."""
    fsync_ms: int = 100
    """The journal is synced to disk at this interval; 0: each batch is synced before it is accepted."""
    keep_hours: int = 48
    """Segments that every store has are kept for this long, unless their room is needed."""
    bytes_max_mib: int = 0
    """Size of the journal at most; 0: until the disk is full."""
    waiting_max: int = 20_000
    """Records that may wait for the disk; beyond that new ones are not accepted."""
    accept_ms: int = 2_000
    """A caller waits this long at most for a record to be accepted."""


class Journal:
    """One folder of segments. start() comes before anything else, close() ends it for good."""

    def __init__(
        self, folder: Path, settings: JournalSettings, now_ms: Callable[[], int], readers: Sequence[str] = ()
    ) -> None:
        """`now_ms` is Unix time. Nothing is deleted that one of `readers`, or whoever said seen(), has not passed."""
        self._settings = settings
        self._now_ms = now_ms
        self._segments = Segments(folder, readers)
        self.counts: Counts = self._segments.counts
        self._open = False
        self._queue: queue.SimpleQueue[tuple[Record, Answer | None] | _Close | None] = queue.SimpleQueue()
        self._lost_lock = threading.Lock()

        # The writing thread's. Invariant: whole records up to `_at` in segment `_number`; `_uncut`: and rubbish behind.
        self._fd = -1
        self._number = 0
        self._at = 0
        self._uncut = False
        self._last_ms = 0  # when the last record of this life was written
        self._writing_since_ns = 0
        self._failed, self._failed_since_ns = "", 0

        # Handed to the disk's thread, under the lock.
        self._lock = threading.Lock()
        self._to_finish: list[int] = []
        self._is_new = False
        self._sync_failed = ""
        self._dirty = threading.Event()
        self._ending = threading.Event()

        self._writer = threading.Thread(target=self._write_main, name="journal", daemon=True)
        self._disk = threading.Thread(target=self._disk_main, name="journal-disk", daemon=True)

    def start(self) -> None:
        """Opens the folder, cuts a torn tail off, starts the threads. Blocks. Raises StoreFailed."""
        try:
            self._segments.open()
        except OSError as error:
            raise StoreFailed(f"journal: {self._segments.folder}: {error.strerror}") from error
        self._number = self.end.segment
        self._open = True
        self._writer.start()
        self._disk.start()

    def close(self) -> None:
        """Writes and syncs all that waits, ends the threads. Blocks for as long as the disk does."""
        if self._ending.is_set() or self._writer.ident is None:
            return
        self._open = False
        self._queue.put(None)
        self._writer.join()
        self._refuse_waiting()
        self._ending.set()
        self._dirty.set()
        self._disk.join()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._segments.save_seen()

    # --- for the event loop

    async def accept(self, record: Record) -> bool:
        """Whether the record was written. False: the disk is full or slow, too many wait, or the journal is closed."""
        return await self.put(record)

    def put(self, record: Record) -> Answer:
        """Puts the record in the row at once; the answer says later whether it was written, as accept() does."""
        loop = asyncio.get_running_loop()
        answer: Answer = loop.create_future()
        timer: asyncio.TimerHandle | None = None
        if self._offer(record, answer):
            timer = loop.call_later(self._settings.accept_ms / 1000, _tell, [answer], False)
        else:
            answer.set_result(False)

        def answered(done: Answer) -> None:
            if timer is not None:
                timer.cancel()
            self.counts.refused += done.cancelled() or not done.result()

        answer.add_done_callback(answered)
        return answer

    def add(self, record: Record) -> None:
        """Has the record written if that can be; nobody hears whether it was. At most a few microseconds."""
        if not self._offer(record, None):
            self._count_lost(1)

    @property
    def degraded(self) -> str:
        """What is wrong, in words; empty when all is well."""
        now, since_ns = now_ns(), self._writing_since_ns
        if self._failed:
            return f"journal: {self._failed} (accepted nothing for {(now - self._failed_since_ns) // S} s)"
        if since_ns and now - since_ns > SLOW_NS:
            return f"journal: the disk has not answered for {(now - since_ns) // S} s"
        if self._queue.qsize() >= self._settings.waiting_max:
            return f"journal: {self._settings.waiting_max} records wait for the disk, no more are taken"
        if self._sync_failed:
            return f"journal: {self._sync_failed} (a power loss may take what was accepted last)"
        return ""

    def _offer(self, record: Record, answer: Answer | None) -> bool:
        if not self._open or self._queue.qsize() >= self._settings.waiting_max:
            return False
        self._queue.put((record, answer))
        return True

    # --- for readers, on any thread: memory/segments.py

    @property
    def end(self) -> Position:
        """After the last record that was written."""
        return self._segments.end

    @property
    def first(self) -> Position:
        """Before the oldest record that is kept."""
        return self._segments.first

    def behind(self, position: Position) -> int:
        """Bytes from a position to the end."""
        return self._segments.behind(position)

    def newest(self, bytes_max: int) -> Position:
        """Before the newest records, at most so many bytes of them, but for what is in the last segment."""
        return self._segments.newest(bytes_max)

    def standing(self, position: Position) -> Position:
        """Where a reader that stands at a position reads on: what is gone is passed over and counted."""
        return self._segments.standing(position)

    def wait(self, position: Position, timeout_s: float) -> bool:
        """Blocks until something stands behind a position; whether it does."""
        return self._segments.wait(position, timeout_s)

    def read(self, position: Position, count_max: int = 100, bytes_max: int = 1 << 20) -> tuple[list[Record], Position]:
        """The records from a position on, and the position after them; none only at the end. Raises StoreFailed.

        What is unreadable or gone is passed over and counted. A record comes also when it alone is above bytes_max.
        """
        return self._segments.read(position, count_max, bytes_max)

    def seen(self, reader: str, position: Position) -> None:
        """A reader needs nothing before this any more; on the reader's thread. A kill may leave an older one."""
        self._segments.seen(reader, position)

    def seen_by(self, reader: str) -> Position | None:
        """What the reader said last, in this life or before; None when it never did."""
        return self._segments.seen_by(reader)

    def redact(self, match: Callable[[Record], bool], containing: str = "") -> int:
        """Overwrites what matches, in place; how many. Takes no room on the disk.

        Blocks until that, and all that was written before, is on the disk. Raises StoreFailed.

        `match` sees only records with the text `containing` in them, which is much quicker than all.
        """
        return self._segments.redact(match, containing)

    # --- the writing thread

    def _write_main(self) -> None:
        try:
            while self._write_batch():
                if not self._queue.empty():
                    time.sleep(REST_S)
        except BaseException as error:
            self._failed, self._failed_since_ns = f"its thread died: {error!r}", now_ns()
            self._open = False
            self._refuse_waiting()
            log.exception("the journal's thread died")
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
                self._count_lost(nobody_waits)
            if waiting:
                _answer(waiting, written)
        elif more and self._failed and not closes:
            self._try(self._probe)
        if closes:
            self._try(self._close_segment)
        return more

    def _try(self, act: Callable[[], None]) -> bool:
        """Does it; whether it worked, which stands in `degraded`. On a full disk what every reader has passed goes."""
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
                log.error("the journal cannot be written, nothing is accepted", reason=error.strerror)
            self._failed = error.strerror or str(error)
            return False
        finally:
            self._writing_since_ns = 0
        if self._failed:
            log.info("the journal is written again", after_s=(now_ns() - self._failed_since_ns) // S)
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
        if fresh or (self._settings.fsync_ms and not self._dirty.is_set()):
            self._dirty.set()

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
        if not self._open_for_long:  # a record has just begun another
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
        with self._lock:
            if self._fd >= 0:
                self._to_finish.append(self._fd)
            self._fd, self._number, self._is_new = fd, number, True

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
            self._count_lost(1)

    def _count_lost(self, count: int) -> None:
        with self._lost_lock:
            self.counts.lost += count

    # --- the disk's thread

    def _disk_main(self) -> None:
        pause_s = max(self._settings.fsync_ms, 1) / 1000
        tidied_ns = 0
        try:
            while True:
                dirty = self._dirty.wait(CLOCK_S)
                self._dirty.clear()
                ending = self._ending.is_set()  # looked at before syncing: nothing is written after it was set
                began_ns = now_ns()
                is_new = self._sync() if dirty else False
                if is_new or not dirty or began_ns - tidied_ns >= CLOCK_S * S:
                    self._tidy()
                    tidied_ns = began_ns
                if ending:
                    return
                self._ending.wait(PROBE_S if self._sync_failed else max(0.0, pause_s - (now_ns() - began_ns) / S))
        except BaseException as error:
            self._sync_failed = f"its disk thread died: {error!r}"
            log.exception("the journal's disk thread died")
            raise

    def _sync(self) -> bool:
        """Brings to the disk what was written; whether a segment has begun."""
        with self._lock:
            finish, self._to_finish = self._to_finish, []
            fd, is_new, self._is_new = self._fd, self._is_new, False
        try:
            if is_new:
                self._segments.sync_folder()
            for each in (*finish, fd):
                if each >= 0:
                    os.fdatasync(each)
        except OSError as error:
            # What the kernel could not write it may have dropped: another try that works speaks for newer records only.
            if not self._sync_failed:
                log.error("the journal cannot be synced", reason=error.strerror)
            self._sync_failed = error.strerror or str(error)
            with self._lock:
                self._is_new = self._is_new or is_new
            self._dirty.set()
        else:
            self._sync_failed = ""
        finally:
            for each in finish:
                with contextlib.suppress(OSError):
                    os.close(each)
        return is_new

    def _tidy(self) -> None:
        """Retention: deletes what is old and passed by every reader, and has a segment closed that is open for long."""
        old = self._segments.older(self._now_ms() - self.keep_ms)
        self._segments.drop([number for number in self._segments.passed() if number in old])
        if self._open and self._open_for_long and self._queue.empty():
            self._queue.put(_Close())

    @property
    def keep_ms(self) -> int:
        """How old a record becomes at least."""
        return self._settings.keep_hours * 3_600_000

    @property
    def _open_for_long(self) -> bool:
        """Whether the newest segment has records and was begun long ago."""
        end = self._segments.end
        open_ms = max(self.keep_ms // OPEN_PART, OPEN_MS_MIN)
        return end.at > HEADER_LEN and self._now_ms() - end.segment >= open_ms


def _encoded(record: Record) -> bytes | None:
    """A record's bytes, with an id if it had none; None when there is no way to write it, which is a bug elsewhere."""
    try:
        payload = to_bytes(record if record.id else replace(record, id=make_id(record.at_ms)))
    except Exception:
        log.exception("a record cannot be encoded", kind=record.kind, world=record.world)
        return None
    if len(payload) > PAYLOAD_BYTES_MAX:
        log.error("a record is too large", kind=record.kind, world=record.world, bytes=len(payload))
        return None
    return payload


def _answer(answers: list[Answer], accepted: bool) -> None:
    """Tells those who wait, with one call to their event loop."""
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        answers[0].get_loop().call_soon_threadsafe(_tell, answers, accepted)


def _tell(answers: list[Answer], accepted: bool) -> None:
    for answer in answers:
        if not answer.done():
            answer.set_result(accepted)
