"""The native library: calls that are bound by hand, texts that it writes into buffers, and its log.

Calls of a few microseconds keep Python's interpreter lock (PyDLL): to give the lock up and take it back costs more than
the call. Decoding and the reading and writing of KV go through llama_cpp, which gives the lock up.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp

_LIB = ctypes.PyDLL(llama_cpp.llama_cpp._lib._name)


def _bound(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(_LIB, name)
    function.argtypes, function.restype = list(arguments), result
    return function


sample = _bound("llama_sampler_sample", ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)
seq_rm = _bound("llama_memory_seq_rm", ctypes.c_bool, ctypes.c_void_p, *[ctypes.c_int32] * 3)
# Only a note: llama.cpp moves the bytes when the next decode begins.
seq_cp = _bound("llama_memory_seq_cp", None, ctypes.c_void_p, *[ctypes.c_int32] * 4)
pos_max = _bound("llama_memory_seq_pos_max", ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32)
get_logits = _bound("llama_get_logits", ctypes.c_void_p, ctypes.c_void_p)
is_eog = _bound("llama_vocab_is_eog", ctypes.c_bool, ctypes.c_void_p, ctypes.c_int32)
attributes = _bound("llama_vocab_get_attr", ctypes.c_int, ctypes.c_void_p, ctypes.c_int32)


def written_text(write: Callable[[Any, int], int]) -> str:
    """The text that a function of llama.cpp writes into a buffer, however long it is; empty when there is none."""
    room = 4096
    while True:
        buffer = ctypes.create_string_buffer(room)
        length = write(buffer, room)
        if length < room:
            return buffer.value.decode("utf-8", "replace") if length >= 0 else ""
        room = length + 1


def version() -> str:
    """The version of llama-cpp-python."""
    return str(llama_cpp.__version__)


def built_with() -> frozenset[str]:
    """The processor features that this llama.cpp was compiled for, as it names them: AVX2, AVX512, NEON, ..."""
    text = (llama_cpp.llama_print_system_info() or b"").decode("utf-8", "replace")
    pairs = (part.rpartition(":")[2].partition("=") for part in text.split("|"))
    return frozenset(name.strip() for name, _, value in pairs if value.strip() == "1")


# -- the log -----------------------------------------------------------------------------------------------------------

_MEANT = b"using full-size SWA cache"  # a warning of llama.cpp about a setting that we choose (see State.open)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _native_log(level: int, text: bytes, _user: object) -> None:
    if (level not in (3, 4) and not _chatter) or _MEANT in text:  # warnings and errors; the rest is chatter
        return
    line = text.decode("utf-8", "replace").rstrip()
    if _kept is not None:
        _kept.append(line)
    else:
        pass_on(line)


_lines: Callable[[str], None] | None = None
_kept: list[str] | None = None  # the lines of a collected() that is under way
_chatter = False  # it collects all lines


def send_native_log_to(lines: Callable[[str], None] | None) -> None:
    """Warnings and errors of the native library go to `lines`, on the thread that causes them; None drops them all.

    Use None while the daemon serves: llama.cpp writes dozens of debug lines whenever it moves KV between sequences, and
    each would take the interpreter lock only to be thrown away. Return codes still tell of failures.
    """
    global _lines
    _lines = lines
    # A C function that takes an int, returns, and does nothing else: it ignores the arguments it does not know.
    silent = ctypes.cast(ctypes.CDLL(None).abs, ctypes.c_void_p)
    llama_cpp.llama_log_set(ctypes.cast(silent, llama_cpp.llama_log_callback) if lines is None else _native_log, None)


def pass_on(line: str) -> None:
    """Sends one line where the library's log goes now."""
    if _lines is not None:
        _lines(line)


@contextlib.contextmanager
def collected(chatter: bool = False) -> Iterator[list[str]]:
    """Collects the library's warnings and errors into a list, in place of sending them on; with `chatter` all lines."""
    global _kept, _chatter
    before, _kept, _chatter = _lines, [], chatter
    llama_cpp.llama_log_set(_native_log, None)
    try:
        yield _kept
    finally:
        _kept, _chatter = None, False
        send_native_log_to(before)


# -- devices -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Device:
    """A device that this build computes on: its name as llama.cpp's log has it, what it is, and its memory in bytes."""

    name: str
    description: str
    free: int
    total: int


_CPU, _ACCELERATOR = 0, 3  # enum ggml_backend_dev_type; between them GPUs, with memory of their own or the machine's
_dev_count = _bound("ggml_backend_dev_count", ctypes.c_size_t)
_dev_get = _bound("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
_dev_name = _bound("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
_dev_description = _bound("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
_dev_type = _bound("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
_size_at = ctypes.POINTER(ctypes.c_size_t)
_dev_memory = _bound("ggml_backend_dev_memory", None, ctypes.c_void_p, _size_at, _size_at)


def gpus() -> list[Device]:
    """The GPUs that this llama.cpp was built for and finds here."""
    found = []
    for device in map(_dev_get, range(_dev_count())):
        if _CPU < _dev_type(device) < _ACCELERATOR:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            _dev_memory(device, ctypes.byref(free), ctypes.byref(total))
            name, says = ((of(device) or b"").decode("utf-8", "replace") for of in (_dev_name, _dev_description))
            found.append(Device(name, says, free.value, total.value))
    return found


def gpu_kinds() -> list[str]:
    """The kinds of GPU that this llama.cpp was built for, by the libraries that came with it: cuda, vulkan, ..."""
    folder = Path(llama_cpp.llama_cpp._lib._name).parent
    names = (path.name.removeprefix("libggml-").removesuffix(".so") for path in folder.glob("libggml-*.so"))
    return sorted(name for name in names if not name.startswith(("base", "cpu")))
