"""Token trees as tensors: ids, positions, the visible tokens of each token, and the targets to predict from each
source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.corpus.tree import Tree


@dataclass(frozen=True, slots=True)
class Batch:
    """`ids`, `positions` (trees, length); `mask` (trees, 1, length, length); `sources` are flat indices of the tokens
    that predict `targets`, with `weights`."""

    ids: Tensor
    positions: Tensor
    mask: Tensor
    sources: Tensor
    targets: Tensor
    weights: Tensor


def make_batch(trees: Sequence[Tree], length: int = 0) -> Batch:
    """Trees padded to `length`, or to the longest.

    Nothing predicts a tree's first token; a parent's last token predicts the first one of its piece.
    """
    longest = max(t.length for t in trees)
    length = length or _up(longest, 64)
    assert longest <= length, f"a tree of {longest} tokens, room for {length}"
    ids = np.zeros((len(trees), length), np.int64)
    positions = np.zeros((len(trees), length), np.int64)
    mask = np.zeros((len(trees), 1, length, length), bool)
    sources: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for row, tree in enumerate(trees):
        starts: list[int] = []
        ends: list[int] = []
        at = 0
        for piece in tree.pieces:
            end = at + len(piece.tokens)
            starts.append(at)
            ends.append(end)
            ids[row, at:end] = piece.tokens
            mask[row, 0, at:end, at:end] = np.tri(end - at, dtype=bool)
            before, first = -1, 0
            if piece.parent >= 0:
                up_start, up_end = starts[piece.parent], ends[piece.parent]
                before = up_end - 1
                first = positions[row, before] + 1 + piece.skip
                # The parent's last token sees the tokens above this piece.
                mask[row, 0, at:end, :up_end] |= mask[row, 0, before, :up_end]
                assert up_start < up_end
            positions[row, at:end] = np.arange(first, first + end - at)
            for i, (token, weight) in enumerate(zip(piece.tokens, piece.weights, strict=True)):
                source = before if i == 0 else at + i - 1
                if weight > 0 and source >= 0:
                    sources.append(row * length + source)
                    targets.append(token)
                    weights.append(weight)
            at = end
        # Padding sees itself, so that its attention is a number.
        pad = np.arange(at, length)
        mask[row, 0, pad, pad] = True
    # Few different shapes: each new one makes the kernels' library compile again.
    spare = _up(len(sources), 256) - len(sources)
    sources += [0] * spare
    targets += [0] * spare
    weights += [0.0] * spare
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.from_numpy(mask),
        torch.tensor(sources),
        torch.tensor(targets),
        torch.tensor(weights),
    )


def _up(count: int, step: int) -> int:
    return -(-count // step) * step
