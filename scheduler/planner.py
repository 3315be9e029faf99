"""Composes the next step: which works get how many tokens inside the time budget (`scheduler/budget.py`).

Order: Gold decode, Silver decode, then the prefills of Gold and Silver, then Bronze. Prefills go by earliest deadline
inside a tier, and the tier whose prefills must start first goes before the other: Gold's by the moment at which the
rule's answer stands, Silver's by its first text. Silver that must start now goes before decodes, too. Each of the two
keeps a share of the step that the other's prefills may not take. Decodes rotate when they do not all fit.

Gold needs several steps in a row, so Bronze joins those only where it is nearly free, and Gold that has just come
lets Gold that is under way go ahead. Of each tier the overdue work that is due longest counts as one tier higher: one
at a time, or a long queue of Bronze would stand before all Silver. And a work that had no step for its tier's
wait_max_ms goes first, so nothing waits for ever.

The first work may leave no room for the rest: it has another adapter, or needs the whole budget. If that left out the
highest tier, the next step begins with the highest tier: no work waits for a lower tier longer than one step.

Conversations that had `talk_share` of the engine's time lately give way: Gold's prefills then go before Silver's
decodes, and Silver has its share of each step and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.clock import MS
from core.words import Tier
from scheduler.budget import Budget, budget, latest_start_ns, prefill_ns
from scheduler.costs import Costs
from scheduler.filling import Candidate, Filling, Portion


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
    """A prefill is cut into pieces of at least this many tokens, where so many take at most half of a step."""
    adapter_turn_ms: float = 15.0
    """Gold and Silver whose LoRA adapter was in no step for this time get the next step."""
    overrun_share: float = 0.15
    """If one request alone overruns the budget, others may lengthen that step by this share: on a GPU a step reads
    the weights once, for one sequence or for fifty.
    """
    few_tokens_x: float = 4.0
    """On a slow model a step may take as many times as long as one token alone, so that at most a quarter of it is
    fixed cost. Budgets above hold where they are longer.
    """
    gold_token_ms: float = 16.0
    """A step that begins with an intent's next token takes no longer than this, if one token alone does not."""
    read_ms: float = 120.0
    """While a reply is spoken, a step takes no longer than this, if one token alone does not: eight tokens a second
    are reading speed.
    """
    first_step_ms: float = 120.0
    """A step that begins with a reply's prefill takes all of it, up to this time, on a model that is too slow for
    `scheduler.planner.gold_step_ms`.
    """
    first_text_share: float = 0.25
    """While a player waits for an NPC's first words, a step takes at most this share of the time that these words take
    on an idle engine.
    """
    hurry_x: float = 3.0
    """A reply's prefill goes before intents once the time left is less than so many times what it takes alone."""
    talk_share: float = 0.7
    """Share of the engine's time that conversations have at most while intents wait; `pace.talk_share` if that is less.
    """


@dataclass(frozen=True, slots=True)
class Composed:
    """The portions of one step, sorted by sequence, the budget it was composed for, and the adapter of all of them.
    `passed_over`: nothing of the highest tier is in the step, or a lower one went first and left out what starves.
    """

    portions: list[Portion]
    budget_ns: int
    adapter: str = ""
    passed_over: bool = False


