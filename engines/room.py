"""Checks that KV and the buffers of the computation fit in memory, before they are allocated: later the system would
kill npcd.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.errors import ConfigError
from engines.machine import group_memory_free, own_groups

GIB = 1 << 30
MEMINFO = Path("/proc/meminfo")


def memory_free(meminfo: Path = MEMINFO, group: Path | None = None) -> int:
    """Bytes that may still be taken, by the machine and by the limits of the control groups that this process is in
    (or of `group`); 0 when nobody says.
    """
    free = [n for n in (machine_free(meminfo), groups_free([group] if group else own_groups())) if n is not None]
    return min(free, default=0)


def machine_free(meminfo: Path = MEMINFO) -> int | None:
    """Bytes that the machine has free, page cache included; None when it does not say."""
    try:
        lines = meminfo.read_text().splitlines()
        return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)
    except (OSError, ValueError, IndexError):
        return None


def groups_free(groups: Sequence[Path]) -> int | None:
    """Bytes that are left of the tightest limit of these control groups; None without a limit."""
    return min((n for n in map(group_memory_free, groups) if n is not None), default=None)


def check_room(sequences: int, context_len: int, token_bytes: int, free: int, buffers: int = 0) -> None:
    """Raises ConfigError, with what would fit, when the KV of all sequences and the `buffers` of the computation take
    more than is free.
    """
    needed = sequences * context_len * token_bytes + buffers
    if needed <= free:
        return
    fit = max(0, free - buffers) // (context_len * token_bytes)
    beside = f", and {buffers / GIB:.1f} GiB for logits and computing" if buffers >= GIB // 20 else ""
    raise ConfigError(
        f"engine: {sequences} sequences of {context_len} tokens take {(needed - buffers) / GIB:.1f} GiB of KV with "
        f"this model ({token_bytes / 1024:.0f} KiB a token){beside}, {free / GIB:.1f} GiB are free; at most {fit} "
        "sequences of this length fit: lower engine.sequences (and scheduler.kv.lanes), engine.context_len or "
        "engine.micro_len"
    )
