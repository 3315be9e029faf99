"""What a step will take: a linear model of its features, learned while running, never with a negative weight.

Features of a step (FACTS: they fit llama.cpp on a CPU): one, micro-batches, tokens, and 1,000 token x padded-context
products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.base import PAD_LEN, Slice, micro_batches

FEATURES = ("step", "micro_batch", "token", "kilo_token_context")
Features = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class CostSettings:
    """`forget` is the weight that older steps keep per new one; `fit_every` steps the weights are solved anew.

    A measurement above `clip_x` times the prediction counts as that much: a page fault is no fact about the model.
    """

    forget: float = 0.995
    fit_every: int = 16
    clip_x: float = 3.0
    overrun_x: float = 1.5  # a step longer than this times its budget pulls the budget down
    pull_down: float = 0.8
    recover: float = 1.02
    prior_ns: Features = (300_000.0, 300_000.0, 60_000.0, 60.0)


def features(slices: Sequence[Slice], micro_len: int) -> Features:
    """The features of one step."""
    micros = micro_batches(slices, micro_len)
    return (
        1.0,
        float(len(micros)),
        float(sum(tokens for tokens, _ in micros)),
        sum(tokens * context for tokens, context in micros) / 1000.0,
    )


class Costs:
    """Predicts nanoseconds of steps. `add` learns from one measured step."""

    def __init__(self, settings: CostSettings = CostSettings()) -> None:
        self.settings = settings
        self.weights_ns: list[float] = list(settings.prior_ns)
        self.learned = 0
        self._gram: NDArray[np.float64] = np.zeros((4, 4))
        self._moment: NDArray[np.float64] = np.zeros(4)
        # How much of its time budget a step may plan for: real overruns pull it down at once, kept promises let it
        # recover.
        self.trust = 1.0

    def predict_ns(self, x: Features) -> float:
        """What a step with these features will take."""
        w = self.weights_ns
        return w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3]

    def fit(self, room_ns: float, pos: int, wanted: int, new_micro: bool) -> tuple[int, float, float]:
        """How many of `wanted` tokens from position `pos` on fit into `room_ns` (may be 0), and what they cost:
        nanoseconds for beginning a micro-batch, and for each token.
        """
        w = self.weights_ns
        fixed_ns = w[1] if new_micro else 0.0
        padded = -(-(pos + wanted) // PAD_LEN) * PAD_LEN
        each_ns = w[2] + w[3] * padded / 1000.0
        if each_ns * wanted <= room_ns - fixed_ns:
            return wanted, fixed_ns, each_ns
        return max(0, int((room_ns - fixed_ns) / each_ns)) if each_ns > 0 else 0, fixed_ns, each_ns

    @property
    def base_ns(self) -> float:
        """What a step costs before its first token."""
        return self.weights_ns[0]

    def add(self, x: Features, took_ns: int, budget_ns: int) -> None:
        """Learns from one step; `budget_ns` is what it had been allowed."""
        s = self.settings
        expected = self.predict_ns(x)
        y = min(float(took_ns), s.clip_x * expected) if self.learned >= s.fit_every else float(took_ns)
        v = np.asarray(x)
        # Relative error counts: divide by the size of the step, or long prefills drown single tokens.
        scale = 1.0 / max(y, 1.0)
        self._gram = s.forget * self._gram + np.outer(v, v) * scale * scale
        self._moment = s.forget * self._moment + v * y * scale * scale
        self.learned += 1
        if self.learned % s.fit_every == 0:
            self._fit()
        if took_ns > s.overrun_x * budget_ns:
            self.trust = max(0.3, self.trust * s.pull_down)
        else:
            self.trust = min(1.0, self.trust * s.recover)

    def _fit(self) -> None:
        """Non-negative least squares on the four weights, by coordinate descent from the present ones.

        A small pull towards the prior keeps weights sane whose feature has not varied yet.
        """
        prior = np.asarray(self.settings.prior_ns)
        ridge = 1e-3 * np.diag(self._gram) + 1e-30
        gram = self._gram + np.diag(ridge)
        moment = self._moment + ridge * prior
        w = np.asarray(self.weights_ns)
        for _ in range(30):
            for j in range(4):
                rest = float(gram[j] @ w) - gram[j, j] * w[j]
                w[j] = max(0.0, (moment[j] - rest) / gram[j, j])
        self.weights_ns = w.tolist()
