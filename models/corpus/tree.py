"""Token trees: pieces below pieces, and the weight of each token in the loss."""

from __future__ import annotations

from dataclasses import dataclass, field

# The weight of a token, by its class. No two are equal, so that the loss of each class can be told apart. Tokens that
# must be found in the context are a small part of all tokens and the hardest to learn.
TEXT, CHOICE, BARK, REPLY, TOLD, FOUND, RECALL = 0.05, 1.0, 0.5, 0.6, 0.3, 2.0, 0.8
CLASSES = {"text": TEXT, "choice": CHOICE, "bark": BARK, "reply": REPLY, "found": FOUND, "recall": RECALL}


@dataclass(slots=True)
class Piece:
    """Consecutive tokens of a tree and their weights; `parent` is a piece's number, or -1.

    `skip` positions are left out before it, as if the trunk were that much longer.
    """

    parent: int
    tokens: list[int]
    weights: list[float]
    skip: int = 0


@dataclass(slots=True)
class Tree:
    """One NPC's trunk and branches; a piece stands after its parent."""

    pieces: list[Piece] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens in all pieces."""
        return sum(len(p.tokens) for p in self.pieces)

    def add(self, parent: int, *parts: tuple[tuple[int, ...], float]) -> int:
        """Appends a piece of weighted parts below `parent`, and returns its number."""
        tokens = [t for ids, _ in parts for t in ids]
        weights = [w for ids, w in parts for _ in ids]
        self.pieces.append(Piece(parent, tokens, weights))
        return len(self.pieces) - 1
