"""One step: a plan written into the batch, decoded, and a token picked for each slice that asked for one.

Owns the batch and a record of the step in it. A step that goes on with the one before only moves positions and puts in
the new tokens. Plans are asserted here before the native library sees them: it would abort
the process (docs/decisions/0001).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from core.choice import Tokens
from engines.base import Pick, StepPlan, StepResult, verify
from engines.llama import native
from engines.llama.batch import Batch
from engines.llama.samplers import Samplers
from engines.llama.settings import LlamaSettings
from engines.llama.state import State


@dataclass(slots=True)
class _Filled:
    """The step that the batch holds: tokens in all; per slice its sequence and number of tokens; the places in the
    batch that want logits; and how each slice picks: (slice, row of logits). `single`: one token per slice, and all
    pick. `drafted`: the same with the sampler and the guesses, whose rows follow each other.
    """

    tokens: int
    seqs: NDArray[np.int64]
    lengths: NDArray[np.int64]
    wanted: list[int]
    single: bool
    greedy: list[tuple[int, int]] = field(default_factory=list)
    drawn: list[tuple[int, int, int]] = field(default_factory=list)  # and the sampler
    masked: dict[int, tuple[Tokens, list[tuple[int, int]]]] = field(default_factory=dict)
    drafted: list[tuple[int, int, int, Tokens]] = field(default_factory=list)
    rows: int = 0

    def add(self, place: int, pick: Pick, drafts: Tokens | None = None) -> None:
        """One more slice that picks."""
        row = self.rows
        if drafts is not None:
            assert pick.allowed is None, "a choice is not drafted"
            self.rows += 1 + len(drafts)
            self.drafted.append((place, row, pick.sampler, drafts))
            return
        self.rows += 1
        if pick.allowed is not None:
            self.masked.setdefault(id(pick.allowed), (pick.allowed, []))[1].append((place, row))
        elif pick.sampler >= 0:
            self.drawn.append((place, row, pick.sampler))
        else:
            self.greedy.append((place, row))


class Steps:
    """Runs plans on the first `sequences` sequences of a state."""

    def __init__(
        self, state: State, samplers: Samplers, settings: LlamaSettings, sequences: int, vocab_len: int
    ) -> None:
        self._state = state
        self._samplers = samplers
        self._settings = settings
        self._sequences = sequences
        self._vocab_len = vocab_len
        self._filled: _Filled | None = None  # the content of the batch
        self._count = np.arange(settings.batch_len, dtype=np.int32)
        self.batch = Batch(settings.batch_len)

    def run(self, plan: StepPlan) -> StepResult:
        """Decodes all slices in one call and picks a token where one was asked for."""
        assert plan.slices, "an empty step"
        filled = self._filled
        if plan.onward is None or filled is None or not filled.single:
            filled = self._fill(plan)
        else:
            self._fill_onward(filled, plan.onward)
        state = self._state
        state.decode(self.batch, filled.tokens)
        state.book[filled.seqs] += filled.lengths
        self._filled = filled
        return self._pick(filled)

    def context_was_replaced(self) -> None:
        """All sequences are empty now, so the next step cannot go on with the last one."""
        self._filled = None

    def _fill(self, plan: StepPlan) -> _Filled:
        """Writes a plan into the batch. Plans that would make llama.cpp abort, or that it would accept in silence, end
        here.
        """
        slices, batch = plan.slices, self.batch
        lengths = np.asarray([len(s.tokens) for s in slices])
        seqs = np.asarray([s.seq for s in slices])
        starts = np.asarray([s.pos for s in slices])
        total = int(lengths.sum())
        assert seqs[0] >= 0 and seqs[-1] < self._sequences, f"no sequence {seqs[0]} or {seqs[-1]}"
        assert len(seqs) == 1 or (seqs[1:] > seqs[:-1]).all(), "slices must be sorted by sequence, none twice"
        assert lengths.min() > 0 and total <= self._settings.batch_len, "a step takes 1 to batch_len tokens"
        held = self._state.book[seqs]
        assert (starts == held).all(), f"sequences {seqs} hold {held} tokens, the plan says {starts}"
        assert (starts + lengths).max() <= self._settings.context_len, "a sequence would outgrow its context"
        ends = lengths.cumsum()
        batch.token[:total] = (
            [s.tokens[0] for s in slices] if total == len(slices) else np.concatenate([s.tokens for s in slices])
        )
        batch.pos[:total] = np.repeat(starts - ends + lengths, lengths) + self._count[:total]
        batch.seq[:total] = np.repeat(seqs, lengths)
        batch.wanted[:total] = 0
        wanted: list[int] = []
        for s, end in zip(slices, ends.tolist(), strict=True):
            if s.pick is not None:
                assert s.drafts < len(s.tokens), "drafts come after a token that is known"
                wanted += range(end - 1 - s.drafts, end) if s.drafts else (end - 1,)
        batch.wanted[wanted] = 1
        taken = batch.token[:total]
        assert taken.min() >= 0 and taken.max() < self._vocab_len, "token id out of range"
        filled = _Filled(total, seqs, lengths, wanted, total == len(slices) == len(wanted))
        for i, s in enumerate(slices):
            if s.pick is not None:
                filled.add(i, s.pick, s.tokens[-s.drafts :] if s.drafts else None)
        return filled

    def _fill_onward(self, filled: _Filled, tokens: Tokens) -> None:
        """The batch still holds the step before: every position moves by one, and the tokens are new."""
        count, batch = filled.tokens, self.batch
        assert len(tokens) == count, f"{len(tokens)} tokens for {count} sequences"
        positions = batch.pos[:count]
        positions += 1
        held = self._state.book[filled.seqs]
        assert (positions == held).all(), f"sequences {filled.seqs} hold {held} tokens, the plan says {positions}"
        assert int(positions.max()) < self._settings.context_len, "a sequence would outgrow its context"
        batch.token[:count] = tokens

    def _pick(self, filled: _Filled) -> StepResult:
        wanted, greedy = filled.wanted, filled.greedy
        picked = [-1] * len(filled.seqs)
        probability = [0.0] * len(filled.seqs)
        verified: dict[int, list[int]] = {}
        if wanted:
            logits = self._state.logits(len(wanted))
            chains, context = self._samplers.chains, self._state.context
            for i, row, sampler in filled.drawn:
                picked[i] = int(native.sample(chains[sampler], context, wanted[row]))
            if len(greedy) == len(picked):
                picked = logits.argmax(axis=1).tolist()
            elif greedy:
                rows = logits if len(greedy) == len(wanted) else logits[[r for _, r in greedy]]
                for (i, _), token in zip(greedy, rows.argmax(axis=1).tolist(), strict=True):
                    picked[i] = token
            for allowed, places in filled.masked.values():
                tokens, sure = likeliest(logits[[r for _, r in places]][:, allowed], allowed)
                for (i, _), token, p in zip(places, tokens, sure, strict=True):
                    picked[i], probability[i] = int(token), float(p)
            for i, row, sampler, drafts in filled.drafted:
                verified[i] = verify(drafts, partial(self._pick_row, logits, wanted, row, sampler))
                picked[i] = verified[i][0]
        return StepResult(picked, probability, verified)

    def _pick_row(self, logits: NDArray[np.float32], wanted: list[int], first: int, sampler: int, right: int) -> int:
        """The token after `right` drafts: drawn by the chain, or the likeliest."""
        row = first + right
        if sampler >= 0:
            return int(native.sample(self._samplers.chains[sampler], self._state.context, wanted[row]))
        return int(logits[row].argmax())


def likeliest(logits: NDArray[np.float32], allowed: Tokens) -> tuple[Tokens, NDArray[np.float32]]:
    """Per row of `logits` (rows x allowed): the likeliest token and its probability among those allowed."""
    best = logits.argmax(axis=1)
    top = logits[np.arange(len(best)), best]
    sure = 1.0 / np.exp(logits - top[:, None]).sum(axis=1)
    return allowed[best], sure.astype(np.float32)
