"""The time of a start: from the exec of `npcd serve` to SERVING, the first time and again with the same data folder.

The daemons run as a user's would, with their own Redis and PostgreSQL. The models take turns, so that a machine that
slows down slows both.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from core.errors import NpcdError
from loadtests.bench.children import Child, target
from loadtests.bench.figures import Figures
from npcd_client import Client, TooLate

ROUNDS = 2
START_S_MAX = 120.0
LOOK_S = 0.05


async def run(figures: Figures, shipped: Path, chat: Path, quick: bool) -> None:
    """Measures all starts. Raises NpcdError when a daemon does not come to serve."""
    took: dict[str, list[float]] = {}
    for _ in range(1 if quick else ROUNDS):
        for name, model in (("shipped_start", shipped), ("start", chat)):
            with tempfile.TemporaryDirectory(prefix="npcd-bench-") as data:
                for key in (f"{name}_s", f"{name}_again_s"):
                    seconds, stages = await _start(model, data)
                    took.setdefault(key, []).append(seconds)
                    figures.note(f"  {key}: {seconds:.1f} s; {_stages(stages)}")
    for key, values in took.items():
        figures.add(f"real.{key}", median(values), 1)


async def _start(model: Path, data: str) -> tuple[float, dict[str, float]]:
    """Seconds from exec to SERVING, and the seconds of each stage as the daemon logged them."""
    began_s = time.monotonic()
    child = Child(
        [
            *(sys.executable, "-m", "npcd", "serve", "--no-supervise", "--listen", "unix:{folder}/npcd.sock"),
            *("--http", "off", "--data", data, "--model", str(model), "--set", "serve.log_json=true"),
            *("--set", "memory.keep=true"),
        ]
    )
    async with child, Client(target(child)) as client:
        while True:
            if child.ended:
                raise NpcdError(f"the daemon ended: {child.log}")
            if time.monotonic() - began_s > START_S_MAX:
                raise NpcdError(f"the daemon does not serve after {START_S_MAX:g} s: {child.log}")
            try:
                await client.wait_ready(LOOK_S)
                break
            except TooLate:
                await asyncio.sleep(0)
        return time.monotonic() - began_s, _logged(child.log)


def _logged(log: str) -> dict[str, float]:
    """The stages of the line `serving`."""
    for line in log.splitlines():
        if line.startswith("{"):
            said: dict[str, Any] = json.loads(line)
            if said.get("event") == "serving":
                return dict(said.get("stages_s", {}))
    return {}


def _stages(stages: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds:g}" for name, seconds in stages.items()) or "no stages in the log"
