"""The rule policy decides what an NPC does when npcd has not answered in time. Decides only.

The daemon and every client evaluate the same table the same way (clients/conformance/policy_vectors.json).
"""

from __future__ import annotations

from dataclasses import dataclass

from npcd_client.perception import Observation, Percept
from npcd_client.world import Policy, PolicyRow


@dataclass(frozen=True, slots=True)
class PolicyAnswer:
    """The answer of the first row that holds. The target is the percept that made it hold, or empty when the row names
    none."""

    action: str
    emotion: str
    bark: str
    target_entity_id: str
    row: int


def evaluate(policy: Policy, observation: Observation, archetype_id: str) -> PolicyAnswer | None:
    """The answer of the first row whose conditions all hold, or None when no row does. Changes nothing."""
    for number, row in enumerate(policy.rows):
        if not _situation_holds(row, observation, archetype_id):
            continue
        if not (row.percept_kind or row.percept_stance or row.distance_max_m > 0):
            return PolicyAnswer(row.action, row.emotion, row.bark, "", number)
        percept = nearest(row, observation)
        if percept is not None:
            return PolicyAnswer(row.action, row.emotion, row.bark, percept.entity_id, number)
    return None


def nearest(row: PolicyRow, observation: Observation) -> Percept | None:
    """The nearest percept of the row's kind and stance within its distance. Of equally near ones the lower entity id is
    first."""
    fitting = (
        percept
        for percept in observation.percepts
        if (not row.percept_kind or percept.kind == row.percept_kind)
        and (not row.percept_stance or percept.stance == row.percept_stance)
        and (row.distance_max_m <= 0 or percept.distance_m <= row.distance_max_m)
    )
    return min(fitting, key=lambda percept: (percept.distance_m, percept.entity_id), default=None)


def _situation_holds(row: PolicyRow, observation: Observation, archetype_id: str) -> bool:
    health = 1.0 if observation.health is None else observation.health
    return (
        (not row.archetype_id or row.archetype_id == archetype_id)
        and (not row.event or row.event in observation.events)
        and (row.health_max <= 0 or health <= row.health_max)
        and (not row.time_of_day or row.time_of_day == observation.time_of_day)
    )
