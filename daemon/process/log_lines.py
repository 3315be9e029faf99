"""The daemon's lines on standard error. No caller ever waits for a reader, and no caller fails because of one.

A pipe may have no reader, a disk may be full, and the descriptor may be closed. Then lines are lost and counted.
LogLines owns a thread that writes; all others only put lines into its queue. `say` writes at once or not at all:
it is for a process without that thread.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import select
import stat
import sys
import threading
from collections.abc import Callable

from core.clock import S, now_ns

STDOUT, STDERR = 1, 2
LINES_MAX = 2048
LINE_BYTES_MAX = 16 << 10
CHUNK_BYTES = 4096  # PIPE_BUF: a pipe that is ready takes so many at once
LOOK_MS = 100
FLUSH_S = 0.5  # the longest wait for a reader when the process ends


def open_standard() -> None:
    """Opens /dev/null for each of standard input, output and error that is closed. Without it the next file that is
    opened, the journal for example, would get the number of standard error, and all lines that are written there.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    # Python has None for what was closed as it started.
    if sys.stdout is None:
        sys.stdout = os.fdopen(STDOUT, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(STDERR, "w", errors="backslashreplace", closefd=False)


def never_block() -> None:
    """Makes writes to standard output and error return at once also in native code, which knows nothing of LogLines.

    The process gets descriptions of its own of pipes and terminals, so that programs that share them see no change. A
    socket has no second description; the flag of the shared one is set.
    """
    for fd in (STDOUT, STDERR):
        with contextlib.suppress(OSError):
            mode = os.fstat(fd).st_mode
            if stat.S_ISSOCK(mode):
                os.set_blocking(fd, False)
            elif stat.S_ISFIFO(mode) or os.isatty(fd):
                own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
                os.dup2(own, fd)
                os.close(own)


def say(text: str, fd: int = STDERR) -> bool:
    """Writes a line at once, or not at all. Returns True if it was written."""
    data = _bytes(text)
    for begin in range(0, len(data), CHUNK_BYTES):
        part = data[begin : begin + CHUNK_BYTES]
        try:
            if not _ready(fd, 0) or os.write(fd, part) != len(part):
                return False
        except OSError:
            return False
    return True


class LogLines(io.TextIOBase):
    """A text stream whose lines a thread writes to a descriptor. write() never waits and never raises.

    `on_flow` is called by the thread when lines are written again after some were lost, with how many.
    """

    def __init__(self, on_flow: Callable[[int], None], fd: int = STDERR, lines_max: int = LINES_MAX) -> None:
        self.lost = 0
        self._fd, self._lines_max, self._on_flow = fd, lines_max, on_flow
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        # put() may be called by a finaliser in the middle of another put() of the same thread: no plain lock.
        self._lock = threading.RLock()
        self._partial = ""
        self._handed = self._done = self._reported = 0
        self._mid_line = False
        self._over = False
        self._thread = threading.Thread(target=self._own, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str, /) -> int:
        """Takes text; every whole line in it goes into the queue, or is lost when the queue is full."""
        with self._lock:
            *lines, self._partial = (self._partial + text).split("\n")
            self._partial = self._partial[-LINE_BYTES_MAX:]
            for line in lines:
                if self._handed - self._done >= self._lines_max or self._over:
                    self.lost += 1
                else:
                    self._handed += 1
                    self._lines.put(_bytes(line))
        return len(text)

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The descriptor below, for native code that writes (faulthandler)."""
        return self._fd

    def isatty(self) -> bool:
        """True if it is a terminal."""
        return os.isatty(self._fd)

    def drain(self, limit_s: float = FLUSH_S) -> None:
        """Waits until all lines so far are written, `limit_s` at most. Before the process ends."""
        until_ns, handed = now_ns() + int(limit_s * S), self._handed
        while self._done < handed and self._thread.is_alive() and now_ns() < until_ns:
            threading.Event().wait(0.001)

    def end(self, limit_s: float = FLUSH_S) -> None:
        """As drain(); after it lines are lost. A line that no reader takes ends with the process."""
        self.drain(limit_s)
        self._over = True
        self._lines.put(b"")
        self._thread.join(0.0 if self._done < self._handed else limit_s)

    def _own(self) -> None:
        while True:
            data = self._lines.get()
            if not data:
                return
            written = self._put(data)
            with self._lock:
                self._done += 1
                self.lost += not written
                news = (
                    self.lost - self._reported if written and self._handed - self._done <= self._lines_max // 2 else 0
                )
                self._reported += news
            if news:
                self._on_flow(news)

    def _put(self, data: bytes) -> bool:
        """Waits until the line is written; false when it cannot be."""
        if self._mid_line:
            data = b"\n" + data  # the last one was cut off
        try:
            while data:
                while not _ready(self._fd, LOOK_MS):
                    if self._over:
                        return False
                try:
                    count = os.write(self._fd, data[:CHUNK_BYTES])
                except BlockingIOError:
                    continue  # somebody else was faster
                self._mid_line = count < len(data)
                data = data[count:]
        except OSError:
            return False
        return True


def _bytes(line: str) -> bytes:
    data = line.encode("utf-8", "backslashreplace")
    return (data if len(data) < LINE_BYTES_MAX else data[: LINE_BYTES_MAX - 5] + b" ...") + b"\n"


def _ready(fd: int, wait_ms: int) -> bool:
    """True if a write returns at once, also with an error."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(wait_ms))
