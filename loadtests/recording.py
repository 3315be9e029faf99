"""The sights of NPCs, recorded before a run: bytes to send, and the states that they quantise to. Decides only.

A recorded run sees the same each time, and spends no time on a simulation. Protobuf messages written one after another
are one message: an NPC's sight followed by its lease and tick is its Observation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadtests.scene import Resident
from loadtests.slots import state_of
from loadtests.village import Village
from npcd_client import evaluate, wire
from npcd_client.v1 import intents_pb2


@dataclass(frozen=True, slots=True)
class Sight:
    """One NPC's sight in one round: bytes of an Observation without lease and tick, and the state that it quantises
    to."""

    body: bytes
    state: str


@dataclass(frozen=True, slots=True)
class Recording:
    """`sights[round][number]`, `rate_hz` rounds per second; `number` is that of the resident."""

    residents: Sequence[Resident]
    sights: Sequence[Sequence[Sight]]
    rate_hz: float


def village_played(village: Village, seconds: float, rate_hz: float) -> Recording:
    """A village whose NPCs follow the world's rule policy, each with the attention that the village asks for."""
    policy, rounds = village.scene.world.policy, []
    for number in range(round(seconds * rate_hz)):
        village.step(number * 1000 / rate_hz)
        sights = []
        for body in village.bodies:
            seen = village.observe(body.number, 0)
            answer = evaluate(policy, seen, body.resident.archetype_id)
            if answer is not None:
                village.intend(body.number, answer.action, answer.target_entity_id, answer.emotion)
            sights.append(Sight(wire.observation(seen, 0).SerializeToString(), state_of(seen)))
        rounds.append(sights)
    return Recording([body.resident for body in village.bodies], rounds, rate_hz)


def percept_bytes(entity_id: str, kind: str, stance: str, distance_m: float, in_sight: bool) -> bytes:
    """A percept as the bytes of an Observation without other fields."""
    percept = intents_pb2.Percept(
        entity_id=entity_id, kind=kind, stance=stance, distance_m=distance_m, in_sight=in_sight
    )
    return intents_pb2.Observation(percepts=[percept]).SerializeToString()


def event_bytes(event: str) -> bytes:
    """An event as such bytes. It is older than all events before it."""
    return intents_pb2.Observation(events=[event]).SerializeToString()


_OBSERVATIONS = bytes([intents_pb2.ObservationFrame.OBSERVATIONS_FIELD_NUMBER << 3 | 2])  # the length is fixed


def frame_bytes(head: intents_pb2.ObservationFrame, observations: Iterable[bytes]) -> bytes:
    """An ObservationFrame: `head` has all but the observations."""
    parts = [head.SerializeToString()]
    for observation in observations:
        parts += (_OBSERVATIONS, _varint(len(observation)), observation)
    return b"".join(parts)


def _varint(number: int) -> bytes:
    if number < 1 << 7:
        return bytes((number,))
    if number < 1 << 14:
        return bytes((number & 0x7F | 0x80, number >> 7))
    return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14))
