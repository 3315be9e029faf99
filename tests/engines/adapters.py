"""Small adapters of random numbers for the shipped model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from engines.gguf_file import read_gguf
from tests.engines.conftest import MODEL


def write(path: Path, seed: int, rank: int = 4, size: float = 0.05, alpha: float = 8.0, **changed: Any) -> Path:
    """An adapter of all matrices of the layers, written by the gguf package. With `size` 0, B is zero and the adapter
    changes nothing.

    `changed`: architecture, kind, adapter_type, invocation (an aLoRA's tokens) and `more` (tensors by name).
    """
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), changed.get("architecture", "llama"))
    writer.add_type(changed.get("kind", "adapter"))
    writer.add_string("adapter.type", changed.get("adapter_type", "lora"))
    writer.add_float32("adapter.lora.alpha", alpha)
    if changed.get("invocation"):
        key = "adapter.alora.invocation_tokens"
        writer.add_key_value(key, changed["invocation"], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32)
    tensors: dict[str, Any] = {}
    for name, shape in weights().items():
        a = rng.normal(size=(rank, shape[1])).astype(changed.get("dtype", np.float32))
        b = (rng.normal(size=(shape[0], rank)) * size).astype(changed.get("dtype", np.float32))
        tensors |= {f"{name}.lora_a": a, f"{name}.lora_b": b}
    tensors |= changed.get("more", {})
    for name, tensor in tensors.items():
        if tensor is not None:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weights() -> Mapping[str, tuple[int, ...]]:
    """The matrices of the shipped model's layers."""
    tensors = read_gguf(MODEL).tensors
    return {name: t.shape for name, t in tensors.items() if name.startswith("blk.") and len(t.shape) == 2}
