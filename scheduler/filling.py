"""One step that is being filled: what could use it, what it has been given, and the room that is left.

The planner decides the order. This file decides how many tokens fit, and what they cost by the learned costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from core.words import Tier
from scheduler.budget import one_token_ns
from scheduler.costs import Costs


@dataclass(slots=True)  # not frozen: that would make each of them three times as dear, in every step
class Candidate:
    """A running work that could use this step: `wanted` tokens for sequence `seq` from position `pos` on.

    `last_step_ns` is when it had a step last, or when it was taken. From `overdue_ns` on it may count as one tier
    higher, from `starved_ns` on it goes first. The last `drafts` of the wanted tokens are guesses: all or none of them.
    `prefill` are all tokens that it takes in before its first one, with those that it has: a work is not less urgent
    because it has begun.
    """

    number: int
    tier: Tier
    decode: bool
    seq: int
    pos: int
    wanted: int
    deadline_ns: int
    overdue_ns: int
    last_step_ns: int
    starved_ns: int
    adapter: str = ""
    drafts: int = 0
    prefill: int = 0


class Portion(NamedTuple):
    """The part of one candidate in a step."""

    number: int
    seq: int
    tokens: int


class Filling:
    """A step being filled, in which `first` is the first. It has `whole_ns`, as far as the costs are trusted. A piece
    of a prefill has at least `chunk_min` tokens where these take at most half of that, else as many as fit into `share`
    of it.
    """

    def __init__(
        self, costs: Costs, chunk_min: int, share: float, batch_len: int, whole_ns: float, first: Candidate
    ) -> None:
        self.portions: list[Portion] = []
        self._costs = costs
        self._tokens_left = batch_len
        self._whole_ns = whole_ns * costs.trust
        self._room_ns = self._whole_ns - costs.base_ns
        self._lengths: dict[int, int] = {}  # tokens by sequence
        self._chunk_min = self._alone_min = chunk_min
        self.small = False  # a step holds less than two pieces: shares of it are shares of steps
        _, fixed_ns, each_ns = costs.fit(0.0, first.pos, chunk_min, True)
        if fixed_ns + chunk_min * each_ns > 0.5 * whole_ns:
            self.small = True
            self._alone_min = max(1, costs.fit(whole_ns - costs.base_ns, first.pos, chunk_min, True)[0])
            self._chunk_min = max(1, costs.fit(share * whole_ns, first.pos, chunk_min, True)[0])

    def has(self, c: Candidate) -> bool:
        """True if a candidate has a part in the step."""
        return c.seq in self._lengths

    @property
    def whole_ns(self) -> float:
        """The budget of the step."""
        return self._whole_ns

    @property
    def spent_ns(self) -> float:
        """The predicted time of the step so far."""
        return self._whole_ns - self._room_ns

    def cost_ns(self, candidates: Sequence[Candidate]) -> float:
        """The time that the candidates would add, side by side."""
        added_ns = 0.0
        for c in candidates:
            _, fixed_ns, each_ns = self._costs.fit(0.0, c.pos, c.wanted, added_ns == 0.0)
            added_ns += fixed_ns + c.wanted * each_ns
        return added_ns

    def overrun(self, share: float, one_ns: float) -> None:
        """When it is over its budget already, or one token fills it (`one_ns`), lets others make it longer by a share
        of what it takes.
        """
        longer_ns = (1.0 + share) * self.spent_ns
        if self._room_ns < 0.0 or (1.0 + share) * one_ns > self._whole_ns:
            self._room_ns += max(0.0, longer_ns - self._whole_ns)
            self._whole_ns = max(self._whole_ns, longer_ns)

    def lengthen(self, share: float) -> None:
        """Lets whoever comes now make the step longer by a share of what it takes already."""
        self._room_ns = min(self._room_ns, share * self.spent_ns)

    def share_ns(self, c: Candidate, share: float) -> float:
        """A share of the step, or the smallest piece of the candidate: a share that is too small for it is none."""
        least = min(c.wanted, self._chunk_min)
        _, fixed_ns, each_ns = self._costs.fit(0.0, c.pos, c.wanted, True)
        return max(share * self._whole_ns, fixed_ns + least * each_ns)

    def join(self, c: Candidate, most_ns: float) -> None:
        """Adds a decode while the step takes at most `most_ns` with it, if that is cheaper than a step of its own."""
        if c.seq in self._lengths or not self._tokens_left or c.drafts:
            return
        lengths = self._lengths
        beside = lengths.get(c.seq - 1) == 1 or lengths.get(c.seq + 1) == 1
        _, fixed_ns, each_ns = self._costs.fit(0.0, c.pos, 1, not beside)
        cost_ns = fixed_ns + each_ns
        if self.spent_ns + cost_ns <= most_ns and cost_ns < one_token_ns(self._costs, c.pos):
            self._take(c, 1, cost_ns)

    def add(self, c: Candidate, keep_ns: float = 0.0) -> bool:
        """Adds what fits of a candidate while `keep_ns` of the budget stay free; False when nothing of it did."""
        if c.seq in self._lengths or not self._tokens_left:
            return False
        lengths = self._lengths
        wanted = c.wanted if c.wanted < self._tokens_left else self._tokens_left
        beside = lengths.get(c.seq - 1) == wanted or lengths.get(c.seq + 1) == wanted
        tokens, fixed_ns, each_ns = self._costs.fit(self._room_ns - keep_ns, c.pos, wanted, not beside)
        if tokens < c.wanted and c.drafts:
            wanted = c.wanted - c.drafts
            beside = lengths.get(c.seq - 1) == wanted or lengths.get(c.seq + 1) == wanted
            tokens, fixed_ns, each_ns = self._costs.fit(self._room_ns - keep_ns, c.pos, wanted, not beside)
        # Distrust makes steps shorter, and never the piece of a work that has the step to itself.
        least = self._chunk_min if self.portions or keep_ns > 0.0 else self._alone_min
        if tokens < wanted and tokens < least:
            if self.portions:
                return False
            tokens = min(wanted, least)
        self._take(c, tokens, fixed_ns + tokens * each_ns)
        return True

    def _take(self, c: Candidate, tokens: int, cost_ns: float) -> None:
        self.portions.append(Portion(c.number, c.seq, tokens))
        self._lengths[c.seq] = tokens
        self._tokens_left -= tokens
        self._room_ns -= cost_ns
