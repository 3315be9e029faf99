"""The share of the machine that other processes took while a benchmark ran: figures from a busy machine need care."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

STAT = Path("/proc/stat")


class Elsewhere:
    """Begins to count when it is made. Works on Linux only."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._busy_s = _busy_s()
        self._ours_s = _ours_s()

    def share(self) -> float | None:
        """The share of all cores that processes took which are neither ours nor ended children of ours; None: unknown.

        Running children count as others, so call it when they have ended.
        """
        busy_s = _busy_s()
        if busy_s is None or self._busy_s is None:
            return None
        others_s = busy_s - self._busy_s - (_ours_s() - self._ours_s)
        return max(0.0, others_s / max(1e-9, (time.monotonic() - self._began_s) * (os.cpu_count() or 1)))


def _busy_s() -> float | None:
    """Processor seconds of all processes since the machine started."""
    try:
        user, nice, system, _, _, irq, softirq = (int(n) for n in STAT.read_text("ascii").split(None, 8)[1:8])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _ours_s() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)
