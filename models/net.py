"""The network: a Llama of 2 million parameters, trained on token trees. Names and layout follow llama.cpp's "llama"."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Shape:
    """The network's sizes; `rotary_base` and `norm_eps` are as GGUF stores them."""

    vocab_len: int = 2048
    hidden: int = 192
    layers: int = 4
    heads: int = 3
    kv_heads: int = 1  # one for all: on a CPU a step costs its dot products, and long ones are cheap (CARD.md)
    head_len: int = 64
    inner: int = 512
    context_len: int = 2048
    rotary_base: float = 1_000_000.0  # high, so that slow pairs compare words over hundreds of tokens
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
    """Attention over the visible tokens, then SwiGLU, each added to its input."""

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

    def forward(self, x: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        s = self.shape
        h = self.attn_norm(x)
        q = rotate(self.attn_q(h).view(batch, length, s.heads, s.head_len).transpose(1, 2), cos, sin)
        k = rotate(self.attn_k(h).view(batch, length, s.kv_heads, s.head_len).transpose(1, 2), cos, sin)
        v = self.attn_v(h).view(batch, length, s.kv_heads, s.head_len).transpose(1, 2)
        k = k.repeat_interleave(s.heads // s.kv_heads, 1)
        v = v.repeat_interleave(s.heads // s.kv_heads, 1)
        # Written out: on a CPU the compiler makes it faster than the library's own attention with a mask.
        scores = (q @ k.transpose(-1, -2)) * s.head_len**-0.5 + hidden
        seen = torch.softmax(scores, -1, dtype=torch.float32).to(v.dtype) @ v
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
        _begin(self)

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Hidden states (batch, length, hidden) of `ids` (batch, length); `mask` is True where a token sees another."""
        s = self.shape
        rates = s.rotary_base ** (-torch.arange(0, s.head_len, 2, dtype=torch.float32) / s.head_len)
        angles = (positions[:, None, :, None].float()) * rates
        cos, sin = angles.cos(), angles.sin()
        x = self.token_embd(ids)
        hidden = torch.zeros(mask.shape).masked_fill(~mask, -1e4)
        for block in self.blk:
            x = block(x, hidden, cos, sin)
        out: Tensor = self.output_norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary; the embedding is tied."""
        return F.linear(hidden, self.token_embd.weight)


def _begin(net: Net) -> None:
    """Random weights, but with the two heads that find and copy: a training from nothing on a CPU is too short for them
    to form by themselves (models/CARD.md).

    Layer 0: a head that looks at the token before (queries and keys come from a constant that every embedding has,
    turned by one position) and writes that token into a subspace of its own. Layer 1: a head that compares a token with
    the content of that subspace (in the pairs that turn slowly), so it looks behind an earlier occurrence of the same
    token, and adds the token that it finds to the output. See Olsson et al., "In-context Learning and Induction Heads",
    2022.
    """
    s = net.shape
    std, wide = 0.05, s.head_len
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=std if name.startswith("token") else p.shape[1] ** -0.5)
            if name.endswith(("attn_output.weight", "ffn_down.weight")):
                p.zero_()
        if s.layers < 2 or s.hidden < wide or wide < 32:
            return
        net.token_embd.weight[:, 0] = 4 * std
        turn = s.rotary_base ** (-torch.arange(0, wide, 2, dtype=torch.float32) / wide)

        before = net.blk[0]
        ask, key = torch.zeros(wide), torch.zeros(wide)
        quick = range(wide * 5 // 32)
        for i in quick:
            ask[2 * i] = 1
            key[2 * i], key[2 * i + 1] = torch.cos(turn[i]), torch.sin(turn[i])
        before.attn_q.weight[:wide] *= 0.1
        before.attn_k.weight[:wide] *= 0.3
        before.attn_q.weight[:wide, 0] = 2 * ask
        before.attn_k.weight[:wide, 0] = 2 * key
        read, write = _directions(s.hidden, wide).T, _directions(s.hidden, wide)
        before.attn_v.weight[:wide] = read
        before.attn_output.weight[:, :wide] = 1.6 * std * write

        match = net.blk[1]
        slow = torch.zeros(wide, wide)
        for j, d in enumerate(range(wide * 7 // 16, wide)):
            slow[d, j] = 1
        match.attn_q.weight[:wide] = 0.1 * match.attn_q.weight[:wide] + 1.6 * slow @ read
        match.attn_k.weight[:wide] = 0.1 * match.attn_k.weight[:wide] + 1.6 * slow @ write.T
        copy = _directions(s.hidden, wide).T
        match.attn_v.weight[:wide] = copy
        match.attn_output.weight[:, :wide] = 3 * std * copy.T


def _directions(rows: int, columns: int) -> Tensor:
    """Random columns at right angles, without a part of the constant in the first row."""
    made: Tensor = torch.linalg.qr(torch.randn(rows, columns))[0]
    made[0] = 0
    return made


def plain(net: Net, ids: list[int]) -> Tensor:
    """Logits (length, vocabulary) of one ordinary sequence; changes nothing."""
    with torch.no_grad():
        row = torch.tensor([ids])
        mask = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool).tril()
        return net.logits(net(row, torch.arange(len(ids))[None], mask))[0]
