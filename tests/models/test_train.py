"""Training can be interrupted, and stops when the loss stops falling. These tests run where PyTorch is installed."""

from dataclasses import replace
from pathlib import Path

import pytest

from prompts.layout import Layout

torch = pytest.importorskip("torch", reason="the trainer was not tested: torch is not installed (make trainer)")


def test_an_interrupted_run_ends_as_the_whole_one(layout: Layout, tmp_path: Path) -> None:
    """Training that continues from a checkpoint gives the same weights as training without a break."""
    from models import train
    from models.net import Shape

    shape = Shape(hidden=32, layers=2, heads=1, kv_heads=1, head_len=32, inner=32)
    recipe = train.Recipe(steps=4, trees_per_step=2, check_every=2, check_trees=2, compiled=False, warmup=2)
    whole, curve = train.train(layout, recipe, shape, tmp_path / "whole.ckpt")
    kept = torch.load(tmp_path / "whole.ckpt", weights_only=False)
    assert kept["step"] == 4 and len(curve.points) == 2

    class Interrupted(Exception):
        pass

    def stop(*_: object) -> None:
        train_keep(*_)  # type: ignore[arg-type]
        raise Interrupted

    train_keep, train._keep = train._keep, stop  # type: ignore[assignment]
    try:
        with pytest.raises(Interrupted):
            train.train(layout, recipe, shape, tmp_path / "part.ckpt")
    finally:
        train._keep = train_keep
    again, _ = train.train(layout, recipe, shape, tmp_path / "part.ckpt")
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_stops_early(layout: Layout) -> None:
    """When the held-out loss does not fall, training ends after `patience` checks."""
    from models import train
    from models.net import Shape

    shape = Shape(hidden=32, layers=1, heads=1, kv_heads=1, head_len=32, inner=32)
    recipe = train.Recipe(steps=50, trees_per_step=1, check_every=1, check_trees=1, compiled=False, patience=2)
    _, curve = train.train(layout, replace(recipe, rate=0.0), shape)
    assert curve.stopped_at == 3
