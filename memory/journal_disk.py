"""The journal's second thread, "journal-disk": syncs the files, closes them, and deletes old segments by the clock.

The writing thread (memory/journal_writer.py) opens a segment and hands its descriptor over with begun(). This thread
closes it when the next segment has begun, or at the end.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

import structlog

from core.clock import S, now_ns
from memory.journal_settings import JournalSettings
from memory.segments import Segments

log = structlog.get_logger("npcd")

CLOCK_S = 1.0  # retention looks at the wall clock so often
AGAIN_S = 0.5  # the pause after a sync that failed


class JournalDisk:
    """One thread. start() comes before anything else, close() ends it for good. `trouble` says why a sync failed."""

    def __init__(self, segments: Segments, settings: JournalSettings, now_ms: Callable[[], int]) -> None:
        self._segments = segments
        self._settings = settings
        self._now_ms = now_ms
        self._close_if_open_for_long: Callable[[], None] = _nothing
        self.trouble = ""

        # Handed over by the writing thread, under the lock.
        self._lock = threading.Lock()
        self._fd = -1
        self._to_finish: list[int] = []
        self._is_new = False

        self._dirty = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._main, name="journal-disk", daemon=True)

    def start(self, close_if_open_for_long: Callable[[], None]) -> None:
        """Begins to sync. It calls `close_if_open_for_long` now and then, on its thread."""
        self._close_if_open_for_long = close_if_open_for_long
        self._thread.start()

    def begun(self, fd: int) -> None:
        """A segment has begun in this file; the one before is synced for the last time, and closed."""
        with self._lock:
            if self._fd >= 0:
                self._to_finish.append(self._fd)
            self._fd, self._is_new = fd, True

    def wake(self) -> None:
        """Something was written that is to be synced."""
        if not self._dirty.is_set():
            self._dirty.set()

    @property
    def ended(self) -> bool:
        """True after close()."""
        return self._ending.is_set()

    def close(self) -> None:
        """Syncs all that was written, ends the thread, closes the newest file. Blocks for as long as the disk does."""
        self._ending.set()
        self._dirty.set()
        self._thread.join()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _main(self) -> None:
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
                self._ending.wait(AGAIN_S if self.trouble else max(0.0, pause_s - (now_ns() - began_ns) / S))
        except BaseException as error:
            self.trouble = f"its disk thread died: {error!r}"
            log.exception("journal disk thread died")
            raise

    def _sync(self) -> bool:
        """Brings all that was written to the disk; True when a segment has begun since."""
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
            # The kernel may have dropped what it could not write: a later try that works speaks for newer records only.
            if not self.trouble:
                log.error("journal sync failed", reason=error.strerror)
            self.trouble = error.strerror or str(error)
            with self._lock:
                self._is_new = self._is_new or is_new
            self._dirty.set()
        else:
            self.trouble = ""
        finally:
            for each in finish:
                with contextlib.suppress(OSError):
                    os.close(each)
        return is_new

    def _tidy(self) -> None:
        """Retention: deletes old segments that every reader has passed, and has one closed that is open for long."""
        old = self._segments.older(self._now_ms() - self._settings.keep_ms)
        self._segments.drop([number for number in self._segments.passed() if number in old])
        self._close_if_open_for_long()


def _nothing() -> None:
    """Until start() says what to do."""
