"""Bytes from the wire as messages. What cannot be read is the caller's error and names the field. Decides only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from core.errors import CallerError

M = TypeVar("M", bound=Message)

DEPTH_MAX = 32  # of messages in messages; ours have four
_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5  # wire types of the protobuf encoding


def parse(kind: type[M], data: bytes) -> M:
    """The message. Raises CallerError, with the field when some text is not UTF-8."""
    try:
        return kind.FromString(data)
    except DecodeError:
        path = bad_text(kind.DESCRIPTOR, data)
        if path:
            raise CallerError(path, "is not UTF-8") from None
        raise CallerError("", f"these {len(data)} bytes are no {kind.DESCRIPTOR.name}") from None


def bad_text(kind: Any, data: bytes, depth: int = 0) -> str:
    """The path of the first text that is not UTF-8, as "percepts[3].kind"; empty when there is none. `kind` is the
    message's descriptor.
    """
    counts: dict[int, int] = {}
    for number, value in _fields(data):
        field = kind.fields_by_number.get(number)
        if field is None:
            continue
        at = counts.get(number, 0)
        counts[number] = at + 1
        name = f"{field.name}[{at}]" if field.is_repeated else field.name
        if field.type == FieldDescriptor.TYPE_STRING:
            try:
                value.decode("utf-8")
            except UnicodeDecodeError:
                return name
        elif field.type == FieldDescriptor.TYPE_MESSAGE and depth < DEPTH_MAX:
            inner = bad_text(field.message_type, value, depth + 1)
            if inner:
                return f"{name}.{inner}"
    return ""


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, content) of each field that has a length; ends where the encoding does not hold."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            _, at = _varint(data, at)
        elif wire_type == _EIGHT:
            at += 8
        elif wire_type == _FOUR:
            at += 4
        elif wire_type == _LENGTH:
            size, at = _varint(data, at)
            if size > len(data) - at:
                return
            yield number, data[at : at + size]
            at += size
        else:
            return


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(the number, where it ends); an unfinished one ends with the data."""
    number = 0
    for i, byte in enumerate(data[at : at + 10]):
        number |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return number, at + i + 1
    return number, len(data)
