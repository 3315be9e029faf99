"""Messages and the bytes of the wire. Unreadable bytes are the caller's error, which names the field. Decides only.

Large messages are read and written in steps, so that they need not stop the event loop: the encoding of a message is
that of its fields, one after the other, and may be cut between any two of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from core.errors import CallerError
from core.steps import Steps, at_once

M = TypeVar("M", bound=Message)

DEPTH_MAX = 32  # of messages in messages; ours have four
WHOLE_BYTES = 256 << 10  # read in one go: below 3 ms, for any content
PIECE_BYTES = 64 << 10  # of a larger message, read in one step
FIELDS_MAX = 2_000_000  # of a large message, about a second's work in all: our limits allow some ten thousand elements
MANY, AT_ONCE = 500, 64  # elements of a field that are too many to be written in one go, and how many then are
_VARINT, _EIGHT, _LENGTH, _GROUP, _GROUP_ENDS, _FOUR = 0, 1, 2, 3, 4, 5  # wire types of the protobuf encoding


def parse(kind: type[M], data: bytes) -> M:
    """The message. Raises CallerError, with the field when some text is not UTF-8."""
    return at_once(parsing(kind, data))


def parsing(kind: type[M], data: bytes) -> Steps[M]:
    """The same in steps. A message of more than FIELDS_MAX fields, in all its messages, is refused."""
    try:
        if len(data) <= WHOLE_BYTES:
            return kind.FromString(data)
        message = kind()
        yield from _merging(message, data, [FIELDS_MAX], 0)
        return message
    except DecodeError:
        pass
    path = yield from _looking(kind.DESCRIPTOR, data, 0)
    if path:
        raise CallerError(path, "is not UTF-8")
    raise CallerError("", f"these {len(data)} bytes are no {kind.DESCRIPTOR.name}")


def _merging(message: Message, data: bytes, left: list[int], depth: int, piece_bytes: int = PIECE_BYTES) -> Steps[None]:
    """Reads more fields into a message, as many at a time as have room in a piece. Raises DecodeError."""
    fields = message.DESCRIPTOR.fields_by_number
    begins = at = 0  # of the piece, and of the next field
    groups = 0
    size = len(data)
    while at < size:
        left[0] -= 1
        if not left[0] % 512:
            yield
            if left[0] < 0:
                raise CallerError("", f"has more than {FIELDS_MAX} fields in all; send less at a time")
        tag = data[at]
        if tag < 0x80 and tag & 7 == _LENGTH and at + 1 < size and data[at + 1] < 0x80:
            ends = at + 2 + data[at + 1]  # most fields are short: this is all there is to find out
            if ends - begins <= piece_bytes and not groups and ends <= size:
                at = ends
                continue
        ends, number, content = _next(data, at)
        if ends < 0:
            break  # protobuf itself raises the error
        groups += (content == _GROUP_BEGAN) - (content == _GROUP_ENDED)
        field = fields.get(number)
        large = ends - at > piece_bytes and not groups
        if large and content >= 0 and depth < DEPTH_MAX and field is not None and _is_message(field):
            message.MergeFromString(data[begins:at])
            yield
            inner = getattr(message, field.name)
            if field.is_repeated:
                inner = inner.add()
            else:
                inner.SetInParent()
            yield from _merging(inner, data[content:ends], left, depth + 1, piece_bytes)
            begins = ends
        elif ends - begins > piece_bytes and not groups:
            message.MergeFromString(data[begins:ends])
            begins = ends
            yield
        at = ends
    message.MergeFromString(data[begins:])
    yield


def _is_message(field: Any) -> bool:
    # A map's entries look like messages and cannot be added one by one.
    return bool(field.type == FieldDescriptor.TYPE_MESSAGE and not field.message_type.GetOptions().map_entry)


def writing(message: Message, leave_out: str = "") -> Steps[bytes]:
    """The message's bytes, in steps: fields in the order of their numbers, without the unknown ones and `leave_out`."""
    out: list[bytes] = []
    for field, value in message.ListFields():
        if field.name == leave_out:
            continue
        if field.is_repeated:
            for first in range(0, len(value), AT_ONCE):
                some = type(message)()
                getattr(some, field.name).extend(value[first : first + AT_ONCE])
                out.append(some.SerializeToString(deterministic=True))
                yield
            continue
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            data = yield from writing(value)
            out += (_written(field.number << 3 | _LENGTH), _written(len(data)), data)
            continue
        alone = type(message)()
        setattr(alone, field.name, value)
        out.append(alone.SerializeToString(deterministic=True))
        yield
    return b"".join(out)


def is_large(message: Message) -> bool:
    """True if one of its fields has so many messages that it is better written in steps."""
    return any(len(getattr(message, name)) > MANY for name in _repeated(message.DESCRIPTOR))


@lru_cache(maxsize=256)
def _repeated(kind: Descriptor) -> tuple[str, ...]:
    return tuple(f.name for f in kind.fields if f.is_repeated and f.type == FieldDescriptor.TYPE_MESSAGE)


def _written(number: int) -> bytes:
    """A number as the encoding has it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def bad_text(kind: Any, data: bytes) -> str:
    """The path of the first text that is not UTF-8, as "percepts[3].kind"; empty when there is none. `kind` is the
    message's descriptor.
    """
    return at_once(_looking(kind, data, 0))


def _looking(kind: Any, data: bytes, depth: int) -> Steps[str]:
    counts: dict[int, int] = {}
    looked = 0
    for number, value in _fields(data):
        looked += 1
        if not looked % 64:
            yield
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
            inner = yield from _looking(field.message_type, value, depth + 1)
            if inner:
                return f"{name}.{inner}"
    return ""


_NO_CONTENT, _GROUP_BEGAN, _GROUP_ENDED = -1, -2, -3


def _next(data: bytes, at: int) -> tuple[int, int, int]:
    """(where the field at `at` ends, its number, where its content begins); it ends at -1 when it is no field.

    Fields without a length have no content: then one of the negative marks says why.
    """
    tag, at = _varint(data, at)
    number, wire_type = tag >> 3, tag & 7
    if wire_type == _LENGTH:
        size, at = _varint(data, at)
        return (at + size if size <= len(data) - at else -1), number, at
    if wire_type == _VARINT:
        _, at = _varint(data, at)
    elif wire_type == _EIGHT:
        at += 8
    elif wire_type == _FOUR:
        at += 4
    elif wire_type == _GROUP:
        return at, number, _GROUP_BEGAN
    elif wire_type == _GROUP_ENDS:
        return at, number, _GROUP_ENDED
    else:
        return -1, number, _NO_CONTENT
    return (at if at <= len(data) else -1), number, _NO_CONTENT


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
