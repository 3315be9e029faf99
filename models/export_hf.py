"""The shipped GGUF in the Hugging Face layout, as vLLM reads it: config.json, model.safetensors, tokenizer.json.

python -m models.export_hf [--model models/npcd-demo.gguf] [--out build/npcd-demo-hf]

Everything comes from the GGUF alone, without PyTorch. `check` computes logits from the written files in the way that
Hugging Face's Llama does and compares them with llama.cpp's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from models.play import SHIPPED, Played
from prompts.marks import MARKS

Array = NDArray[np.float32]
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def export(model: Path, out: Path) -> None:
    """Writes the folder `out`. Weights stay bf16, bit for bit; norms are rounded to it."""
    reader = gguf.GGUFReader(str(model))
    out.mkdir(parents=True, exist_ok=True)
    config = _config(reader)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer = json.dumps(_tokenizer(reader), indent=1, ensure_ascii=False)
    (out / "tokenizer.json").write_text(tokenizer + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": MARKS["end"], "pad_token": MARKS["end"]}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": config["eos_token_id"]}, indent=2) + "\n")
    tensors: dict[str, Array] = {}
    for tensor in reader.tensors:
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
        for part, count in heads.items():
            if f".{part}." in tensor.name:
                value = _halves(value, count)
        tensors[_name(tensor.name)] = value
    (out / "model.safetensors").write_bytes(safetensors(tensors))


def safetensors(tensors: dict[str, Array]) -> bytes:
    """Arrays as a safetensors file in bf16: the header's length, the header as JSON, the bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs: list[bytes] = []
    at = 0
    for name, value in sorted(tensors.items()):
        blob = _bf16(value).tobytes()
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + b"".join(blobs)


def load(path: Path) -> dict[str, Array]:
    """The arrays of a safetensors file in bf16, as f32."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    out: dict[str, Array] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + size + o for o in entry["data_offsets"])
            words = np.frombuffer(raw[begin:end], np.uint16).astype(np.uint32) << 16
            out[name] = words.view(np.float32).reshape(entry["shape"])
    return out


def check(model: Path, out: Path) -> float:
    """The mean difference between llama.cpp's logits and those of the written files, on a short text.

    Raises AssertionError when it is more than bf16 arithmetic explains, or when the likeliest next tokens differ.
    """
    with Played(str(model)) as played:
        tokens = [
            played.control(MARKS["world"]),
            *played.encode(" The town of Ashbury lies near the mill. Actions: idle."),
        ]
        theirs = played.logits(tokens, every=True)
    ours = logits(out, tokens)
    gap = float(np.abs(ours - theirs).mean())
    assert gap < 0.05, f"logits differ by {gap:.3f}"
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.95, "the likeliest tokens differ"
    return gap


def logits(folder: Path, tokens: list[int]) -> Array:
    """Logits (length, vocabulary) by the written config and weights: Llama as Hugging Face computes it, in f32."""
    c = json.loads((folder / "config.json").read_text())
    w = load(folder / "model.safetensors")
    length, wide = len(tokens), c["head_dim"]
    angles = np.arange(length)[:, None] * c["rope_theta"] ** (-np.arange(0, wide, 2) / wide)
    cos, sin = (np.tile(f(angles), 2).astype(np.float32) for f in (np.cos, np.sin))
    x = w["model.embed_tokens.weight"][tokens]
    future = np.triu(np.full((length, length), -np.inf, np.float32), 1)

    def norm(v: Array, name: str) -> Array:
        scaled: Array = v / np.sqrt((v * v).mean(-1, keepdims=True) + c["rms_norm_eps"]) * w[name]
        return scaled

    def heads(v: Array, count: int) -> Array:
        return v.reshape(length, count, wide).transpose(1, 0, 2)

    def turned(v: Array) -> Array:
        other = np.concatenate([-v[..., wide // 2 :], v[..., : wide // 2]], -1)
        return np.asarray(v * cos + other * sin, np.float32)

    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        h = norm(x, at + "input_layernorm.weight")
        q = turned(heads(h @ w[at + "self_attn.q_proj.weight"].T, c["num_attention_heads"]))
        k = turned(heads(h @ w[at + "self_attn.k_proj.weight"].T, c["num_key_value_heads"]))
        v = heads(h @ w[at + "self_attn.v_proj.weight"].T, c["num_key_value_heads"])
        again = c["num_attention_heads"] // c["num_key_value_heads"]
        scores = q @ np.repeat(k, again, 0).transpose(0, 2, 1) * wide**-0.5 + future
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        seen = weights / weights.sum(-1, keepdims=True) @ np.repeat(v, again, 0)
        x = x + seen.transpose(1, 0, 2).reshape(length, -1) @ w[at + "self_attn.o_proj.weight"].T
        h = norm(x, at + "post_attention_layernorm.weight")
        gate = h @ w[at + "mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w[at + "mlp.up_proj.weight"].T)) @ w[at + "mlp.down_proj.weight"].T
    out = norm(x, "model.norm.weight") @ w["model.embed_tokens.weight"].T
    return out.astype(np.float32)


def _halves(matrix: Array, heads: int) -> Array:
    """Rows in Hugging Face's order: a head's first half is rotated with its second, where llama.cpp rotates
    neighbours."""
    rows, columns = matrix.shape
    return matrix.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _bf16(value: Array) -> NDArray[np.uint16]:
    """Rounded to the nearest bf16, halves to even."""
    bits = np.ascontiguousarray(value).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _name(name: str) -> str:
    """A tensor's name in Hugging Face's words."""
    if name.startswith("blk."):
        _, layer, part, kind = name.split(".")
        return f"model.layers.{layer}.{_BLOCK[part]}.{kind}"
    return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]


def _value(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


def _config(reader: Any) -> dict[str, Any]:
    end = int(_value(reader, "tokenizer.ggml.eos_token_id"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": len(_value(reader, "tokenizer.ggml.tokens")),
        "hidden_size": int(_value(reader, "llama.embedding_length")),
        "intermediate_size": int(_value(reader, "llama.feed_forward_length")),
        "num_hidden_layers": int(_value(reader, "llama.block_count")),
        "num_attention_heads": int(_value(reader, "llama.attention.head_count")),
        "num_key_value_heads": int(_value(reader, "llama.attention.head_count_kv")),
        "head_dim": int(_value(reader, "llama.rope.dimension_count")),
        "max_position_embeddings": int(_value(reader, "llama.context_length")),
        "rope_theta": float(_value(reader, "llama.rope.freq_base")),
        "rms_norm_eps": float(_value(reader, "llama.attention.layer_norm_rms_epsilon")),
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def _tokenizer(reader: Any) -> dict[str, Any]:
    """tokenizer.json: byte-level BPE. The marks are special tokens, so encode players' text with them split
    (`split_special_tokens`), as the daemon does."""
    tokens: list[str] = _value(reader, "tokenizer.ggml.tokens")
    marks = set(MARKS.values())
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": t, **flags} for i, t in enumerate(tokens) if t in marks],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {t: i for i, t in enumerate(tokens) if t not in marks},
            "merges": [pair.split(" ") for pair in _value(reader, "tokenizer.ggml.merges")],
        },
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a shipped GGUF in the Hugging Face layout.")
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--out", type=Path, default=Path("build/npcd-demo-hf"))
    asked = parser.parse_args()
    export(asked.model, asked.out)
    print(f"{asked.out}: logits differ from llama.cpp's by {check(asked.model, asked.out):.4f} on average")


if __name__ == "__main__":
    main()
