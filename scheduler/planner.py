"""Composes the next step: which works get how many tokens inside the time budget.

Order: Gold decode, Silver decode, Gold prefill, Silver prefill, Bronze. Earliest deadline first inside a rank. Silver
prefill keeps a share that Gold prefill may not take (strict order starves it), decodes rotate when they do not all
fit. Gold needs several steps in a row, so Bronze joins those only where it is nearly free, and Gold that has just come
lets Gold that is under way go ahead. Of each tier the overdue work that is due longest counts as one tier higher: one
at a time, or a long queue of Bronze would stand before all Silver. And a work that had no step for its tier's
wait_max_ms goes first, so nothing waits for ever.

The first work may leave no room for the rest: it has another adapter, or needs the whole budget. If that left out the
highest tier, the next step begins with the highest tier: no work waits for a lower tier longer than one step.
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
    """How long an engine step may take and how Gold, Silver and Bronze share it (docs/decisions/0006)."""

    gold_step_ms: float = 5.0
    """Budget of a step while Gold waits, runs or came within `scheduler.planner.gold_recent_ms`; so it bounds how long
    an intent waits for the engine.
    """
    step_ms: float = 20.0
    """Budget of a step while there is no Gold."""
    gold_recent_ms: int = 500
    """After a Gold request, steps keep to the Gold budget for this time."""
    silver_share: float = 0.3
    """Share of a step that is kept for Silver's prefill, and as much again for Silver's decodes."""
    silver_soon_ms: float = 250.0
    """If the first token of a Silver request is due within this time, its prefill takes precedence over decodes too, up
    to `scheduler.planner.silver_share`.
    """
    silver_turn_ms: float = 10.0
    """Silver that decodes or is due soon, and had no part in a step for this time, goes first in the next step."""
    bronze_share: float = 0.05
    """Bronze may lengthen a step with Gold in it by this share of the step."""
    yield_ms: float = 2.0
    """New Gold prefills let Gold that decodes go ahead for this time."""
    yield_share: float = 1.0
    """Gold prefills yield only if they would lengthen the step by more than this share of it."""
    chunk_min: int = 16
    """A prefill is never cut into pieces of fewer tokens than this."""
    adapter_turn_ms: float = 15.0
    """Gold and Silver whose LoRA adapter was in no step for this time get the next step."""
    overrun_share: float = 0.15
    """If one request alone overruns the budget, others may lengthen that step by this share: on a GPU a step reads
    the weights once, for one sequence or for fifty.
    """


@dataclass(slots=True)  # not frozen: that would make each of them three times as dear, in every step
class Candidate:
    """A running work that could use this step: `wanted` tokens for sequence `seq` from position `pos` on.

    `last_step_ns` is when it had a step last, or when it was taken. From `overdue_ns` on it may count as one tier
    higher, from `starved_ns` on it goes first. The last `drafts` of the wanted tokens are guesses: all or none of them.
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


class Portion(NamedTuple):
    """The part of one candidate in a step."""

    number: int
    seq: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Composed:
    """The portions of one step, sorted by sequence, the budget it was composed for, and the adapter of all of them.
    `passed_over`: nothing of the highest tier is in the step, or a lower one went first and left out what starves.
    """

    portions: list[Portion]
    budget_ns: int
    adapter: str = ""
    passed_over: bool = False


# By tier: the rank of its prefill, and of its decode.
_PREFILL_RANK = (2, 3, 5)
_DECODE_RANK = (0, 1, 4)


def rank(candidate: Candidate, now_ns: int) -> int:
    """The rank of a candidate, of six, when it may count as one tier higher."""
    tier = candidate.tier
    if tier is not Tier.GOLD and now_ns >= candidate.overdue_ns:
        tier = Tier(tier - 1)
    return (_DECODE_RANK if candidate.decode else _PREFILL_RANK)[tier]


