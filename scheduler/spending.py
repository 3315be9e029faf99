"""The engine's time by tier, and the cost of one intent, one prefilled token and one spoken token here.

The time of a step is divided among the works in it, by the cost model's weights. Unit costs follow from the same
weights, which learn from every step, for an intent of the size that intents had lately.
"""

from __future__ import annotations

from core.clock import MS
from core.words import Finish, Tier
from engines.backend import UnitCosts
from engines.base import PAD_LEN
from scheduler.composing import Planned
from scheduler.costs import Costs
from scheduler.place import Part
from scheduler.running import Running

KEEP = 1.0 - 1.0 / 32  # the weight that older intents keep for each new one
GROUP_MAX = 16
GROUP_WITHIN_NS = 100 * MS  # so many intents are computed side by side as are answered within this time
CHUNK = 64  # tokens of a long prefill
TALK_CONTEXT = 128.0  # of a conversation, until one was there

# The size of an intent until some were answered: tokens of its tail, steps after that, and tokens of these.
TAIL, STEPS, TOKENS, CONTEXT = 20.0, 3.0, 4.0, 128.0


class Spending:
    """Owned by the engine thread. `by_tier_ns` and `trunks_ns` (trunks that were computed, for whatever tier) add up to
    the time of all steps, and `expected_ns` is what the cost model had expected of them. `shares` are those of the last
    step.
    """

    def __init__(self, micro_len: int) -> None:
        self.by_tier_ns = [0 for _ in Tier]
        self.trunks_ns = 0
        self.expected_ns = 0
        self._micro_len = micro_len
        self.shares = [0.0 for _ in range(len(Tier) + 1)]  # of the last step, the trunks' last
        # Decaying sums over intents: their number, tokens of tails, steps and tokens after these, and contexts.
        self._sums = [1.0, TAIL, STEPS, TOKENS, CONTEXT * STEPS]
        self._talk_context = TALK_CONTEXT  # of spoken tokens lately

    def step(self, planned: Planned, took_ns: int, costs: Costs) -> None:
        """Takes in a step that took so long; call it before the works take in what it gave."""
        self.expected_ns += round(costs.predict_ns(planned.features))
        if not planned.again:
            self.shares = self._divide(planned, costs)
        by_tier, *tiers, trunks = self.by_tier_ns, *self.shares
        for tier, share in enumerate(tiers):
            if share:
                by_tier[tier] += round(took_ns * share)
        self.trunks_ns += round(took_ns * trunks)

    def ended(self, runner: Running, finish: Finish) -> None:
        """A work is over. An intent that was answered tells the size of intents."""
        if runner.node is not None and runner.work.tier is Tier.GOLD and finish is Finish.STOP:
            self._sums = [KEEP * value for value in self._sums]
            self._sums[0] += 1.0

    def unit_costs(self, costs: Costs) -> UnitCosts:
        """The costs now."""
        weights_ns = costs.weights_ns
        works, tail, steps, tokens, context = self._sums
        tail, steps, tokens = max(1.0, tail / works), max(1.0, steps / works), tokens / works
        context = _padded(context / max(1.0, self._sums[2])) / 1000.0

        def group_ns(count: int) -> float:
            first_ns = self._step_ns(weights_ns, count, count * tail, context)
            each = max(1.0, tokens / steps)
            return (first_ns + steps * self._step_ns(weights_ns, count, count * each, context)) / count

        alone_ns = group_ns(1)
        intent_ns, count = alone_ns, 2
        while count <= GROUP_MAX and count * group_ns(count) <= GROUP_WITHIN_NS:
            intent_ns, count = group_ns(count), count * 2
        # The cost model knows the contexts that it has seen.
        long = _padded(self._talk_context) / 1000.0
        return UnitCosts(
            round(intent_ns),
            round(alone_ns),
            round(self._step_ns(weights_ns, 1, CHUNK, long) / CHUNK),
            round(self._step_ns(weights_ns, 1, 1, long)),
        )

    def _step_ns(self, weights_ns: list[float], sequences: int, tokens: float, kilo_context: float) -> float:
        """The cost of a step of neighbouring sequences with equal lengths."""
        w = weights_ns
        micros = max(1.0, -(-tokens // self._micro_len))
        return w[0] + w[1] * micros + (w[2] + w[3] * kilo_context) * tokens + w[4] * kilo_context * sequences

    def _divide(self, planned: Planned, costs: Costs) -> list[float]:
        """Each tier's share of a step, then the trunks' share. Sequences bear equal parts of what a step costs without
        tokens.
        """
        assert planned.step is not None
        w, slices = costs.weights_ns, planned.step.slices
        each_ns = (w[0] + w[1] * planned.features[1]) / len(slices) + 1.0
        shares, sums = [0.0 for _ in self.shares], self._sums
        for s, runner in zip(slices, planned.runners, strict=True):
            tokens, context = len(s.tokens), _padded(s.pos) / 1000.0
            whose = runner.work.tier if runner.place.part is Part.BRANCH else len(Tier)
            shares[whose] += each_ns + tokens * (w[2] + w[3] * context) + w[4] * context
            if runner.node is not None and runner.work.tier is Tier.GOLD and runner.place.part is Part.BRANCH:
                if runner.made:
                    sums[2] += 1.0
                    sums[3] += tokens
                    sums[4] += s.pos
                else:
                    sums[1] += tokens
            elif runner.made and runner.work.tier is not Tier.GOLD:
                self._talk_context += (s.pos - self._talk_context) / 64.0
        whole = sum(shares)
        return [ns / whole for ns in shares]


def _padded(pos: float) -> float:
    return (pos // PAD_LEN + 1) * PAD_LEN
