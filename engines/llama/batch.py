"""The arrays that llama_decode reads a step from, made once."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
import numpy as np


class Batch:
    """Room for `length` tokens: for each its id, position and sequence, and whether its logits are wanted."""

    def __init__(self, length: int) -> None:
        self.token = np.zeros(length, np.int32)
        self.pos = np.zeros(length, np.int32)
        self.seq = np.zeros(length, np.int32)
        self.wanted = np.zeros(length, np.int8)
        self._n_seq_id = np.ones(length, np.int32)
        # Every token has one sequence: its pointer is aimed once at its place in `seq`.
        self._places = (ctypes.POINTER(ctypes.c_int32) * length)()
        base = self.seq.ctypes.data
        for i in range(length):
            self._places[i] = ctypes.cast(base + 4 * i, ctypes.POINTER(ctypes.c_int32))
        # The native struct points into the arrays above, so they live as long as this object.
        self.native: Any = llama_cpp.llama_batch(
            0,
            self.token.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            None,
            self.pos.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            self._n_seq_id.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            ctypes.cast(self._places, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            self.wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
