"""Any bytes become a message or the caller's error."""

from typing import TypeVar

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from core.errors import CallerError
from core.steps import Steps, at_once
from daemon.wire import WHOLE_BYTES, _merging, bad_text, is_large, parse, parsing, writing
from npcd.v1 import intents_pb2, npcs_pb2
from tests.daemon.rig import world

T = TypeVar("T")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_caller_error(data: bytes) -> None:
    """The result agrees with protobuf itself, and the search for the cause raises no error of its own."""
    try:
        expected = intents_pb2.ObservationFrame.FromString(data)
    except DecodeError:
        with pytest.raises(CallerError):
            parse(intents_pb2.ObservationFrame, data)
    else:
        assert parse(intents_pb2.ObservationFrame, data).SerializeToString() == expected.SerializeToString()
        assert bad_text(intents_pb2.ObservationFrame.DESCRIPTOR, data) == ""


@given(st.integers(0, 3), st.integers(0, 3))
def test_the_path_counts_the_elements(observation: int, event: int) -> None:
    """It names the first wrong text, however deep it is."""
    frame = intents_pb2.ObservationFrame(world_id="vale")
    for _ in range(4):
        frame.observations.add(npc_id="npc", events=["a"] * 4)
    frame.observations[observation].events[event] = "!!"
    data = frame.SerializeToString().replace(b"!!", b"\xc3\x28")
    assert bad_text(frame.DESCRIPTOR, data) == f"observations[{observation}].events[{event}]"


def large() -> npcs_pb2.RegisterRequest:
    """A request of some 3 MB."""
    return npcs_pb2.RegisterRequest(
        world_id="vale",
        take_over=True,
        npcs=[
            npcs_pb2.NpcSpec(
                npc_id=f"npc{i}",
                archetype_id="villager",
                persona=npcs_pb2.Persona(name=f"Mira {i}", text="Bakes bread. " * (20 if i % 100 else 20_000)),
            )
            for i in range(1_000)
        ],
    )


def steps_of(steps: Steps[T]) -> tuple[T, int]:
    """The result of steps, and their number."""
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as over:
            return over.value, count
        count += 1


def test_a_large_message_is_read_and_written_in_steps() -> None:
    """The message equals protobuf's own. Large messages inside it are read in steps, too."""
    request = large()
    data = request.SerializeToString()
    read, steps = steps_of(parsing(npcs_pb2.RegisterRequest, data))
    assert read == request and steps > len(data) / WHOLE_BYTES
    written, steps = steps_of(writing(request))
    assert npcs_pb2.RegisterRequest.FromString(written) == request and steps > 10
    assert is_large(request) and not is_large(npcs_pb2.RegisterRequest(npcs=request.npcs[:10]))


def test_steps_write_the_bytes_that_a_worlds_hash_was_made_of() -> None:
    """The bytes have been the same since the first version: deterministic, fields in the order of their numbers."""
    request = world(expected_version=7, language="en")
    content = npcs_pb2.DefineWorldRequest()
    content.CopyFrom(request)
    content.ClearField("expected_version")
    assert at_once(writing(request, "expected_version")) == content.SerializeToString(deterministic=True)


@given(st.binary(max_size=400), st.integers(0, 6))
def test_any_bytes_read_in_steps_are_what_they_are_read_whole(data: bytes, where: int) -> None:
    """That holds for a large message that is cut off or followed by garbage, in groups and unknown fields."""
    frame = intents_pb2.ObservationFrame(world_id="v" * 5 * where)
    frame.observations.add(npc_id="npc", events=["a" * 40] * 4, percepts=[intents_pb2.Percept(entity_id="e" * 50)])
    whole = frame.SerializeToString() * 3 + data
    try:
        expected = intents_pb2.ObservationFrame.FromString(whole)
    except DecodeError:
        with pytest.raises(DecodeError):
            at_once(_merging(intents_pb2.ObservationFrame(), whole, [10_000], 0, 32))
    else:
        read = intents_pb2.ObservationFrame()
        at_once(_merging(read, whole, [10_000], 0, 32))
        assert read == expected


def test_the_path_of_a_bad_text_in_a_large_message_is_found() -> None:
    """It is found as the last of thousands."""
    data = large().SerializeToString().replace(b"Mira 999", b"Mira \xff99")
    with pytest.raises(CallerError, match=r"npcs\[999\].persona.name: is not UTF-8"):
        at_once(parsing(npcs_pb2.RegisterRequest, data))


def test_more_fields_than_any_limit_allows_are_refused() -> None:
    """Counting them would take seconds."""
    with pytest.raises(CallerError, match="has more than 2000000 fields"):
        at_once(parsing(npcs_pb2.DescribeRequest, b"\x12\x00" * 2_001_000))
