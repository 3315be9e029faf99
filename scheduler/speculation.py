"""Which works are given drafts, and whether that pays: measured while running, per tier.

A drafted step gives more tokens and takes longer. What it would have taken without drafts is what the cost model says,
corrected by plain steps of as few works, of which there is one now and then. A tier on which drafts do not pay has none
until `retry_s` have passed; then it is tried again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.choice import Tokens
from core.clock import S
from core.words import Tier
from engines.base import Asked, Drafter
from scheduler.drafts import Text
from scheduler.running import Running

KEEP = 0.97  # the weight that older drafted steps keep per new one
PLAIN_KEEP = 0.9
PLAIN_EVERY = 16  # at least one step in so many goes without drafts


@dataclass(frozen=True, slots=True)
class SpeculationSettings:
    """Drafts: "off", "ngram" (what followed before in the work's own text) or "model" (the GGUF file `draft_model`,
    with the model's own vocabulary).

    Works of `tiers` get drafts of at most `tokens_max` tokens while at most `works_max` works run, all of them past
    their first token. After `trial_steps` drafted steps a tier on which the gain in tokens per second is below
    `gain_min` has none for `retry_s`. An n-gram must be alike in `match_min` tokens; `match_max` are looked at.
    """

    drafts: str = "off"
    draft_model: str = ""
    tiers: tuple[str, ...] = ("gold", "silver", "bronze")
    tokens_max: int = 3
    works_max: int = 2
    match_min: int = 2
    match_max: int = 4
    trial_steps: int = 48
    gain_min: float = 1.03
    retry_s: float = 60.0


@dataclass(slots=True)
class TierSpeculation:
    """How drafts do on one tier. `offered` and `accepted` are tokens since start; the rest is of this trial.

    `off_until_ns` > 0: it does not pay, and is tried again then.
    """

    allowed: bool
    off_until_ns: int = 0
    switched_off: int = 0
    offered: int = 0
    accepted: int = 0
    steps: int = 0
    works: float = 0.0
    tokens: float = 0.0
    plain_ns: float = 0.0
    took_ns: float = 0.0
    gain_before: float = 0.0  # of the trial before

    @property
    def on(self) -> bool:
        """Whether works of this tier may get drafts."""
        return self.allowed and not self.off_until_ns

    @property
    def gain(self) -> float:
        """Tokens per second against those without drafts, as measured last; 0.0 while nothing is known."""
        if not self.works or not self.took_ns:
            return self.gain_before
        return self.tokens / self.works * self.plain_ns / self.took_ns


class Speculation:
    """Asks a drafter for the works that may have drafts, and learns from what became of them."""

    def __init__(self, settings: SpeculationSettings, drafter: Drafter, eog: frozenset[int]) -> None:
        self.settings = settings
        self.drafter = drafter
        self.tiers = [TierSpeculation(tier.name.lower() in settings.tiers) for tier in Tier]
        self.plain_x = 1.0  # plain steps of few works against what the cost model says of them
        self.spent_ns = 0  # what drafting took before the step that is planned now
        self._unpaid_ns = 0  # and since the last step that had drafts
        self._eog = eog
        self._since_plain = 0

    def drafts(self, runners: Sequence[Running], room_ns: float, now_ns: int) -> dict[int, Tokens]:
        """Guesses by the runners' numbers; empty when this step goes without. Takes about `room_ns` at most."""
        self.spent_ns = 0
        if len(runners) > self.settings.works_max or not self._awake(now_ns):
            return {}
        if not all(r.decoding for r in runners):
            return {}
        if self._since_plain >= PLAIN_EVERY:
            return {}
        numbers, asked = [], []
        for number, r in enumerate(runners):
            # The step may give one token more than there are drafts.
            count = min(self.settings.tokens_max, r.work.max_tokens - len(r.made) - 1)
            if count > 0 and r.node is None and len(r.feed) == 1 and self.tiers[r.work.tier].on:
                if r.text is None:
                    r.text = Text(r.work)
                sampling = r.work.sampling
                asked.append(Asked(r.ticket_id, r.text.upto(r.made), count, 0 if sampling.greedy else sampling.seed))
                numbers.append(number)
        if not asked:
            return {}
        guesses = self.drafter.draft(asked, room_ns)
        self.spent_ns = self.drafter.took_ns
        self._unpaid_ns += self.spent_ns
        found: dict[int, Tokens] = {}
        for number, tokens in zip(numbers, guesses, strict=True):
            kept = self._before_the_end(tokens, runners[number].work.stop_ids)
            if len(kept):
                found[number] = kept
        return found

    def drafted(
        self, given: Sequence[tuple[Tier, int, int]], works: int, plain_ns: float, took_ns: float, now_ns: int
    ) -> None:
        """Learns from a step of `works` works: per drafted one its tier, drafts and how many were right; what the step
        should have taken without drafts, and what it took with them.
        """
        self._since_plain += 1
        took_ns += self._unpaid_ns
        self._unpaid_ns = 0
        tokens = works + sum(right for _, _, right in given)
        for tier, offered, right in given:
            self.tiers[tier].offered += offered
            self.tiers[tier].accepted += right
        for tier in {tier for tier, _, _ in given}:
            t = self.tiers[tier]
            t.steps += 1
            t.works = KEEP * t.works + works
            t.tokens = KEEP * t.tokens + tokens
            t.plain_ns = KEEP * t.plain_ns + plain_ns * self.plain_x
            t.took_ns = KEEP * t.took_ns + took_ns
            if t.steps >= self.settings.trial_steps and t.gain < self.settings.gain_min:
                t.off_until_ns = now_ns + round(self.settings.retry_s * S)
                t.switched_off += 1

    def plain(self, predicted_ns: float, took_ns: int) -> None:
        """Learns from a step of few works without drafts."""
        self._since_plain = 0
        ratio = min(3.0, took_ns / max(predicted_ns, 1.0))
        self.plain_x = PLAIN_KEEP * self.plain_x + (1.0 - PLAIN_KEEP) * ratio

    @property
    def asleep(self) -> bool:
        """Whether no tier has drafts now."""
        return not any(t.on for t in self.tiers)

    def _awake(self, now_ns: int) -> bool:
        """Whether some tier may have drafts now; wakes those whose time has come."""
        awake = False
        for t in self.tiers:
            if t.off_until_ns and now_ns >= t.off_until_ns:
                t.gain_before = t.gain
                t.off_until_ns = t.steps = 0
                t.works = t.tokens = t.plain_ns = t.took_ns = 0.0
            awake = awake or t.on
        return awake

    def _before_the_end(self, tokens: Tokens, stop_ids: frozenset[int]) -> Tokens:
        """Drafts up to a token that would end the work: that one comes by itself when the others are right."""
        for i, token in enumerate(tokens.tolist()):
            if token in self._eog or token in stop_ids:
                return tokens[:i]
        return tokens
