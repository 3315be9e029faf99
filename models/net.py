"""The network: a Llama of 2 million parameters, trained on token trees. Names and layout follow llama.cpp's "llama"."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Shape:
    """The network's sizes; `rotary_base` and `norm_eps` as GGUF stores them."""

    vocab_len: int = 2048
    hidden: int = 192
    layers: int = 4
    heads: int = 3
    kv_heads: int = 1  # one for all: on a CPU steps cost their dot products, and long ones are cheap (CARD.md)
    head_len: int = 64
    inner: int = 512
    context_len: int = 2048
    rotary_base: float = 10000.0
    norm_eps: float = 1e-5


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.hidden))
        self.eps = shape.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on neighbouring pairs (ggml's mode NORM): x is (batch, heads, length, head_len)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Block(nn.Module):
    """Attention over what the mask shows, then SwiGLU, each added to its input."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        wide, narrow = shape.heads * shape.head_len, shape.kv_heads * shape.head_len
        self.shape = shape
        self.attn_norm = Norm(shape)
        self.attn_q = nn.Linear(shape.hidden, wide, bias=False)
        self.attn_k = nn.Linear(shape.hidden, narrow, bias=False)
        self.attn_v = nn.Linear(shape.hidden, narrow, bias=False)
        self.attn_output = nn.Linear(wide, shape.hidden, bias=False)
        self.ffn_norm = Norm(shape)
        self.ffn_gate = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.ffn_up = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.ffn_down = nn.Linear(shape.inner, shape.hidden, bias=False)

    def forward(self, x: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        s = self.shape
        h = self.attn_norm(x)
        q = rotate(self.attn_q(h).view(batch, length, s.heads, s.head_len).transpose(1, 2), cos, sin)
        k = rotate(self.attn_k(h).view(batch, length, s.kv_heads, s.head_len).transpose(1, 2), cos, sin)
        v = self.attn_v(h).view(batch, length, s.kv_heads, s.head_len).transpose(1, 2)
        k = k.repeat_interleave(s.heads // s.kv_heads, 1)
        v = v.repeat_interleave(s.heads // s.kv_heads, 1)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.attn_output(seen.transpose(1, 2).reshape(batch, length, -1))
        h = self.ffn_norm(x)
        out: Tensor = x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))
        return out


class Net(nn.Module):
    """Token ids, positions and a mask in; hidden states out. `logits` turns chosen ones into scores."""

    def __init__(self, shape: Shape = Shape()) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocab_len, shape.hidden)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = Norm(shape)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                deep = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(
                    p,
                    std=0.02 if name.startswith("token") else p.shape[1] ** -0.5 / (shape.layers if deep else 1) ** 0.5,
                )

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Hidden states (batch, length, hidden) of `ids` (batch, length); `mask` is True where a token sees another."""
        s = self.shape
        rates = s.rotary_base ** (-torch.arange(0, s.head_len, 2, dtype=torch.float32) / s.head_len)
        angles = (positions[:, None, :, None].float()) * rates
        cos, sin = angles.cos(), angles.sin()
        x = self.token_embd(ids)
        for block in self.blk:
            x = block(x, mask, cos, sin)
        out: Tensor = self.output_norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary; the embedding is tied."""
        return F.linear(hidden, self.token_embd.weight)


def plain(net: Net, ids: list[int]) -> Tensor:
    """Logits (length, vocabulary) of one ordinary sequence; changes nothing."""
    with torch.no_grad():
        row = torch.tensor([ids])
        mask = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool).tril()
        return net.logits(net(row, torch.arange(len(ids))[None], mask))[0]