NEVER_NS = float("inf")
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
    talked_enough: bool = False,
    passed_over_before: bool = False,
) -> Composed:
    """The next step, after one that had `adapter_before`. Empty only when there are no candidates; the first one always
    gets something. `spent_ns` of the budget are gone already. `talked_enough`: conversations had their share of the
    engine.

    Law: of two steps in a row one has something of the highest tier in it, if that could use both.

    Law: predicted cost <= budget, unless the first candidate alone exceeds it with one piece; then predicted
    cost <= what that takes and `overrun_share` of it. Decodes that join because it is cheaper may take it to
    `few_tokens_x` times one token's step.
    """
    gold = gold_waits or any(c.tier is Tier.GOLD for c in candidates)
    settings_ns = (settings.gold_step_ms if gold else settings.step_ms) * MS
    if not candidates:
        return Composed([], round(settings_ns) - spent_ns)
    ranked: list[list[Candidate]] = [[] for _ in range(6)]
    risen = _due_longest(candidates, now_ns)
    for c in candidates:
        own = (_DECODE_RANK if c.decode else _PREFILL_RANK)[c.tier]
        ranked[rank(c, now_ns) if c.number in risen else own].append(c)
    for group in ranked:
        if len(group) > 1:
            group.sort(key=_turn)
    highest = min(c.tier for c in candidates)
    enough = talked_enough and highest is Tier.GOLD
    start_ns, hurry = NEVER_NS, None
    # A promise that is broken by more than its own time is not made good, and to hurry would break another one.
    talks = [(c.deadline_ns, prefill_ns(costs, c), c) for c in ranked[3] if c.tier is Tier.SILVER]
    talks = [talk for talk in talks if now_ns <= talk[0] + settings.hurry_x * talk[1]]
    if talks and not enough:
        start_ns = latest_start_ns([talk[:2] for talk in talks], settings.hurry_x)
        hurry = talks[0][2] if start_ns <= now_ns else None
    leads = hurry is not None or start_ns < (ranked[2][0].deadline_ns if ranked[2] else NEVER_NS)
    if passed_over_before:
        # The ranks put Silver's decodes before Gold's prefills.
        those = [[c for c in group if c.tier is highest] for group in ranked]
        if hurry is not None and hurry.tier is not highest:
            hurry = None
        first = _first([c for group in those for c in group], those, settings, now_ns, adapter_before, hurry, enough)
    else:
        first = _first(candidates, ranked, settings, now_ns, adapter_before, hurry, enough)
    if any(c.adapter != first.adapter for c in candidates):
        ranked = [[c for c in group if c.adapter == first.adapter] for group in ranked]
    waiting = [c for _, _, c in talks if _talks(c, settings, now_ns)]
    speaks = bool(ranked[1]) or any(c.tier is Tier.SILVER for c in ranked[0])
    may = budget(first, waiting, speaks, costs, settings, settings_ns)
    step = Filling(costs, settings.chunk_min, settings.silver_share, batch_len, may.step_ns - spent_ns, first)
    slow = may.step_ns > settings_ns
    _fill(step, may._replace(join_ns=may.join_ns - spent_ns), first, ranked, settings, now_ns, leads, enough, slow)
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
    budget_ns = round(max(may.step_ns - spent_ns, step.whole_ns, step.spent_ns))
    portions = sorted(step.portions, key=lambda s: s.seq)
    return Composed(portions, budget_ns, first.adapter, passed_over)


