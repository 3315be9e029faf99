"""Sizes that are `auto`: as many sequences, and as long ones, as fit the memory of this machine and the model.

Only the heads of model files are read here, so that doctor and the engine come to the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from core.words import AUTO
from engines.llama.settings import KV_TYPES, SEQUENCES_MAX, LlamaSettings
from engines.model_file import look
from engines.room import memory_free

MIB = 1 << 20
SEQUENCES_WANTED = SEQUENCES_MAX - 1  # one more is the engine's own
SEQUENCES_LEAST = 64  # with the usual lanes and prefixes they leave some for NPCs
CONTEXT_WANTED = 2048  # holds a world at its caps and a conversation of twenty lines
CONTEXT_LEAST = 1024
SHARE = 1 / 4  # of the free memory, for one engine's KV: games and other engines need some as well
RAM_SHARE = 1 / 8  # of the memory that is free then, for KV in host RAM
RAM_LEAST = 512 * MIB
TRUNKS_IN_RAM, TRUNK_LEN = 256, 512  # where they take more than RAM_LEAST, so many may rest there
VALUE_BYTES = {"f16": 2.0, "q8_0": 34 / 32}  # a block of 32 values has a scale of two bytes
assert VALUE_BYTES.keys() == KV_TYPES.keys()


class Sizes(NamedTuple):
    """Sequences, and tokens that each holds."""

    sequences: int
    context_len: int


def fit(wanted: Sizes, trained: int, token_bytes: int, free: int) -> Sizes:
    """`wanted` with numbers in place of AUTO. `trained` is the model's longest context (0: unknown), `token_bytes` the
    KV of one token (0: unknown), `free` the free memory in bytes (0: unknown).

    A number that was given stays as it is. If the memory is short, the context is shortened before there are fewer than
    SEQUENCES_LEAST sequences; if it is ample, the context grows up to the trained one.
    """
    longest = trained or CONTEXT_WANTED
    context = wanted.context_len if wanted.context_len != AUTO else min(longest, CONTEXT_WANTED)
    if not (free and token_bytes):
        return Sizes(SEQUENCES_WANTED if wanted.sequences == AUTO else wanted.sequences, context)
    tokens = int(free * SHARE) // token_bytes

    def count(length: int) -> int:
        if wanted.sequences != AUTO:
            return wanted.sequences
        return max(SEQUENCES_LEAST, min(SEQUENCES_WANTED, tokens // length - 1))

    if wanted.context_len == AUTO:
        while context // 2 >= CONTEXT_LEAST and (SEQUENCES_LEAST + 1) * context > tokens:
            context //= 2
        while context * 2 <= longest and (SEQUENCES_WANTED + 1) * context * 2 <= tokens:
            context *= 2
    return Sizes(count(context), context)


def fit_ram(token_bytes: int, free: int) -> int:
    """MiB of host RAM for KV that has no sequence. `free` is the memory that is left beside the engine."""
    wanted = max(RAM_LEAST, TRUNKS_IN_RAM * TRUNK_LEN * token_bytes)
    return (min(wanted, int(free * RAM_SHARE)) if free else wanted) // MIB


def fitted(settings: LlamaSettings, free: int | None = None) -> LlamaSettings:
    """The settings with numbers in place of AUTO. `free` is the free memory (None: as it is now). Raises ConfigError
    for a file that is no model.
    """
    if AUTO not in (settings.sequences, settings.context_len):
        return settings
    file = look(settings.model)
    if free is None:
        free = 0 if settings.gpu_layers else memory_free()  # how much a GPU has is not known here
    room = max(0, free - file.size) if free else 0
    trained, each = number(file.values, "context_length"), kv_bytes(file.values, settings.kv_type)
    sizes = fit(Sizes(settings.sequences, settings.context_len), trained, each, room)
    return replace(settings, sequences=sizes.sequences, context_len=sizes.context_len)


def kv_bytes(values: Mapping[str, Any], kv_type: str) -> int:
    """Bytes of KV that one token takes, by the head of a model's file; 0 when it does not say."""
    layers, heads, width = (number(values, k) for k in ("block_count", "attention.head_count", "embedding_length"))
    if not (layers and heads and width) or number(values, "attention.kv_lora_rank"):
        return 0
    lengths = [number(values, f"attention.{what}_length") or width // heads for what in ("key", "value")]
    return round(layers * (number(values, "attention.head_count_kv") or heads) * sum(lengths) * VALUE_BYTES[kv_type])


def number(values: Mapping[str, Any], key: str) -> int:
    """A number of the model's architecture; 0 when there is none. Where each layer has its own, the largest."""
    found = values.get(f"{values.get('general.architecture', '')}.{key}", 0)
    if isinstance(found, tuple | list):
        found = max((n for n in found if isinstance(n, int)), default=0)
    return found if isinstance(found, int) else 0
