"""Readers: a turn's text as each stream gets it, and the patience with streams that do not read.

Owns no turn. A reader that leaves an event unread too long is given up (`hang_up`), also while its stream is stuck in
a write; the stream hears of it when it comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from core.clock import Clock
from daemon.talk.settings import DialogueSettings
from daemon.talk.turns import DialogueCounts, Reader, Turn
from npcd.v1 import dialogue_pb2


class Readers:
    """Streams that read turns. `hang_up` is called for a reader that is given up."""

    def __init__(
        self,
        settings: DialogueSettings,
        counts: DialogueCounts,
        hang_up: Callable[[Turn, Reader], None],
        clock: Clock,
    ) -> None:
        self.counts = counts
        self._settings = settings
        self._hang_up = hang_up
        self._clock = clock

    async def events(self, turn: Turn, reader: Reader) -> AsyncGenerator[dialogue_pb2.TalkEvent, None]:
        """A turn from its beginning, as one reader gets it."""
        index = 0
        while True:
            reader.woken.clear()
            if turn.error is not None:
                raise turn.error
            text = turn.text.said[reader.taken :]
            if not index and turn.session_id:
                event = turn.event(dialogue_pb2.TALK_EVENT_KIND_STARTED, index)
            elif text:
                if not turn.heard and turn.speech is not None:
                    now_ns = self._clock()
                    self.counts.ttft.add(now_ns, now_ns - turn.received_ns)
                reader.taken += len(text)
                reader.chunks = turn.chunks
                turn.heard = max(turn.heard, reader.taken)
                event = turn.event(dialogue_pb2.TALK_EVENT_KIND_TEXT, index)
                event.text = text
            elif turn.end is not None:
                event = dialogue_pb2.TalkEvent(index=index)
                event.MergeFrom(turn.end)
                yield event
                reader.ended = True
                return
            else:
                await reader.woken.wait()
                continue
            yield event
            index += 1

    def wake(self, turn: Turn) -> None:
        """Lets every reader look again, and watches those that are still with an earlier event."""
        for reader in turn.readers:
            self.watch(turn, reader)
            reader.woken.set()

    def watch(self, turn: Turn, reader: Reader) -> None:
        """A reader that leaves an event unread may not hold up others for long: not with chunks that pile up, and not
        with an NPC that has said all.
        """
        late = not turn.stoppable or turn.chunks - reader.chunks > self._settings.chunks_max
        if late and reader.writing and reader.patience is None:
            loop = asyncio.get_running_loop()
            reader.patience = loop.call_later(self._settings.slow_reader_s, self._give_up, turn, reader)

    def unwatch(self, reader: Reader) -> None:
        """The stream came back for its next event: nothing counts against it."""
        reader.writing = False
        if reader.patience is not None:
            reader.patience.cancel()
            reader.patience = None

    def _give_up(self, turn: Turn, reader: Reader) -> None:
        """The stream's writer is stuck. Lane and floor are free if nobody else listens."""
        self.counts.slow_readers += 1
        reader.too_slow = True
        self._hang_up(turn, reader)
