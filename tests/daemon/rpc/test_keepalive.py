"""Keepalive: pings at the rate of games' clients are answered without end, and a flood of pings is not."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from daemon.config import ServeSettings
from daemon.rpc.grpc_face import PING_MIN_MS, PING_STRIKES, GrpcFace
from npcd.v1 import intents_pb2, intents_pb2_grpc
from tests.daemon.rig import gated, running
from tests.patience import PATIENCE_S

# RFC 9113: the connection's preface, and frames as (type, flags, payload) of stream 0.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
ACK = 1
ENHANCE_YOUR_CALM = 11


class Wire:
    """A bare HTTP/2 connection without any call."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer, self.payload = reader, writer, b""

    def send(self, kind: int, flags: int = 0, *payloads: bytes) -> None:
        """Sends a frame for each payload, all in one piece; without a payload it sends an empty frame."""
        frames = (
            struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + bytes(4) + payload
            for payload in payloads or (b"",)
        )
        self.writer.write(b"".join(frames))

    async def next(self, *kinds: int) -> int:
        """The next of these frames; its payload is in `payload`."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                head = await self.reader.readexactly(9)
                self.payload = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] in kinds:
                    return head[3]


@asynccontextmanager
async def wired(folder: Path) -> AsyncIterator[tuple[Wire, str]]:
    """A daemon's face, and an idle connection to it."""
    face = GrpcFace(ServeSettings(listen=(f"unix:{folder}/n.sock",)))
    (address,) = await face.start()
    reader, writer = await asyncio.open_unix_connection(f"{folder}/n.sock")
    wire = Wire(reader, writer)
    writer.write(PREFACE)
    wire.send(SETTINGS)
    assert await wire.next(SETTINGS) == SETTINGS
    wire.send(SETTINGS, ACK)
    try:
        yield wire, address
    finally:
        writer.close()
        await face.stop(0)


async def test_an_idle_connection_that_pings_once_a_second_is_kept(tmp_path: Path) -> None:
    """The smallest interval of docs/GUIDE.md works without any call, for more pings than there are strikes."""
    async with wired(tmp_path) as (wire, _):
        for number in range(PING_STRIKES + 3):
            payload = struct.pack(">Q", number)
            wire.send(PING, 0, payload)
            assert await wire.next(PING, GOAWAY) == PING and wire.payload == payload
            await asyncio.sleep(PING_MIN_MS / 1000)


async def test_a_client_that_floods_with_pings_is_sent_away(tmp_path: Path) -> None:
    """The server's work is bounded: it does not answer a flood of pings for ever."""
    async with wired(tmp_path) as (wire, _):
        # In one piece, so that no pause of this machine separates pings that are meant to come too soon.
        wire.send(PING, 0, *(struct.pack(">Q", number) for number in range(PING_STRIKES)))
        assert [await wire.next(PING, GOAWAY) for _ in range(PING_STRIKES)] == [PING] * PING_STRIKES
        wire.send(PING, 0, *(struct.pack(">Q", number) for number in range(PING_STRIKES + 2)))
        while await wire.next(PING, GOAWAY) == PING:
            pass
        assert int.from_bytes(wire.payload[4:8], "big") == ENHANCE_YOUR_CALM and b"too_many_pings" in wire.payload


@pytest.mark.parametrize("calls", [True, False], ids=["beside a Live stream", "without calls"])
async def test_grpcs_own_client_may_ping_as_often(tmp_path: Path, calls: bool) -> None:
    """Its keepalive at the smallest interval keeps the connection, beside an idle stream and without one."""
    options = [
        ("grpc.keepalive_time_ms", PING_MIN_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    async with running(gated()) as rig:
        face = GrpcFace(ServeSettings(listen=(f"unix:{tmp_path}/n.sock",)))
        (address,) = await face.start()
        face.calls = rig.daemon.calls
        async with grpc.aio.insecure_channel(address, options) as channel:
            live = intents_pb2_grpc.IntentsStub(channel).Live()
            await live.write(rig.frame())
            assert isinstance(await live.read(), intents_pb2.IntentFrame)
            if not calls:
                await live.done_writing()
                while await live.read() is not grpc.aio.EOF:
                    pass
            left = channel.get_state()
            changed = asyncio.create_task(channel.wait_for_state_change(left))
            await asyncio.wait((changed,), timeout=(PING_STRIKES + 3) * PING_MIN_MS / 1000)
            assert left is grpc.ChannelConnectivity.READY and not changed.done(), channel.get_state()
            assert live.done() is not calls
            changed.cancel()
        await face.stop(0)