def _fill(
    step: Filling,
    may: Budget,
    first: Candidate,
    ranked: Sequence[Sequence[Candidate]],
    settings: PlannerSettings,
    now_ns: int,
    leads: bool,
    enough: bool,
    slow: bool,
) -> None:
    """Adds what fits of Gold and Silver, `first` first. `leads`: Silver's prefills go before Gold's. On a `slow` model
    a turn that leads has the whole step: Gold has the next one.
    """
    keep_ns = late_ns = gold_ns = 0.0
    if ranked[3]:
        keep_ns = step.share_ns(ranked[3][0], settings.silver_share)
        if _talks(ranked[3][0], settings, now_ns):
            late_ns = keep_ns  # the share is kept from what decodes, too
    is_silver = any(c is first for c in ranked[3])
    if leads and ranked[2] and not step.small and not (slow and is_silver):
        gold_ns = step.share_ns(ranked[2][0], 1.0 - settings.talk_share)
    spoken_ns = min(step.cost_ns(ranked[1]), settings.silver_share * step.whole_ns)
    if first.decode:
        step.add(first, late_ns)
    elif is_silver and leads:
        step.add(first, gold_ns + spoken_ns + min(step.cost_ns(ranked[0]), settings.silver_share * step.whole_ns))
    elif is_silver:
        step.add(first, step.whole_ns - keep_ns if ranked[0] or ranked[2] else spoken_ns)
    elif leads and ranked[3]:
        step.add(first, max(keep_ns, settings.talk_share * step.whole_ns))
    elif step.small:  # decodes join it, so that replies go on in each step
        step.add(first, max(keep_ns, min(step.cost_ns([*ranked[0], *ranked[1]]), 0.5 * step.whole_ns)))
    else:
        step.add(first, keep_ns)
    if is_silver:
        keep_ns = late_ns = 0.0
    if enough:
        keep_ns = max(keep_ns, spoken_ns)  # Gold's prefills go before Silver's decodes, which keep a share now
    step.overrun(settings.overrun_share, may.one_ns)
    if may.join_ns > step.whole_ns:
        # A promise that one token alone breaks is kept by nobody: then Silver's decodes join Gold's.
        above = first.decode and first.tier is Tier.GOLD and may.one_ns <= settings.gold_token_ms * MS
        for c in ranked[0] if above else (*ranked[0], *ranked[1]):
            step.join(c, may.join_ns)
    left_over: list[Candidate] = []
    if first.tier is Tier.SILVER and not enough:  # it is Silver's turn
        left_over += [c for c in ranked[1] if not step.add(c, late_ns)]
    left_over += [c for c in ranked[0] if not step.add(c, late_ns + (0.0 if enough else spoken_ns))]
    if first.tier is not Tier.SILVER and not enough:
        left_over += [c for c in ranked[1] if not step.add(c, late_ns)]
    if leads:
        left_over += [c for c in ranked[3] if not step.add(c, gold_ns)]
        left_over += [c for c in ranked[2] if not step.add(c)]
    elif not (step.portions and _yields(step, ranked, settings, now_ns)):
        left_over += [c for c in ranked[2] if not step.add(c, keep_ns)]
        left_over = [*ranked[3], *left_over]
    if enough:
        left_over = [*ranked[1], *left_over]
    for c in left_over:
        step.add(c)


def _yields(step: Filling, ranked: Sequence[Sequence[Candidate]], settings: PlannerSettings, now_ns: int) -> bool:
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
    hurry: Candidate | None,
    enough: bool,
) -> Candidate:
    """The candidate that is served first in this step; the step has its adapter. `hurry` is the Silver that must begin
    now; with `enough` Silver has had its share, so it waits for its rank.
    """
    starved = [c for c in candidates if now_ns >= c.starved_ns]
    # Under overload some Gold always is; the others are few.
    lower = [c for c in starved if c.tier is not Tier.GOLD]
    if lower:
        return min(lower, key=_last_step)
    order = (0, 2, 1, 3, 4, 5) if enough else range(6)
    first = min(starved, key=_last_step) if starved else next(ranked[n][0] for n in order if ranked[n])
    late_ns = now_ns - round(settings.silver_turn_ms * MS)
    those = (c for group in ranked[:4] for c in group if c.tier is not Tier.GOLD and c.last_step_ns <= late_ns)
    talks = (c for c in those if not enough and _talks(c, settings, now_ns))
    # Where a step has room for one or two, a share of it is nothing: Silver's share is one of the steps, then.
    talk = min((c for c in talks if c.adapter == first.adapter), key=_last_step, default=None)
    if hurry is not None and hurry.adapter == first.adapter:
        unread_ns = now_ns - round(settings.read_ms * MS)
        if talk is None or not talk.decode or talk.last_step_ns > unread_ns:
            talk = hurry
    first = talk or first
    if first.adapter == adapter_before:
        # Else Gold, which has something in almost every step, would keep its adapter for ever.
        before_ns = now_ns - round(settings.adapter_turn_ms * MS)
        others = [c for group in ranked[:4] for c in group if c.adapter != adapter_before]
        other = min((c for c in others if c.last_step_ns <= before_ns), key=_last_step, default=None)
        if other is not None and (talk is None or _last_step(other) < _last_step(talk)):
            first = other
    else:
        # Two adapters that take turns, one by its rank and one by its tier's turn, would keep a third one out.
        before_ns = now_ns - round(settings.read_ms * MS)
        others = [c for group in ranked[:4] for c in group if c.adapter != first.adapter]
        other = min((c for c in others if c.last_step_ns <= before_ns), key=_last_step, default=None)
        if other is not None and _last_step(other) < _last_step(first):
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
