"""Observations from the wire: the fast code gives exactly the results of the plain code."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from core.errors import CallerError
from core.observation import Observation, Percept
from core.texts import check_line
from core.words import Activation
from daemon.words import (
    COORDINATE_MAX_M,
    EVENTS_MAX,
    OVERRIDES,
    PERCEPTS_MAX,
    WORD_BYTES_MAX,
    check_id,
    check_number,
    observation,
    whole,
)
from npcd.v1 import intents_pb2, words_pb2
from prompts.sight import PERCEPT_WORD_LEN_MAX, TARGETS_MAX, distance_word, health_word, state_of

TEXTS = (
    "wolf", "player", "market stall", "old_mill", "", "_", " ", "  ", "x" * 64, "x" * 65, "é" * 32, "é" * 40,
    "hostile", "friendly", "neutral", "a\nb", "\x7f", "山　小屋", "\u202egnp",
    "very_long_words_of_more_than_any_letters", "player-1",
)  # fmt: skip
NUMBERS = (0.0, 1.0, -1.0, 1.999, 2.0, 7.5, 8.0, 20.0, 35.5, -0.0, 1e9, 1e10, -1e10, math.nan, math.inf, -math.inf)
WELL = (0.0, 0.25, 0.7, 1.0, 1.5, 3.0, 9.0, 25.0)


def plain(said: intents_pb2.Observation, game_time_ms: int, at_ns: int) -> Observation:
    """The meaning of an observation, by the plain code."""

    def short(field: str, value: str) -> str:
        if len(value) > WORD_BYTES_MAX:
            raise CallerError(field, f"{len(value)} characters, the limit is {WORD_BYTES_MAX}")
        return check_line(field, value)

    def percept(number: int, p: intents_pb2.Percept) -> Percept:
        field = f"percepts[{number}]"
        if not p.kind:
            raise CallerError(f"{field}.kind", "is empty")
        return Percept(
            check_id(f"{field}.entity_id", p.entity_id),
            short(f"{field}.kind", p.kind),
            short(f"{field}.stance", p.stance),
            check_number(f"{field}.distance_m", p.distance_m, 0.0, COORDINATE_MAX_M),
            p.in_sight,
        )

    def override() -> Activation | None:
        if not said.has_activation:
            return None
        if said.activation not in OVERRIDES:
            text = f"is {said.activation}, must be active, warm or ambient with has_activation"
            raise CallerError("activation", text)
        return OVERRIDES[said.activation]

    def number(name: str) -> float:
        return check_number(name, getattr(said, name), -COORDINATE_MAX_M, COORDINATE_MAX_M)

    if len(said.percepts) > PERCEPTS_MAX:
        raise CallerError("percepts", f"{len(said.percepts)} percepts, the limit is {PERCEPTS_MAX}")
    if len(said.events) > EVENTS_MAX:
        raise CallerError("events", f"{len(said.events)} events, the limit is {EVENTS_MAX}")
    position = (number("x_m"), number("y_m"), number("z_m"))
    velocity = (number("vx_mps"), number("vy_mps"), number("vz_mps"))
    return Observation(
        tick=said.tick,
        percepts=tuple(percept(i, p) for i, p in enumerate(said.percepts)),
        events=tuple(short("events", e) for e in said.events),
        time_of_day=short("time_of_day", said.time_of_day),
        place=short("place", said.place),
        health=check_number("health", said.health, 0.0, 1.0) if said.has_health else 1.0,
        position_m=position,
        velocity_mps=velocity,
        game_time_ms=game_time_ms,
        at_ns=at_ns,
        override=override(),
    )


def plain_state(seen: Observation, percepts_max: int) -> str:
    """The quantised observation, by the plain code."""

    def word(text: str) -> str:
        return " ".join(text.replace("_", " ").split())[:PERCEPT_WORD_LEN_MAX]

    text = ""
    for said in (seen.time_of_day, seen.place, health_word(seen.health), *seen.events[:2]):
        text += f" {word(said)}" if said else ""
    order = sorted(seen.percepts, key=lambda p: (p.stance != "hostile", not p.in_sight, p.distance_m, p.entity_id))
    kept = order[: min(percepts_max, TARGETS_MAX)]
    far = ("close", "near", "away", "far")
    for p in sorted(
        kept, key=lambda p: (p.stance != "hostile", not p.in_sight, far.index(distance_word(p.distance_m)), p.entity_id)
    ):
        words = (word(p.kind), word(p.stance), distance_word(p.distance_m), "" if p.in_sight else "heard")
        text += "|" + "".join(f" {w}" for w in words if w) + f"@{p.entity_id}"
    return text


def said_at_random(chance: random.Random) -> intents_pb2.Observation:
    """A mostly valid observation with one fault, or many."""
    wild = chance.random() * chance.random()

    def text() -> str:
        return chance.choice(TEXTS) if chance.random() < wild else chance.choice(TEXTS[:4])

    def number(well: tuple[float, ...] = WELL) -> float:
        return chance.choice(NUMBERS) if chance.random() < wild / 4 else chance.choice(well)

    said = intents_pb2.Observation(npc_id="mira", tick=chance.randrange(100), time_of_day=text(), place=text())
    for name in ("x_m", "y_m", "z_m", "vx_mps", "vy_mps", "vz_mps"):
        setattr(said, name, number())
    said.has_health = chance.random() < 0.8
    said.health = number((0.0, 0.2, 0.5, 1.0))
    for _ in range(chance.choice((0, 1, 3, 6, 70 if chance.random() < wild / 8 else 5))):
        said.percepts.add(
            entity_id=text() or "e", kind=text(), stance=text(), distance_m=number(), in_sight=chance.random() < 0.7
        )
    said.events.extend(text() for _ in range(chance.choice((0, 0, 1, 2, 3, 9 if chance.random() < wild / 8 else 1))))
    said.has_activation = chance.random() < 0.2
    said.activation = words_pb2.Activation.ValueType(chance.choice((0, 1, 1, 2, 3, 4)))
    return said


def made(by: Callable[..., Observation], said: intents_pb2.Observation) -> Observation | tuple[str, str]:
    """The value, or the field and text of the error."""
    try:
        return by(said, 5, 7)
    except CallerError as error:
        return error.field, str(error)


def test_the_quick_way_says_what_the_plain_way_says() -> None:
    """Ten thousand observations, valid and not, give the same values, states and errors."""
    chance = random.Random(11)
    well = ill = 0
    for _ in range(10_000):
        said = said_at_random(chance)
        seen = made(observation, said)
        assert seen == made(plain, said)
        if not isinstance(seen, Observation):
            ill += 1
            continue
        well += 1
        count = chance.choice((0, 1, 5, 12))
        assert state_of(seen, count) == plain_state(seen, count)
    assert well > 3000
    assert ill > 1000


@pytest.mark.parametrize(
    ("value", "bits", "carried"),
    [(-1, 32, 0), (0, 32, 0), (2**32 - 1, 32, 2**32 - 1), (2**32, 32, 2**32 - 1), (2**70, 64, 2**64 - 1)],
)
def test_a_number_that_no_field_carries_is_the_nearest_that_one_does(value: int, bits: int, carried: int) -> None:
    """A negative number is 0, too large a one is the largest."""
    assert whole(value, bits) == carried
