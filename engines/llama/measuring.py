"""How much memory a model and its context will take, as llama.cpp itself plans it: nothing is allocated.

llama.cpp plans without allocating when its model is loaded so (no_alloc), and says the sizes of its buffers in its log
only. Where a later version says them otherwise, nothing is found, and callers estimate.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import llama_cpp

from engines.base import PAD_LEN
from engines.llama import native
from engines.llama.settings import KV_TYPES, LlamaSettings, flash

MIB = 1 << 20
_BUFFER = re.compile(r"^\S+:\s+(\S+)\s+(model|KV|compute|output) buffer size =\s+([0-9.]+) MiB")
_TOTAL = re.compile(r"^(?:print_info: file size\s+=\s+([0-9.]+) (MiB|GiB)|llama_kv_cache: size =\s+([0-9.]+) MiB)")
_LOAD_WHOLE = 0  # enum llama_load_mode: planning cannot map the file


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes: weights and KV in all, and the buffers of the computation by device ("CPU", "CUDA0", ...): `compute` for
    what a micro-batch computes, `output` for the logits of all sequences.
    """

    weights: int = 0
    kv: int = 0
    compute: dict[str, int] = field(default_factory=dict)
    output: int = 0

    @property
    def buffers(self) -> int:
        """All buffers of the computation."""
        return sum(self.compute.values()) + self.output


def context_params(settings: LlamaSettings, streams: int, threads: int) -> llama_cpp.llama_context_params:
    """The native parameters of a context with `streams` independent sequences."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = -(-settings.context_len // PAD_LEN) * PAD_LEN * streams  # llama.cpp pads every stream
    params.n_batch = settings.batch_len
    params.n_ubatch = settings.micro_len
    params.n_seq_max = streams
    params.n_threads = params.n_threads_batch = threads
    # Branches are cut off and trunks copied at any length: layers with a sliding window keep all their cells too.
    params.swa_full = True
    # One stream per sequence: unified, every token would attend over the cells of all NPCs.
    params.kv_unified = False
    params.flash_attn_type = int(flash(settings))
    params.type_k = params.type_v = KV_TYPES[settings.kv_type]
    params.no_perf = True
    return params


def planned(path: Path, settings: LlamaSettings, streams: int) -> Needs | None:
    """The memory that `settings` with so many sequences will take; None when llama.cpp does not say. Reads no weights,
    and takes about as long as reading the vocabulary.
    """
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = settings.gpu_layers
    params.no_alloc = True
    params.load_mode = _LOAD_WHOLE
    with native.collected(chatter=True) as said:
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            return None
        context = llama_cpp.llama_init_from_model(model, context_params(settings, streams, 1))
        if context:
            llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)
    return read_plan(said) if context else None


def read_plan(lines: Sequence[str]) -> Needs | None:
    """The sizes in a log of llama.cpp; None when it does not name the buffers."""
    compute: dict[str, int] = {}
    totals = {"file": 0, "kv": 0, "output": 0}
    for line in lines:
        if found := _BUFFER.match(line):
            device, what, size = found[1], found[2], round(float(found[3]) * MIB)
            if what == "compute":
                compute[device] = size
            elif what == "output":
                totals["output"] = size
        elif found := _TOTAL.match(line):
            if found[1]:
                totals["file"] = round(float(found[1]) * (MIB if found[2] == "MiB" else MIB << 10))
            else:
                totals["kv"] += round(float(found[3]) * MIB)
    if not compute or not totals["output"]:
        return None
    return Needs(totals["file"], totals["kv"], compute, totals["output"])
