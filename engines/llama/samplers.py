"""Native sampler chains, one per request that draws its tokens."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp

from core.work import Sampling


class Samplers:
    """The open chains by their handles. `chains` is read by the step that draws from them."""

    def __init__(self, model: Any, vocab_len: int) -> None:
        self._model = model
        self._vocab_len = vocab_len
        self._next = 0
        self.chains: dict[int, Any] = {}

    def add(self, sampling: Sampling, recent: Sequence[int]) -> int:
        """A native chain: penalties, DRY against repeating, top-k, top-p, min-p, temperature, seeded draw."""
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        parts = []
        seen_len = max(sampling.repeat_last_n, sampling.unrepeat_last_n if sampling.unrepeat > 0 else 0)
        if sampling.top_k > 0 and sampling.repeat_penalty >= 1.0:
            # Penalties only push tokens down, so everything that top-k will keep is among these. To look up penalties
            # for 128 k tokens takes three times as long as all the rest.
            parts.append(llama_cpp.llama_sampler_init_top_k(sampling.top_k + seen_len))
        parts += [
            llama_cpp.llama_sampler_init_penalties(
                self._vocab_len, sampling.repeat_last_n, sampling.repeat_penalty, 0.0, 0.0
            ),
            *self._unrepeating(sampling),
            llama_cpp.llama_sampler_init_top_k(sampling.top_k),
            llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
            llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1),
            llama_cpp.llama_sampler_init_temp(sampling.temperature),
            llama_cpp.llama_sampler_init_dist(sampling.seed & 0xFFFFFFFF),
        ]
        for part in parts:
            llama_cpp.llama_sampler_chain_add(chain, part)
        for token in recent[-seen_len:]:
            llama_cpp.llama_sampler_accept(chain, int(token))
        handle = self._next
        self._next += 1
        self.chains[handle] = chain
        return handle

    def drop(self, handle: int) -> None:
        """Frees a chain."""
        llama_cpp.llama_sampler_free(self.chains.pop(handle))

    def close(self) -> None:
        """Frees all chains."""
        for chain in self.chains.values():
            llama_cpp.llama_sampler_free(chain)
        self.chains.clear()

    def _unrepeating(self, sampling: Sampling) -> list[Any]:
        if sampling.unrepeat <= 0:
            return []
        nothing = ctypes.POINTER(ctypes.c_char_p)()
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        strength, base, last_n = sampling.unrepeat, sampling.unrepeat_base, sampling.unrepeat_last_n
        return [llama_cpp.llama_sampler_init_dry(vocab, strength, base, 1, last_n, nothing, 0)]
