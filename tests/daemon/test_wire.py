"""Bytes become messages or the caller's error, whatever they are."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from core.errors import CallerError
from daemon.wire import bad_text, parse
from npcd.v1 import intents_pb2


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_caller_error(data: bytes) -> None:
    """As protobuf itself judges; looking for the cause raises nothing of its own."""
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
    """The first text that is wrong, below however many messages."""
    frame = intents_pb2.ObservationFrame(world_id="vale")
    for _ in range(4):
        frame.observations.add(npc_id="npc", events=["a"] * 4)
    frame.observations[observation].events[event] = "!!"
    data = frame.SerializeToString().replace(b"!!", b"\xc3\x28")
    assert bad_text(frame.DESCRIPTOR, data) == f"observations[{observation}].events[{event}]"
