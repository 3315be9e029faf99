"""The times for which code of memory/ blocks the event loop: each of its steps there, and its own threads.

A step is a call from outside memory/ on the loop's thread, or the work of a coroutine of memory/ between two waits. Its
time is the wall's, less the time in which the thread was ready and the kernel ran another one, which is the machine's,
and less Python's garbage collections, which any allocation may start.
Threads of memory/ stop the loop too, while they hold the interpreter. A thread that asks for it every half millisecond
sees how long that takes; the processor time that those threads spent meanwhile bounds their part.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import inspect
import os
import pkgutil
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from enum import Enum
from types import FunctionType, ModuleType
from typing import Any

import memory
from core.clock import MS, now_ns

NOTED_NS = MS // 5  # shorter steps are only counted
LONGEST_KEPT = 5
# These run only on threads of their own, and must not be slowed down there.
NOT_ON_THE_LOOP = ("archive", "archive_admin", "frames", "segments", "recent_keys", "state")
THREADS = ("journal", "journal-disk", "feeder-recent", "feeder-archive")
LOOK_EVERY_NS = MS // 2
FIND_EVERY_NS = 1_000 * MS


class Steps:
    """The steps of memory/ on the loop's thread. Call start() there; before that everything runs untimed."""

    def __init__(self) -> None:
        self.count = 0
        self.total_ns = 0
        # Own time, the wall's, the processor's, and the step's name; the longest first.
        self.longest: list[tuple[int, int, int, str]] = []
        self._thread = 0
        self._inside = False
        self._collected_ns = 0
        self._collecting_since_ns = 0
        self._clock: _Thread | None = None

    def start(self) -> None:
        """From now on steps on this thread are timed."""
        self._clock = _Thread(threading.get_native_id())
        self._thread = threading.get_ident()
        gc.callbacks.append(self._collects)

    def stop(self) -> None:
        """Stops the timing."""
        self._thread = 0
        gc.callbacks.remove(self._collects)

    def clear(self) -> None:
        """Forgets all notes."""
        self.count = self.total_ns = 0
        self.longest = []

    def run(self, name: str, inner: Callable[..., Any], *args: Any, **more: Any) -> Any:
        """Calls `inner`, and times it when this is the loop's thread and no step of memory/ is under way in it."""
        if self._inside or threading.get_ident() != self._thread:
            return inner(*args, **more)
        assert self._clock is not None
        self._inside = True
        waited_ns, ran_ns, collected_ns = self._clock.waited_ns(), self._clock.ran_ns(), self._collected_ns
        began_ns = now_ns()
        try:
            return inner(*args, **more)
        finally:
            took_ns = now_ns() - began_ns
            self._inside = False
            self.count += 1
            self.total_ns += took_ns
            if took_ns > NOTED_NS:
                others_ns = self._clock.waited_ns() - waited_ns + self._collected_ns - collected_ns
                own_ns = max(0, took_ns - others_ns)
                noted = (own_ns, took_ns, self._clock.ran_ns() - ran_ns, name)
                self.longest = sorted([*self.longest, noted], reverse=True)[:LONGEST_KEPT]

    def _collects(self, phase: str, _: object) -> None:
        if threading.get_ident() != self._thread:
            return
        if phase == "start":
            self._collecting_since_ns = time.monotonic_ns()
        else:
            self._collected_ns += time.monotonic_ns() - self._collecting_since_ns


class Timed(Coroutine[Any, Any, Any]):
    """A coroutine whose steps are timed."""

    def __init__(self, steps: Steps, name: str, inner: Coroutine[Any, Any, Any]) -> None:
        self.__name__ = self.__qualname__ = name
        self._steps = steps
        self._inner = inner

    def send(self, value: Any) -> Any:
        """Runs one step."""
        return self._steps.run(self.__name__, self._inner.send, value)

    def throw(self, *error: Any) -> Any:
        """Runs one step that begins with an exception."""
        return self._steps.run(self.__name__, self._inner.throw, *error)

    def close(self) -> None:
        """Ends the coroutine."""
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self  # it has every method that await needs

    def __iter__(self) -> Timed:
        return self

    def __next__(self) -> Any:
        return self.send(None)


