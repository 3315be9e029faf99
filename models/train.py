"""The training: Muon and AdamW on token trees for a number of steps, with a warm-up and a cosine.

A run can be interrupted at any time: the checkpoint beside it has everything, and every step's trees follow from its
number alone. It stops early when the loss on held-out worlds has not fallen for a while.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.batches import Batch, make_batch
from models.corpus.recall import make_recall
from models.corpus.render import make_tree, rng_of
from models.corpus.tree import CLASSES, Tree
from models.net import Net, Shape
from prompts.layout import Layout


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of a training. `recall` is the share of trees without meaning in the first tenth and in the rest.

    The rate follows a cosine over `horizon` steps; the run ends at `steps`, and its last `cooling` steps go down to
    `rate_end` in a straight line. So a run can be made shorter or longer without a new start.
    """

    seed: int = 1
    steps: int = 8000
    horizon: int = 9000
    cooling: int = 1500
    trees_per_step: int = 5
    tree_len: int = 640
    rate: float = 1.5e-3
    rate_end: float = 0.02
    warmup: int = 100
    decay: float = 0.05
    clip: float = 1.0
    threads: int = 2
    recall: tuple[float, float] = (0.3, 0.03)
    late: int = 4000  # from this step on the trees have more of the slow lessons
    check_every: int = 250
    check_trees: int = 20
    patience: int = 20  # the run ends after so many checks without a better one
    bf16: bool = field(default_factory=lambda: bool(torch.cpu.get_capabilities().get("avx512_bf16")))
    compiled: bool = field(default_factory=lambda: shutil.which("g++") is not None)


@dataclass(slots=True)
class Curve:
    """The logged values: losses by class on trees of the training (smoothed) and on held-out ones, and the cost."""

    recipe: dict[str, Any] = field(default_factory=dict)
    points: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0
    stopped_at: int = 0


Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


