"""Constrained choice: the answers that are allowed, as texts (Choice) and as one model's tokens (Node).

A choice is made of stages (action, target, emotion), each a list of options. Stages that follow are shared, so 16
actions x 9 targets x 10 emotions cost 16 + 9 + 10 paths and not their product. A layout (prompts/) makes the graph of
nodes from the texts; the graph is walked one token at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.errors import CallerError

Tokens = NDArray[np.int32]


def common_len(held: Tokens, wanted: Tokens) -> int:
    """The number of leading tokens that two sequences share."""
    n = min(len(held), len(wanted))
    if not n:
        return 0
    differ = held[:n] != wanted[:n]
    first = int(differ.argmax())
    return first if differ[first] else n


class Option(NamedTuple):
    """One thing that a stage offers. `number` is what labels call it; with `then` None the answer is complete."""

    number: int
    text: str
    then: Choice | None


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """One stage of an answer as texts: exactly one of the options is taken, and then one of those after it."""

    stage: str
    options: tuple[Option, ...]
    renders: dict[object, Any] = field(default_factory=dict, repr=False)  # by layout, as Section.renders


@dataclass(slots=True, eq=False)
class Node:
    """One place in the graph. `ids[i]` leads to `nexts[i]`; no ids means that the choice is complete.

    `labels[i]` is the (stage, option) that taking `ids[i]` completes, or None; of two labels of one stage on a path the
    later counts. `longest` is how many tokens the longest answer from here has.
    """

    ids: Tokens = field(default_factory=lambda: np.empty(0, np.int32))
    nexts: list[Node] = field(default_factory=list)
    labels: list[tuple[str, int] | None] = field(default_factory=list)
    longest: int = field(init=False)

    def __post_init__(self) -> None:
        self.longest = 1 + max(n.longest for n in self.nexts) if self.nexts else 0

    @property
    def complete(self) -> bool:
        """True when nothing is left to choose."""
        return not self.nexts

    @property
    def forced(self) -> bool:
        """True when only one token may follow, so that no logits are needed."""
        return len(self.nexts) == 1

    def step(self, token: int) -> tuple[Node, tuple[str, int] | None]:
        """The node after `token`, and the (stage, option) that it completed. Raises KeyError on a token not allowed."""
        found = np.flatnonzero(self.ids == token)
        if not len(found):
            raise KeyError(token)
        i = int(found[0])
        return self.nexts[i], self.labels[i]


END = Node()


def stage(name: str, options: Sequence[tuple[int, Sequence[int], Node]]) -> Node:
    """A node from which exactly one of `options` is chosen: (option number, its tokens, the node after it).

    Raises CallerError when two options cannot be told apart, or when one ends inside another and what may follow it
    reads like the rest of the other.
    """
    root = _Draft()
    for option, tokens, after in options:
        if not len(tokens):
            raise CallerError(name, f"option {option} has no tokens")
        root.add(name, option, [int(t) for t in tokens], after)
    return root.freeze(name)


class _Draft:
    """A node under construction: edges by token, and what is reached when an option ends here."""

    def __init__(self) -> None:
        self.edges: dict[int, _Draft] = {}
        self.option = -1
        self.after: Node = END

    def add(self, name: str, option: int, tokens: list[int], after: Node) -> None:
        node = self
        for token in tokens:
            node = node.edges.setdefault(token, _Draft())
        if node.option >= 0:
            raise CallerError(name, f"options {node.option} and {option} are the same tokens")
        node.option, node.after = option, after

    def freeze(self, name: str) -> Node:
        ids: list[int] = []
        nexts: list[Node] = []
        labels: list[tuple[str, int] | None] = []
        for token, draft in self.edges.items():
            label = (name, draft.option) if draft.option >= 0 else None
            if not draft.edges:
                after = draft.after
            elif draft.option < 0:
                after = draft.freeze(name)
            else:
                # An option that ends where a longer one goes on: both ways stay open until they differ.
                merged = _merged(draft.freeze(name), draft.after)
                if merged is None:
                    raise CallerError(
                        name, f"option {draft.option} begins like a longer one in this model's tokens; rename one"
                    )
                after = merged
            ids.append(token)
            nexts.append(after)
            labels.append(label)
        return Node(np.asarray(ids, np.int32), nexts, labels)


def _merged(one: Node, other: Node) -> Node | None:
    """A node from which both may be walked; None when some answer could be meant by both."""
    if one.complete or other.complete:
        return None
    ids, nexts, labels = one.ids.tolist(), list(one.nexts), list(one.labels)
    for token, after, label in zip(other.ids.tolist(), other.nexts, other.labels, strict=True):
        if token not in ids:
            ids.append(token)
            nexts.append(after)
            labels.append(label)
            continue
        i = ids.index(token)
        both = _merged(nexts[i], after)
        if both is None or (label is not None and labels[i] is not None):
            return None
        nexts[i] = both
        labels[i] = labels[i] or label
    return Node(np.asarray(ids, np.int32), nexts, labels)
