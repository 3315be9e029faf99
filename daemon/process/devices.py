"""The judgement of `npcd doctor` about GPUs and about the time of a step. Decides only."""

from __future__ import annotations

import re
from collections.abc import Sequence

from daemon.process.diagnosis import Check, fail, ok, warn
from engines.room import GIB

# Memory bandwidth in GB/s on the makers' data sheets, by a part of the device's name; longer names first.
ON_PAPER = {
    "H200": 4800, "H100 PCIe": 2000, "H100": 3350, "A100-SXM4-80GB": 2039, "A100": 1555, "L40S": 864, "L40": 864,
    "L4": 300, "A10": 600, "T4": 320, "V100": 900, "RTX 5090": 1792, "RTX 5080": 960, "RTX 4090": 1008,
    "RTX 4080": 717, "RTX 4070": 504, "RTX 4060": 272, "RTX 3090": 936, "RTX 3080": 760, "RTX 3070": 448,
    "RTX 3060": 360, "RX 7900 XTX": 960, "RX 6800": 512,
}  # fmt: skip


def found(
    gpus: Sequence[tuple[str, str, int, int]], kinds: Sequence[str], wanted: int, layers: int, needs: int
) -> Check:
    """The GPUs (name, description, bytes free and in all) and the number of layers that fits on them. llama.cpp was
    built for `kinds` of GPU; `needs` are the bytes of all layers with their KV and buffers.
    """
    if not gpus:
        fix = "make setup GPU=cuda or GPU=vulkan, or make engine.gpu_layers 0"
        if kinds:
            says = f"no GPU is found, though llama.cpp was built for {', '.join(kinds)}"
            return (fail if wanted else warn)("devices", says, "look at the GPU's driver, or make engine.gpu_layers 0")
        says = "CPU alone: llama.cpp was built without a GPU"
        return fail("devices", f"{says}, and engine.gpu_layers is {wanted}", fix) if wanted else ok("devices", says)
    told = "; ".join(
        f"{name} ({what}), {free / GIB:.1f} of {total / GIB:.1f} GiB free" for name, what, free, total in gpus
    )
    if not wanted:
        return warn("devices", f"{told}; not used", "make engine.gpu_layers -1 to compute on it")
    free = sum(free for _, _, free, _ in gpus)
    fit = layers if needs <= free else layers * free // max(1, needs)
    says = f"{told}; all {layers} layers with their KV need {needs / GIB:.1f} GiB"
    asked = layers if wanted < 0 else min(wanted, layers)
    if asked > fit:
        return warn(
            "devices", f"{says}: about {fit} layers fit", f"lower engine.sequences, or make engine.gpu_layers {fit}"
        )
    return ok("devices", f"{says}: {'they fit' if fit == layers else f'about {fit} fit, {asked} are wanted'}")


def on_paper(description: str) -> int:
    """The memory bandwidth of a device by its maker's data sheet, in GB/s; 0 when it is not known here."""
    return next((rate for part, rate in ON_PAPER.items() if re.search(rf"\b{re.escape(part)}\b", description)), 0)


def step(weights: int, gb_per_s: float, source: str, promise_ms: float) -> Check:
    """The shortest time of a step: it reads all weights once. `source` says where the bandwidth is from."""
    if not gb_per_s:
        return ok("step", f"not estimated: {source}; the warm-up measures it when npcd serves")
    about_ms = weights / gb_per_s / 1e6
    says = (
        f"about {about_ms:.1f} ms, an estimate: it reads {weights / (1 << 20):.0f} MiB of weights at "
        f"{gb_per_s:.0f} GB/s ({source}); the warm-up measures it when npcd serves"
    )
    if about_ms > promise_ms:
        fix = "take a smaller model or quantization, or a GPU; give intents a smaller one with routes.intent.engine"
        return warn("step", f"{says}; Gold is promised {promise_ms:g} ms a token", fix)
    return ok("step", says)
