"""Composes the next step: which works get how many tokens inside the time budget.

Order: Gold decode, Silver decode, Gold prefill, Silver prefill, Bronze. Earliest deadline first inside a rank. Silver
prefill keeps a share that Gold prefill may not take (strict order starves it), decodes rotate when they do not all
fit, and an overdue work counts as one tier higher, so nothing waits for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from core.clock import MS
from core.words import Tier
from scheduler.costs import Costs


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """`gold_step_ms` is a step's budget while Gold waits or runs, `step_ms` otherwise.

    `silver_share` of a step is kept for Silver's prefill; a prefill is not cut below `chunk_min` tokens.
    """

    gold_step_ms: float = 5.0
    step_ms: float = 20.0
    silver_share: float = 0.3
    chunk_min: int = 16


@dataclass(slots=True)  # not frozen: that would make each of them three times as dear, in every step
class Candidate:
    """A running work that could use this step: `wanted` tokens for sequence `seq` from position `pos` on."""

    number: int
    tier: Tier
    decode: bool
    seq: int
    pos: int
    wanted: int
    deadline_ns: int
    overdue_ns: int
    last_step_ns: int
    adapter: str = ""


class Share(NamedTuple):
    """What one candidate gets."""

    number: int
    seq: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Composed:
    """The shares of one step, sorted by sequence, the budget it was composed for, and the adapter of all of them."""

    shares: list[Share]
    budget_ns: int
    adapter: str = ""


_RANK = {
    (True, Tier.GOLD): 0,
    (True, Tier.SILVER): 1,
    (False, Tier.GOLD): 2,
    (False, Tier.SILVER): 3,
    (True, Tier.BRONZE): 4,
    (False, Tier.BRONZE): 5,
}


def rank(candidate: Candidate, now_ns: int) -> int:
    """Which of the six ranks a candidate has now; overdue works count as one tier higher."""
    tier = candidate.tier
    if tier is not Tier.GOLD and now_ns >= candidate.overdue_ns:
        tier = Tier(tier - 1)
    return _RANK[candidate.decode, tier]


def compose(
    candidates: Sequence[Candidate],
    costs: Costs,
    settings: PlannerSettings,
    now_ns: int,
    gold_waits: bool,
    batch_len: int,
) -> Composed:
    """The next step. Empty only when there are no candidates; the first one always gets something.

    Law: predicted cost <= budget, unless the first candidate alone exceeds it with chunk_min tokens.
    """
    gold = gold_waits or any(c.tier is Tier.GOLD for c in candidates)
    budget_ns = round((settings.gold_step_ms if gold else settings.step_ms) * MS)
    if not candidates:
        return Composed([], budget_ns)
    ranked: list[list[Candidate]] = [[] for _ in range(6)]
    for c in candidates:
        ranked[rank(c, now_ns)].append(c)
    for group in ranked:
        group.sort(key=_turn)
    # The most urgent candidate's adapter has the step. It had its step now, so in its rank another adapter is next.
    adapter = next(group[0].adapter for group in ranked if group)
    if any(c.adapter != adapter for c in candidates):
        ranked = [[c for c in group if c.adapter == adapter] for group in ranked]
    step = _Step(costs, settings, batch_len, budget_ns * costs.trust)
    keep = settings.silver_share if ranked[2] and ranked[3] else 0.0
    for c in (*ranked[0], *ranked[1]):
        step.add(c)
    left_over = [c for c in ranked[2] if not step.add(c, keep)]
    for c in (*ranked[3], *left_over, *ranked[4], *ranked[5]):
        step.add(c)
    return Composed(sorted(step.shares, key=lambda s: s.seq), budget_ns, adapter)


def _turn(c: Candidate) -> tuple[int, int]:
    """Order inside a rank. Decodes rotate: whoever had a step longest ago is next. Prefills go by deadline."""
    return c.last_step_ns if c.decode else c.deadline_ns, c.number


class _Step:
    """A step being filled."""

    def __init__(self, costs: Costs, settings: PlannerSettings, batch_len: int, room_ns: float) -> None:
        self.shares: list[Share] = []
        self._costs = costs
        self._chunk_min = settings.chunk_min
        self._tokens_left = batch_len
        self._whole_ns = room_ns
        self._room_ns = room_ns - costs.base_ns
        self._lengths: dict[int, int] = {}  # tokens by sequence

    def add(self, c: Candidate, keep: float = 0.0) -> bool:
        """Adds what fits of a candidate while `keep` of the budget stays free; False when nothing of it did."""
        if c.seq in self._lengths or not self._tokens_left:
            return False
        wanted = min(c.wanted, self._tokens_left)
        beside = self._lengths.get(c.seq - 1) == wanted or self._lengths.get(c.seq + 1) == wanted
        room_ns = self._room_ns - keep * self._whole_ns
        tokens = self._costs.tokens_that_fit(room_ns, c.pos, wanted, not beside)
        least = min(wanted, self._chunk_min)
        if tokens < least:
            if self.shares:
                return False
            tokens = least
        self.shares.append(Share(c.number, c.seq, tokens))
        self._lengths[c.seq] = tokens
        self._tokens_left -= tokens
        self._room_ns -= self._costs.tokens_ns(tokens, c.pos + tokens, not beside)
        return True
