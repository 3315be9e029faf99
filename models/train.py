"""The training: Muon and AdamW on token trees, with a warm-up and a cosine, for a given time or number of steps.

Only a number of steps can be repeated exactly; a given time holds as many steps as the machine makes of it.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field

import torch
from torch.nn import functional as F

from daemon.prompt import Layout
from models.batches import Batch, batches
from models.corpus.render import CHOICE, REPLY, TEXT, trees
from models.net import Net, Shape


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the training goes; `steps` 0 means: as many as fit into `minutes`."""

    seed: int = 1
    minutes: float = 10.0
    steps: int = 0
    trees_per_step: int = 5
    tree_len: int = 640
    rate: float = 6e-3
    rate_end: float = 0.05
    warmup: int = 40
    decay: float = 0.05
    clip: float = 1.0
    threads: int = 2
    bf16: bool = field(default_factory=lambda: bool(torch.cpu.get_capabilities().get("avx512_bf16")))


@dataclass(slots=True)
class Curve:
    """What was logged: the loss by step, smoothed, and what it took."""

    recipe: dict[str, float] = field(default_factory=dict)
    points: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0


def train(layout: Layout, recipe: Recipe, shape: Shape = Shape()) -> tuple[Net, Curve]:
    """A trained network, and its loss curve. Prints a line every few seconds."""
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    net = Net(shape)
    optimizers = _optimizers(net, recipe)
    curve = Curve({k: float(v) for k, v in asdict(recipe).items()})
    began = shown = time.monotonic()
    smooth: dict[str, float] = {}
    for step, batch in enumerate(batches(trees(layout, recipe.seed, "train", recipe.tree_len), recipe.trees_per_step)):
        part = _progress(recipe, step, time.monotonic() - began)
        if part >= 1.0:
            break
        rate = recipe.rate * min(1.0, (step + 1) / recipe.warmup)
        rate *= recipe.rate_end + (1 - recipe.rate_end) * 0.5 * (1 + math.cos(math.pi * part))
        for group in (g for optimizer in optimizers for g in optimizer.param_groups):
            group["lr"] = rate
        losses = _step(net, optimizers, batch, recipe)
        curve.tokens += batch.ids.numel()
        for name, value in losses.items():
            smooth[name] = 0.97 * smooth.get(name, value) + 0.03 * value
        now = time.monotonic()
        if now - shown >= 5.0:
            shown = now
            curve.points.append(
                {"step": step, "seconds": round(now - began, 1), **{k: round(v, 4) for k, v in smooth.items()}}
            )
            told = "  ".join(f"{k} {v:.3f}" for k, v in smooth.items())
            print(
                f"  {100 * part:3.0f} %  step {step:5d}  {told}  {curve.tokens / (now - began):,.0f} tokens/s",
                flush=True,
            )
    curve.seconds = time.monotonic() - began
    return net.eval(), curve


def _optimizers(net: Net, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon (steps of equal size in every direction) for the blocks' matrices, AdamW for embedding and norms."""
    matrices = [p for p in net.blk.parameters() if p.dim() == 2]
    norms = [p for p in net.parameters() if p.dim() < 2]
    adamw = torch.optim.AdamW(
        [{"params": [net.token_embd.weight], "weight_decay": recipe.decay}, {"params": norms, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        fused=True,
    )
    # Its step matches AdamW's in size, so that one rate serves both.
    muon = torch.optim.Muon(matrices, weight_decay=recipe.decay, adjust_lr_fn="match_rms_adamw")
    return [muon, adamw]


def _progress(recipe: Recipe, step: int, seconds: float) -> float:
    return step / recipe.steps if recipe.steps else seconds / (60 * recipe.minutes)


def _step(net: Net, optimizers: list[torch.optim.Optimizer], batch: Batch, recipe: Recipe) -> dict[str, float]:
    """One optimizer step; answers with the weighted loss and that of choices and replies alone."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.bf16):
        hidden = net(batch.ids, batch.positions, batch.mask).flatten(0, 1)
        scores = net.logits(hidden[batch.sources])
    each = F.cross_entropy(scores.float(), batch.targets, reduction="none")
    loss = (each * batch.weights).sum() / batch.weights.sum()
    net.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
    for optimizer in optimizers:
        optimizer.step()
    full = each.detach()[batch.weights >= min(CHOICE, REPLY)]
    text = each.detach()[batch.weights == TEXT]
    return {"loss": loss.item(), "made": full.mean().item(), "told": text.mean().item()}
