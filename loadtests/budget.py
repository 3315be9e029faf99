"""Compares a run's figures with a budget. Decides only.

budget.toml has one table per scene; each row names a figure of results/<scene>.json and its `max` or `min`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npcd_client.world import toml_text

BUDGET = Path(__file__).with_name("budget.toml")


def load_budget(path: Path, scene: str) -> dict[str, dict[str, float]]:
    """The rows of one scene. Raises ValueError when there are none or a row has neither max nor min."""
    try:
        tables = tomllib.loads(toml_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    if scene not in tables:
        raise ValueError(f"{path} has no budget for {scene}; it has {', '.join(tables)}")
    rows: dict[str, dict[str, float]] = tables[scene]
    for name, row in rows.items():
        if not row or set(row) - {"max", "min"}:
            raise ValueError(f"{path}: [{scene}] {name} must have max, min or both")
    return rows


def broken_rows(results: Mapping[str, Any], rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One sentence for each row that a run breaks. A missing figure breaks its row, and so does a time of 0 ms, which
    is a percentile of no values.
    """
    broken = []
    for name, row in rows.items():
        figure = results.get(name)
        if not isinstance(figure, int | float) or (name.endswith("_ms") and figure == 0):
            broken.append(f"{name}: not measured")
        elif "max" in row and figure > row["max"]:
            broken.append(f"{name}: {figure:g}, at most {row['max']:g} allowed")
        elif "min" in row and figure < row["min"]:
            broken.append(f"{name}: {figure:g}, at least {row['min']:g} wanted")
    return broken
