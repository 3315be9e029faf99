"""The state of one llama.cpp context: its KV streams, and a book of how long each is.

Owns the native context. Everything is called on the engine thread. Positions are checked against the book before every
step, because llama.cpp accepts any position for an empty sequence without a word (docs/decisions/0001).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError, EngineFailed
from engines.llama import native
from engines.llama.batch import Batch
from engines.llama.measuring import context_params
from engines.llama.settings import LlamaSettings
from engines.model_file import not_causal


class State:
    """`streams` independent sequences of KV, and how many tokens each holds (`book`).

    The last stream is scratch: it is for steps that make llama.cpp carry out the copies which it has put off.
    """

    def __init__(self, model: Any, settings: LlamaSettings, threads: int, streams: int) -> None:
        """Raises ConfigError when there is no memory for so many sequences, or the attention is not causal."""
        self._model = model
        self._settings = settings
        self._threads = threads
        self._streams = streams
        self._vocab_len = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)))
        self._flush = Batch(1)
        self.context: Any = None
        self.open()

    def open(self) -> None:
        """Makes a new context, in place of one that is open; every sequence is empty. Raises as __init__."""
        self.close()
        s = self._settings
        params = context_params(s, self._streams, self._threads)
        context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            raise ConfigError(
                f"engine: no memory for {self._streams} sequences of {s.context_len} tokens; "
                "lower engine.sequences or engine.context_len"
            )
        if not llama_cpp.llama_get_causal_attn(context):
            llama_cpp.llama_free(context)
            raise not_causal(s.model)
        self.context = context
        self._memory = llama_cpp.llama_get_memory(context)
        self.book: NDArray[np.int64] = np.zeros(self._streams, np.int64)
        self._unsettled: set[int] = set()  # sequences of copies that llama.cpp has put off

    def close(self) -> None:
        """Frees the context."""
        if self.context:
            llama_cpp.llama_free(self.context)
            self.context = None

    def decode(self, batch: Batch, count: int) -> None:
        """Decodes the first `count` tokens of a batch. The caller moves the book."""
        batch.native.n_tokens = count
        code = llama_cpp.llama_decode(self.context, batch.native)
        if code != 0:
            raise EngineFailed(f"llama_decode answered {code}")
        if self._settings.gpu_layers:
            llama_cpp.llama_synchronize(self.context)  # on a CPU the decode is over when it returns
        self._unsettled.clear()

    def logits(self, rows: int) -> NDArray[np.float32]:
        """The logits that the last decode was asked for, rows x vocabulary, where the library keeps them: the next
        decode overwrites them.
        """
        address = native.get_logits(self.context)
        if not address:
            raise EngineFailed("no logits after a decode")
        floats: Any = (ctypes.c_float * (rows * self._vocab_len)).from_address(address)
        return np.frombuffer(floats, np.float32).reshape(rows, -1)

    def all_finite(self, tokens: Sequence[int]) -> bool:
        """True if the model answers a text of a few tokens with numbers: no infinity, no NaN. Takes one short step on
        the scratch stream, which is empty before and after.
        """
        scratch, batch = self._streams - 1, Batch(len(tokens))
        batch.token[:], batch.pos[:], batch.seq[:] = tokens, range(len(tokens)), scratch
        batch.wanted[:] = 1
        self.decode(batch, len(tokens))
        finite = bool(np.isfinite(self.logits(len(tokens))).all())
        self._cut(scratch, 0)
        return finite

    def copy(self, src: int, dst: int) -> None:
        """Makes dst equal to src, whole."""
        assert src != dst, "a sequence cannot be copied onto itself"
        self._cut(dst, 0)
        if self.book[src]:
            # llama.cpp aborts on a partial copy between streams, so always the whole one; trim() cuts it.
            native.seq_cp(self._memory, src, dst, -1, -1)
            # The bytes move only when the next decode begins.
            self._unsettled |= {src, dst}
        self.book[dst] = self.book[src]

    def trim(self, seq: int, length: int) -> None:
        """Cuts the sequence back to its first `length` tokens."""
        assert 0 <= length <= self.book[seq], f"sequence {seq} holds {self.book[seq]} tokens, cannot keep {length}"
        if length < self.book[seq]:
            self._cut(seq, length)
            self.book[seq] = length

    def length(self, seq: int) -> int:
        """Tokens in the sequence, as llama.cpp counts them."""
        return int(native.pos_max(self._memory, seq)) + 1

    def store(self, seq: int) -> bytes:
        """The sequence's KV as llama.cpp writes it."""
        self._settle(seq)
        size = int(llama_cpp.llama_state_seq_get_size(self.context, seq))
        buffer = (ctypes.c_uint8 * size)()
        written = int(llama_cpp.llama_state_seq_get_data(self.context, buffer, size, seq))
        if written != size:
            raise EngineFailed(f"storing sequence {seq} gave {written} of {size} bytes")
        return bytes(buffer)

    def load(self, seq: int, blob: bytes) -> bool:
        """Puts stored bytes into the sequence; False and an empty sequence when llama.cpp refuses them.

        llama.cpp finds truncated bytes and another model's bytes, but not a flipped bit: callers verify a checksum
        first.
        """
        self._settle(seq)
        self._cut(seq, 0)
        # The library only reads, so it may read the bytes where they are.
        buffer = ctypes.cast(ctypes.c_char_p(blob), ctypes.POINTER(ctypes.c_uint8))
        read = int(llama_cpp.llama_state_seq_set_data(self.context, buffer, len(blob), seq))
        taken = 0 < read == len(blob)
        if not taken:
            self._cut(seq, 0)
        self.book[seq] = self.length(seq)
        return taken

    def _cut(self, seq: int, length: int) -> None:
        if not native.seq_rm(self._memory, seq, length, -1):
            raise EngineFailed(f"sequence {seq} cannot be cut at {length}")

    def _settle(self, seq: int) -> None:
        """Makes copies to or from `seq` real, by a step of one token on the scratch stream."""
        if seq in self._unsettled:
            scratch, batch = self._streams - 1, self._flush
            batch.token[0], batch.pos[0], batch.seq[0], batch.wanted[0] = 0, 0, scratch, 0
            self.decode(batch, 1)
            self._cut(scratch, 0)
