"""`npcd serve` as two processes: a small one that starts the serving one again when it dies, and the serving one.

The parent owns its child's life and nothing else: it imports next to nothing, opens no socket and never touches the
model. While the child is away nothing listens, so clients, probes and health checks see that it is down. When
the parent dies, however it dies, the kernel ends the child.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from core.clock import S, now_ns

EXIT_USAGE = 2
EXIT_ENGINE_DEAD = 70  # EX_SOFTWARE: start it again
EXIT_FORCED = 1
FINAL = frozenset({0, EXIT_USAGE})  # asked to end, or a setting is wrong: again would be the same

# The signal by which the parent asks its child to end. Ctrl-C and systemd send their signal to both processes: were it
# passed on as it
# is, the child would hear it twice, and a second signal forces.
STOP_SIGNAL = signal.SIGUSR1
# A hang-up, as of a terminal, never ends npcd. It asks the serving process to read its credentials again.
READ_AGAIN_SIGNAL = signal.SIGHUP
_STOPPED_EARLY = frozenset({-STOP_SIGNAL, -signal.SIGTERM, -signal.SIGINT})
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Patience:
    """The pause before a new start doubles from `first_s` to `most_s`. A life of `stable_s` makes up for every death
    before it; `deaths_max` without one are too many.
    """

    first_s: float = 0.25
    most_s: float = 10.0
    stable_s: float = 60.0
    deaths_max: int = 6


class Deaths:
    """Decides whether to start again."""

    def __init__(self, patience: Patience) -> None:
        self.in_a_row = 0
        self._patience = patience

    def pause_s(self, code: int, lived_s: float) -> float | None:
        """Seconds to wait after a process that lived `lived_s` ended with `code` (negative: a signal); None: it is
        not started again.
        """
        p = self._patience
        if code in FINAL:
            return None
        self.in_a_row = 1 if lived_s >= p.stable_s else self.in_a_row + 1
        if self.in_a_row >= p.deaths_max:
            return None
        return min(p.first_s * 2.0 ** (self.in_a_row - 1), p.most_s)


@dataclass(frozen=True, slots=True)
class Life:
    """The number of this serving process, from 1, and the end of the one before it."""

    number: int
    last_end: str = ""


def supervise(say: Callable[[str], None], patience: Patience = Patience()) -> Life | int:
    """Forks. In the serving process it returns that one's Life; in the parent, when all is over, the exit status.

    It must be called while the process has one thread.
    """
    parent = os.getpid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as "ignore" it would take our children away
    heard = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, READ_AGAIN_SIGNAL}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    signal.signal(READ_AGAIN_SIGNAL, signal.SIG_DFL)  # blocked it is waited for; ignored it might not come
    deaths = Deaths(patience)
    life = Life(1)
    while True:
        sys.stdout.flush()
        sys.stderr.flush()
        began_ns = now_ns()
        child = os.fork()
        if not child:
            _end_with(parent)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the event loop takes it over
            signal.signal(READ_AGAIN_SIGNAL, signal.SIG_IGN)  # the same: it will read everything anyway
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return life
        code, asked = _wait(child)
        if asked:
            return EXIT_FORCED if asked > 1 else 0 if code in _STOPPED_EARLY else _status(code)
        lived_s = (now_ns() - began_ns) / S
        pause_s = deaths.pause_s(code, lived_s)
        if code in FINAL:
            return code
        end = f"{how_it_ended(code)} after {lived_s:.1f} s"
        if pause_s is None:
            say(f"the serving process {end}; {deaths.in_a_row} times in a row is too often, see its log")
            return _status(code)
        say(f"the serving process {end}; starting it again in {pause_s:g} s")
        life = Life(life.number + 1, end)
        if signal.sigtimedwait({signal.SIGTERM, signal.SIGINT}, pause_s):
            return 0


def how_it_ended(code: int) -> str:
    """The end of a process in words."""
    if code == EXIT_ENGINE_DEAD:
        return f"ended because its engine died (exit status {code})"
    if code >= 0:
        return f"ended with exit status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _wait(child: int) -> tuple[int, int]:
    """Waits for the child's end and passes on what we are asked: its exit code (negative: a signal), and how often we
    were asked to end. The second time it has no more to say.
    """
    asked = 0
    while True:
        heard = signal.sigwait({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, READ_AGAIN_SIGNAL})
        if heard == READ_AGAIN_SIGNAL:
            os.kill(child, READ_AGAIN_SIGNAL)
            continue
        if heard == signal.SIGCHLD:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status), asked
            continue
        asked += 1
        os.kill(child, STOP_SIGNAL if asked == 1 else signal.SIGKILL)


def _status(code: int) -> int:
    return code if code >= 0 else 128 - code


def _end_with(parent: int) -> None:
    """The kernel kills this process when its parent ends."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(EXIT_FORCED)
