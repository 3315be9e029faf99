"""Looks at a start while it lasts: what the process does, and a line in the log for every stage.

Owns one task of the event loop, which ends when it is cancelled. daemon/starting.py decides what it means.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from core.clock import S, now_ns
from core.errors import ConfigError
from daemon.config import Config, engines_of
from daemon.starting import Progress, Stage, Start, plan
from engines.kept import Kept
from engines.machine import machine_says
from engines.model_file import look

LOOK_EVERY_S = 0.25
TELL_EVERY_NS = 5 * S
STUCK_S = 60.0
STATM = Path("/proc/self/statm")
STAT, UPTIME = Path("/proc/self/stat"), Path("/proc/uptime")

log = structlog.get_logger("npcd")


def start_of(config: Config) -> Start:
    """The start of a daemon with these settings."""
    setups, engines = engines_of(config), []
    for name in config.routes.engines():
        if name in setups:
            settings = setups[name].settings
            try:
                size = look(settings.model).size
            except ConfigError:
                size = 0  # loading it will say what is wrong
            engines.append((name, settings.tune_s, size))
    return Start(plan(engines, config.memory.keep), now_ns())


def expect(start: Start, kept: Kept) -> None:
    """Expects the stages to take as long as last time."""
    start.expect(_numbers(kept.get(_about(start.stages))))


def keep(start: Start, kept: Kept) -> None:
    """Keeps what the stages took, for the next start."""
    kept.put(_about(start.stages), {stage.key: start.took_s.get(stage.key, 0.0) for stage in start.stages})


async def watch_start(start: Start) -> None:
    """Looks and tells for ever: a line when a stage begins, one every 5 s while the start moves, and one when it has
    not moved for a minute.
    """
    told_key, told_ns, stuck = "", 0, False
    while True:
        now = now_ns()
        start.look(now, time.process_time_ns(), _held_bytes())
        progress = start.progress(now)
        key = f"{progress.stage} {progress.engine}"
        if key != told_key or (now - told_ns >= TELL_EVERY_NS and not progress.still_s):
            told_key, told_ns = key, now
            tell(progress)
        if progress.still_s >= STUCK_S and not stuck:
            log.warning(
                "the start is stuck", stage=progress.stage, engine=progress.engine, seconds=round(progress.still_s)
            )
        stuck = progress.still_s >= STUCK_S
        await asyncio.sleep(LOOK_EVERY_S)


def tell(progress: Progress) -> None:
    """Writes one line about a start."""
    engine = {"engine": progress.engine} if progress.engine else {}
    share, left_s = round(progress.share, 2), round(progress.left_s, 1)
    log.info("starting", stage=progress.stage, **engine, share=share, left_s=left_s)


def process_age_s() -> float:
    """Seconds since this process was started."""
    began_ticks = int(STAT.read_text().rpartition(")")[2].split()[19])
    return float(UPTIME.read_text().split()[0]) - began_ticks / os.sysconf("SC_CLK_TCK")


def _held_bytes() -> int:
    """The memory of this process that is in RAM."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _about(stages: Sequence[Stage]) -> dict[str, Any]:
    return {"what": "start", "stages": [stage.key for stage in stages], "machine": machine_says()}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}
