"""Small conversions between the contract's messages and plain values. Decides nothing, does nothing."""

from __future__ import annotations

import math

from core.errors import CallerError
from core.observation import Observation, Percept
from core.steps import Steps
from core.texts import NAME_BYTES_MAX, check_line
from core.words import Activation
from npcd.v1 import intents_pb2, npcs_pb2, words_pb2
from tiers.policy import PolicyRow

ID_BYTES_MAX = NAME_BYTES_MAX
PERCEPTS_MAX = 64
EVENTS_MAX = 8
WORD_BYTES_MAX = 64
COORDINATE_MAX_M = 1e9
OVERRIDES = {
    words_pb2.ACTIVATION_ACTIVE: Activation.ACTIVE,
    words_pb2.ACTIVATION_WARM: Activation.WARM,
    words_pb2.ACTIVATION_AMBIENT: Activation.AMBIENT,
}
_ACTIVATIONS = {activation: said for said, activation in OVERRIDES.items()}


def check_id(field: str, value: str) -> str:
    """The value, when it can be an id: one line of 1 to 64 bytes (core/texts.py). Raises CallerError."""
    if not value:
        raise CallerError(field, "is empty")
    size = len(value.encode("utf-8", "replace"))
    if size > ID_BYTES_MAX:
        raise CallerError(field, f"{size} bytes, the limit is {ID_BYTES_MAX}")
    return check_line(field, value)


def check_number(field: str, value: float, low: float, high: float) -> float:
    """The value, when it is a number from low to high. Raises CallerError."""
    if not math.isfinite(value):
        raise CallerError(field, f"is {value}, must be a finite number")
    if not low <= value <= high:
        raise CallerError(field, f"is {value:g}, must be {low:g} to {high:g}")
    return value


def whole(value: int, bits: int = 32) -> int:
    """The nearest number that an unsigned field of so many bits carries. The largest one says "that or more"."""
    return max(0, min(value, (1 << bits) - 1))


def observation(said: intents_pb2.Observation, game_time_ms: int, at_ns: int) -> Observation:
    """An observation as a plain value. Raises CallerError naming the field.

    Done ten thousand times a second, so each field of the message is read once, and what is well is found to be so by
    few comparisons in place; only what may not be goes to the checks that say why.
    """
    events = tuple(said.events)
    if len(said.percepts) > PERCEPTS_MAX:
        raise CallerError("percepts", f"{len(said.percepts)} percepts, the limit is {PERCEPTS_MAX}")
    if len(events) > EVENTS_MAX:
        raise CallerError("events", f"{len(events)} events, the limit is {EVENTS_MAX}")
    x_m, y_m, z_m, vx_mps, vy_mps, vz_mps = said.x_m, said.y_m, said.z_m, said.vx_mps, said.vy_mps, said.vz_mps
    far = COORDINATE_MAX_M  # NaN is not within it either
    if not (
        (-far <= x_m <= far and -far <= y_m <= far and -far <= z_m <= far)
        and (-far <= vx_mps <= far and -far <= vy_mps <= far and -far <= vz_mps <= far)
    ):
        for name in ("x_m", "y_m", "z_m", "vx_mps", "vy_mps", "vz_mps"):
            check_number(name, getattr(said, name), -far, far)
    percepts: list[Percept] = []
    for percept in said.percepts:
        entity_id, kind, stance, distance_m = percept.entity_id, percept.kind, percept.stance, percept.distance_m
        if not (
            0 < len(entity_id) <= ID_BYTES_MAX
            and entity_id.isascii()
            and entity_id.isprintable()
            and 0 < len(kind) <= WORD_BYTES_MAX
            and len(stance) <= WORD_BYTES_MAX
            and (kind + stance).isascii()
            and (kind + stance).isprintable()
            and 0.0 <= distance_m <= far
        ):
            _check_percept(len(percepts), percept)
        percepts.append(Percept._make((entity_id, kind, stance, distance_m, percept.in_sight)))
    for event in events:
        _short("events", event)
    health = said.health if said.has_health else 1.0
    return Observation(
        said.tick,
        tuple(percepts),
        events,
        _short("time_of_day", said.time_of_day),
        _short("place", said.place),
        health if 0.0 <= health <= 1.0 else check_number("health", health, 0.0, 1.0),
        (x_m, y_m, z_m),
        (vx_mps, vy_mps, vz_mps),
        game_time_ms,
        at_ns,
        _override(said) if said.has_activation else None,
        said.lease_epoch,
    )


def _override(said: intents_pb2.Observation) -> Activation:
    if said.activation not in OVERRIDES:
        raise CallerError("activation", f"is {said.activation}, must be active, warm or ambient with has_activation")
    return OVERRIDES[said.activation]


def _check_percept(number: int, said: intents_pb2.Percept) -> None:
    field = f"percepts[{number}]"
    if not said.kind:
        raise CallerError(f"{field}.kind", "is empty")
    check_id(f"{field}.entity_id", said.entity_id)
    _short(f"{field}.kind", said.kind)
    _short(f"{field}.stance", said.stance)
    check_number(f"{field}.distance_m", said.distance_m, 0.0, COORDINATE_MAX_M)


def _short(field: str, value: str) -> str:
    if len(value) > WORD_BYTES_MAX:
        raise CallerError(field, f"{len(value)} characters, the limit is {WORD_BYTES_MAX}")
    return value if value.isascii() and value.isprintable() else check_line(field, value)


def activation_message(activation: Activation) -> words_pb2.Activation.ValueType:
    """An activation as the contract has it."""
    return _ACTIVATIONS[activation]


def policy_rows(policy: npcs_pb2.Policy) -> Steps[list[PolicyRow]]:
    """The rows of a policy message, each number checked, in steps. Raises CallerError naming the row."""
    rows = []
    for i, r in enumerate(policy.rows):
        yield
        check_number(f"policy.rows[{i}].distance_max_m", r.distance_max_m, 0.0, COORDINATE_MAX_M)
        check_number(f"policy.rows[{i}].health_max", r.health_max, 0.0, 1.0)
        for name in ("percept_kind", "percept_stance", "event", "time_of_day", "bark"):
            check_line(f"policy.rows[{i}].{name}", getattr(r, name))
        rows.append(
            PolicyRow(
                r.archetype_id,
                r.percept_kind,
                r.percept_stance,
                r.distance_max_m,
                r.event,
                r.health_max,
                r.time_of_day,
                r.action,
                r.emotion,
                r.bark,
            )
        )
    return rows


def row_message(row: PolicyRow) -> npcs_pb2.PolicyRow:
    """One row as the contract has it."""
    return npcs_pb2.PolicyRow(
        archetype_id=row.archetype_id,
        percept_kind=row.percept_kind,
        percept_stance=row.percept_stance,
        distance_max_m=row.distance_max_m,
        event=row.event,
        health_max=row.health_max,
        time_of_day=row.time_of_day,
        action=row.action,
        emotion=row.emotion,
        bark=row.bark,
    )
