"""A random model of some 27 M parameters with the tokenizer of another model, and a draft that is its first layer.

Random weights give no sensible text, but take as long as trained ones. The first layer decides most of the output, so a
draft of that layer alone is right more often than not, as a good draft of a trained model would be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

HIDDEN, LAYERS, HEADS, INNER = 512, 8, 8, 1408
LATER = 0.02  # strength of the layers that the draft does not have


def write(model: Path, folder: Path) -> tuple[Path, Path]:
    """Writes target and draft as GGUF files with the tokenizer of `model`."""
    reader = gguf.GGUFReader(str(model))
    rng = np.random.default_rng(1)
    vocab = len(reader.fields["tokenizer.ggml.tokens"].data)
    tensors: dict[str, Any] = {"output_norm.weight": np.ones(HIDDEN, np.float32)}

    def matrix(name: str, rows: int, columns: int, loud: float = 1.0) -> None:
        values = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(loud / np.sqrt(columns))
        tensors[f"{name}.weight"] = values.astype(np.float16)

    matrix("token_embd", vocab, HIDDEN)
    matrix("output", vocab, HIDDEN, 4.0)
    for i in range(LAYERS):
        loud = LATER if i else 1.0
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{i}.{name}.weight"] = np.ones(HIDDEN, np.float32)
        for name in ("attn_q", "attn_k", "attn_v"):
            matrix(f"blk.{i}.{name}", HIDDEN, HIDDEN)
        matrix(f"blk.{i}.attn_output", HIDDEN, HIDDEN, loud)
        matrix(f"blk.{i}.ffn_gate", INNER, HIDDEN)
        matrix(f"blk.{i}.ffn_up", INNER, HIDDEN)
        matrix(f"blk.{i}.ffn_down", HIDDEN, INNER, loud)
    return tuple(_write(folder / f"{n}.gguf", n, reader, tensors, vocab) for n in (LAYERS, 1))  # type: ignore[return-value]


def _write(path: Path, layers: int, reader: Any, tensors: dict[str, Any], vocab: int) -> Path:
    w = gguf.GGUFWriter(str(path), "llama")
    w.add_name(f"random, {layers} layers")
    w.add_context_length(2048)
    w.add_embedding_length(HIDDEN)
    w.add_block_count(layers)
    w.add_feed_forward_length(INNER)
    w.add_head_count(HEADS)
    w.add_head_count_kv(HEADS)
    w.add_rope_dimension_count(HIDDEN // HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(vocab)
    for name in ("model", "pre", "tokens", "token_type", "merges", "eos_token_id", "eot_token_id", "add_bos_token"):
        found = reader.fields.get(f"tokenizer.ggml.{name}")
        if found is not None:
            sub = found.types[1] if len(found.types) > 1 else None
            w.add_key_value(f"tokenizer.ggml.{name}", found.contents(), found.types[0], sub)
    for name, array in tensors.items():
        if not name.startswith("blk.") or int(name.split(".")[1]) < layers:
            w.add_tensor(name, array)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path
