"""The network and its tokenizer as one GGUF file that llama.cpp loads as "llama" with a "gpt-2" tokenizer.

Matrices are stored in bf16, norms in f32. No permutation: the network rotates neighbouring pairs, as llama.cpp does.
"""

from __future__ import annotations

import os

import gguf
import numpy as np

from models.net import Net
from models.tokenizer import Bpe
from prompts.marks import MARKS

NAME = "npcd demonstration model"


def export(net: Net, bpe: Bpe, path: str) -> int:
    """Writes the file (whole or not at all) and returns its size in bytes."""
    s = net.shape
    passing = f"{path}.part"
    w = gguf.GGUFWriter(passing, "llama")
    w.add_name(NAME)
    w.add_description(
        "A demonstration model for npcd: intents and short dialogue of game characters. Trained on generated text."
    )
    w.add_license("Apache-2.0")
    w.add_languages(["en"])
    w.add_size_label(f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f}M")
    w.add_context_length(s.context_len)
    w.add_embedding_length(s.hidden)
    w.add_block_count(s.layers)
    w.add_feed_forward_length(s.inner)
    w.add_head_count(s.heads)
    w.add_head_count_kv(s.kv_heads)
    w.add_layer_norm_rms_eps(s.norm_eps)
    w.add_rope_dimension_count(s.head_len)
    w.add_rope_freq_base(s.rotary_base)
    w.add_vocab_size(s.vocab_len)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)

    tokens = bpe.tokens()
    text_len = len(tokens) - len(MARKS)
    end = bpe.control(MARKS["end"])
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types([int(gguf.TokenType.NORMAL)] * text_len + [int(gguf.TokenType.CONTROL)] * len(MARKS))
    w.add_token_merges(bpe.merges())
    w.add_eos_token_id(end)
    w.add_eot_token_id(end)
    w.add_pad_token_id(end)
    w.add_add_bos_token(False)
    w.add_add_eos_token(False)

    for name, value in net.state_dict().items():
        array = value.detach().numpy().astype(np.float32)
        if array.ndim == 1:
            w.add_tensor(name, array)
        else:
            kind = gguf.GGMLQuantizationType.BF16
            w.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    os.replace(passing, path)
    return os.path.getsize(path)
