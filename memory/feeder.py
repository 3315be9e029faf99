"""Feeders: they write the journal's records into a store, on a thread of their own, however long the store is away.

    journal ──read()──▶ gather, up to batch_max or gather_ms ──write()──▶ store          one thread per store
            ◀─seen()──  note how far

A store that raises StoreFailed gets the same records again, after a pause and a new connection. Any other exception is
a bug, in the store's code or in a record. After some tries the records are then written one by one, and those that fail
are set aside, so that they do not stop the others. A batch is small, so that the thread does not hold the interpreter
for long.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import structlog

from core.clock import MS, S, now_ns
from core.errors import StoreFailed
from memory.journal import Journal
from memory.records import Position, Record

log = structlog.get_logger("npcd")

IDLE_S = 0.2  # how long it may take until a feeder that has nothing to do is stopped
LOOK_S = 0.02  # how long it may take until a batch that is full is seen to be
ASIDE_KEPT = 1_000
ALONE_TRIES = 4  # times tries_max: a record that no other one bears out is not given up quickly


class Store(Protocol):
    """A store that is written from the journal alone. Used by one thread; every call may block.

    All raise StoreFailed when the store is away, slow or refuses; then the same records come again later.
    """

    @property
    def name(self) -> str:
        """ "recent" or "archive"."""

    def connect(self) -> Position | None:
        """Connects again. Returns the position up to which it has the journal, if the store itself keeps that."""

    def write(self, records: Sequence[Record], upto: Position) -> None:
        """Takes records in, all or none; those that it has already change nothing. `upto` is after the last one."""

    def close(self) -> None:
        """Ends the connection, if there is one."""


@dataclass(frozen=True, slots=True)
class FeederSettings:
    """The threads that write the journal's records into the stores, in batches."""

    batch_max: int = 100
    """Records in one batch at most."""
    batch_kib: int = 256
    """Size of one batch at most."""
    gather_ms: int = 100
    """Records that come within this time go into one batch."""
    pause_ms: int = 100
    """First pause before a failed batch is tried again; the pause doubles with each failure."""
    pause_max_ms: int = 5_000
    """Longest pause between two tries."""
    tries_max: int = 3
    """After so many failures of a batch that a connection does not explain, its records are written one by one."""
    rest_us: int = 200
    """While there is more to write, the thread sleeps this long after each batch, so that others get the interpreter.
    """


class FeederState(NamedTuple):
    """The state of a feeder. `position` is None until the store was reached once; `away` is why it is not."""

    position: Position | None
    behind_bytes: int
    away: str
    written: int
    aside: int


