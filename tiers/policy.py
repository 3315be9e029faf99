"""The rule policy, which answers for an NPC when the model has not. A flat table, read top to bottom; the first row
that holds answers.

Clients evaluate the same table from the same vectors (clients/conformance/policy_vectors.json).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core.observation import Observation, Percept


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """One row: empty strings and zeros are conditions that always hold.

    With `percept_kind`, `percept_stance` or `distance_max_m`, the nearest percept that has this kind and this stance
    must be within that distance; it is then the target.
    """

    archetype_id: str = ""
    percept_kind: str = ""
    percept_stance: str = ""
    distance_max_m: float = 0.0
    event: str = ""
    health_max: float = 0.0
    time_of_day: str = ""
    action: str = ""
    emotion: str = ""
    bark: str = ""


@dataclass(frozen=True, slots=True)
class PolicyAnswer:
    """The table's answer; `target` is the percept that made the row hold, if one did."""

    action: str
    emotion: str
    bark: str
    target: Percept | None


def evaluate(rows: Sequence[PolicyRow], archetype_id: str, seen: Observation) -> PolicyAnswer | None:
    """The answer of the first row whose conditions all hold; None when none does."""
    for row in rows:
        if row.archetype_id and row.archetype_id != archetype_id:
            continue
        if row.event and row.event not in seen.events:
            continue
        if row.health_max > 0 and seen.health > row.health_max:
            continue
        if row.time_of_day and row.time_of_day != seen.time_of_day:
            continue
        target: Percept | None = None
        if row.percept_kind or row.percept_stance or row.distance_max_m > 0:
            target = _nearest(seen.percepts, row)
            if target is None:
                continue
        return PolicyAnswer(row.action, row.emotion, row.bark, target)
    return None


def _nearest(percepts: Iterable[Percept], row: PolicyRow) -> Percept | None:
    fitting = (
        p
        for p in percepts
        if (not row.percept_kind or p.kind == row.percept_kind)
        and (not row.percept_stance or p.stance == row.percept_stance)
        and (row.distance_max_m <= 0 or p.distance_m <= row.distance_max_m)
    )
    return min(fitting, key=lambda p: (p.distance_m, p.entity_id), default=None)
