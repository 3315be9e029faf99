"""How long the next step may take: by the settings where a few tokens fit into that, else by what steps cost here.

Let u be the predicted time of a step with one token of the work that goes first. Where `few_tokens_x` * u fits into
the settings' budget, that budget holds. On a slower model:

* The budget is the time of a piece of `chunk_min` tokens, or `few_tokens_x` * u if that is less. A step has fixed
  costs F and a cost T for each token, so F < u: of a step of 4 * u at most a quarter is fixed, on any model. On a GPU,
  where F is nearly all of u, the piece is what costs less: there the budget hardly exceeds one pass over the weights.
* A step that begins with Gold's decode keeps to Gold's promise for each token (`gold_token_ms`) while u does.
* A step that begins with a conversation that waits for its first text takes all of its prefill, up to
  `first_step_ms`: in pieces it would pay F for each of them while a player waits.
* While a reply is spoken, a step lasts `read_ms` at most, so the reply is not slower than reading.
* While a conversation waits for its first text, a step lasts at most a quarter of what that text takes alone: what
  runs when the line comes, and each step that others have, delay the text by a quarter of its own time at most.
* None of this makes the budget smaller than u, or than the budget while Gold is near.

Where the budget has no room for a second token, works of the same or a higher rank may join beyond it, up to
`few_tokens_x` * u, if a token costs less there than in a step of its own: k works that take turns get a token every
k * u, and together they get it sooner than that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from core.clock import MS, S
from core.words import Tier
from scheduler.costs import Costs


class Limits(Protocol):
    """The settings that decide about a step's time (those of the planner)."""

    @property
    def gold_step_ms(self) -> float:
        """Budget while Gold is near."""

    @property
    def few_tokens_x(self) -> float:
        """Of one token's step: what a step may take at least."""

    @property
    def gold_token_ms(self) -> float:
        """Gold's promise for each token."""

    @property
    def read_ms(self) -> float:
        """The longest step while a reply is spoken."""

    @property
    def first_step_ms(self) -> float:
        """The longest step that begins with a reply's prefill."""

    @property
    def first_text_share(self) -> float:
        """Of a first text alone: the longest step while it is waited for."""

    @property
    def chunk_min(self) -> int:
        """The smallest piece of a prefill."""


class Need(Protocol):
    """A work that needs engine time."""

    @property
    def tier(self) -> Tier:
        """Its tier."""

    @property
    def decode(self) -> bool:
        """True if its first token is out."""

    @property
    def pos(self) -> int:
        """Tokens in its sequence."""

    @property
    def wanted(self) -> int:
        """Tokens that it could take in now."""

    @property
    def prefill(self) -> int:
        """Tokens that it takes in before its first one is picked."""


class Budget(NamedTuple):
    """The time that a step may take, and the time that it may take with works of the rank of the first one and above.
    `one_ns`: a step with one token of the first.
    """

    step_ns: float
    join_ns: float
    one_ns: float


def one_token_ns(costs: Costs, pos: int) -> float:
    """The predicted time of a step with one token at this position."""
    _, fixed_ns, each_ns = costs.fit(0.0, pos, 1, True)
    return costs.base_ns + fixed_ns + each_ns


def prefill_ns(costs: Costs, need: Need) -> float:
    """The predicted time of a work's prefill in one step of its own."""
    _, fixed_ns, each_ns = costs.fit(0.0, need.pos, need.prefill, True)
    return costs.base_ns + fixed_ns + need.prefill * each_ns


def first_text_ns(costs: Costs, need: Need) -> float:
    """The predicted time to a work's first text on an idle engine: its prefill and one decode."""
    return prefill_ns(costs, need) + one_token_ns(costs, need.pos + need.prefill)


def budget(
    first: Need, waiting: Iterable[Need], speaks: bool, costs: Costs, limits: Limits, settings_ns: float
) -> Budget:
    """The budget of a step that begins with `first`. `settings_ns` is the budget of the settings; `waiting` are
    conversations that wait for their first text; `speaks`: a reply is being spoken.

    Laws: with few_tokens_x tokens inside the settings' budget, step_ns is that, or less while a conversation waits;
    step_ns is never below the lesser of settings_ns and gold_step_ms, and never below one_ns.
    """
    one_ns = one_token_ns(costs, first.pos)
    few_ns = limits.few_tokens_x * one_ns
    gold_step_ns = limits.gold_step_ms * MS
    slow = few_ns > settings_ns
    if not slow and settings_ns <= gold_step_ns:
        return Budget(settings_ns, settings_ns, one_ns)
    step_ns, join_ns = settings_ns, max(settings_ns, few_ns)
    if slow:
        _, fixed_ns, each_ns = costs.fit(0.0, first.pos, limits.chunk_min, True)
        step_ns = max(settings_ns, min(few_ns, costs.base_ns + fixed_ns + limits.chunk_min * each_ns))
        if first.tier is Tier.SILVER and not first.decode:
            _, fixed_ns, each_ns = costs.fit(0.0, first.pos, first.wanted, True)
            whole_ns = costs.base_ns + fixed_ns + first.wanted * each_ns
            step_ns = max(step_ns, min(whole_ns, limits.first_step_ms * MS))
        if first.decode and first.tier is Tier.GOLD:
            step_ns = min(step_ns, max(settings_ns, limits.gold_token_ms * MS))
        if speaks:
            step_ns, join_ns = min(step_ns, limits.read_ms * MS), min(join_ns, limits.read_ms * MS)
    share = limits.first_text_share
    most_ns = min((share * first_text_ns(costs, c) for c in waiting if c is not first), default=None)
    if most_ns is not None:
        step_ns, join_ns = min(step_ns, most_ns), min(join_ns, most_ns)
    least_ns = max(one_ns, min(settings_ns, gold_step_ns))
    step_ns = max(step_ns, least_ns)
    return Budget(step_ns, max(join_ns, step_ns) if 2.0 * one_ns > step_ns else step_ns, one_ns)


def latest_start_ns(talks: Iterable[tuple[int, float]], hurry_x: float) -> float:
    """The latest moment at which prefills must have the engine, so that each is done by its deadline. `talks` are the
    (deadline, time alone) of each, earliest deadline first. Times count `hurry_x` times, for others have a part of the
    engine.
    """
    ahead_ns, latest_ns = 0.0, float("inf")
    for deadline_ns, takes_ns in talks:
        ahead_ns += takes_ns
        latest_ns = min(latest_ns, deadline_ns - hurry_x * ahead_ns)
    return latest_ns


@dataclass(slots=True)
class TalkShare:
    """The share of the engine's time that conversations had lately: a mean over time that forgets within a second.

    Law: 0 <= share <= 1.
    """

    share: float = 0.0
    _at_ns: int = 0

    def add(self, took_ns: int, talked: float, now_ns: int) -> None:
        """A step ended now that took so long; conversations had the share `talked` of it."""
        self.look(now_ns - took_ns)
        part = min(1.0, took_ns / S)
        self.share += (talked - self.share) * part
        self._at_ns = max(self._at_ns, now_ns)

    def look(self, now_ns: int) -> float:
        """The share now; time without a step counts as time that nobody had."""
        if now_ns > self._at_ns:
            self.share *= max(0.0, 1.0 - (now_ns - self._at_ns) / S)
            self._at_ns = now_ns
        return self.share
