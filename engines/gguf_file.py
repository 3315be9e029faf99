"""Reads and writes GGUF files as far as adapters need it: plain values, and where which tensor lies.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The gguf package does far more and brings four
others with it; the daemon's dependencies stay few.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
F32, F16, BF16, NVFP4 = 0, 1, 30, 40  # ggml_type
FLOATS = frozenset({F32, F16, BF16})
_STRING, _ARRAY, _FLOAT, _UINT = 8, 9, 6, 4
# Of the value types that are numbers: what struct calls them.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TOKENS = "tokenizer.ggml.tokens"
_BYTE_TOKENS = frozenset(b"<0x%02X>" % byte for byte in range(256))
_PIECE = 1 << 20
_SHORT = 64


@dataclass(frozen=True, slots=True)
class TensorAt:
    """One tensor: its shape as numpy says it (rows first), its ggml type, and where its bytes begin in the file."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A file's head. Of arrays only the length is kept, except of short ones of numbers. Of the tokens' texts these
    facts are kept: `repeated`, the first one that is there twice, and `byte_tokens`, how many stand for single bytes.
    """

    path: Path
    values: Mapping[str, Any]
    tensors: Mapping[str, TensorAt]
    repeated: str = ""
    byte_tokens: int = 0

    def array(self, name: str) -> NDArray[np.float32]:
        """A tensor of floats, widened to f32. Raises ConfigError when it is of another kind, or cut off."""
        at = self.tensors[name]
        if at.kind not in FLOATS:
            raise ConfigError(f"{self.path}: '{name}' has type {at.kind}; only f32, f16 and bf16 are read")
        size = math.prod(at.shape) * (4 if at.kind == F32 else 2)
        with self.path.open("rb") as file:
            file.seek(at.offset)
            raw = file.read(size)
        if len(raw) != size:
            raise ConfigError(f"{self.path}: cut off in '{name}'")
        if at.kind == BF16:
            return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(at.shape)
        return np.frombuffer(raw, "<f4" if at.kind == F32 else "<f2").astype(np.float32).reshape(at.shape)


def read_gguf(path: Path) -> GgufFile:
    """The head of a file. Raises ConfigError for what is no GGUF file, or cut off, or newer than this reader."""
    try:
        with path.open("rb") as file:
            return _Reader(file, path).head()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (struct.error, UnicodeDecodeError, OverflowError) as error:
        raise ConfigError(f"{path}: no whole GGUF file ({error})") from error


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._size = path.stat().st_size
        self._repeated = ""
        self._byte_tokens = 0

    def head(self) -> GgufFile:
        if self._file.read(4) != MAGIC:
            raise ConfigError(f"{self._path}: not a GGUF file")
        (version,) = self._take("I")
        if version not in (2, 3):
            raise ConfigError(f"{self._path}: GGUF version {version}; 2 and 3 are read")
        tensor_count, value_count = self._take("QQ")
        values = dict(self._value() for _ in range(self._bounded(value_count)))
        listed = [self._tensor() for _ in range(self._bounded(tensor_count))]
        alignment = int(values.get("general.alignment", ALIGNMENT)) or ALIGNMENT
        first = -(-self._file.tell() // alignment) * alignment
        tensors = {name: TensorAt(shape, kind, first + offset) for name, shape, kind, offset in listed}
        if len(tensors) != len(listed):
            raise ConfigError(f"{self._path}: two tensors have the same name")
        return GgufFile(self._path, values, tensors, self._repeated, self._byte_tokens)

    def _take(self, form: str) -> tuple[Any, ...]:
        form = f"<{form}"
        return struct.unpack(form, self._file.read(struct.calcsize(form)))

    def _bounded(self, count: int) -> int:
        if count > self._size:
            raise ConfigError(f"{self._path}: no whole GGUF file (it says it has {count} of something)")
        return count

    def _text(self) -> str:
        (length,) = self._take("Q")
        return self._file.read(self._bounded(length)).decode("utf-8", "replace")

    def _value(self) -> tuple[str, Any]:
        name = self._text()
        (kind,) = self._take("I")
        return name, self._of_kind(kind, name == TOKENS)

    def _of_kind(self, kind: int, tokens: bool = False) -> Any:
        if kind == _STRING:
            return self._text()
        if kind in _NUMBERS:
            return self._take(_NUMBERS[kind])[0]
        if kind != _ARRAY:
            raise ConfigError(f"{self._path}: a value of unknown type {kind}")
        inner, count = self._take("IQ")
        if inner in _NUMBERS and count <= _SHORT:
            return self._take(f"{count}{_NUMBERS[inner]}")
        if inner in _NUMBERS:
            self._file.seek(self._bounded(count) * struct.calcsize(f"<{_NUMBERS[inner]}"), 1)
        elif inner == _STRING:
            # A vocabulary has hundreds of thousands of these.
            read, length_of = self._file.read, struct.Struct("<Q").unpack
            seen: set[bytes] = set()
            for _ in range(self._bounded(count)):
                text = read(self._bounded(length_of(read(8))[0]))
                if tokens:
                    # llama.cpp numbers empty ones, so they are all different.
                    if text in seen and text:
                        self._repeated = self._repeated or text.decode("utf-8", "replace")
                    seen.add(text)
            self._byte_tokens += len(seen & _BYTE_TOKENS)
        else:
            for _ in range(self._bounded(count)):
                self._of_kind(inner)
        return count

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._text()
        (dims,) = self._take("I")
        if dims > 4:
            raise ConfigError(f"{self._path}: '{name}' has {dims} dimensions")
        shape = self._take("Q" * dims)
        kind, offset = self._take("IQ")
        return name, tuple(reversed(shape)), kind, offset


def write_gguf(
    file: BinaryIO, values: Mapping[str, str | float | int], tensors: Mapping[str, NDArray[np.float16 | np.float32]]
) -> None:
    """Writes values (texts, floats, ints as u32) and tensors, as f16 where they are, else as f32."""
    head = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(values)))
    for name, value in values.items():
        head += _packed(name)
        if isinstance(value, str):
            head += struct.pack("<I", _STRING) + _packed(value)
        elif isinstance(value, float):
            head += struct.pack("<If", _FLOAT, value)
        else:
            head += struct.pack("<II", _UINT, value)
    offset = 0
    for name, tensor in tensors.items():
        head += _packed(name) + struct.pack(f"<I{tensor.ndim}Q", tensor.ndim, *reversed(tensor.shape))
        head += struct.pack("<IQ", F16 if tensor.dtype == np.float16 else F32, offset)
        offset += _aligned(tensor.nbytes)
    file.write(head.ljust(_aligned(len(head)), b"\0"))
    for tensor in tensors.values():
        raw = np.ascontiguousarray(tensor, "<f2" if tensor.dtype == np.float16 else "<f4").tobytes()
        file.write(raw.ljust(_aligned(len(raw)), b"\0"))


def blocks(file: BinaryIO) -> Iterator[bytes]:
    """A file's bytes, in pieces."""
    while piece := file.read(_PIECE):
        yield piece


def _packed(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
