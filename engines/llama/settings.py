"""The engine's settings, with their bounds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError
from core.words import AUTO, OrAuto
from engines.chat_template import chosen
from engines.machine import cores_here

KV_TYPES = {"f16": 1, "q8_0": 8}  # as ggml numbers them
SEQUENCES_MAX = 256  # compiled into llama.cpp
CONTEXT_MAX = 1 << 20
# Settings that must be within bounds. -1 layers on the GPU: all of them.
NUMBERS = (
    ("batch_len", 1, 1 << 16), ("threads", 0, 512), ("gpu_layers", -1, 10_000),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LlamaSettings:
    """The model and how llama.cpp runs it. At the start npcd allocates KV for `engine.sequences` times
    `engine.context_len` tokens. `auto` and 0 are measured and replaced at the start.
    """

    model: Path
    """The GGUF file of the model; of a model in parts the first one."""
    sequences: OrAuto = AUTO
    """NPCs and conversations whose KV is in device memory at the same time; the KV of others rests in host RAM. It must
    exceed `scheduler.kv.prefixes` + `scheduler.kv.lanes` by at least 2. `auto`: 255, or as many as fit a quarter of
    the free memory. From 2 to 256.
    """
    context_len: OrAuto = AUTO
    """Tokens of KV that each sequence holds. `auto`: 2048; fewer where memory is short, and at most what the model was
    trained with. From 1 to 1048576.
    """
    batch_len: int = 2048
    """Tokens that one engine step computes at most. From 1 to 65536."""
    micro_len: int = 512
    """Tokens that llama.cpp computes at once (a micro-batch); `engine.batch_len` at most."""
    threads: int = 0
    """CPU threads that compute; 0: the cores that npcd may use, less one. CPU affinity and control groups (containers,
    systemd) count. From 0 to 512, the most that llama.cpp takes.
    """
    flash_attention: str = "auto"
    """llama.cpp's flash attention: `on`, `off` or `auto`, which measures both at the start."""
    weights: str = "auto"
    """Type of the weights in memory: `file` keeps them as they are in the file, `f16` converts them when they are
    loaded, `auto` measures.
    """
    kv_type: str = "f16"
    """Type of the KV cache: `f16`, or `q8_0`, which takes about half the memory, needs flash attention and is slower on
    a CPU.
    """
    chat_template: str = ""
    """Chat template in place of the model's own: a Jinja file, a `tokenizer_config.json`, or the name of a format
    (`chatml`, `llama3`, `gemma`, `mistral` and others; `plain`: none). Empty: the model's own.
    """
    gpu_layers: int = 0
    """Layers of the model that are computed on the GPU; -1: all of them. A llama-cpp-python that was built for your GPU
    is needed. From -1 to 10000.
    """
    tune_s: float = 8.0
    """Seconds that measuring the settings which are `auto` or 0 may take at the first start; the data folder keeps the
    result. With 0 nothing is measured. From 0 to 3600.
    """


def flash(settings: LlamaSettings) -> bool:
    """True if attention is llama.cpp's flash attention; "auto" follows the KV type's need."""
    return settings.flash_attention == "on" or (settings.flash_attention == "auto" and settings.kv_type != "f16")


def check_settings(settings: LlamaSettings) -> None:
    """Raises ConfigError naming the setting that is out of its bounds, and the bounds."""
    if settings.sequences != AUTO and not 2 <= settings.sequences <= SEQUENCES_MAX:
        raise ConfigError(f"engine.sequences: {settings.sequences}, must be 2 to {SEQUENCES_MAX}")
    if not 1 <= settings.micro_len <= settings.batch_len:
        raise ConfigError(
            f"engine.micro_len: {settings.micro_len}, must be 1 to engine.batch_len ({settings.batch_len})"
        )
    if settings.context_len != AUTO and not 1 <= settings.context_len <= CONTEXT_MAX:
        raise ConfigError(f"engine.context_len: {settings.context_len}, must be 1 to {CONTEXT_MAX}")
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
    if not 0 <= settings.tune_s <= 3600:
        raise ConfigError(f"engine.tune_s: {settings.tune_s:g}, must be 0 to 3600 seconds")
    chosen(settings.chat_template, "")
    if settings.kv_type != "f16" and not flash(settings):
        raise ConfigError(f"engine.kv_type: {settings.kv_type} needs engine.flash_attention = 'on' (or 'auto')")


def default_threads() -> int:
    """Cores that this process may use - 1, at least 1: with every core spinning in barriers the event loop would wait
    for the model.
    """
    return max(1, cores_here().usable - 1)