def time_all(steps: Steps) -> int:
    """Replaces every function and method of memory/ by a timed one, and returns their number. Call it before other
    modules import from memory/."""
    found = (module.name for module in pkgutil.iter_modules(memory.__path__))
    names = [f"memory.{name}" for name in found if name not in NOT_ON_THE_LOOP]
    return sum(_time_module(steps, importlib.import_module(name)) for name in names)


def _time_module(steps: Steps, module: ModuleType) -> int:
    count = 0
    for owner in (module, *(c for c in vars(module).values() if inspect.isclass(c) and not issubclass(c, Enum))):
        if getattr(owner, "__module__", module.__name__) != module.__name__:
            continue
        for name, found in list(vars(owner).items()):
            timed = _timed_member(steps, module.__name__, found)
            if timed is not None and not name.startswith("__"):
                setattr(owner, name, timed)
                count += 1
    return count


def _timed_member(steps: Steps, module: str, found: Any) -> Any:
    """The same member, timed; None for a member that is no function of this module."""
    if isinstance(found, classmethod | staticmethod):
        inner = _timed_member(steps, module, found.__func__)
        return type(found)(inner) if inner is not None else None
    if isinstance(found, property):
        inner = _timed_member(steps, module, found.fget)
        return property(inner, found.fset, found.fdel, found.__doc__) if inner is not None else None
    if not isinstance(found, FunctionType) or found.__module__ != module:
        return None
    if inspect.isgeneratorfunction(found) or inspect.isasyncgenfunction(found):
        return None  # its callers are timed
    return timed(steps, f"{module}.{found.__qualname__}", found)


def timed(steps: Steps, name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    """A function or coroutine function with its steps timed."""
    if inspect.iscoroutinefunction(inner):

        @functools.wraps(inner)
        def begin(*args: Any, **more: Any) -> Timed:
            return Timed(steps, name, inner(*args, **more))

        return begin

    @functools.wraps(inner)
    def call(*args: Any, **more: Any) -> Any:
        return steps.run(name, inner, *args, **more)

    return call


class Stops:
    """How long a thread that wants the interpreter waits while threads of memory/ compute: `longest_ns` is an upper
    bound."""

    def __init__(self) -> None:
        self.longest_ns = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stops", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stops watching."""
        self._over.set()
        self._thread.join()

    def clear(self) -> None:
        """Forgets all notes."""
        self.longest_ns = 0

    def _watch(self) -> None:
        ours = _Thread(threading.get_native_id())
        theirs: list[_Thread] = []
        found_ns = 0
        while not self._over.is_set():
            if now_ns() - found_ns > FIND_EVERY_NS:
                theirs, found_ns = _threads_of_memory(), now_ns()
            ran_ns = sum(thread.ran_ns() for thread in theirs)
            waited_ns = ours.waited_ns()
            began_ns = now_ns()
            time.sleep(LOOK_EVERY_NS / 1e9)
            # The thread that has the interpreter now may have had it since this one fell asleep.
            slept_ns = now_ns() - began_ns - (ours.waited_ns() - waited_ns)
            if slept_ns > 2 * LOOK_EVERY_NS:
                self.longest_ns = max(self.longest_ns, min(slept_ns, sum(t.ran_ns() for t in theirs) - ran_ns))


class _Thread:
    """The kernel's figures of a thread of this process. Linux; zeros elsewhere."""

    def __init__(self, native_id: int) -> None:
        self._clock = (~native_id << 3) | 6  # MAKE_THREAD_CPUCLOCK(tid, CPUCLOCK_SCHED) of linux/posix-timers.h
        try:
            self._fd = os.open(f"/proc/self/task/{native_id}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    def ran_ns(self) -> int:
        """The thread's processor time."""
        try:
            return time.clock_gettime_ns(self._clock)
        except OSError:  # the thread has ended
            return 0

    def waited_ns(self) -> int:
        """Time in which the thread was ready while another one ran."""
        try:
            return int(os.pread(self._fd, 64, 0).split()[1]) if self._fd >= 0 else 0
        except (OSError, ValueError, IndexError):
            return 0

    def __del__(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)


def _threads_of_memory() -> list[_Thread]:
    return [_Thread(t.native_id) for t in threading.enumerate() if t.name in THREADS and t.native_id is not None]
