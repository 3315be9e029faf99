"""Trees as tensors: each token sees its ancestors and nothing else."""

import numpy as np
import pytest

from models.corpus.tree import Tree

torch = pytest.importorskip("torch", reason="the trainer was not tested: torch is not installed (make trainer)")


def test_branches_do_not_see_each_other() -> None:
    """A branch sees its ancestors and itself. Its positions go on from its parent's end, and that end predicts it."""
    from models.batches import make_batch

    tree = Tree()
    root = tree.add(-1, ((10, 11, 12), 0.05))
    left = tree.add(root, ((20, 21), 1.0))
    tree.add(root, ((30, 31), 1.0))
    tree.add(left, ((40,), 1.0))
    batch = make_batch([tree])
    seen = batch.mask[0, 0].numpy()
    assert [list(np.flatnonzero(row)) for row in seen[:8]] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 5],
        [0, 1, 2, 5, 6],
        [0, 1, 2, 3, 4, 7],
    ]
    assert batch.positions[0, :8].tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    told = zip(batch.sources.tolist(), batch.targets.tolist(), batch.weights.tolist(), strict=True)
    pairs = [(source, target) for source, target, weight in told if weight > 0]
    assert pairs == [(0, 11), (1, 12), (2, 20), (3, 21), (2, 30), (5, 31), (4, 40)]


def test_a_tree_computes_what_its_paths_compute() -> None:
    """The logits of a branch are those of the plain sequence from the root to its end."""
    from models.batches import make_batch
    from models.net import Net, Shape, plain

    torch.manual_seed(0)
    net = Net(Shape(vocab_len=64, hidden=32, layers=2, heads=2, kv_heads=1, head_len=16, inner=48)).eval()
    tree = Tree()
    root = tree.add(-1, ((1, 2, 3), 0.0))
    tree.add(root, ((4, 5, 6), 1.0))
    tree.add(root, ((7, 8), 1.0))
    batch = make_batch([tree])
    with torch.no_grad():
        scores = net.logits(net(batch.ids, batch.positions, batch.mask))[0]
    assert torch.allclose(scores[6:8], plain(net, [1, 2, 3, 7, 8])[3:], atol=1e-5)
