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
from daemon.worlds.world import Npc
from npcd.v1 import dialogue_pb2


class Readers:
    """Streams that read turns. `hang_up` is called for a reader that is given up. `felt` is what an NPC feels now."""

    def __init__(
        self,
        settings: DialogueSettings,
        counts: DialogueCounts,
        hang_up: Callable[[Turn, Reader], None],
        felt: Callable[[Npc], str],
        clock: Clock,
    ) -> None:
        self.counts = counts
        self._settings = settings
        self._felt = felt
        self._hang_up = hang_up
        self._clock = clock

    async def events(self, turn: Turn, reader: Reader) -> AsyncGenerator[dialogue_pb2.TalkEvent, None]:
        """A turn from its beginning, as one reader gets it."""
        index = 0
        while True:
            reader.woken.clear()
            if turn.error is not None:
                raise turn.error
            if not index and turn.session_id:
                event = turn.event(dialogue_pb2.TALK_EVENT_KIND_STARTED, index)
            elif (shown := self._shown(turn, reader, index)) is not None:
                event = shown
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

    def _shown(self, turn: Turn, reader: Reader, index: int) -> dialogue_pb2.TalkEvent | None:
        """The next of what an NPC says and does, up to the end of a sentence or a stage direction; None if a reader has
        it all.
        """
        spoken = turn.text
        if reader.takes != spoken.takes:
            reader.takes, reader.taken, reader.ends, reader.directions = spoken.takes, 0, 0, 0
            return turn.event(dialogue_pb2.TALK_EVENT_KIND_REPLACE, index)
        end = len(spoken.said)
        if reader.directions < len(spoken.directions):
            at, direction = spoken.directions[reader.directions]
            if at <= reader.taken:
                reader.directions += 1
                event = turn.event(dialogue_pb2.TALK_EVENT_KIND_DIRECTION, index)
                event.text, event.emotion = direction, self._emotion(turn)
                return event
            end = at
        ends_sentence = reader.ends < len(spoken.ends) and spoken.ends[reader.ends] <= end
        if ends_sentence:
            end = spoken.ends[reader.ends]
        if reader.taken == end:
            return None
        if not turn.heard and not spoken.takes and turn.speech is not None:
            now_ns = self._clock()
            self.counts.ttft.add(now_ns, now_ns - turn.received_ns)
        event = turn.event(dialogue_pb2.TALK_EVENT_KIND_TEXT, index)
        event.text, event.sentence_end, event.emotion = (
            spoken.said[reader.taken : end],
            ends_sentence,
            self._emotion(turn),
        )
        reader.taken, reader.chunks = end, turn.chunks
        reader.ends += ends_sentence
        turn.heard = max(turn.heard, end)
        return event

    def _emotion(self, turn: Turn) -> str:
        return self._felt(turn.speech.npc) if turn.speech is not None else ""

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
