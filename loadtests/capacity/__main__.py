"""`python -m loadtests.capacity`: searches every column; writes docs/CAPACITY.md, its chart and its figures.

With `--costs FILE.toml` the cost models are yours, and the page is printed instead of written (or written to `--out
FOLDER`). The form of that file is loadtests/capacity/costs.toml's.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from core.errors import ConfigError
from loadtests.bench.figures import ROOT
from loadtests.capacity import chart, page
from loadtests.capacity.costs import STATED, Column, Stated, read
from loadtests.capacity.outcome import Outcome, load, outcome, save
from loadtests.capacity.search import Found, SearchSettings, carried
from loadtests.capacity.town import TownSettings
from loadtests.capacity.validate import compare
from loadtests.numbers import whole

RESULTS = ROOT / "docs" / "capacity.json"
PAGE = ROOT / "docs" / "CAPACITY.md"
CHART = ROOT / "docs" / "capacity.svg"


def main(argv: Sequence[str]) -> int:
    """Runs it; 2 when the cost models cannot be read."""
    options = _parser().parse_args(argv)
    try:
        stated = read(options.costs or STATED)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if options.render:
        found = load(RESULTS)
    else:
        columns = [c for c in stated.columns if options.only in c.key]
        found = _searched(stated, columns, options.jobs, validated=options.costs is None)
    own = options.costs is not None or bool(options.only)
    folder: Path | None = options.out
    if own and folder is None:
        print(page.markdown(found, stated))
        return 0
    results, text, drawn = (RESULTS, PAGE, CHART) if folder is None else _below(folder)
    save(found, results)
    text.write_text(page.markdown(found, stated), "utf-8")
    drawn.write_text(chart.svg(found.rows), "utf-8")
    print(f"wrote {results}, {text}, {drawn}")
    return 0


def _searched(stated: Stated, columns: Sequence[Column], jobs: int, validated: bool) -> Outcome:
    began_s = time.monotonic()
    with ProcessPoolExecutor(jobs) as pool:
        compared = [pool.submit(compare, c, stated.daemon) for c in columns if c.measured and validated]
        found: list[Found] = list(pool.map(partial(_column, stated), columns))
        beside = [one for future in compared for one in future.result()]
    print(f"{len(found)} columns in {time.monotonic() - began_s:.0f} s")
    return outcome(stated.path, columns, found, beside)


def _column(stated: Stated, column: Column) -> Found:
    return carried(column, stated.daemon, TownSettings(), SearchSettings(), lambda line: print(line, flush=True))


def _below(folder: Path) -> tuple[Path, Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / RESULTS.name, folder / PAGE.name, folder / CHART.name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.capacity", description=__doc__)
    parser.add_argument("--costs", type=Path, metavar="FILE.toml", help="cost models of your own")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write instead of docs/")
    parser.add_argument("--only", default="", metavar="WORD", help="columns whose key holds this, and print the page")
    parser.add_argument("--render", action="store_true", help="write page and chart anew from docs/capacity.json")
    parser.add_argument(
        "--jobs", type=whole(1, 1024), default=os.cpu_count() or 1, help="columns searched side by side"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
