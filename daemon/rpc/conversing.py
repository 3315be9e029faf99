"""One Converse stream: the player's lines in, the events of all their turns out. A new line interrupts the NPC.

Owns the task that listens and the lines that wait. A line, an interrupt or the session's end stops every turn of the
stream that came before it, also those that wait here. When the stream's consumer goes away both ends stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from daemon.talk.dialogue import Dialogue
from npcd.v1 import dialogue_pb2


@dataclass(slots=True, eq=False)
class _Line:
    """A turn to be had, or the session's end. `interrupted`: something newer has come."""

    talk: dialogue_pb2.TalkRequest
    ends_session: bool = False
    interrupted: bool = False


class Conversation:
    """Lines wait in `_lines`, at most `lines_max` of them; then the stream is not read on."""

    def __init__(self, dialogue: Dialogue, tenant: str, lines_max: int) -> None:
        self._dialogue = dialogue
        self._tenant = tenant
        self._with = dialogue_pb2.TalkRequest()
        self._room = asyncio.Semaphore(lines_max)
        self._lines: asyncio.Queue[_Line | None] = asyncio.Queue()
        self._open: list[_Line] = []  # the line that is answered, then those that wait

    async def events(
        self, requests: AsyncIterator[dialogue_pb2.ConverseRequest]
    ) -> AsyncGenerator[dialogue_pb2.TalkEvent, None]:
        """The events of all turns, in the order of their lines. Raises the error of a wrong line."""
        listener = asyncio.create_task(self._listen(requests))
        listener.add_done_callback(lambda _: self._lines.put_nowait(None))
        try:
            while (line := await self._lines.get()) is not None:
                self._room.release()
                if line.ends_session:
                    if line.talk.npc_id:
                        self._dialogue.end_session(self._tenant, _end_of(line.talk))
                    return
                if line.interrupted:
                    yield _cancelled(line.talk, self._dialogue.keeps)
                else:
                    async with aclosing(self._dialogue.talk(self._tenant, line.talk)) as events:
                        async for event in events:
                            yield event
                self._open.remove(line)
            await listener  # it ended: raises what was wrong with the line that it could not take
        finally:
            listener.cancel()

    async def _listen(self, requests: AsyncIterator[dialogue_pb2.ConverseRequest]) -> None:
        async for request in requests:
            line = self._line(request)
            if line is None and not request.interrupt:
                continue
            if line is None or not self._is_open(line.talk.turn_id) or line.ends_session:
                self._interrupt()
            if line is not None:
                self._open.append(line)
                await self._room.acquire()
                self._lines.put_nowait(line)

    def _line(self, request: dialogue_pb2.ConverseRequest) -> _Line | None:
        if request.end_session:
            return _Line(self._with, ends_session=True)
        if not request.HasField("talk"):
            return None
        talk = dialogue_pb2.TalkRequest()
        talk.CopyFrom(request.talk)
        if self._with.npc_id:
            talk.world_id, talk.npc_id, talk.player_id = self._with.world_id, self._with.npc_id, self._with.player_id
        else:
            self._with = talk
        return _Line(talk)

    def _is_open(self, turn_id: str) -> bool:
        """True if a line is the retry of one that is open here: a retry interrupts nothing."""
        return bool(turn_id) and any(o.talk.turn_id == turn_id and not o.interrupted for o in self._open)

    def _interrupt(self) -> None:
        """Stops the turns of this player's lines, those under way and those that wait."""
        for line in self._open:
            line.interrupted = True
        if self._open:
            who = self._with
            self._dialogue.cancel(
                self._tenant,
                dialogue_pb2.CancelTurnRequest(world_id=who.world_id, npc_id=who.npc_id, player_id=who.player_id),
            )


def _cancelled(talk: dialogue_pb2.TalkRequest, keeps: bool) -> dialogue_pb2.TalkEvent:
    return dialogue_pb2.TalkEvent(
        kind=dialogue_pb2.TALK_EVENT_KIND_END,
        turn_id=talk.turn_id,
        finish=dialogue_pb2.TALK_FINISH_CANCELLED,
        accepted_known=keeps,
    )


def _end_of(talk: dialogue_pb2.TalkRequest) -> dialogue_pb2.EndSessionRequest:
    return dialogue_pb2.EndSessionRequest(world_id=talk.world_id, npc_id=talk.npc_id, player_id=talk.player_id)
