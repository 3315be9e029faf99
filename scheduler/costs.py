"""Predicts the time of a step: a linear model of its features, learned while running, never with a negative weight.

Features of a step: one, micro-batches, tokens, 1,000 token x padded-context products, and 1,000 tokens of padded
context that are read, once per sequence. The last one distinguishes 16 decodes from a prefill of 16 tokens: each token
of a decode reads a context of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.base import PAD_LEN, Slice, micro_batches

FEATURES = ("step", "micro_batch", "token", "kilo_token_context", "kilo_context")
Features = tuple[float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class CostSettings:
    """The model that predicts how long a step takes. It learns from every step; change these only to study it."""

    forget: float = 0.995
    """Weight that older steps keep for each new one."""
    fit_every: int = 16
    """The weights are solved anew every so many steps."""
    clip_x: float = 3.0
    """A measurement above this many times the prediction counts as that much: a page fault says nothing about the
    model.
    """
    overrun_x: float = 1.5
    """A step that takes longer than this many times its budget lowers the budget."""
    pull_down: float = 0.8
    """After such an overrun the budget is multiplied by this."""
    recover: float = 1.02
    """After a step within its budget the budget is multiplied by this, until it is whole again."""
    prior_ns: Features = (300_000.0, 300_000.0, 60_000.0, 60.0, 20_000.0)
    """Nanoseconds that the model begins with: per step, micro-batch, token, 1,000 token-context products, and 1,000
    tokens of context that are read.
    """


def features(slices: Sequence[Slice], micro_len: int) -> Features:
    """The features of one step."""
    micros = micro_batches(slices, micro_len)
    return (
        1.0,
        float(len(micros)),
        float(sum(tokens for tokens, _ in micros)),
        sum(tokens * context for tokens, context in micros) / 1000.0,
        sum(-(-(s.pos + len(s.tokens)) // PAD_LEN) for s in slices) * PAD_LEN / 1000.0,
    )


class Costs:
    """Predicts nanoseconds of steps. `add` learns from one measured step."""

    def __init__(self, settings: CostSettings = CostSettings()) -> None:
        self.settings = settings
        self.weights_ns: list[float] = list(settings.prior_ns)
        self.learned = 0
        # The normal equations, in plain floats: five by five is too small for arrays to pay.
        self._gram = [[0.0] * len(FEATURES) for _ in FEATURES]
        self._moment = [0.0] * len(FEATURES)
        # How much of its time budget a step may plan for: real overruns pull it down at once, kept promises let it
        # recover.
        self.trust = 1.0

    def predict_ns(self, x: Features) -> float:
        """The predicted time of a step with these features."""
        w = self.weights_ns
        return w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3] + w[4] * x[4]

    def fit(self, room_ns: float, pos: int, wanted: int, new_micro: bool) -> tuple[int, float, float]:
        """How many of `wanted` tokens from position `pos` on fit into `room_ns` (may be 0), and what they cost:
        nanoseconds for its context, with a micro-batch when it begins one, and for each token.
        """
        w = self.weights_ns
        padded = -(-(pos + wanted) // PAD_LEN) * PAD_LEN / 1000.0
        fixed_ns = w[4] * padded + (w[1] if new_micro else 0.0)
        each_ns = w[2] + w[3] * padded
        if each_ns * wanted <= room_ns - fixed_ns:
            return wanted, fixed_ns, each_ns
        return max(0, int((room_ns - fixed_ns) / each_ns)) if each_ns > 0 else 0, fixed_ns, each_ns

    @property
    def base_ns(self) -> float:
        """The cost of a step before its first token."""
        return self.weights_ns[0]

    def add(self, x: Features, took_ns: int, budget_ns: int) -> None:
        """Learns from one step; `budget_ns` is what it had been allowed."""
        s = self.settings
        expected = self.predict_ns(x)
        y = min(float(took_ns), s.clip_x * expected) if self.learned >= s.fit_every else float(took_ns)
        # Relative error counts: divide by the size of the step, or long prefills drown single tokens.
        scale = 1.0 / max(y, 1.0)
        keep, y = s.forget, y * scale
        x0, x1, x2, x3, x4 = (v * scale for v in x)
        for v, row in zip((x0, x1, x2, x3, x4), self._gram, strict=True):
            g0, g1, g2, g3, g4 = row
            row[:] = (
                keep * g0 + v * x0, keep * g1 + v * x1, keep * g2 + v * x2, keep * g3 + v * x3, keep * g4 + v * x4
            )  # fmt: skip
        self._moment = [keep * m + v * y for m, v in zip(self._moment, (x0, x1, x2, x3, x4), strict=True)]
        self.learned += 1
        if self.learned % s.fit_every == 0:
            self._fit()
        if took_ns > s.overrun_x * budget_ns:
            self.trust = max(0.3, self.trust * s.pull_down)
        else:
            self.trust = min(1.0, self.trust * s.recover)

    def settle(self) -> None:
        """Solves the weights now, from what was learned so far."""
        if self.learned:
            self._fit()

    def _fit(self) -> None:
        """Non-negative least squares on the weights, by coordinate descent from the present ones.

        A small pull towards the prior keeps weights sane whose feature has not varied yet.
        """
        w = self.weights_ns
        pull = [1e-3 * row[j] + 1e-30 for j, row in enumerate(self._gram)]
        for _ in range(30):
            moved = 0.0
            for j, (row, prior_ns) in enumerate(zip(self._gram, self.settings.prior_ns, strict=True)):
                own = row[j] + pull[j]
                rest = row[0] * w[0] + row[1] * w[1] + row[2] * w[2] + row[3] * w[3] + row[4] * w[4] - row[j] * w[j]
                better = max(0.0, (self._moment[j] + pull[j] * prior_ns - rest) / own)
                moved = max(moved, abs(better - w[j]) / (better + 1.0))
                w[j] = better
            if moved < 1e-4:
                break
