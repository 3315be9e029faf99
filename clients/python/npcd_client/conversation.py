"""A conversation on one stream: the player may speak while the NPC does. Owns one gRPC call."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

import grpc

from npcd_client import wire
from npcd_client.errors import CallerError, NpcdError, Unavailable, from_rpc
from npcd_client.talking import TalkEvent
from npcd_client.v1 import dialogue_pb2

ConverseCall = grpc.aio.StreamStreamCall[dialogue_pb2.ConverseRequest, dialogue_pb2.TalkEvent]


class Conversation:
    """Made by Client.converse(). Iterate over it for events of all turns; one reader at a time."""

    def __init__(self, open_call: Callable[[], ConverseCall], first: dialogue_pb2.TalkRequest) -> None:
        self._open_call = open_call
        self._first = first
        self._call: ConverseCall | None = None

    async def __aenter__(self) -> Self:
        self._call = self._open_call()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._call:
            self._call.cancel()

    async def say(
        self,
        text: str,
        turn_id: str | None = None,
        *,
        max_tokens: int = 0,
        seed: int | None = None,
        temperature: float | None = None,
    ) -> str:
        """Starts a turn, interrupts the present one, and returns the new turn's id."""
        turn_id = turn_id or uuid.uuid4().hex
        try:
            talk = wire.talk(self._first, text, turn_id, max_tokens, seed, temperature)
        except NpcdError:
            raise
        except Exception as error:  # as _sendable() of the client
            raise CallerError(f"cannot be sent: {wire.reason(error)}", "INVALID_ARGUMENT") from None
        await self._write(dialogue_pb2.ConverseRequest(talk=talk))
        return talk.turn_id

    async def interrupt(self) -> None:
        """Cancels the present turn; the NPC listens."""
        await self._write(dialogue_pb2.ConverseRequest(interrupt=True))

    async def end(self) -> None:
        """Ends the session; the iteration ends after the last event."""
        await self._write(dialogue_pb2.ConverseRequest(end_session=True))
        await self._started().done_writing()

    async def __aiter__(self) -> AsyncIterator[TalkEvent]:
        call = self._started()
        try:
            async for event in call:
                yield wire.talk_event(event)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None

    def _started(self) -> ConverseCall:
        if self._call is None:
            raise Unavailable("this conversation is not open; use it in `async with`")
        return self._call

    async def _write(self, request: dialogue_pb2.ConverseRequest) -> None:
        try:
            await self._started().write(request)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
        except asyncio.InvalidStateError:
            raise Unavailable("this conversation is over") from None
