"""The words of the design as types: one word, one meaning."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Annotated, NamedTuple

AUTO = -1  # a number that is measured at the start
OrAuto = Annotated[int, "auto"]  # a setting: a number, or the word for AUTO


class Tier(IntEnum):
    """The promise made to one work; a smaller number is served first."""

    GOLD = 0
    SILVER = 1
    BRONZE = 2


class Activation(IntEnum):
    """The attention that an NPC gets now; a smaller number is more."""

    ACTIVE = 0
    WARM = 1
    AMBIENT = 2


class Finish(Enum):
    """How a work ended. Every ticket ends with exactly one of these."""

    STOP = "stop"  # the model came to its end, or the choice is complete
    LENGTH = "length"  # the token limit
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"  # a newer work of the same NPC took its place while it waited
    REFUSED = "refused"  # too busy: never started
    FAILED = "failed"  # the engine failed, also on the second try


class Source(Enum):
    """The source of an NPC's answer."""

    MODEL = "model"
    POLICY = "policy"
    PREDICTED = "predicted"


class NpcKey(NamedTuple):
    """Names one NPC."""

    tenant: str
    world: str
    npc: str


class TrunkKey(NamedTuple):
    """Names one trunk: an NPC's committed tokens towards one partner (empty: none, for intents).

    `adapter` is the one that its KV is computed with, by content hash (empty: the base model). `fork` names a trunk
    that began as a copy of the one without it, to try what would follow (empty: the trunk itself).
    """

    npc: NpcKey
    partner: str
    adapter: str = ""
    fork: str = ""

    @property
    def origin(self) -> TrunkKey:
        """The trunk that this is a fork of, or this trunk itself."""
        return self._replace(fork="") if self.fork else self

    def covers(self, other: TrunkKey) -> bool:
        """True if this key includes that one: a key without adapter and fork stands for all adapters and forks."""
        return self == other or (not self.adapter and not self.fork and self[:2] == other[:2])
