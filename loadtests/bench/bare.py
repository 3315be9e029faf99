"""The floor: llama_decode and a numpy argmax on sequences 0, 1, 2, ..., with no code around them.

It uses the batch arrays and the context of a LlamaEngine of its own, and none of the engine's other code.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.choice import Tokens
from core.clock import now_ns
from engines.base import Slice, StepPlan
from engines.llama import LlamaEngine, LlamaSettings, native

_library: Any = native  # llama_cpp itself, too: benchmarks have no other door to it


class Bare:
    """Greedy decoding of `count` sequences side by side. Use it on one thread."""

    def __init__(self, settings: LlamaSettings, count: int) -> None:
        self.engine = LlamaEngine(settings)
        self.count = count
        self.decode_ns: list[int] = []
        self.argmax_ns: list[int] = []

    def prepare(self, trunks: Sequence[Tokens]) -> None:
        """Puts one trunk into each sequence; this is not timed."""
        for seq, trunk in enumerate(trunks):
            self.engine.trim(seq, 0)
            self.engine.step(StepPlan([Slice(seq, 0, trunk)]))

    def run(self, start: int, tails: Sequence[Tokens], steps: int) -> int:
        """Takes the tails in at position `start` in one step, then makes `steps` tokens each. Returns nanoseconds.

        All tails have the same length. The sequences are cut back to `start` afterwards.
        """
        engine, batch, count, tail_len = self.engine, self.engine.steps.batch, self.count, len(tails[0])
        self.decode_ns.clear()
        self.argmax_ns.clear()
        began = now_ns()
        n = count * tail_len
        batch.token[:n] = np.concatenate(tails)
        batch.pos[:n] = np.tile(np.arange(start, start + tail_len, dtype=np.int32), count)
        batch.seq[:n] = np.repeat(np.arange(count, dtype=np.int32), tail_len)
        batch.wanted[:n] = 0
        batch.wanted[tail_len - 1 : n : tail_len] = 1
        token = self._decode(n)
        batch.seq[:count] = np.arange(count, dtype=np.int32)
        batch.pos[:count] = start + tail_len
        batch.wanted[:count] = 1
        for _ in range(steps - 1):
            batch.token[:count] = token
            token = self._decode(count)
            batch.pos[:count] += 1
        took = now_ns() - began
        engine.state.book[:count] = start + tail_len + steps - 1
        for seq in range(count):
            engine.trim(seq, start)
        return took

    def close(self) -> None:
        """Frees the engine."""
        self.engine.close()

    def _decode(self, n: int) -> NDArray[np.int64]:
        engine = self.engine
        context, batch = engine.state.context, engine.steps.batch.native
        batch.n_tokens = n
        began = now_ns()
        code = _library.llama_cpp.llama_decode(context, batch)
        address = _library.get_logits(context)  # this waits for the decode
        decoded = now_ns()
        assert code == 0 and address, f"llama_decode answered {code}"
        floats: Any = (ctypes.c_float * (self.count * engine.vocab.size)).from_address(address)
        token: NDArray[np.int64] = np.frombuffer(floats, np.float32).reshape(self.count, -1).argmax(axis=1)
        self.decode_ns.append(decoded - began)
        self.argmax_ns.append(now_ns() - decoded)
        return token


def logits_of_last_step(engine: LlamaEngine, rows: int) -> NDArray[np.float32]:
    """A copy of the logits that the engine's last step asked for, `rows` of them."""
    return engine.state.logits(rows).copy()
