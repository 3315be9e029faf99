"""Rewriting: has Redis rewrite its append-only file after a player was forgotten, so that the text is not in it.

    feeder: DEL bond, SET npcd:1:rewrite:<journal> ──owed()──▶ thread "rewriting": BGREWRITEAOF, wait, DEL that key
    Forget: clean() ──────────────────────────────────────────▶                    answer the callers

Text that Redis deletes stays in its file until the file is rewritten. A key in Redis itself says that a rewrite is
owed, so a kill of either process does not lose it. Many requests that come together are one rewrite.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from pathlib import Path

import structlog

from core.clock import S, now_ns
from core.errors import StoreFailed
from memory.recent_keys import key_of
from memory.redis_connection import Asking, RecentSettings

GATHER_S = 0.05  # requests within this time are one
LOOK_S = 0.02
LOOK_MOST_S = 0.5
AGAIN_FIRST_S, AGAIN_LAST_S = 0.25, 10.0
GONE_S = 5.0  # Redis deletes its old files in the background

log = structlog.get_logger("npcd")


class Rewriting:
    """Owns a connection and the thread that uses it. start() once, stop() for good."""

    def __init__(self, settings: RecentSettings, journal: str, folder: Path | None = None) -> None:
        """Does not connect. `folder` is the server's own, if we can look into it. Raises ConfigError."""
        self.away = ""  # why the file still has what was deleted; empty when all is well
        self._asking = Asking(settings)
        self._key = key_of("rewrite", journal)
        self._folder = folder
        self._lock = threading.Lock()
        self._wished = 0
        self._owing = False  # known to be: not only looked for, as at the start
        self._waiting: list[tuple[int, asyncio.Future[bool]]] = []
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="rewriting", daemon=True)

    def start(self) -> None:
        """Begins to check if a rewrite is owed."""
        self._thread.start()
        self._wake.set()

    def stop(self, timeout_s: float) -> None:
        """Ends the thread; an owed rewrite stays owed for the next start. Blocks."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def owed(self) -> None:
        """A player was forgotten in the store. On any thread."""
        with self._lock:
            self._wished += 1
            self._owing = True
        self._wake.set()

    async def clean(self, timeout_s: float) -> bool:
        """True if the file has none of the text deleted before, within this time. On the event loop."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bool] = loop.create_future()
        with self._lock:
            if self._stopping.is_set():
                return False
            self._wished += 1
            self._owing = True
            self._waiting.append((self._wished, answer))
        self._wake.set()
        timer = loop.call_later(timeout_s, _tell, answer, False)
        try:
            return await answer
        finally:
            timer.cancel()

    # --- the thread

    def _main(self) -> None:
        again_s = AGAIN_FIRST_S
        while not self._stopping.is_set():
            self._wake.wait()
            self._wake.clear()
            if self._stopping.wait(GATHER_S):
                break
            with self._lock:
                wished, asked = self._wished, bool(self._waiting)
            try:
                self._asking.open()
                self._rewrite(asked)
            except StoreFailed as error:
                if self._owing:
                    if not self.away:
                        log.warning("redis file not rewritten", reason=str(error))
                    self.away = str(error)
                self._stopping.wait(again_s)
                again_s = min(2 * again_s, AGAIN_LAST_S)
                self._wake.set()
            else:
                with self._lock:
                    self._owing = self._wished > wished
                self.away, again_s = "", AGAIN_FIRST_S
                self._answer(wished)
            finally:
                self._asking.close()
        self._answer(-1)

    def _rewrite(self, asked: bool) -> None:
        """Has the file rewritten if that is owed or asked for. Raises StoreFailed."""
        (owed,) = self._asking.ask([("GET", self._key)])
        if owed is None and not asked:
            return
        self._owing = True
        began_ns = now_ns()
        while (said := self._state()).get("aof_rewrite_in_progress") == "1":  # it began before, so it reads old data
            self._pause(began_ns)
        if said.get("aof_enabled") == "1":
            before = self._files()
            self._asking.ask([("BGREWRITEAOF",)])
            while True:
                said = self._state()
                if "1" not in (said.get("aof_rewrite_in_progress"), said.get("aof_rewrite_scheduled")):
                    break
                self._pause(began_ns)
            if said.get("aof_last_bgrewrite_status") != "ok":
                raise StoreFailed("BGREWRITEAOF failed; the server's log says why, a full disk perhaps")
            self._wait_until_gone(before)
        if owed is not None:
            # A later wish has another value: that one stays.
            self._asking.ask([("WATCH", self._key)])
            (still,) = self._asking.ask([("GET", self._key)])
            if still == owed:
                self._asking.ask([("MULTI",), ("DEL", self._key), ("EXEC",)])
            else:
                self._asking.ask([("UNWATCH",)])
                self.owed()
        log.info("redis file rewritten", after_ms=round((now_ns() - began_ns) / S * 1000))

    def _state(self) -> dict[str, str]:
        (said,) = self._asking.ask([("INFO", "persistence")])
        return {name: value for name, _, value in (line.partition(":") for line in said.decode().splitlines())}

    def _pause(self, began_ns: int) -> None:
        """Waits before the next look, longer each time. Raises StoreFailed when this is stopped."""
        if self._stopping.wait(min(max(LOOK_S, (now_ns() - began_ns) / S / 4), LOOK_MOST_S)):
            raise StoreFailed("npcd is stopping")

    def _files(self) -> set[tuple[int, int]]:
        """The server's append-only files, as device and inode: of one file, or of a folder of several."""
        found = set()
        for path in self._folder.rglob("*.aof") if self._folder is not None else ():
            if not path.name.startswith("temp-"):
                with contextlib.suppress(OSError):
                    file = path.stat()
                    found.add((file.st_dev, file.st_ino))
        return found

    def _wait_until_gone(self, before: set[tuple[int, int]]) -> None:
        until_s = time.monotonic() + GONE_S
        while self._files() & before:
            if time.monotonic() > until_s:
                raise StoreFailed("the server has not deleted its old file")
            time.sleep(LOOK_S)

    def _answer(self, wished: int) -> None:
        """Answers callers that asked no later than that; all of them, with False, when it is over (-1)."""
        with self._lock:
            due = [(n, a) for n, a in self._waiting if wished < 0 or n <= wished]
            self._waiting = [w for w in self._waiting if w not in due]
        for n, answer in due:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                answer.get_loop().call_soon_threadsafe(_tell, answer, n <= wished)


def _tell(answer: asyncio.Future[bool], clean: bool) -> None:
    if not answer.done():
        answer.set_result(clean)