class Feeder:
    """Feeds one store. start() once, when the journal is started; stop() ends it between two batches."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        settings: FeederSettings = FeederSettings(),
        at_rest: Callable[[], None] | None = None,
    ) -> None:
        """`at_rest` is called on the feeder's thread whenever there is nothing to write; it may raise StoreFailed."""
        self.name = store.name
        self._at_rest = at_rest
        # Read by anyone, written by the feeder's thread. Invariant: the store has everything before `position`.
        self.position: Position | None = None
        self.away = "not connected yet"
        self.written = 0
        self.aside = 0
        self._store = store
        self._journal = journal
        self._settings = settings
        self._pause_s = settings.pause_ms / 1000
        self._keeps_position = False
        self._failures = 0  # in a row, that are bugs
        self._set_aside: OrderedDict[str, None] = OrderedDict()
        self._away_since_ns = 0
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._waiting: list[tuple[Position, asyncio.Future[bool]]] = []
        self._hurry = threading.Event()  # do not gather: a caller waits, or the feeder ends
        self._thread = threading.Thread(target=self._main, name=f"feeder-{self.name}", daemon=True)

    def start(self) -> None:
        """Starts the thread. From now on the journal keeps records that this store has not got."""
        self._journal.seen(self.name, self._journal.seen_by(self.name) or self._journal.first)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Ends the thread after the batch that is being written. Returns True if it ended in time. Blocks."""
        self._stopping.set()
        self._hurry.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def state(self) -> FeederState:
        """Its state, all in one. Reads no file."""
        behind = self._journal.behind(self.position or self._journal.seen_by(self.name) or self._journal.first)
        return FeederState(self.position, behind, self.away, self.written, self.aside)

    async def passed(self, position: Position, timeout_s: float) -> bool:
        """True if the store has everything before a position within this time. On the event loop."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bool] = loop.create_future()
        waiting = (position, answer)
        with self._lock:
            if self.position is not None and self.position >= position:
                return True
            if self._stopping.is_set():
                return False
            self._waiting.append(waiting)
            self._hurry.set()
        timer = loop.call_later(timeout_s, _tell, answer, False)
        try:
            return await answer
        finally:
            timer.cancel()
            with self._lock:
                if waiting in self._waiting:
                    self._waiting.remove(waiting)

    # --- the feeder's thread

    def _main(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    self._connect()
                    self._feed()
                except StoreFailed as error:
                    self._went_away(str(error))
                except Exception as error:
                    # A bug, but not a record's: it stands in `away`, and is come by ever more slowly.
                    self._went_away(_reason_of(error))
        finally:
            try:
                self._store.close()
            except Exception as error:
                log.warning("store not closed", store=self.name, reason=_reason_of(error))
            self._tell_waiting(over=True)

    def _connect(self) -> None:
        position = self._store.connect()
        self._keeps_position = position is not None
        if position is None:
            position = self.position or self._journal.seen_by(self.name) or self._journal.first
        self._reached(self._journal.standing(position))

    def _feed(self) -> None:
        """Writes until it is stopped. Raises StoreFailed."""
        while not self._stopping.is_set():
            records, upto = self._gather()
            if records:
                try:
                    self._store.write(records, upto)
                except StoreFailed:
                    raise
                except Exception as error:
                    self._mistrust(records, upto, error)
                else:
                    self._wrote(len(records), upto)
                if upto < self._journal.end:
                    time.sleep(self._settings.rest_us / 1e6)
            else:
                self._is_well()
                self._reached(upto)
                if not self._journal.wait(upto, IDLE_S) and self._at_rest is not None:
                    self._at_rest()

    def _gather(self) -> tuple[list[Record], Position]:
        """The next batch and the position after it; a part of one after gather_ms."""
        s = self._settings
        assert self.position is not None
        records, upto = self._read(self.position, s.batch_max)
        until_ns = now_ns() + s.gather_ms * MS
        while 0 < len(records) < s.batch_max and not self._hurry.is_set():
            if upto < self._journal.end:  # there was more than batch_kib, or it has just come
                more, upto = self._read(upto, s.batch_max - len(records))
                records += more
                if upto < self._journal.end:
                    break
            elif now_ns() >= until_ns:
                break
            else:
                self._hurry.wait(min(LOOK_S, s.gather_ms / 1000))
        return records, upto

    def _read(self, position: Position, count_max: int) -> tuple[list[Record], Position]:
        records, upto = self._journal.read(position, count_max, self._settings.batch_kib << 10)
        return [r for r in records if r.id not in self._set_aside], upto

    def _mistrust(self, records: Sequence[Record], upto: Position, error: Exception) -> None:
        """A write failed because of a bug. Raises StoreFailed when the same records should just be tried again."""
        self._failures += 1
        if self._failures == 1:
            log.error(
                "store failed on records",
                store=self.name,
                reason=_reason_of(error),
                first=records[0].id,
                last=records[-1].id,
            )
        if self._failures < self._settings.tries_max:
            raise StoreFailed(_reason_of(error)) from error
        self._one_by_one(upto, alone=len(records) == 1)

    def _one_by_one(self, upto: Position, alone: bool) -> None:
        """Writes the records up to a position one by one. Records that fail are set aside if another one can be
        written right after them. If none can be written the store is at fault, and StoreFailed is raised.
        """
        assert self.position is not None
        failed: list[tuple[Record, str]] = []
        at, got_through = self.position, False
        while at < upto and not self._stopping.is_set():
            records, at = self._read(at, 1)
            for record in records:
                # First together with those that failed: the store may be well again by now, and a store that keeps
                # a position cannot take them later.
                if failed and not self._reason([*(r for r, _ in failed), record], at):
                    self._wrote(len(failed) + 1, at)
                elif reason := self._reason([record], at):
                    failed.append((record, reason))
                    self._stopping.wait(self._settings.pause_ms / 1000)
                    continue
                else:
                    self._put_aside(failed, at)
                    self._wrote(1, at)
                failed, got_through = [], True
        if got_through or (alone and self._failures >= ALONE_TRIES * self._settings.tries_max):
            self._put_aside(failed, at)
            self._failures = 0
            self._is_well()
            self._reached(at)
        elif failed:
            raise StoreFailed(failed[0][1])

    def _reason(self, records: Sequence[Record], upto: Position) -> str:
        """Writes records. Returns the bug that prevented it; empty when they are written. Raises StoreFailed."""
        try:
            self._store.write(records, upto)
        except StoreFailed:
            raise
        except Exception as error:
            position = self._store.connect()
            if position is not None and self._journal.standing(position) != self.position:
                raise StoreFailed(f"{_reason_of(error)}, and its position has changed") from error
            return _reason_of(error)
        return ""

    def _put_aside(self, failed: Sequence[tuple[Record, str]], upto: Position) -> None:
        """Gives records up; a store that takes them in any order gets them once more."""
        for record, reason in failed:
            if not self._keeps_position and not self._reason([record], upto):
                self.written += 1
                continue
            self.aside += 1
            self._set_aside[record.id] = None
            log.error("record set aside", store=self.name, record=record.id, kind=record.kind.name, reason=reason)
        while len(self._set_aside) > ASIDE_KEPT:
            self._set_aside.popitem(last=False)

    def _wrote(self, count: int, upto: Position) -> None:
        self.written += count
        self._failures = 0
        self._is_well()
        self._reached(upto)

    def _reached(self, position: Position) -> None:
        self.position = position
        self._journal.seen(self.name, position)
        self._tell_waiting()

    def _went_away(self, reason: str) -> None:
        """Logs it once, and waits before the next try."""
        if not self._away_since_ns:
            self._away_since_ns = now_ns()
            log.warning("store away", store=self.name, reason=reason)
        self.away = reason
        self._stopping.wait(self._pause_s)
        self._pause_s = min(2 * self._pause_s, self._settings.pause_max_ms / 1000)

    def _is_well(self) -> None:
        if self._away_since_ns:
            log.info("store back", store=self.name, after_s=(now_ns() - self._away_since_ns) // S)
            self._away_since_ns = 0
        self.away = ""
        self._pause_s = self._settings.pause_ms / 1000

    def _tell_waiting(self, over: bool = False) -> None:
        """Answers callers whose position is reached; all of them when the feeder ends."""
        with self._lock:
            here = self.position
            due = [(p, a) for p, a in self._waiting if over or (here is not None and p <= here)]
            self._waiting = [w for w in self._waiting if w not in due]
            if not self._waiting and not self._stopping.is_set():
                self._hurry.clear()
        for position, answer in due:
            try:
                answer.get_loop().call_soon_threadsafe(_tell, answer, here is not None and position <= here)
            except RuntimeError:  # the loop is closed: nobody waits any more
                pass


def _tell(answer: asyncio.Future[bool], passed: bool) -> None:
    if not answer.done():
        answer.set_result(passed)


def _reason_of(error: Exception) -> str:
    """A bug's type and place. Its message is left out: it may quote players."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    at = f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}{at}"
