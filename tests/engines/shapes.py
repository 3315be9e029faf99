"""Small models of other families, written as GGUF files by the tests: the shape, the tokenizer and the chat template
behave like the family's, and the weights are random.

The templates are our own, with the known behaviour of the families' templates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import gguf
import numpy as np

NORMAL, UNKNOWN, CONTROL, ADDED, BYTE = (
    int(t)
    for t in (
        gguf.TokenType.NORMAL,
        gguf.TokenType.UNKNOWN,
        gguf.TokenType.CONTROL,
        gguf.TokenType.USER_DEFINED,
        gguf.TokenType.BYTE,
    )
)
WORDS = (
    "the and you are see answer with one action then its target number that nobody feeling spoken short sentences "
    "stay in this world your part asked what do kind lore actions feelings village old road mayor rules here player "
    "hostile friendly near away close far heard night day tavern mill wolf idle flee attack greet calm happy afraid "
    "angry go home north shout few words hello what is name tell me about bread plain folk who fear proud undead "
    "hunts after dusk"
).split()

CHATML = """\
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe of help.<|im_end|>\\n' }}{% endif -%}
{%- for m in messages -%}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""
# Writes BOS itself, writes the date, trims its input.
HEADERS = """\
{{- bos_token }}
{%- macro head(role) %}{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}{% endmacro -%}
{%- if messages[0]['role'] == 'system' -%}
{%- set world = messages[0]['content'] | trim %}{% set messages = messages[1:] -%}
{%- else %}{% set world = '' %}{% endif -%}
{{- head('system') + 'Today is ' + strftime_now('%d %b %Y') + '\\n\\n' + world + '<|eot_id|>' }}
{%- for m in messages %}{{ head(m['role']) + m['content'] | trim + '<|eot_id|>' }}{% endfor -%}
{%- if add_generation_prompt %}{{ head('assistant') }}{% endif -%}
"""
# Moves the system text into the last line, so that no cache survives, and requires turns that alternate.
INSTRUCT = """\
{%- set ns = namespace(system='', turns=0) -%}
{%- for m in messages if m.role == 'system' %}{% set ns.system = m.content %}{% endfor -%}
{%- set turns = messages | rejectattr('role', 'equalto', 'system') | list -%}
{{- bos_token -}}
{%- for m in turns -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif -%}
{%- if m.role == 'user' -%}
{{- '[INST] ' + (ns.system + '\\n\\n' if loop.last and ns.system else '') + m.content + ' [/INST]' -}}
{%- else %}{{ ' ' + m.content | trim + eos_token }}{% endif -%}
{%- endfor -%}
"""
# Knows no system role and calls the assistant "model".
TURNS = """\
{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif -%}
{%- for m in messages -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif -%}
{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif -%}
"""


@dataclass(frozen=True)
class Tokens:
    """A tokenizer as GGUF has it."""

    model: str
    texts: list[str]
    types: list[int]
    bos: int
    eos: int
    add_bos: bool
    pre: str = "default"
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    space_prefix: bool | None = None
    eot: int = -1


@dataclass(frozen=True)
class Shape:
    """A small network of a family. With `window` > 0 every other layer looks back that far only."""

    arch: str
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_len: int = 16
    inner: int = 96
    biases: bool = False
    tied: bool = True
    norms_after: bool = False
    head_norms: bool = False
    window: int = 0
    keys: dict[str, float] = field(default_factory=dict)


# -- tokenizers ----------------------------------------------------------------------------------------------------


