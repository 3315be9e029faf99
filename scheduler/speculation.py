"""The choice of works that get drafts, and the measurement per tier, while running, of what drafts gain.

A drafted step gives more tokens and takes longer, and so does all that goes with it: time is counted from step to step.
The cost model predicts the time without drafts; plain steps of as few works, one now and then, correct the prediction.
A tier on which drafts do not pay has none until `retry_s` have passed.
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

KEEP = 0.97  # the weight that older steps keep per new one
PLAIN_KEEP = 0.9
PLAIN_X_MAX = 5.0
DEARER_MAX = 20.0
PLAIN_EVERY = 16  # at least one step in so many goes without drafts
PLAIN_EVERY_IN_TRIAL = 5


@dataclass(frozen=True, slots=True)
class SpeculationSettings:
    """Speculative decoding: drafts of the next tokens, which the model checks in one step. npcd measures per tier
    whether drafts pay and stops where they do not.
    """

    drafts: str = "off"
    """Source of drafts: `off`, `ngram` (words that followed before in the request's own text) or `model` (a small
    model).
    """
    draft_model: str = ""
    """GGUF file of the draft model, which must have the main model's vocabulary; it belongs to `speculation.drafts =
    "model"`.
    """
    tiers: tuple[str, ...] = ("gold", "silver", "bronze")
    """Tiers whose requests get drafts: `gold`, `silver`, `bronze`."""
    tokens_max: int = 3
    """Tokens in one draft at most. From 1 to 16."""
    works_max: int = 2
    """Drafts are made only while at most this many requests run, all of them past their first token. From 1 to 64."""
    match_min: int = 2
    """Tokens that an n-gram must have in common with the text before it counts as a match; at least 1."""
    match_max: int = 4
    """Tokens of context that are compared for a match; at least `speculation.match_min`."""
    trial_steps: int = 48
    """Steps with drafts after which a tier is judged; at least 1."""
    gain_min: float = 1.03
    """A tier keeps its drafts if they multiply its tokens per second by at least this."""
    retry_s: float = 60.0
    """A tier whose drafts did not pay tries them again after this time; more than 0."""


@dataclass(slots=True)
class TierSpeculation:
    """How drafts do on one tier. `offered` and `accepted` are tokens since start; the sums are of this trial.

    `off_until_ns` > 0: it does not pay, and is tried again then. `gain`: tokens per second against those without
    drafts, as measured last; 0.0 while nothing is known.
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
    gain: float = 0.0

    @property
    def on(self) -> bool:
        """True if works of this tier may get drafts."""
        return self.allowed and not self.off_until_ns


class Speculation:
    """Asks a drafter for the works that may have drafts, and learns from what became of them.

    `sleeps_until_ns` > 0: no tier has drafts before then, and nothing else needs to be asked here.
    """

    def __init__(self, settings: SpeculationSettings, drafter: Drafter, eog: frozenset[int]) -> None:
        self.settings = settings
        self.drafter = drafter
        self.tiers = [TierSpeculation(tier.name.lower() in settings.tiers) for tier in Tier]
        # The time of plain steps of few works, with all that goes with them, and the cost model's prediction of it.
        self._plain_took_ns = self._plain_said_ns = 0.0
        self.spent_ns = 0  # the time of drafting before the step that is planned now
        self.sleeps_until_ns = 0
        self.measuring = False  # True if the step that is planned now teaches something
        self._eog = eog
        self._asked: set[Tier] = set()
        self._since_plain = PLAIN_EVERY  # the first one is plain

    def drafts(self, runners: Sequence[Running], room_ns: float, now_ns: int) -> dict[int, Tokens]:
        """Guesses by the runners' numbers; empty when this step goes without. Takes about `room_ns` at most."""
        self.spent_ns = 0
        self._wake(now_ns)
        self._asked = set()
        self.measuring = any(self.tiers[r.work.tier].on for r in runners) and all(
            r.decoding and len(r.feed) == 1 for r in runners
        )
        trial = any(t.on and 0 < t.steps < self.settings.trial_steps for t in self.tiers)
        if not self.measuring or self._since_plain >= (PLAIN_EVERY_IN_TRIAL if trial else PLAIN_EVERY):
            return {}
        numbers, asked = [], []
        # Higher tiers first: a drafter may have time and sequences for some of them only.
        for number, r in sorted(enumerate(runners), key=lambda each: each[1].tier):
            # The step may give one token more than there are drafts.
            count = min(self.settings.tokens_max, r.work.max_tokens - len(r.made) - 1)
            if count > 0 and r.node is None and self.tiers[r.work.tier].on:
                if r.text is None:
                    r.text = Text(r.work)
                sampling = r.work.sampling
                asked.append(Asked(r.ticket_id, r.text.upto(r.made), count, 0 if sampling.greedy else sampling.seed))
                numbers.append(number)
                self._asked.add(r.work.tier)
        if not asked:
            return {}
        guesses = self.drafter.draft(asked, room_ns)
        self.spent_ns = self.drafter.took_ns
        found: dict[int, Tokens] = {}
        for number, tokens in zip(numbers, guesses, strict=True):
            kept = self._before_the_end(tokens, runners[number].work.stop_ids)
            if len(kept):
                found[number] = kept
        return found

    def learn(
        self, given: Sequence[tuple[Tier, int, int]], works: int, plain_ns: float, took_ns: int, now_ns: int
    ) -> None:
        """Learns from a step of `works` works that only decoded: per drafted one its tier, drafts and how many were
        right; the predicted time of the step without drafts, and the time since the step before it.

        Looking for guesses takes time even if there are none, so a step counts if guesses were asked for.
        """
        self.measuring = False
        if not self._asked:
            self._since_plain = 0
            if took_ns < PLAIN_X_MAX * plain_ns:  # else something else happened between two steps
                self._plain_took_ns = PLAIN_KEEP * self._plain_took_ns + took_ns
                self._plain_said_ns = PLAIN_KEEP * self._plain_said_ns + plain_ns
            return
        self._since_plain += 1
        for tier, offered, right in given:
            self.tiers[tier].offered += offered
            self.tiers[tier].accepted += right
        tokens = works + sum(right for _, _, right in given)
        for tier in self._asked:
            t = self.tiers[tier]
            t.steps += 1
            t.works = KEEP * t.works + works
            t.tokens = KEEP * t.tokens + tokens
            t.plain_ns = KEEP * t.plain_ns + plain_ns
            t.took_ns = KEEP * t.took_ns + min(took_ns, DEARER_MAX * plain_ns)
            t.gain = t.tokens / t.works * t.plain_ns * self.plain_x / max(t.took_ns, 1.0)
            if t.steps >= self.settings.trial_steps and t.gain < self.settings.gain_min:
                t.off_until_ns = now_ns + round(self.settings.retry_s * S)
                t.switched_off += 1
                if not any(other.on for other in self.tiers):
                    self.sleeps_until_ns = min(other.off_until_ns for other in self.tiers if other.allowed)

    @property
    def plain_x(self) -> float:
        """Plain steps against what the cost model says of them."""
        return self._plain_took_ns / self._plain_said_ns if self._plain_said_ns else 1.0

    def _wake(self, now_ns: int) -> None:
        """Those whose time has come are tried again."""
        self.sleeps_until_ns = 0
        for t in self.tiers:
            if t.off_until_ns and now_ns >= t.off_until_ns:
                t.off_until_ns = t.steps = 0
                t.works = t.tokens = t.plain_ns = t.took_ns = 0.0

    def _before_the_end(self, tokens: Tokens, stop_ids: frozenset[int]) -> Tokens:
        """Drafts up to a token that would end the work: that one comes by itself when the others are right."""
        for i, token in enumerate(tokens.tolist()):
            if token in self._eog or token in stop_ids:
                return tokens[:i]
        return tokens
