"""Tokens that a conversation computes a second time are counted, with the reason."""

import numpy as np

from core.words import NpcKey, Tier, TrunkKey
from core.work import Timings, Work
from daemon.talk.once import GUARD, REBUILD, RECOMPUTED, count, expected, finished
from memory.hot import Computed

OWN = list(range(50))


def work(trunk: list[int], *tail: int) -> Work:
    """A turn's work, or one that makes the trunk ready."""
    tokens = np.asarray(trunk, np.int32)
    return Work(Tier.SILVER, TrunkKey(NpcKey("", "w", "n"), "p"), tokens, np.asarray(tail, np.int32), 9 if tail else 0)


def ended(one: Work, cached: int, computed: int = -1) -> Timings:
    """The timings of a work that found so many tokens."""
    prefilled = len(one.trunk) + len(one.tail) - cached if computed < 0 else computed
    return Timings(taken_ns=1, cached_tokens=cached, prefilled_tokens=prefilled)


def after_a_turn(fresh: int = 3, cut: bool = False) -> Computed:
    """A conversation after its first turn: 50 tokens of its own, 4 of a line, 6 of a reply, and its end."""
    known = Computed()
    first = work(OWN, 60, 61, 62, 63)
    assert not any(count(known, first, range(70, 76), ended(first, 0), expected(known)).values())
    finished(known, 50 + 4 + 6 + fresh, fresh, cut)
    return known


NEXT = [*OWN, *range(60, 64), *range(70, 76), 90, 91, 92]


def test_what_closes_a_turn_is_computed_for_the_first_time() -> None:
    """If the lane became the trunk, the next turn computes nothing again."""
    known = after_a_turn()
    turn = work(NEXT, 64)
    assert not any(count(known, turn, (77,), ended(turn, 60), expected(known)).values())
    assert not known.again


def test_kv_that_was_lost_is_recomputed() -> None:
    """The line and the reply, and persona too if all was lost."""
    for cached in (50, 0):
        known = after_a_turn()
        turn = work(NEXT, 64)
        assert count(known, turn, (77,), ended(turn, cached), expected(known))[RECOMPUTED] == 60 - cached
        assert known.again == {RECOMPUTED: 60 - cached}


def test_a_turn_in_another_form_is_recomputed() -> None:
    """A situation stood between persona and line, and is gone: line and reply are computed again by the work in the
    background, and the turn that follows finds all.
    """
    known = Computed()
    first = work(OWN, 55, 56, 60, 61)
    count(known, first, range(70, 76), ended(first, 0), expected(known))
    trunk = [*OWN, 60, 61, *range(70, 76), 90]
    finished(known, len(trunk), 1, False)
    ready = work(trunk)
    assert count(known, ready, (), ended(ready, 50), expected(known)) == {RECOMPUTED: 8, REBUILD: 0, GUARD: 0}
    turn = work(trunk, 64)
    assert not any(count(known, turn, (), ended(turn, len(trunk)), expected(known)).values())


def test_a_trunk_that_is_built_again_says_so() -> None:
    """The oldest turns left, so all that follows the persona is computed again: partly in the background, and the rest
    by the turn that came in between.
    """
    known = after_a_turn()
    turn = work(NEXT, 64)
    count(known, turn, (77,), ended(turn, 60), expected(known))
    trunk = [*OWN, *range(70, 76), 90, 91, 92, 64, 77, 93]
    finished(known, len(trunk), 1, False)
    ready = work(trunk)
    part = count(known, ready, (), ended(ready, 50, 4), expected(known))
    turn = work(trunk, 65)
    rest = count(known, turn, (), ended(turn, 54), expected(known))
    assert part == {RECOMPUTED: 0, REBUILD: 4, GUARD: 0}
    assert rest == {RECOMPUTED: 0, REBUILD: len(trunk) - 54 - 1, GUARD: 0}
    assert known.again == {REBUILD: len(trunk) - 50 - 1}


def test_a_reply_that_a_guard_cut_costs_the_part_that_reads_differently() -> None:
    """The kept beginning is there; the word that was cut in two is computed in other tokens."""
    known = after_a_turn(fresh=3, cut=True)
    trunk = [*OWN, *range(60, 64), 70, 71, 79, 90, 91, 92]
    finished(known, len(trunk), 3, True)
    turn = work(trunk, 64)
    assert count(known, turn, (), ended(turn, 56), expected(known)) == {RECOMPUTED: 0, REBUILD: 0, GUARD: 1}


def test_a_work_that_was_never_taken_changes_nothing() -> None:
    """A refused work computed nothing."""
    known = after_a_turn()
    before = known.tokens
    turn = work(NEXT, 64)
    assert not any(count(known, turn, (), Timings(), expected(known)).values())
    assert known.tokens is before
