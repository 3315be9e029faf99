"""Makes the small model that ships, from nothing but a seed: corpus, tokenizer, training, GGUF, checks, evaluation.

python -m models.build [--minutes 10] [--seed 1] [--out models/npcd-demo.gguf]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

from daemon.prompt import Layout
from models.evaluate import SHIPPED, show
from models.export_gguf import export
from models.play import Played
from models.tokenizer import train_tokenizer
from models.train import Recipe, train
from models.verify import verify


def build(recipe: Recipe, out: Path) -> None:
    """Trains, writes `out` and its loss curve `<out>.curve.json`, and prints what it measures."""
    began = time.monotonic()

    def told(text: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {text}", flush=True)

    bpe = train_tokenizer(recipe.seed)
    told(f"tokenizer: {len(bpe.tokens())} tokens")
    net, curve = train(Layout(bpe), recipe)
    told(f"trained on {curve.tokens:,} tokens in {curve.seconds:.0f} s")
    # What ships is bf16; from here on the network is what the file holds.
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 2:
                p.copy_(p.bfloat16().float())
    size = export(net, bpe, str(out))
    out.with_suffix(".curve.json").write_text(json.dumps(asdict(curve), indent=1) + "\n")
    told(f"{out.name}: {size:,} bytes")
    same = verify(net, bpe, str(out), recipe.seed)
    told(
        f"verified: {same.texts} texts encode alike; logits differ by {same.mean:.4f} (worst {same.worst:.3f}), "
        f"the likeliest token is the same in {same.agree:.3f}"
    )
    with Played(str(out)) as model:
        show(model, Layout(model), 1200, 24, recipe.seed)
    told("done")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the small model that ships.")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for training alone")
    parser.add_argument("--steps", type=int, default=0, help="this many steps instead of a time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    asked = parser.parse_args()
    build(Recipe(seed=asked.seed, minutes=asked.minutes, steps=asked.steps), asked.out)


if __name__ == "__main__":
    main()