def compose(
    candidates: Sequence[Candidate],
    costs: Costs,
    settings: PlannerSettings,
    now_ns: int,
    gold_waits: bool,
    batch_len: int,
    adapter_before: str = "",
    spent_ns: int = 0,
    passed_over_before: bool = False,
) -> Composed:
    """The next step, after one that had `adapter_before`. Empty only when there are no candidates; the first one always
    gets something. `spent_ns` of the budget are gone already.

    Law: of two steps in a row one has something of the highest tier in it, if that could use both.

    Law: predicted cost <= budget, unless the first candidate alone exceeds it with chunk_min tokens; then predicted
    cost <= what that takes and `overrun_share` of it.
    """
    gold = gold_waits or any(c.tier is Tier.GOLD for c in candidates)
    budget_ns = round((settings.gold_step_ms if gold else settings.step_ms) * MS) - spent_ns
    if not candidates:
        return Composed([], budget_ns)
    ranked: list[list[Candidate]] = [[] for _ in range(6)]
    risen = _due_longest(candidates, now_ns)
    for c in candidates:
        own = (_DECODE_RANK if c.decode else _PREFILL_RANK)[c.tier]
        ranked[rank(c, now_ns) if c.number in risen else own].append(c)
    for group in ranked:
        if len(group) > 1:
            group.sort(key=_turn)
    highest = min(c.tier for c in candidates)
    if passed_over_before:
        # The ranks put Silver's decodes before Gold's prefills.
        those = [[c for c in group if c.tier is highest] for group in ranked]
        first = _first([c for group in those for c in group], those, settings, now_ns, adapter_before)
    else:
        first = _first(candidates, ranked, settings, now_ns, adapter_before)
    if any(c.adapter != first.adapter for c in candidates):
        ranked = [[c for c in group if c.adapter == first.adapter] for group in ranked]
    step = _Step(costs, settings, batch_len, budget_ns * costs.trust)
    keep_ns = late_ns = 0.0
    if ranked[3]:
        keep_ns = step.share_ns(ranked[3][0], settings.silver_share)
        if _talks(ranked[3][0], settings, now_ns):
            late_ns = keep_ns  # the share is kept from what decodes, too
    spoken_ns = min(step.cost_ns(ranked[1]), settings.silver_share * step.whole_ns)
    if first.decode:
        step.add(first, late_ns)
    elif not any(c is first for c in ranked[3]):
        step.add(first, keep_ns)
    else:
        step.add(first, step.whole_ns - keep_ns if ranked[0] or ranked[2] else spoken_ns)
        keep_ns = late_ns = 0.0
    step.overrun(settings.overrun_share)
    left_over: list[Candidate] = []
    if first.tier is Tier.SILVER:  # it is Silver's turn
        left_over += [c for c in ranked[1] if not step.add(c, late_ns)]
    left_over += [c for c in ranked[0] if not step.add(c, late_ns + spoken_ns)]
    if first.tier is not Tier.SILVER:
        left_over += [c for c in ranked[1] if not step.add(c, late_ns)]
    if not (step.portions and _yields(step, ranked, settings, now_ns)):
        left_over += [c for c in ranked[2] if not step.add(c, keep_ns)]
        left_over = [*ranked[3], *left_over]
    for c in left_over:
        step.add(c)
    golden = [step.has(c) for c in candidates if c.tier is Tier.GOLD and c.adapter == first.adapter]
    if any(golden):
        step.lengthen(settings.bronze_share if all(golden) else 0.0)
    for c in (*ranked[4], *ranked[5]):
        step.add(c)
    above = [c for c in candidates if c.tier is highest]
    left_out = [c for c in above if c.adapter != first.adapter or not step.has(c)]
    passed_over = len(left_out) == len(above)
    if first.tier is not highest and not passed_over:
        passed_over = any(now_ns >= c.starved_ns for c in left_out)
    return Composed(sorted(step.portions, key=lambda s: s.seq), budget_ns, first.adapter, passed_over)


def _yields(step: _Step, ranked: Sequence[Sequence[Candidate]], settings: PlannerSettings, now_ns: int) -> bool:
    """True if Gold's prefills, all of them young, let decoding Gold go ahead, which would wait far longer with them."""
    young_ns = now_ns - round(settings.yield_ms * MS)
    if not any(step.has(c) for c in ranked[0]) or not ranked[2] or any(c.last_step_ns <= young_ns for c in ranked[2]):
        return False
    return step.cost_ns(ranked[2]) > settings.yield_share * step.spent_ns


