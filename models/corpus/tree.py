"""Token trees: pieces below pieces, and how much each token counts in the loss."""

from __future__ import annotations

from dataclasses import dataclass, field

# How much a token counts, by what it is; no two the same, so that the loss of each can be told apart. What must be found
# in the context is a small part of all tokens and the hardest to learn.
TEXT, CHOICE, BARK, REPLY, TOLD, FOUND, RECALL = 0.05, 1.0, 0.5, 0.6, 0.3, 2.0, 0.8
CLASSES = {"text": TEXT, "choice": CHOICE, "bark": BARK, "reply": REPLY, "found": FOUND, "recall": RECALL}


@dataclass(slots=True)
class Piece:
    """Consecutive tokens of a tree and how much each counts; `parent` is a piece's number, or -1.

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
        """Appends a piece of weighted parts below `parent`; answers with its number."""
        tokens = [t for ids, _ in parts for t in ids]
        weights = [w for ids, w in parts for _ in ids]
        self.pieces.append(Piece(parent, tokens, weights))
        return len(self.pieces) - 1
