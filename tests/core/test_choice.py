"""Constrained choice allows exactly the stated answers."""

import numpy as np
import pytest

from core.choice import END, Node, stage
from core.errors import CallerError


def walks(node: Node) -> list[tuple[tuple[int, ...], tuple[tuple[str, int], ...]]]:
    """Every complete way through a choice: (tokens, labels)."""
    if node.complete:
        return [((), ())]
    out = []
    for token in node.ids.tolist():
        after, label = node.step(token)
        for tokens, labels in walks(after):
            out.append(((token, *tokens), ((label,) if label else ()) + labels))
    return out


def test_stages_follow_each_other_and_label_what_was_chosen() -> None:
    """Two stages give the product of their options, each labelled once per stage."""
    feel = stage("feel", [(0, [7], END), (1, [8], END)])
    act = stage("act", [(0, [1], feel), (1, [2, 3], feel), (2, [2, 4], END)])
    assert sorted(walks(act)) == [
        ((1, 7), (("act", 0), ("feel", 0))),
        ((1, 8), (("act", 0), ("feel", 1))),
        ((2, 3, 7), (("act", 1), ("feel", 0))),
        ((2, 3, 8), (("act", 1), ("feel", 1))),
        ((2, 4), (("act", 2),)),
    ]


def test_a_word_that_goes_on_keeps_both_ways_open() -> None:
    """ "go" and "go home" can both be chosen while what follows "go" does not begin like "home"."""
    feel = stage("feel", [(0, [9], END)])
    act = stage("act", [(0, [5], feel), (1, [5, 6], feel)])
    assert sorted(w for w, _ in walks(act)) == [(5, 6, 9), (5, 9)]


def test_options_that_cannot_be_told_apart_are_refused() -> None:
    """An error names the options when two are equal, or when a longer one begins like a shorter one and the text that
    follows it."""
    with pytest.raises(CallerError, match="same tokens"):
        stage("act", [(0, [5], END), (1, [5], END)])
    feel = stage("feel", [(0, [6], END)])
    with pytest.raises(CallerError, match="rename"):
        stage("act", [(0, [5], feel), (1, [5, 6], feel)])
    with pytest.raises(CallerError, match="no tokens"):
        stage("act", [(0, [], END)])


def test_a_token_that_is_not_allowed_is_an_error() -> None:
    """A walk that leaves the graph raises."""
    with pytest.raises(KeyError):
        stage("act", [(0, [5], END)]).step(6)


def test_forced_means_one_way_only() -> None:
    """A forced node needs no logits."""
    act = stage("act", [(0, [5, 6], END), (1, [5, 7], END)])
    assert act.forced
    after, _ = act.step(5)
    assert not after.forced
    assert after.ids.dtype == np.int32
