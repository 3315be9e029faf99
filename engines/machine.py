"""The share of the machine that this process may use: cores by affinity and quota, and its control groups (v1, v2).

A container, a systemd unit or a batch job limits a process by control groups. A limit holds for a group and for all
below it, so the groups are read from the process's own one up to the root that is mounted here.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PROC = Path("/proc/self")
CPUINFO, MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")
# cgroup v1 gives "no limit" as a number of pages that no machine has.
NO_LIMIT = 1 << 60


READ_MIB, READS = 64, 8


def read_rate(threads: int) -> float:
    """Gigabytes a second that so many threads read from memory together, measured in about 0.1 s."""
    data = np.ones(READ_MIB << 18, np.float32)
    pieces = np.array_split(data, max(1, threads))
    with ThreadPoolExecutor(len(pieces)) as pool:
        best_s = math.inf
        for _ in range(READS):
            began = time.perf_counter()
            list(pool.map(np.max, pieces))
            best_s = min(best_s, time.perf_counter() - began)
    return data.nbytes / best_s / 1e9


@dataclass(frozen=True, slots=True)
class Cores:
    """Cores of the machine, and how many of them this process may use at once; `why` names what limits it."""

    machine: int
    usable: int
    why: str = ""


def own_groups(proc: Path = PROC) -> list[Path]:
    """The folders of the control groups that this process is in, of each hierarchy that is mounted: its own group
    first, then the groups above it.
    """
    try:
        groups = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = (proc / "mountinfo").read_text().splitlines()
    except (OSError, ValueError):
        return []
    paths = {tuple(g[1].split(",")): g[2] for g in groups if len(g) == 3}
    found: list[Path] = []
    for line in mounts:
        words = line.split(" ")
        if "-" not in words or len(words) < words.index("-") + 4:
            continue
        kind, options = words[words.index("-") + 1], words[-1].split(",")
        if kind == "cgroup2":
            path = paths.get(("",))
        elif kind == "cgroup":
            path = next((p for controllers, p in paths.items() if any(c and c in options for c in controllers)), None)
        else:
            continue
        if path is not None:
            found += _up(Path(_plain(words[4])), _plain(words[3]), path)
    return found


def _up(mount: Path, root: str, path: str) -> Iterator[Path]:
    """From a group's folder up to where its hierarchy is mounted. The mount may show only a part of the hierarchy."""
    inside = path.removeprefix(root.rstrip("/")) if path == root or path.startswith(root.rstrip("/") + "/") else ""
    folder = mount / inside.strip("/")
    if ".." in folder.parts or not folder.is_dir():
        folder = mount  # a namespace of its own: the mount is what can be seen of it
    while True:
        yield folder
        if folder == mount:
            return
        folder = folder.parent


def cores_here(groups: Sequence[Path] | None = None) -> Cores:
    """How many cores there are, and how many this process may use: by its affinity and by the quota of its groups."""
    machine = os.cpu_count() or 1
    usable, why = len(os.sched_getaffinity(0)), "affinity"
    for group in own_groups() if groups is None else groups:
        quota = _quota(group)
        if 0 < quota < usable:
            usable, why = max(1, int(quota)), f"a quota of {quota:g} cores in {group}"
    return Cores(machine, usable, why if usable < machine else "")


def machine_says(cpuinfo: Path = CPUINFO, meminfo: Path = MEMINFO) -> str:
    """The machine in a line: what its processors are, how many cores of it may be used, and its memory. A measured
    speed holds only where this line is the same.
    """
    names = sorted(set(_values(cpuinfo, ("model name", "CPU part", "Hardware")))) or ["unknown processor"]
    memory = next(iter(_values(meminfo, ("MemTotal",))), "unknown memory")
    return f"{', '.join(names)}; {cores_here().usable} of {os.cpu_count() or 1} cores; {memory}"


def _values(file: Path, keys: Sequence[str]) -> Iterator[str]:
    """The values of these keys in a file of "key : value" lines, in its order."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in keys:
            yield value.strip()


def group_memory_free(group: Path) -> int | None:
    """Bytes that may still be taken in a group, or None where it has no limit. The page cache counts as free, the
    model's own file with it: the kernel drops it when memory is wanted.
    """
    limits = [n for name in ("memory.max", "memory.high", "memory.limit_in_bytes") if (n := _number(group / name)) >= 0]
    used = max(_number(group / "memory.current"), _number(group / "memory.usage_in_bytes"))
    limit = min(limits, default=NO_LIMIT)
    if limit >= NO_LIMIT or used < 0:
        return None
    return max(0, limit - max(0, used - _cache(group)))


def _cache(group: Path) -> int:
    """Bytes of files that are in memory and may be dropped."""
    try:
        said = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        prefix = "total_" if "total_inactive_file" in said else ""  # v1: with the groups below
        return int(said[f"{prefix}inactive_file"]) + int(said[f"{prefix}active_file"])
    except (OSError, ValueError, KeyError):
        return 0


def _quota(group: Path) -> float:
    """Cores that a group may keep busy; 0 without a limit."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        pass  # "max", or cgroup v1
    quota_us, period_us = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    return quota_us / period_us if quota_us > 0 and period_us > 0 else 0.0


def _number(path: Path) -> int:
    """The number in a file; -1 when it is missing or no number ("max")."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return -1


def _plain(word: str) -> str:
    """A word of mountinfo, in which spaces are written as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)
