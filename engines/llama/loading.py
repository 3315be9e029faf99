"""Reads GGUF files: a native model, or only what the file says of itself and its tokenizer."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp

from core.errors import ConfigError
from engines.llama import native
from engines.llama.model import check_kind
from engines.llama.vocabulary import LlamaVocab
from engines.model_file import look, refused
from engines.room import memory_free

F16_X_MAX = 8  # a copy with f16 against the file: a file with two bits for each weight grows so much

_PRE_MISSING = re.compile(r"missing pre-tokenizer|QUALITY WILL BE|CONSIDER REGEN|\*{9}|^load:\s*$")
OVERFLOW = "values of its weights are too large for f16 (65,504 is the largest)"
UNBOUNDED = "with weights as f16 it computes values that are no numbers (f16 ends at 65,504)"


def load_model(path: Path, gpu_layers: int, vocab_only: bool = False) -> Any:
    """A native model. Raises ConfigError naming the file, why llama.cpp refuses it, and what to do."""
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    params.vocab_only = vocab_only
    with native.collected() as said:
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise refused(path, said, llama_cpp.__version__)
    for line in said:
        if not (line.startswith("load:") and _PRE_MISSING.search(line)):  # tokenizer_doubt() says it in words
            native.pass_on(line)
    return model


def load_as_f16(path: Path, gpu_layers: int) -> tuple[Any, str]:
    """A native model whose matrices are f16, and an empty text. It is loaded from a converted copy, which is gone from
    the disk once it is mapped; where no temporary folder takes it, the copy is a file in memory. Where no copy can be
    made, or a value is too large for f16: the model as it is in the file, and the reason.
    """
    try:
        return _from_copy(path, gpu_layers)
    except _UnfitError as error:
        return load_model(path, gpu_layers), str(error)


class _UnfitError(Exception):
    """The weights cannot be f16; the message says why."""


def _from_copy(path: Path, gpu_layers: int) -> tuple[Any, str]:
    """As load_as_f16(). Raises _UnfitError."""
    try:
        with tempfile.TemporaryDirectory(prefix="npcd-f16-", ignore_cleanup_errors=True) as folder:
            copy = Path(folder) / "model.gguf"
            if _convert(path, copy):
                with contextlib.suppress(ConfigError):  # the disk became full as it was closed
                    return load_model(copy, gpu_layers), ""
            free_mib = shutil.disk_usage(folder).free >> 20
            why = f"llama.cpp could not write a copy with f16 to {Path(folder).parent}, where {free_mib} MiB are free"
    except OSError as error:
        why = f"there is no temporary folder for a copy with f16 ({error.strerror or error})"
    most = F16_X_MAX * look(path).size
    free = memory_free()
    if free and most > free / 2:
        why += f", and in memory it may take {most >> 20} MiB of {free >> 20} MiB that are free"
        return load_model(path, gpu_layers), f"{why}; make room, or set TMPDIR to a folder with room"
    with contextlib.suppress(OSError, ConfigError):
        number = os.memfd_create("npcd-f16")
        try:
            copy = Path(f"/proc/self/fd/{number}")
            if _convert(path, copy):
                return load_model(copy, gpu_layers), ""  # the mapping keeps the file
        finally:
            os.close(number)
    return load_model(path, gpu_layers), f"{why}; make room, or set TMPDIR to a folder with room"


def _convert(path: Path, copy: Path) -> bool:
    """Writes a copy of a model whose matrices are f16; False when that failed. Raises _UnfitError for weights of which
    there is none.
    """
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_F16
    params.allow_requantize = True
    with native.collected() as said:
        code = llama_cpp.llama_model_quantize(os.fsencode(path), os.fsencode(copy), ctypes.byref(params))
    refusal = next((line for line in said if "validation failed" in line or "requantizing" in line), "")
    if refusal:
        raise _UnfitError(OVERFLOW if "validation" in refusal else f"llama.cpp cannot make f16 of them ({refusal})")
    return int(code) == 0


def load_vocab(path: Path) -> LlamaVocab:
    """Only the tokenizer of a GGUF file. Raises ConfigError."""
    return read_file(path)[1]


def read_file(path: Path) -> tuple[dict[str, str], LlamaVocab]:
    """The plain values of a GGUF file, by their keys, and its tokenizer; no weights are read.

    Raises ConfigError for files that LlamaEngine would refuse.
    """
    look(path)
    model = load_model(path, 0, vocab_only=True)
    check_kind(model, path)
    said: dict[str, str] = {}
    for i in range(llama_cpp.llama_model_meta_count(model)):
        key = native.written_text(partial(llama_cpp.llama_model_meta_key_by_index, model, i))
        said[key] = native.written_text(partial(llama_cpp.llama_model_meta_val_str_by_index, model, i))
    return said, LlamaVocab(model)
