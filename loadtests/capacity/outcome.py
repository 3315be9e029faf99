"""The results of a run, as stored in docs/capacity.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtests.capacity.costs import STATED, Column
from loadtests.capacity.search import Found, SearchSettings
from loadtests.capacity.simulate import LOOP_SHARE_MAX, PATIENT, Promised, Report
from loadtests.capacity.town import TownSettings
from loadtests.capacity.validate import Compared


@dataclass(slots=True)
class Row:
    """One column of cost models and the town that it carries. `held` and `beyond` are Reports."""

    key: str
    machine: str
    model: str
    weights: str
    engine: str
    measured: bool
    pass_ms: float
    gold_step_ms: float
    sequences: int
    npcs: int
    patient: int
    breaks: str
    why_not: str
    held: dict[str, float] = field(default_factory=dict)
    beyond: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Machine and model."""
        return f"{self.machine}, {self.model} {self.weights}" if self.model else self.machine


@dataclass(slots=True)
class Outcome:
    """All results of a run. `inputs` identifies the settings that they were made from."""

    inputs: str
    rows: list[Row]
    compared: list[Compared]


def inputs(costs: Path = STATED) -> str:
    """A hash of cost models, town, promises and search: any other settings have another hash."""
    said = f"{TownSettings()}{Promised()}{SearchSettings()}{LOOP_SHARE_MAX}{PATIENT}"
    return hashlib.sha256(costs.read_bytes() + said.encode()).hexdigest()[:16]


def outcome(costs: Path, columns: Sequence[Column], found: Sequence[Found], compared: list[Compared]) -> Outcome:
    """The results of a run, with figures of four digits."""
    rows = []
    for column, one in zip(columns, found, strict=True):
        cost = column.cost
        row = Row(
            key=column.key,
            machine=column.machine,
            model=column.model,
            weights=column.weights,
            engine=column.engine,
            measured=column.measured,
            pass_ms=round((cost.step_us + cost.micro_us + cost.pass_us) / 1000, 1),
            gold_step_ms=round(column.gold_step_ms, 1),
            sequences=column.sequences,
            npcs=one.npcs,
            patient=one.patient,
            breaks=one.breaks,
            why_not=one.why_not,
            held=_numbers(one.held),
            beyond=_numbers(one.beyond),
        )
        rows.append(row)
    rounded = [Compared(c.what, c.unit, _short(c.simulated), _short(c.measured), c.source) for c in compared]
    return Outcome(inputs(costs), rows, rounded)


def save(outcome: Outcome, path: Path) -> None:
    """Writes the outcome as JSON."""
    path.write_text(json.dumps(asdict(outcome), indent=1) + "\n", "utf-8")


def load(path: Path) -> Outcome:
    """Reads an outcome that save() wrote."""
    table: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return Outcome(table["inputs"], [Row(**r) for r in table["rows"]], [Compared(**c) for c in table["compared"]])


def _numbers(report: Report | None) -> dict[str, float]:
    return {} if report is None else {name: _short(value) for name, value in asdict(report).items()}


def _short(value: float) -> float:
    return float(f"{value:.4g}")
