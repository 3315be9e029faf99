"""The engine's settings, with their bounds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError
from engines.machine import cores_here

KV_TYPES = {"f16": 1, "q8_0": 8}  # as ggml numbers them
SEQUENCES_MAX = 256  # compiled into llama.cpp
# Settings that must be within bounds. -1 layers on the GPU: all of them.
NUMBERS = (
    ("context_len", 1, 1 << 20), ("batch_len", 1, 1 << 16), ("threads", 0, 1024), ("gpu_layers", -1, 10_000),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LlamaSettings:
    """How the engine is set up. `sequences` x `context_len` tokens of KV are allocated at start.

    engines/tune.py measures and replaces "auto" and 0; an engine opened without it takes the first choice.
    """

    model: Path
    sequences: int = 255
    context_len: int = 2048
    batch_len: int = 2048
    micro_len: int = 512
    threads: int = 0  # 0: cores - 1, at least 1
    flash_attention: str = "auto"  # "off", "on"
    weights: str = "auto"  # "file": as they are in the file; "f16": converted when loaded
    kv_type: str = "f16"  # "q8_0": about half the bytes; needs flash attention, and steps take longer on a CPU
    gpu_layers: int = 0


def flash(settings: LlamaSettings) -> bool:
    """Whether attention is llama.cpp's flash attention; "auto" follows the KV type's need."""
    return settings.flash_attention == "on" or (settings.flash_attention == "auto" and settings.kv_type != "f16")


def check_settings(settings: LlamaSettings) -> None:
    """Raises ConfigError naming the setting that is out of its bounds, and the bounds."""
    if not 2 <= settings.sequences <= SEQUENCES_MAX:
        raise ConfigError(f"engine.sequences: {settings.sequences}, must be 2 to {SEQUENCES_MAX}")
    if not 1 <= settings.micro_len <= settings.batch_len:
        raise ConfigError(
            f"engine.micro_len: {settings.micro_len}, must be 1 to engine.batch_len ({settings.batch_len})"
        )
    for name, least, most in NUMBERS:
        if not least <= getattr(settings, name) <= most:
            raise ConfigError(f"engine.{name}: {getattr(settings, name)}, must be {least} to {most}")
    for name, allowed in (
        ("flash_attention", ("auto", "off", "on")),
        ("weights", ("auto", "file", "f16")),
        ("kv_type", tuple(KV_TYPES)),
    ):
        if getattr(settings, name) not in allowed:
            raise ConfigError(f"engine.{name}: '{getattr(settings, name)}', must be {', '.join(allowed)}")
    if settings.kv_type != "f16" and not flash(settings):
        raise ConfigError(f"engine.kv_type: {settings.kv_type} needs engine.flash_attention = 'on' (or 'auto')")


def default_threads() -> int:
    """Cores that this process may use - 1, at least 1: with every core spinning in barriers the event loop would wait
    for the model.
    """
    return max(1, cores_here().usable - 1)
