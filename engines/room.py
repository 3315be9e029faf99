"""Whether the KV of all sequences fits the memory, found out before it is taken: after that the system kills."""

from __future__ import annotations

from pathlib import Path

from core.errors import ConfigError

GIB = 1 << 30
MEMINFO = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")  # a container's own limit


def memory_free(meminfo: Path = MEMINFO, group: Path = GROUP) -> int:
    """Bytes that may still be taken, by the machine and by a container's limit; 0 when nobody says."""
    free: list[int] = []
    try:
        lines = meminfo.read_text().splitlines()
        free += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    try:
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # not in a container, or without a limit ("max")
    return max(0, min(free, default=0))


def check_room(sequences: int, context_len: int, token_bytes: int, free: int) -> None:
    """Raises ConfigError, with what would fit, when the KV of all sequences takes more than is free."""
    needed = sequences * context_len * token_bytes
    if needed <= free:
        return
    fit = free // (context_len * token_bytes)
    raise ConfigError(
        f"engine: {sequences} sequences of {context_len} tokens take {needed / GIB:.1f} GiB of KV with this model "
        f"({token_bytes / 1024:.0f} KiB a token), {free / GIB:.1f} GiB are free; at most {fit} sequences of this "
        "length fit: lower engine.sequences (and scheduler.kv.lanes) or engine.context_len"
    )
