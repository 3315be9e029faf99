"""Makes the models that ship, from nothing but a seed: corpus, tokenizer, training, GGUF, checks; then the draft.

python -m models.build [--steps 8000] [--seed 1] [--out models/npcd-demo.gguf] [--part all|model|draft] [--fresh]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

from models.curve import svg
from models.export_gguf import export
from models.net import Net, Shape
from models.play import SHIPPED, Played
from models.tokenizer import Bpe, train_tokenizer
from models.train import Recipe, train
from models.verify import verify
from prompts.layout import Layout

WORK = Path(__file__).parent / "work"  # checkpoints and the data to continue from them; never committed
DRAFT_SHAPE = Shape(hidden=64, layers=3, heads=2, kv_heads=1, head_len=32, inner=160)
_began = time.monotonic()


def draft_of(path: Path) -> Path:
    """The path of a model's draft: "npcd-demo-draft.gguf" beside "npcd-demo.gguf"."""
    return path.with_name(f"{path.stem}-draft{path.suffix}")


def build(recipe: Recipe, shape: Shape, out: Path, bpe: Bpe) -> None:
    """Trains, writes `out` and its curve (.curve.json, .curve.svg), and checks it; checkpoints are in models/work."""
    net, curve = train(Layout(bpe), recipe, shape, WORK / f"{out.stem}.ckpt")
    _told(f"{out.stem}: trained on {curve.tokens:,} tokens in {curve.seconds:.0f} s")
    # The shipped weights are bf16; from here on the network has the file's weights.
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 2:
                p.copy_(p.bfloat16().float())
    size = export(net, bpe, str(out))
    out.with_suffix(".curve.json").write_text(json.dumps(asdict(curve), indent=1) + "\n")
    out.with_suffix(".curve.svg").write_text(svg(curve.points))
    _told(f"{out.name}: {size:,} bytes, {sum(p.numel() for p in net.parameters()):,} parameters")
    check(net, bpe, out, recipe.seed)


def check(net: Net, bpe: Bpe, out: Path, seed: int) -> None:
    """Compares the file with the network it came from. Raises AssertionError where they differ."""
    same = verify(net, bpe, str(out), seed)
    _told(
        f"verified: {same.texts} texts encode alike; logits differ by {same.mean:.4f} (worst {same.worst:.3f}), "
        f"the likeliest token is the same in {same.agree:.3f}"
    )


def _told(text: str) -> None:
    print(f"[{time.monotonic() - _began:5.0f} s] {text}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the small models that ship.")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--draft-steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--part", choices=("all", "model", "draft"), default="all")
    parser.add_argument("--fresh", action="store_true", help="start from nothing, even if checkpoints exist")
    asked = parser.parse_args()
    bpe = train_tokenizer(asked.seed)
    _told(f"tokenizer: {len(bpe.tokens())} tokens")
    parts = {
        "model": (Recipe(seed=asked.seed, steps=asked.steps), Shape(), asked.out),
        "draft": (
            Recipe(seed=asked.seed, steps=asked.draft_steps, horizon=asked.draft_steps, cooling=500, rate=3e-3),
            DRAFT_SHAPE,
            draft_of(asked.out),
        ),
    }
    for name, (recipe, shape, out) in parts.items():
        if asked.part in (name, "all"):
            if asked.fresh:
                (WORK / f"{out.stem}.ckpt").unlink(missing_ok=True)
            build(recipe, shape, out, bpe)
    with Played(str(asked.out)) as model:
        assert model.size == len(bpe.tokens())
    _told("done; measure it with: make model-eval")


if __name__ == "__main__":
    main()