def byte_texts() -> list[str]:
    """The text of each byte in byte-level BPE: printable ones as themselves, the others as letters above 255."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    above = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(above)) for b in range(256)]


def byte_level(
    pre: str, controls: Sequence[str], eos: str, *, bos: str = "", add_bos: bool = False, size: int = 0,
    starts: str = "Ġ ", words: Sequence[str] = WORDS,
) -> Tokens:  # fmt: skip
    """Byte-level BPE: words grow letter by letter. With `size` it also has combinations of letters, up to that number.

    `starts`: how the `words` begin, with a space ("Ġ"), without (" "), or both.
    """
    texts = byte_texts()
    known, merges = set(texts), []

    def grow(left: str, right: str) -> str:
        if left + right not in known:
            known.add(left + right)
            texts.append(left + right)
            merges.append(f"{left} {right}")
        return left + right

    for word in words:
        for start in (f"{begins.strip()}{word}" for begins in starts):
            made = start[0]
            for letter in start[1:]:
                made = grow(made, letter)
    for length in (2, 3, 4):
        for letters in product(ascii_lowercase, repeat=length):
            if len(texts) + len(controls) >= size:
                break
            heap = "".join(letters)
            if heap[:-1] in known:
                grow(heap[:-1], heap[-1])
    types = [NORMAL] * len(texts) + [CONTROL] * len(controls)
    texts += controls
    return Tokens("gpt2", texts, types, texts.index(bos) if bos else -1, texts.index(eos), add_bos, pre, merges)


def sentencepiece(first: Sequence[tuple[str, int]], eos: str, bos: str, *, space_prefix: bool | None = None) -> Tokens:
    """Sentencepiece with byte fallback; longer pieces of a word have the better score."""
    texts, types = [t for t, _ in first], [kind for _, kind in first]
    scores = [0.0] * len(first)
    for byte in range(256):
        texts.append(f"<0x{byte:02X}>")
        types.append(BYTE)
        scores.append(0.0)
    known = set(texts)
    pieces: list[str] = []
    for word in WORDS:
        pieces += [f"\u2581{word}"[:n] for n in range(2, len(word) + 2)] + [word[:n] for n in range(2, len(word) + 1)]
    pieces += ["</", "s>", "INST", "\u2581[", "[/", "\u2581\u2581"]
    pieces += ["\u2581", *(chr(c) for c in range(33, 127))]
    for rank, piece in enumerate(p for p in dict.fromkeys(pieces) if p not in known):
        texts.append(piece)
        types.append(NORMAL)
        scores.append(-1.0 - rank)
    return Tokens(
        "llama", texts, types, texts.index(bos), texts.index(eos), True, scores=scores, space_prefix=space_prefix
    )


# -- files ---------------------------------------------------------------------------------------------------------


def write(
    path: Path,
    shape: Shape,
    tokens: Tokens,
    template: str,
    seed: int = 1,
    ints: Mapping[str, int | bool] | None = None,
    matrices: Mapping[str, Any] | None = None,
) -> Path:
    """A whole model with random weights, the same for the same seed. `ints` are more values of the architecture. With
    `matrices` these are as given, and all others are zero.
    """
    w = gguf.GGUFWriter(str(path), shape.arch)
    w.add_name(path.stem)
    w.add_context_length(4096)
    w.add_embedding_length(shape.hidden)
    w.add_block_count(shape.layers)
    w.add_feed_forward_length(shape.inner)
    w.add_head_count(shape.heads)
    w.add_head_count_kv(shape.kv_heads)
    w.add_key_length(shape.head_len)
    w.add_value_length(shape.head_len)
    w.add_rope_dimension_count(shape.head_len)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_vocab_size(len(tokens.texts))
    if shape.window:
        w.add_sliding_window(shape.window)
    for key, value in shape.keys.items():
        w.add_float32(f"{shape.arch}.{key}", value)
    for key, number in (ints or {}).items():
        add = w.add_bool if isinstance(number, bool) else w.add_uint32
        add(f"{shape.arch}.{key}", number)
    _write_tokens(w, tokens, template)
    for name, array in _weights(shape, len(tokens.texts), np.random.default_rng(seed)):
        if matrices is not None and array.ndim == 2:
            array = matrices.get(name.removesuffix(".weight"), np.zeros_like(array))
        w.add_tensor(name, array)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def _write_tokens(w: Any, tokens: Tokens, template: str) -> None:
    w.add_tokenizer_model(tokens.model)
    w.add_tokenizer_pre(tokens.pre)
    w.add_token_list(tokens.texts)
    w.add_token_types(tokens.types)
    if tokens.merges:
        w.add_token_merges(tokens.merges)
    if tokens.scores:
        w.add_token_scores(tokens.scores)
    if tokens.bos >= 0:
        w.add_bos_token_id(tokens.bos)
    w.add_eos_token_id(tokens.eos)
    w.add_add_bos_token(tokens.add_bos)
    if tokens.space_prefix is not None:
        w.add_add_space_prefix(tokens.space_prefix)
    if template:
        w.add_chat_template(template)


def _weights(shape: Shape, vocab: int, rng: np.random.Generator) -> list[tuple[str, Any]]:
    s = shape
    out: list[tuple[str, Any]] = []

    def matrix(name: str, rows: int, columns: int) -> None:
        values = rng.standard_normal((rows, columns), dtype=np.float32) / np.float32(np.sqrt(columns))
        out.append((f"{name}.weight", values.astype(np.float16)))

    def ones(name: str) -> None:
        out.append((f"{name}.weight", np.ones(s.hidden, np.float32)))

    matrix("token_embd", vocab, s.hidden)
    ones("output_norm")
    if not s.tied:
        matrix("output", vocab, s.hidden)
    queries, keys = s.heads * s.head_len, s.kv_heads * s.head_len
    for i in range(s.layers):
        block = f"blk.{i}"
        for name in ("attn_norm", "ffn_norm", *(("post_attention_norm", "post_ffw_norm") if s.norms_after else ())):
            ones(f"{block}.{name}")
        for name, rows in (("attn_q", queries), ("attn_k", keys), ("attn_v", keys)):
            matrix(f"{block}.{name}", rows, s.hidden)
            if s.biases:
                out.append((f"{block}.{name}.bias", rng.standard_normal(rows, dtype=np.float32) * np.float32(0.2)))
        for name in ("attn_q_norm", "attn_k_norm") if s.head_norms else ():
            out.append((f"{block}.{name}.weight", np.ones(s.head_len, np.float32)))
        matrix(f"{block}.attn_output", s.hidden, queries)
        matrix(f"{block}.ffn_gate", s.inner, s.hidden)
        matrix(f"{block}.ffn_up", s.inner, s.hidden)
        matrix(f"{block}.ffn_down", s.hidden, s.inner)
    return out


# -- families ------------------------------------------------------------------------------------------------------


def qwen2_like(path: Path) -> Path:
    """Biases in attention, tied output, no BOS, ChatML."""
    tokens = byte_level("qwen2", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>")
    return write(path, Shape("qwen2", biases=True), tokens, CHATML)


def llama3_like(path: Path) -> Path:
    """A vocabulary of 128,256, one key head for four, BOS in the template and wanted by the tokenizer."""
    controls = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokens = byte_level("llama-bpe", controls, "<|end_of_text|>", bos="<|begin_of_text|>", add_bos=True, size=128_256)
    shape = Shape("llama", hidden=32, kv_heads=1, head_len=8, inner=64, keys={"rope.freq_base": 500_000.0})
    return write(path, shape, tokens, HEADERS)


def mistral_like(path: Path) -> Path:
    """Sentencepiece with a space prefix and bytes, an output of its own, a window, markers that are no tokens.

    llama.cpp attends over everything in this architecture, whatever window the file names.
    """
    tokens = sentencepiece([("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)], "</s>", "<s>")
    return write(path, Shape("llama", tied=False, window=64), tokens, INSTRUCT)


def gemma_like(path: Path) -> Path:
    """A sliding window of 48 in every other layer, soft caps, norms on both sides, no space prefix, no system role."""
    first = [("<pad>", CONTROL), ("<eos>", CONTROL), ("<bos>", CONTROL), ("<unk>", UNKNOWN)]
    first += [("<start_of_turn>", CONTROL), ("<end_of_turn>", CONTROL)]
    first += [("\n" * n, ADDED) for n in (1, 2, 3)] + [("<table>", ADDED), ("<b>", ADDED)]
    tokens = sentencepiece(first, "<eos>", "<bos>", space_prefix=False)
    keys = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    shape = Shape("gemma2", layers=4, kv_heads=1, head_len=32, norms_after=True, window=48, keys=keys)
    return write(path, shape, tokens, TURNS)


def bare(path: Path) -> Path:
    """A base model: no chat template at all."""
    tokens = byte_level("gpt-2", ["<|endoftext|>"], "<|endoftext|>")
    return write(path, Shape("llama", tied=False), tokens, "")


def mamba_like(path: Path) -> Path:
    """No attention: its memory of a sequence is one state, which cannot be cut back."""
    tokens = byte_level("gpt-2", ["<|endoftext|>"], "<|endoftext|>")
    hidden, inner, state, rank, kernel = 32, 64, 8, 4, 4
    w = gguf.GGUFWriter(str(path), "mamba")
    w.add_context_length(1024)
    w.add_embedding_length(hidden)
    w.add_block_count(1)
    w.add_feed_forward_length(0)
    w.add_head_count(0)
    w.add_ssm_conv_kernel(kernel)
    w.add_ssm_inner_size(inner)
    w.add_ssm_state_size(state)
    w.add_ssm_time_step_rank(rank)
    w.add_layer_norm_rms_eps(1e-6)
    _write_tokens(w, tokens, "")
    sizes = {
        "token_embd.weight": (len(tokens.texts), hidden),
        "output_norm.weight": (hidden,),
        "blk.0.attn_norm.weight": (hidden,),
        "blk.0.ssm_in.weight": (2 * inner, hidden),
        "blk.0.ssm_conv1d.weight": (inner, kernel),
        "blk.0.ssm_conv1d.bias": (inner,),
        "blk.0.ssm_x.weight": (rank + 2 * state, inner),
        "blk.0.ssm_dt.weight": (inner, rank),
        "blk.0.ssm_dt.bias": (inner,),
        "blk.0.ssm_a": (inner, state),
        "blk.0.ssm_d": (inner,),
        "blk.0.ssm_out.weight": (hidden, inner),
    }
    for name, size in sizes.items():
        w.add_tensor(name, np.full(size, -0.1, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "qwen2": qwen2_like,
    "llama3": llama3_like,
    "mistral": mistral_like,
    "gemma": gemma_like,
    "bare": bare,
}