def train(layout: Layout, recipe: Recipe, shape: Shape, checkpoint: Path | None = None) -> tuple[Net, Curve]:
    """Trains and returns the best network of all checks, and its curve. Prints a line at every check.

    Continues from `checkpoint` if it exists and has the same recipe; writes it at every check.
    """
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    net = Net(shape)
    optimizers = _optimizers(net, recipe)
    forward: Forward = torch.compile(net.forward, dynamic=False) if recipe.compiled else net.forward
    curve = Curve(asdict(recipe) | {"shape": asdict(shape)})
    best: dict[str, Any] = {"loss": math.inf, "step": 0, "net": {}}
    first = 0
    if checkpoint and checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=False)
        if kept["recipe"] == curve.recipe:
            net.load_state_dict(kept["net"])
            for optimizer, state in zip(optimizers, kept["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            first, best, curve = kept["step"], kept["best"], Curve(**kept["curve"])
            print(f"  goes on from step {first}", flush=True)
    held = _held_out(layout, recipe)
    before, began = curve.seconds, time.monotonic()
    smooth: dict[str, float] = {}
    for step in range(first, recipe.steps):
        _set_rate(optimizers, recipe, step)
        batch = make_batch(_trees_of(layout, recipe, step), recipe.tree_len)
        for name, value in _step(net, forward, optimizers, batch, recipe).items():
            smooth[name] = 0.97 * smooth.get(name, value) + 0.03 * value
        curve.tokens += batch.ids.numel()
        if (step + 1) % recipe.check_every and step + 1 != recipe.steps:
            continue
        seen = _check(forward, net, held, recipe)
        curve.seconds = before + time.monotonic() - began
        curve.stopped_at = step + 1
        curve.points.append(
            {"step": step + 1, "seconds": round(curve.seconds, 1)}
            | {k: round(v, 4) for k, v in smooth.items()}
            | {f"held_{k}": round(v, 4) for k, v in seen.items()}
        )
        told = "  ".join(f"{k} {smooth.get(k, math.nan):.3f}/{v:.3f}" for k, v in seen.items())
        print(f"  step {step + 1:5d}  {told}  {curve.tokens / curve.seconds:,.0f} tokens/s", flush=True)
        if seen["loss"] < best["loss"]:
            state = {k: v.detach().clone() for k, v in net.state_dict().items()}
            best = {"loss": seen["loss"], "step": step + 1, "net": state}
        if checkpoint:
            _keep(checkpoint, step + 1, net, optimizers, best, curve)
        if step + 1 - best["step"] >= recipe.patience * recipe.check_every:
            print(f"  stopped: nothing better since step {best['step']}", flush=True)
            break
    if best["net"]:
        net.load_state_dict(best["net"])
    return net.eval(), curve


def _keep(
    checkpoint: Path, step: int, net: Net, optimizers: list[torch.optim.Optimizer], best: dict[str, Any], curve: Curve
) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    passing = checkpoint.with_suffix(".part")
    everything = {
        "step": step,
        "recipe": curve.recipe,
        "net": net.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        "best": best,
        "curve": asdict(curve),
    }
    torch.save(everything, passing)
    os.replace(passing, checkpoint)


def _trees_of(layout: Layout, recipe: Recipe, step: int) -> list[Tree]:
    """The trees of one step."""
    share = recipe.recall[0 if step < recipe.horizon / 10 else 1]
    made: list[Tree] = []
    for i in range(recipe.trees_per_step):
        rng = rng_of(recipe.seed, "train", step * recipe.trees_per_step + i)
        if rng.random() < share:
            made.append(make_recall(rng, layout, recipe.tree_len))
        else:
            made.append(make_tree(rng, layout, recipe.tree_len, late=step >= recipe.late))
    return made


def _held_out(layout: Layout, recipe: Recipe) -> list[Batch]:
    """Trees of held-out names, items and orders."""
    made = [make_tree(rng_of(recipe.seed, "held", i), layout, recipe.tree_len, True) for i in range(recipe.check_trees)]
    size = recipe.trees_per_step
    return [make_batch(made[i : i + size], recipe.tree_len) for i in range(0, len(made) - size + 1, size)]


def _optimizers(net: Net, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon (steps of equal size in every direction) for the blocks' matrices, AdamW for embedding and norms."""
    matrices = [p for p in net.blk.parameters() if p.dim() == 2]
    norms = [p for p in net.parameters() if p.dim() < 2]
    adamw = torch.optim.AdamW(
        [{"params": [net.token_embd.weight], "weight_decay": recipe.decay}, {"params": norms, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        fused=True,
    )
    # The step's size matches AdamW's, so that one rate serves both.
    muon = torch.optim.Muon(matrices, weight_decay=recipe.decay, adjust_lr_fn="match_rms_adamw")
    return [muon, adamw]


def _set_rate(optimizers: list[torch.optim.Optimizer], recipe: Recipe, step: int) -> None:
    rate = recipe.rate * min(1.0, (step + 1) / recipe.warmup)
    rate *= recipe.rate_end + (1 - recipe.rate_end) * 0.5 * (1 + math.cos(math.pi * step / recipe.horizon))
    rate *= max(recipe.rate_end, min(1.0, (recipe.steps - step) / recipe.cooling))
    for group in (g for optimizer in optimizers for g in optimizer.param_groups):
        group["lr"] = rate


def _losses(net: Net, forward: Forward, batch: Batch, recipe: Recipe) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.bf16):
        hidden = forward(batch.ids, batch.positions, batch.mask).flatten(0, 1)
        scores = net.logits(hidden[batch.sources])
    return F.cross_entropy(scores.float(), batch.targets, reduction="none")


def _step(
    net: Net, forward: Forward, optimizers: list[torch.optim.Optimizer], batch: Batch, recipe: Recipe
) -> dict[str, float]:
    """One optimizer step. Returns the weighted loss and the mean loss of each class of tokens."""
    each = _losses(net, forward, batch, recipe)
    loss = (each * batch.weights).sum() / batch.weights.sum()
    net.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
    for optimizer in optimizers:
        optimizer.step()
    return {"loss": loss.item()} | {k: v / n for k, (v, n) in _by_class(each.detach(), batch).items()}


def _check(forward: Forward, net: Net, held: list[Batch], recipe: Recipe) -> dict[str, float]:
    """The weighted loss and that of each class on held-out trees."""
    sums: dict[str, list[float]] = {}
    total = weight = 0.0
    with torch.no_grad():
        for batch in held:
            each = _losses(net, forward, batch, recipe)
            total += float((each * batch.weights).sum())
            weight += float(batch.weights.sum())
            for name, (value, count) in _by_class(each, batch).items():
                kept = sums.setdefault(name, [0.0, 0.0])
                kept[0] += value
                kept[1] += count
    return {"loss": total / weight} | {k: v / n for k, (v, n) in sums.items()}


def _by_class(each: Tensor, batch: Batch) -> dict[str, tuple[float, int]]:
    """Sum of losses and count, by the class of the tokens; absent classes are left out."""
    out: dict[str, tuple[float, int]] = {}
    for name, weight in CLASSES.items():
        chosen = each[(batch.weights - weight).abs() < 1e-6]
        if chosen.numel():
            out[name] = (float(chosen.sum()), chosen.numel())
    return out
