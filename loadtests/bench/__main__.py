"""The command line: `python -m loadtests.bench [AREA ...]`, or `--table` for the markdown of docs/BENCHMARKS.md.

Runs areas one after another, each for eight minutes at most, and merges their figures into results/bench.json.
Benchmarks need the machine for themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from core.errors import NpcdError
from loadtests.bench import figures
from loadtests.bench.elsewhere import Elsewhere
from loadtests.bench.options import Options
from npcd_client import NpcdError as ClientError

AREAS = ("scheduler", "pauses", "overload", "peer", "memory", "kv", "kv_peer", "attention", "real")
AREA_S_MAX = 480


def main(argv: Sequence[str]) -> int:
    """Runs the named areas. Returns 0 when every area came to its end, whether its goals were kept or not."""
    options = _parser().parse_args(argv)
    if options.table:
        try:
            print(figures.table(figures.read(options.results)))
        except FileNotFoundError as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    if unknown := set(options.areas) - set(AREAS):
        print(f"no area {', '.join(sorted(unknown))}; there are {', '.join(AREAS)}", file=sys.stderr)
        return 2
    bad = 0
    for area in options.areas or AREAS:
        bad += not _run(area, options)
    return 1 if bad else 0


def _run(area: str, options: argparse.Namespace) -> bool:
    """Runs one area. Returns True when it came to its end. Its figures so far are kept in any case."""
    module = importlib.import_module(f"loadtests.bench.{area}")
    parts = frozenset(filter(None, options.only.split(",")))
    if unknown := parts - set(module.PARTS):
        print(f"{area} has no part {', '.join(sorted(unknown))}; it has {', '.join(module.PARTS)}", file=sys.stderr)
        return False
    found = figures.Figures(lambda line: print(line, flush=True))
    asked = Options(options.model, parts, options.peer_python, options.peer_binary, options.quick, options.chat_model)
    print(f"== {area}: {(module.__doc__ or '').splitlines()[0]}", flush=True)
    began_s, elsewhere = time.monotonic(), Elsewhere()

    async def bounded() -> None:
        task = asyncio.current_task()
        assert task is not None
        # When it is terminated, it still ends its children.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        async with asyncio.timeout(AREA_S_MAX):
            await module.run(found, asked)

    complete = False
    try:
        uvloop.run(bounded())
        complete = True
    except TimeoutError:
        print(f"{area}: not done after {AREA_S_MAX} s, ended", file=sys.stderr)
    except asyncio.CancelledError:
        print(f"{area}: told to end", file=sys.stderr)
    except (NpcdError, ClientError) as error:
        print(f"{area}: {error}", file=sys.stderr)
    finally:
        others = elsewhere.share()
        if found.found:
            found.merge_into(options.results, area, others)
    missed = f"; goals missed: {', '.join(found.missed)}" if found.missed else ""
    busy = "" if others is None else f"; other processes took {others:.0%} of the machine"
    print(f"== {area}: {len(found.found)} figures in {time.monotonic() - began_s:.0f} s{busy}{missed}", flush=True)
    return complete


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description=__doc__)
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"one of {', '.join(AREAS)}; all of them if left out")
    parser.add_argument("--table", action="store_true", help="print what was measured as markdown, and measure nothing")
    parser.add_argument("--only", default="", metavar="PART,PART", help="parts of an area, for a quick look")
    parser.add_argument("--quick", action="store_true", help="shorter rounds: to see that it runs, not to publish")
    parser.add_argument("--results", type=Path, default=figures.RESULTS, metavar="FILE.json")
    parser.add_argument("--model", type=Path, default=figures.ROOT / "models" / "npcd-demo.gguf", metavar="FILE.gguf")
    parser.add_argument(
        "--chat-model", type=Path, metavar="FILE.gguf", help="for area real; tools.fetch_chat_model's if left out"
    )
    parser.add_argument(
        "--peer-python", default=sys.executable, metavar="PYTHON", help="a Python that has the xllamacpp package"
    )
    parser.add_argument(
        "--peer-binary", default="", metavar="LLAMA_SERVER", help="a llama-server program instead of xllamacpp"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
