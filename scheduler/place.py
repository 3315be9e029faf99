"""Where one running work stands: values, changed by the Placer alone.

A place computes its parts one after another. The next tokens of each part belong to one sequence:

    PREFIX  the shared beginning is computed in the prefix's own sequence (any work that waits for it may carry it)
    TRUNK   the rest of the trunk is computed in the trunk's resident sequence
    BRANCH  the tail and what is generated: Gold on the trunk's own sequence, the others on a lane (a copy)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from core.choice import Tokens
from core.work import Work
from engines.base import NEVER
from kvcache.homes import NO_TOKENS, Trunk
from kvcache.prefix import Prefix


class Part(Enum):
    """The part of a work that is computed now: where its next tokens go."""

    PREFIX = "prefix"
    TRUNK = "trunk"
    BRANCH = "branch"


@dataclass(slots=True)
class TrunkTokens:
    """How trunk tokens came to where works needed them: they were in the sequence, were loaded from another home,
    copied from a prefix or a sibling, or computed.
    """

    resident: int = 0
    loaded: int = 0
    copied: int = 0
    computed: int = 0

    def add(self, place: Place) -> None:
        """Counts what a place begins with."""
        self.loaded += place.loaded
        self.copied += place.copied
        self.resident += place.cached - place.loaded - place.copied


@dataclass(slots=True, eq=False)
class Place:
    """Where one running work stands. `cached` counts trunk tokens that were there already: `loaded` of them from
    another home, `copied` from a prefix or a sibling. The branch is computed as the trunk is up to `adapter_from`.
    """

    work: Work
    trunk: Trunk
    part: Part
    prefix: Prefix | None = None
    lane: int = -1
    branch_len: int = 0
    cached: int = 0
    loaded: int = 0
    copied: int = 0
    adapter_from: int = 0

    @property
    def seq(self) -> int:
        """The sequence that takes the next tokens."""
        if self.part is Part.PREFIX:
            assert self.prefix is not None
            return self.prefix.seq
        return self.lane if self.part is Part.BRANCH and self.lane >= 0 else self.trunk.seq

    @property
    def pos(self) -> int:
        """How many tokens that sequence holds."""
        if self.part is Part.PREFIX:
            assert self.prefix is not None
            return self.prefix.held
        # A trunk that was copied to a lane may grow meanwhile; the branch stands on the length it had then.
        return len(self.work.trunk) + self.branch_len if self.part is Part.BRANCH else self.trunk.held

    @property
    def stands(self) -> bool:
        """True if it has its trunk to itself: no other work can stand on that meanwhile."""
        return self.part is not Part.BRANCH or self.lane < 0 or self.work.keep

    @property
    def adapter(self) -> str:
        """The adapter of the next tokens."""
        on = self.part is Part.BRANCH and self.branch_len >= self.adapter_from
        return self.work.adapter if on else self.work.key.adapter

    @property
    def alike_len(self) -> int:
        """So many of the branch's next tokens are computed with the same adapter."""
        off = self.adapter_from - self.branch_len
        return off if off > 0 else NEVER

    @property
    def missing(self) -> Tokens:
        """The tokens that prefix or trunk still lack; empty in BRANCH."""
        if self.part is Part.PREFIX:
            assert self.prefix is not None
            return self.prefix.tokens[self.prefix.held :]
        return self.work.trunk[self.trunk.held :] if self.part is Part.TRUNK else NO_TOKENS
