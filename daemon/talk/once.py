"""Counts the tokens of a conversation that were computed more than once, and why. Decides.

A turn's tokens are computed once: line and situation when the reply is asked for, the reply as it is drawn, and the few
tokens that close the turn with the next work. Anything else that a work has to compute of its trunk was computed
before:

    recomputed   the KV was lost, or the finished turn reads differently from what the lane held
    rebuild      the trunk was built again: the oldest turns left it, or a late memory came in
    guard        the reply was cut, so its end reads differently; or nothing was left of it, and it was drawn again
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from core.choice import common_len
from core.work import Timings, Work
from memory.hot import Computed

RECOMPUTED, REBUILD, GUARD = "recomputed", "rebuild", "guard"


class Expected(NamedTuple):
    """The tokens that a work may compute for the first time, as they are known when the work is submitted."""

    fresh_from: int
    fresh_to: int
    cut: bool


def expected(computed: Computed) -> Expected:
    """The tokens that the next work of this conversation may compute for the first time."""
    return Expected(computed.fresh_from, computed.fresh_to, computed.cut)


def finished(computed: Computed, trunk_len: int, fresh: int, cut: bool) -> None:
    """A turn is finished: the trunk is so long now, and its last `fresh` tokens were not computed yet."""
    computed.fresh_from, computed.fresh_to, computed.cut = max(0, trunk_len - fresh), trunk_len, cut


def count(
    computed: Computed, work: Work, made: Sequence[int], timings: Timings, expects: Expected, redrawn: bool = False
) -> dict[str, int]:
    """Takes in that a work has ended. Returns how many tokens it computed again, by reason; they are added to
    `computed.again`. `made` are the tokens that its branch took in. A reply that is `redrawn`, because a guard left
    nothing of the first draw, has its tail computed again.
    """
    trunk, cached = work.trunk, timings.cached_tokens
    reached = min(len(trunk), cached + timings.prefilled_tokens)
    same = common_len(computed.tokens, trunk)
    again = dict.fromkeys((RECOMPUTED, REBUILD, GUARD), 0)
    if len(computed.tokens):
        again[RECOMPUTED] = max(0, min(same, reached) - cached)
        begin = max(same, cached)
        other = max(0, reached - begin) - max(0, min(reached, expects.fresh_to) - max(begin, expects.fresh_from))
        why = REBUILD if same < computed.trunk_len else GUARD if expects.cut else RECOMPUTED
        again[why] += max(0, other)
    if redrawn:
        again[GUARD] += max(0, min(len(work.tail), cached + timings.prefilled_tokens - len(trunk)))
    for reason, tokens in again.items():
        if tokens:
            computed.again[reason] = computed.again.get(reason, 0) + tokens
    if reached == len(trunk) and len(trunk):
        branch = np.concatenate([work.tail, np.asarray(made, np.int32)])
        computed.tokens = np.concatenate([trunk, branch]) if len(branch) else trunk
        computed.trunk_len = len(trunk)
    return again
