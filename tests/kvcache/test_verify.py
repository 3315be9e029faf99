"""Damaged or foreign KV bytes are found before the engine loads them, and the reason is named."""

import random
from dataclasses import replace

import numpy as np
import pytest

from engines.base import KvKind
from kvcache.verify import HEADER_BYTES, REASONS, Sealed, Verifier, signer

KIND = KvKind("model", "f16", "plain", "4 layers")
TOKENS = np.arange(40, dtype=np.int32)
PAYLOAD = random.Random(1).randbytes(5000)


@pytest.fixture
def sealed() -> Sealed:
    """Bytes of TOKENS."""
    return Verifier(KIND).seal(PAYLOAD, TOKENS, "adapter")


def test_sealed_bytes_are_accepted(sealed: Sealed) -> None:
    """Sealed bytes pass with the same tokens, adapter and engine, and also with another verifier of an equal engine."""
    assert len(sealed) == HEADER_BYTES + len(PAYLOAD)
    assert Verifier(replace(KIND)).fault(sealed, TOKENS.copy(), "adapter") == ""


@pytest.mark.parametrize(
    ("field", "reason"),
    [("model", "model"), ("kv_type", "kv_type"), ("attention", "attention"), ("shape", "geometry")],
)
def test_another_engine_s_bytes_are_refused(sealed: Sealed, field: str, reason: str) -> None:
    """Each part of an engine's identity is compared by itself, and the differing part is named."""
    assert reason in REASONS
    assert Verifier(replace(KIND, **{field: "other"})).fault(sealed, TOKENS, "adapter") == reason


def test_other_tokens_and_adapters_are_refused(sealed: Sealed) -> None:
    """Bytes are refused for one token more, one less or a different one, and for another adapter or none."""
    verifier = Verifier(KIND)
    changed = TOKENS.copy()
    changed[17] += 1
    for tokens in (changed, TOKENS[:-1], np.append(TOKENS, np.int32(3)), TOKENS[::-1].copy()):
        assert verifier.fault(sealed, tokens, "adapter") == "tokens"
    assert verifier.fault(sealed, TOKENS, "another") == "adapter"
    assert verifier.fault(sealed, TOKENS) == "adapter"


def test_no_bit_can_flip_and_no_byte_be_lost(sealed: Sealed) -> None:
    """Every flipped bit of the header, 300 of the payload, and cuts at either end are found."""
    verifier, rng = Verifier(KIND), random.Random(2)
    for bit in range(HEADER_BYTES * 8):
        assert verifier.fault(replace(sealed, header=flipped(sealed.header, bit)), TOKENS, "adapter")
    for _ in range(300):
        broken = replace(sealed, payload=flipped(PAYLOAD, rng.randrange(len(PAYLOAD) * 8)))
        assert verifier.fault(broken, TOKENS, "adapter") == "checksum"
    for cut in (0, 1, 2500, 4999):
        assert verifier.fault(replace(sealed, payload=PAYLOAD[:cut]), TOKENS, "adapter") == "length"
        assert verifier.fault(replace(sealed, payload=PAYLOAD[len(PAYLOAD) - cut :]), TOKENS, "adapter") == "length"
    assert verifier.fault(replace(sealed, header=sealed.header[:-1]), TOKENS, "adapter") == "format"


def test_a_signature_is_of_one_key_one_name_and_these_bytes(sealed: Sealed) -> None:
    """A signature fails with another key, under another name, and for any other header or payload."""
    sign, header = signer(b"k" * 32), sealed.header
    signature = sign(b"npc1", header, PAYLOAD)
    assert sign(b"npc1", header, PAYLOAD) == signature
    others = [
        signer(b"l" * 32)(b"npc1", header, PAYLOAD),
        sign(b"npc2", header, PAYLOAD),
        sign(b"npc1", flipped(header, 9), PAYLOAD),
        sign(b"npc1", header, flipped(PAYLOAD, 9)),
        sign(b"npc1" + header[:1], header[1:], PAYLOAD),
        sign(b"npc1", header + PAYLOAD[:1], PAYLOAD[1:]),
    ]
    assert signature not in others


def flipped(data: bytes, bit: int) -> bytes:
    """The same bytes with one bit flipped."""
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)