def _due_longest(candidates: Sequence[Candidate], now_ns: int) -> set[int]:
    """The numbers of the overdue Silver and the overdue Bronze that are due longest."""
    found: dict[Tier, Candidate] = {}
    for c in candidates:
        if now_ns >= c.overdue_ns and c.tier is not Tier.GOLD:
            other = found.get(c.tier)
            if other is None or (c.overdue_ns, c.number) < (other.overdue_ns, other.number):
                found[c.tier] = c
    return {c.number for c in found.values()}


def _first(
    candidates: Sequence[Candidate],
    ranked: Sequence[Sequence[Candidate]],
    settings: PlannerSettings,
    now_ns: int,
    adapter_before: str,
) -> Candidate:
    """The candidate that is served first in this step; the step has its adapter."""
    starved = [c for c in candidates if now_ns >= c.starved_ns]
    # Under overload some Gold always is; the others are few.
    lower = [c for c in starved if c.tier is not Tier.GOLD]
    if lower:
        return min(lower, key=_last_step)
    first = min(starved, key=_last_step) if starved else next(group[0] for group in ranked if group)
    late_ns = now_ns - round(settings.silver_turn_ms * MS)
    those = (c for group in ranked[:4] for c in group if c.tier is not Tier.GOLD and c.last_step_ns <= late_ns)
    talks = (c for c in those if _talks(c, settings, now_ns))
    # Where a step has room for one or two, a share of it is nothing: Silver's share is one of the steps, then.
    talk = min((c for c in talks if c.adapter == first.adapter), key=_last_step, default=None)
    first = talk or first
    if first.adapter == adapter_before:
        # Else Gold, which has something in almost every step, would keep its adapter for ever.
        before_ns = now_ns - round(settings.adapter_turn_ms * MS)
        others = [c for group in ranked[:4] for c in group if c.adapter != adapter_before]
        other = min((c for c in others if c.last_step_ns <= before_ns), key=_last_step, default=None)
        if other is not None and (talk is None or _last_step(other) < _last_step(talk)):
            first = other
    return first


def _talks(c: Candidate, settings: PlannerSettings, now_ns: int) -> bool:
    """True if a player waits for the next token of a work that counts as Silver."""
    return c.decode or c.deadline_ns < now_ns + round(settings.silver_soon_ms * MS)


def _last_step(c: Candidate) -> tuple[int, int]:
    return c.last_step_ns, c.number


def _turn(c: Candidate) -> tuple[int, int]:
    """Order inside a rank. Decodes rotate: whoever had a step longest ago is next. Prefills go by deadline."""
    return c.last_step_ns if c.decode else c.deadline_ns, c.number


class _Step:
    """A step being filled."""

    def __init__(self, costs: Costs, settings: PlannerSettings, batch_len: int, room_ns: float) -> None:
        self.portions: list[Portion] = []
        self._costs = costs
        self._chunk_min = settings.chunk_min
        self._tokens_left = batch_len
        self._whole_ns = room_ns
        self._room_ns = room_ns - costs.base_ns
        self._lengths: dict[int, int] = {}  # tokens by sequence

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

    def overrun(self, share: float) -> None:
        """When it is over its budget already, lets others make it longer by a share of what it takes."""
        if self._room_ns < 0.0:
            spent_ns = self.spent_ns
            self._room_ns = share * spent_ns
            self._whole_ns = spent_ns + self._room_ns

    def lengthen(self, share: float) -> None:
        """Lets whoever comes now make the step longer by a share of what it takes already."""
        self._room_ns = min(self._room_ns, share * self.spent_ns)

    def share_ns(self, c: Candidate, share: float) -> float:
        """A share of the step, or the smallest chunk of the candidate: a share that is too small for it is none."""
        least = min(c.wanted, self._chunk_min)
        _, fixed_ns, each_ns = self._costs.fit(0.0, c.pos, c.wanted, True)
        return max(share * self._whole_ns, fixed_ns + least * each_ns)

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
        if tokens < wanted and tokens < self._chunk_min:
            if self.portions:
                return False
            tokens = min(wanted, self._chunk_min)
        self.portions.append(Portion(c.number, c.seq, tokens))
        lengths[c.seq] = tokens
        self._tokens_left -= tokens
        self._room_ns -= fixed_ns + tokens * each_ns
        return True
