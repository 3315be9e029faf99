"""The parts of the memory area that are too long for it: `python -m loadtests.bench.memory_nightly`, in `make nightly`.

Twenty kills, and two hundred NPCs in conversation for two minutes after the warm-up. Figures go into the same file as
the area's; it exits 1 when a goal was missed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop

from core.errors import NpcdError
from loadtests.bench import figures, memory_flat, memory_kill9
from loadtests.bench.elsewhere import Elsewhere
from npcd_client import NpcdError as ClientError

KILLS = 20
SECONDS = 120.0
MODEL = figures.ROOT / "models" / "npcd-demo.gguf"


def main(kills: int = KILLS, seconds: float = SECONDS, results: Path = figures.RESULTS) -> int:
    """Runs both. Returns 0 when every goal was kept."""
    found, elsewhere = figures.Figures(lambda line: print(line, flush=True)), Elsewhere()
    try:
        uvloop.run(_both(found, kills, seconds))
    except (NpcdError, ClientError, asyncio.CancelledError) as error:
        print(f"memory: {error}", file=sys.stderr)
        return 1
    finally:
        if found.found:
            found.merge_into(results, "memory_nightly", elsewhere.share())
    for key in found.missed:
        print(f"goal missed: {key}", file=sys.stderr)
    return 1 if found.missed else 0


async def _both(found: figures.Figures, kills: int, seconds: float) -> None:
    await memory_kill9.run(found, MODEL, kills)
    await memory_flat.run(found, MODEL, seconds)


if __name__ == "__main__":
    sys.exit(main())
