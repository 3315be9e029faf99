"""Drafts from a small model of its own, whose sequences follow the texts of the works.

Owns the draft engine and what its sequences hold. A work keeps its sequence until others who ask need it: whoever asked
longest ago gives way, and a new work takes over the sequence that begins most like its text. When a work is cancelled
nothing needs to be done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.choice import Tokens
from core.clock import US, Clock
from core.errors import EngineFailed
from engines.base import GREEDY_PICK, Asked, Slice, StepEngine, StepPlan, tokens_of

KEEP = 0.8
IN_USE_CALLS = 2  # a work that asked in the last calls probably asks again
NO_GUESS: Tokens = np.empty(0, np.int32)


@dataclass(slots=True, eq=False)
class _Follower:
    """One sequence: it holds the first `length` of `tokens`, for the work `number` (-1: none yet)."""

    seq: int
    tokens: Tokens
    number: int = -1
    length: int = 0
    asked: int = 0  # in which call it was used last


class ModelDrafts:
    """A Drafter: the likeliest continuations by a small model with the target's vocabulary, a step for each token.

    A text that it does not have yet is taken in first, as much as there is room for; guesses come when it has all.
    """

    def __init__(self, engine: StepEngine, clock: Clock) -> None:
        self.engine = engine
        self.took_ns = 0
        self.failures = 0
        self._clock = clock
        self._calls = 0
        # The time of a token in a longer slice, and of a step of single tokens: learned from its own steps.
        self._token_ns = 10.0 * US
        self._step_ns = 300.0 * US
        room = engine.geometry.context_len
        self._followers = [_Follower(seq, np.zeros(room, np.int32)) for seq in range(engine.geometry.sequences)]

    def draft(self, asked: Sequence[Asked], room_ns: float) -> list[Tokens]:
        """Greedy guesses for all who asked, side by side; none for texts that are still being taken in."""
        began_ns = self._clock()
        self._calls += 1
        guesses: list[list[int]] = [[] for _ in asked]
        try:
            self._guess(asked, guesses, began_ns + room_ns)
        except EngineFailed:
            self.failures += 1
            self.engine.rebuild()
            for follower in self._followers:
                follower.number, follower.length = -1, 0
        self.took_ns = self._clock() - began_ns
        return [tokens_of(made) if made else NO_GUESS for made in guesses]

    def forget(self) -> None:
        """Follows nobody: the next works may have the numbers of others before."""
        for follower in self._followers:
            self.engine.trim(follower.seq, 0)
            follower.number, follower.length = -1, 0

    def close(self) -> None:
        """Frees the draft engine."""
        self.engine.close()

    def _guess(self, asked: Sequence[Asked], guesses: list[list[int]], until_ns: float) -> None:
        geometry = self.engine.geometry
        tokens_left = min(geometry.batch_len, max(16, int((until_ns - self._clock()) / self._token_ns)))
        # The follower, the index of its work in `asked`, and the tokens to take in next.
        going: list[tuple[_Follower, int, Tokens]] = []
        for at, a in enumerate(asked[: len(self._followers)]):
            if len(a.text) + a.most > geometry.context_len:
                continue
            follower = self._follow(a)
            missing = a.text[follower.length : follower.length + tokens_left]
            if len(missing):
                going.append((follower, at, missing))
                tokens_left -= len(missing)
        while going:
            going.sort(key=lambda g: g[0].seq)
            picked = self._step(going)
            after = []
            for (follower, at, taken), token in zip(going, picked, strict=True):
                end = follower.length + len(taken)
                follower.tokens[follower.length : end] = taken
                follower.length = end
                if end < len(asked[at].text):
                    continue  # the rest of it comes before the next steps
                guesses[at].append(token)
                if len(guesses[at]) < asked[at].most:
                    after.append((follower, at, tokens_of((token,))))
            going = after if self._clock() + self._step_ns <= until_ns else []

    def _step(self, going: Sequence[tuple[_Follower, int, Tokens]]) -> list[int]:
        plan = StepPlan([Slice(f.seq, f.length, taken, GREEDY_PICK) for f, _, taken in going])
        began_ns, tokens = self._clock(), plan.tokens
        picked = self.engine.step(plan).picked
        took_ns = self._clock() - began_ns
        if tokens > 8 * len(going):
            self._token_ns = KEEP * self._token_ns + (1.0 - KEEP) * took_ns / tokens
        elif tokens == len(going):
            self._step_ns = KEEP * self._step_ns + (1.0 - KEEP) * took_ns
        return picked

    def _follow(self, asked: Asked) -> _Follower:
        """The sequence for a text, cut back to what they share; the text's last token is always taken in anew."""
        own = next((f for f in self._followers if f.number == asked.number), None)
        if own is None:
            free = [f for f in self._followers if f.asked < self._calls - IN_USE_CALLS or f.number < 0]
            if not free:
                free = [min((f for f in self._followers if f.asked < self._calls), key=lambda f: f.asked)]
            own = max(free, key=lambda f: (_shared(f, asked.text), -f.asked))
            own.number = asked.number
        own.asked = self._calls
        keep = min(_shared(own, asked.text), len(asked.text) - 1)
        self.engine.trim(own.seq, keep)
        own.length = keep
        return own


def _shared(follower: _Follower, text: Tokens) -> int:
    """How many leading tokens a sequence and a text share."""
    n = min(follower.length, len(text))
    differ = follower.tokens[:n] != text[:n]
    first = int(differ.argmax()) if n else 0
    return first if n and differ[first] else n
