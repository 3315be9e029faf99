"""CPU cores: how engines and the event loop share them.

Engines that serve no intents give way: the kernel runs them on what the others leave. A large model's step may last
longer than an intent's promise, and cannot be interrupted in any other way. All threads may use all cores, so that a
core that intents leave idle is used.

serve.own_cores: the engine's thread gets cores of its own, all other threads of the process the others.

A thread that is woken on the core where the engine computes waits until the kernel moves it. Only worth it where the
cores are the daemon's alone (docs/LATENCY.md has figures).
"""

from __future__ import annotations

import os
from pathlib import Path

NICE = 10  # a tenth of the weight of other threads; docs/INTERNALS.md has figures


def give_way(engine_thread: int) -> None:
    """Lets every other thread of this process, and of ordinary programs, run before an engine's thread (its native id).
    Threads that it starts from now on give way as well.
    """
    os.setpriority(os.PRIO_PROCESS, engine_thread, os.getpriority(os.PRIO_PROCESS, engine_thread) + NICE)


def keep_apart(engine_thread: int, threads: int) -> bool:
    """Gives the engine's thread (its native id) the last `threads` of the process's cores, and every other thread the
    rest. False, and nothing is changed, where that would leave them none. A thread to come has its starter's cores.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) <= threads:
        return False
    _place(engine_thread, cores[:-threads])
    os.sched_setaffinity(engine_thread, cores[-threads:])
    return True


def put_together(cores: set[int]) -> None:
    """Lets every thread of the process run on all of `cores` again."""
    _place(-1, sorted(cores))


def _place(but: int, cores: list[int]) -> None:
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) != but:
            try:
                os.sched_setaffinity(int(task.name), cores)
            except ProcessLookupError:
                pass  # it has ended meanwhile
