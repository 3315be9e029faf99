"""The journal's records, one for everything that is accepted, and their bytes.

A record names its NPC and player (if it is about one), the world's timeline, and the wall-clock time. `body` has these
fields by kind (a field may be left out when it is empty):

    WORLD       definition (base64 of the game's own message), version, lease_last
    NPCS        npcs: [[npc_id, base64 of its spec, lease_epoch], ...]
    REMOVED     npcs: [npc_id, ...]
    TURN        session, turn_id, line, reply, name, emotion, facts: [[text, importance], ...],
                finish: "cancelled" or "failed"        (it was cut off: a retry makes it again)
    ENDED       session                    (a session is over)
    SUMMARY     session, text, facts: [[text, importance], ...], by: "model" or "rule"
    CARD        relationship, quest                                     (whole cards, as memory/cards.py has them)
    INTENT      action, target, target_kind, emotion, bark, source, version, tick
    FORGET      nothing: record.player is forgotten by record.npc, or by every NPC of the world when that is empty
    CHECKPOINT  checkpoint, file
    RESTORED    checkpoint, file, from     (the world goes on from a file, on record.timeline)
    DELETED     version                    (the world with its NPCs and all that they remember)

Plain values: decides nothing about when or where they are written.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from core.words import NpcKey

Body = dict[str, Any]


class Kind(IntEnum):
    """The kind of a record. The numbers are in files: they are only ever added."""

    WORLD = 1
    NPCS = 2
    REMOVED = 3
    TURN = 4
    ENDED = 5
    SUMMARY = 6
    CARD = 7
    INTENT = 8
    FORGET = 9
    CHECKPOINT = 10
    RESTORED = 11
    REDACTED = 12  # was about a player who is forgotten; only its place is left
    DELETED = 13


@dataclass(frozen=True, slots=True)
class Record:
    """One record. `id` (32 hex digits) is the same in every store; `at_ms` is Unix time."""

    kind: Kind
    at_ms: int
    tenant: str
    world: str
    npc: str = ""
    player: str = ""
    timeline: str = ""
    body: Body = field(default_factory=dict)
    id: str = ""

    @property
    def key(self) -> NpcKey:
        """The NPC it is about."""
        return NpcKey(self.tenant, self.world, self.npc)


class Position(NamedTuple):
    """A place between two records of the journal: the segment's number, and bytes from its beginning."""

    segment: int
    at: int

    def __str__(self) -> str:
        return f"{self.segment}:{self.at}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position of str(). Raises ValueError."""
        segment, _, at = text.partition(":")
        return cls(int(segment), int(at))


START = Position(0, 0)


def make_id(at_ms: int) -> str:
    """A new record's id: time first, then chance, as UUIDv7 (RFC 9562)."""
    chance = bytearray(os.urandom(10))
    chance[0] = chance[0] & 0x0F | 0x70
    chance[2] = chance[2] & 0x3F | 0x80
    return f"{at_ms & (1 << 48) - 1:012x}{chance.hex()}"


def to_bytes(record: Record) -> bytes:
    """A record as the journal keeps it: a byte for its kind, then JSON."""
    values = (record.id, record.at_ms, record.tenant, record.world, record.npc, record.player, record.timeline)
    return bytes([record.kind]) + json.dumps([*values, record.body], separators=(",", ":")).encode()


def from_bytes(data: bytes) -> Record:
    """The record of these bytes. Raises ValueError when they are no record."""
    try:
        kind = Kind(data[0])
        id_, at_ms, tenant, world, npc, player, timeline, body = json.loads(data[1:])
    except (IndexError, TypeError) as error:
        raise ValueError(str(error)) from error
    return Record(kind, at_ms, tenant, world, npc, player, timeline, body, id_)
