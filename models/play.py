"""Runs a GGUF file with llama.cpp: tokens and logits, one sequence at a time.

The checks after an export, the draft's examination and tests use it. It is not fast and not meant to be: engines/ is.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import llama_cpp
import numpy as np
from numpy.typing import NDArray

SHIPPED = Path(__file__).parent / "npcd-demo.gguf"
DRAFT = SHIPPED.with_name("npcd-demo-draft.gguf")

_QUIET = llama_cpp.llama_log_callback(lambda level, text, user: None)


class Played:
    """A loaded model: an Encoder for the layout and, unless `vocab_only`, a context of one sequence."""

    def __init__(self, path: str, vocab_only: bool = False, context_len: int = 2048, threads: int = 2) -> None:
        if not os.path.exists(path):
            raise FileNotFoundError(path)
        llama_cpp.llama_log_set(_QUIET, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = vocab_only
        self._model: Any = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise ValueError(f"{path} is not a model that llama.cpp can load")
        self._vocab: Any = llama_cpp.llama_model_get_vocab(self._model)
        self.size: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._context: Any = None
        self.held: list[int] = []
        if not vocab_only:
            options = llama_cpp.llama_context_default_params()
            options.n_ctx = options.n_batch = context_len
            options.n_threads = options.n_threads_batch = threads
            options.flash_attn_type = 0  # as the daemon's default; with it, logits differ by thousandths
            self._context = llama_cpp.llama_init_from_model(self._model, options)
            self._memory: Any = llama_cpp.llama_get_memory(self._context)
        self._controls = {self.token_text(i): i for i in range(self.size) if self.is_control(i)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._context is not None:
            llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    @property
    def parameters(self) -> int:
        """The number of the model's weights; tied ones count once."""
        return int(llama_cpp.llama_model_n_params(self._model))

    # -- tokens ------------------------------------------------------------------------------------------------

    @property
    def bos_id(self) -> int:
        """The token every text must begin with, or -1."""
        return int(llama_cpp.llama_vocab_bos(self._vocab)) if llama_cpp.llama_vocab_get_add_bos(self._vocab) else -1

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text, never a control token."""
        data = text.encode()
        room = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), room, len(room), False, False)
        assert count >= 0, "more tokens than bytes"
        return list(room[:count])

    def control(self, text: str) -> int:
        """The id of a control token, or -1."""
        return self._controls.get(text, -1)

    def is_control(self, token: int) -> bool:
        """True when no plain text can encode to this token."""
        return bool(llama_cpp.llama_vocab_is_control(self._vocab, token))

    def ends(self, token: int) -> bool:
        """True when generation ends with this token."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def token_text(self, token: int) -> str:
        """The token as the file stores it."""
        return str(llama_cpp.llama_vocab_get_text(self._vocab, token).decode())

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; control tokens give no text."""
        out = b""
        room = ctypes.create_string_buffer(256)
        for token in tokens:
            count = llama_cpp.llama_token_to_piece(self._vocab, token, room, len(room), 0, False)
            out += room.raw[: max(count, 0)]
        return out.decode(errors="replace")

    # -- play --------------------------------------------------------------------------------------------------

    def logits(self, tokens: Sequence[int], every: bool = False) -> NDArray[np.float32]:
        """Scores after `tokens` (after each of them with `every`). The common prefix with the context is kept."""
        same = 0
        if not every:
            while same < min(len(tokens) - 1, len(self.held)) and tokens[same] == self.held[same]:
                same += 1
        llama_cpp.llama_memory_seq_rm(self._memory, 0, same, -1)
        fresh = tokens[same:]
        batch = llama_cpp.llama_batch_init(len(fresh), 0, 1)
        batch.n_tokens = len(fresh)
        for i, token in enumerate(fresh):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, same + i, 1, 0
            batch.logits[i] = 1 if every or i == len(fresh) - 1 else 0
        code = llama_cpp.llama_decode(self._context, batch)
        llama_cpp.llama_batch_free(batch)
        assert code == 0, f"llama_decode answered {code}"
        self.held = list(tokens)
        rows = [
            llama_cpp.llama_get_logits_ith(self._context, i)
            for i in (range(len(fresh)) if every else (len(fresh) - 1,))
        ]
        return np.stack([np.ctypeslib.as_array(row, (self.size,)).copy() for row in rows])
