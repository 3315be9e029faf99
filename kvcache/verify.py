"""Checks of stored KV bytes, before the engine sees one of them.

Bytes are sealed with a header when they leave a sequence. It names their origin (model, KV type, attention, shape,
adapter), their tokens, their length, and a checksum. The checksum finds accidental damage. Bytes that were in Redis
are signed as well, because others can write there.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from zlib import crc32

from core.choice import Tokens
from engines.base import KvKind
from kvcache.prefix import token_hash

FORMAT = 1
# magic, format, zero; model, KV type, attention, shape, adapter, tokens (16 bytes of hash each); tokens, bytes, crc32
_HEADER = struct.Struct("<4sHH16s16s16s16s16s16sIQI")
_MAGIC = b"npKV"
HEADER_BYTES = _HEADER.size
SIGNATURE_BYTES = 32

# Reasons why bytes are not loaded: the answers of fault(), a wrong signature, and a refusal of the engine itself.
REASONS = (
    "format", "model", "kv_type", "attention", "geometry", "adapter", "tokens", "length", "checksum", "signature",
    "engine",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sealed:
    """One sequence's KV bytes and their header."""

    header: bytes
    payload: bytes

    def __len__(self) -> int:
        return len(self.header) + len(self.payload)


class Verifier:
    """Seals and checks for one engine; changes nothing."""

    def __init__(self, kind: KvKind) -> None:
        self._model = _hash(kind.model)
        self._kv_type = _hash(kind.kv_type)
        self._attention = _hash(kind.attention)
        self._shape = _hash(kind.shape)

    def seal(self, payload: bytes, tokens: Tokens, adapter: str = "") -> Sealed:
        """The bytes of `tokens`, which `adapter` (its content hash; empty: none) computed."""
        return Sealed(self._header(payload, tokens, adapter), payload)

    def fault(self, sealed: Sealed, tokens: Tokens, adapter: str = "") -> str:
        """The reason why these are not the bytes of these tokens, one of REASONS; empty when they are."""
        if len(sealed.header) != HEADER_BYTES:
            return "format"
        said, meant = _HEADER.unpack(sealed.header), _HEADER.unpack(self._header(b"", tokens, adapter))
        for reason, ours, theirs in zip(_FIELDS, meant, said, strict=False):
            if ours != theirs:
                return reason
        size, checksum = said[-2:]
        if size != len(sealed.payload):
            return "length"
        return "" if checksum == crc32(sealed.payload) else "checksum"

    def _header(self, payload: bytes, tokens: Tokens, adapter: str) -> bytes:
        return _HEADER.pack(
            _MAGIC, FORMAT, 0, self._model, self._kv_type, self._attention, self._shape, _hash(adapter),
            token_hash(tokens), len(tokens), len(payload), crc32(payload),
        )  # fmt: skip


_FIELDS = ("format",) * 3 + ("model", "kv_type", "attention", "geometry", "adapter", "tokens", "length")


def signer(key: bytes) -> Callable[[bytes, bytes, bytes], bytes]:
    """Signs a header and bytes that stand under a name in a store that others can write to."""

    def sign(name: bytes, header: bytes, payload: bytes) -> bytes:
        lengths = len(name).to_bytes(4, "little") + len(header).to_bytes(4, "little")
        signing = hmac.new(key, lengths + name + header, "sha256")
        signing.update(payload)
        return signing.digest()

    return sign


def _hash(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()
