"""The journal: an append-only, checksummed local file through which everything goes that is accepted.

    event loop                   thread "journal"                thread "journal-disk"
    accept(), add() ──queue──▶   encode, write, say the end ──▶  fdatasync every fsync_ms, retention by the clock
          ▲                          │                 │
          └── one callback a batch ──┘                 └──▶ wait(), read(), seen(): each reader's own thread

This file is its face for the event loop and for readers; memory/journal_writer.py and memory/journal_disk.py are its
threads. Written means that the kernel has it: a kill loses nothing, a power loss at most fsync_ms. Every start begins a
new segment with its first record. A segment that has been open for long is closed also when nothing more comes, so that
retention reaches the records in it.

    <folder>/<number as 16 digits>.journal   segments (memory/frames.py: their bytes; memory/segments.py: reading them)
             <reader>.seen                   how far a reader is: a Position and its crc-32

A caller that is cancelled in accept(), or waited too long there, may find the record written all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from core.errors import StoreFailed
from memory.journal_disk import JournalDisk
from memory.journal_settings import JournalSettings
from memory.journal_writer import Answer, JournalWriter, tell
from memory.records import Position, Record
from memory.segments import Counts, Segments


class Journal:
    """One folder of segments. start() comes before anything else, close() ends it for good."""

    def __init__(
        self, folder: Path, settings: JournalSettings, now_ms: Callable[[], int], readers: Sequence[str] = ()
    ) -> None:
        """`now_ms` is Unix time. A record stays until each of `readers`, and each that said seen(), passed it."""
        self._settings = settings
        self._segments = Segments(folder, readers)
        self.counts: Counts = self._segments.counts
        self._disk = JournalDisk(self._segments, settings, now_ms)
        self._writer = JournalWriter(self._segments, self._disk, settings, now_ms)

    def start(self) -> None:
        """Opens the folder, cuts a torn tail off, starts the threads. Blocks. Raises StoreFailed."""
        try:
            self._segments.open()
        except OSError as error:
            raise StoreFailed(f"journal: {self._segments.folder}: {error.strerror}") from error
        self._writer.start()
        self._disk.start(self._writer.close_if_open_for_long)

    def close(self) -> None:
        """Writes and syncs all that waits, ends the threads. Blocks for as long as the disk does."""
        if self._disk.ended or not self._writer.started:
            return
        self._writer.close()
        self._disk.close()
        self._segments.save_seen()

    @property
    def keep_ms(self) -> int:
        """The age that a record reaches at least."""
        return self._settings.keep_ms

    # --- for the event loop

    async def accept(self, record: Record) -> bool:
        """True when the record was written; False when the disk is full or slow, too many wait, or it is closed."""
        return await self.put(record)

    def put(self, record: Record) -> Answer:
        """Puts the record in the row at once; the answer says later whether it was written, as accept() does."""
        loop = asyncio.get_running_loop()
        answer: Answer = loop.create_future()
        timer: asyncio.TimerHandle | None = None
        if self._writer.offer(record, answer):
            timer = loop.call_later(self._settings.accept_ms / 1000, tell, [answer], False)
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
        if not self._writer.offer(record, None):
            self._writer.count_lost(1)

    @property
    def degraded(self) -> str:
        """The reason why records are refused, late or not safe from a power loss; empty when all is well."""
        if trouble := self._writer.trouble:
            return f"journal: {trouble}"
        if trouble := self._disk.trouble:
            return f"journal: {trouble} (a power loss may take what was accepted last)"
        return ""

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
        """The position at which a reader that stands here reads on: what is gone is passed over and counted."""
        return self._segments.standing(position)

    def wait(self, position: Position, timeout_s: float) -> bool:
        """Blocks until something stands behind a position; False when nothing does in time."""
        return self._segments.wait(position, timeout_s)

    def read(self, position: Position, count_max: int = 100, bytes_max: int = 1 << 20) -> tuple[list[Record], Position]:
        """The records from a position on, and the position after them; none only at the end. Raises StoreFailed.

        Unreadable or deleted records are passed over and counted. A record comes also when it alone is above bytes_max.
        """
        return self._segments.read(position, count_max, bytes_max)

    def seen(self, reader: str, position: Position) -> None:
        """A reader needs nothing before this any more; on the reader's thread. A kill may leave an older one."""
        self._segments.seen(reader, position)

    def seen_by(self, reader: str) -> Position | None:
        """The last position of seen() by this reader, in this life or before; None when it never said one."""
        return self._segments.seen_by(reader)

    def redact(self, match: Callable[[Record], bool], containing: str = "") -> int:
        """Overwrites what matches, in place; how many. Takes no room on the disk.

        Blocks until that, and all that was written before, is on the disk. Raises StoreFailed.

        `match` sees only records with the text `containing` in them, which is much quicker than all.
        """
        return self._segments.redact(match, containing)
