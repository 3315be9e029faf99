"""An NPC speaks: a turn's work from the moment that memory is known until the turn's end is decided.

Everything happens on the event loop. Chunks and the end come from the work's ticket; daemon/talk/ends.py takes over
when the end is known.
"""

from __future__ import annotations

from collections.abc import Callable

from core.clock import Clock
from core.errors import Draining, EngineFailed, Overloaded
from core.script import player_line
from core.words import Finish, NpcKey
from core.work import Chunk, Ended, Timings, Work
from daemon.talk.ends import FINISHES, Ends
from daemon.talk.once import expected
from daemon.talk.readers import Readers
from daemon.talk.replies import Replies
from daemon.talk.sessions import Sessions
from daemon.talk.text import Spoken
from daemon.talk.turns import DialogueCounts, Draw, Speech, Stage, Turn
from daemon.worlds.world import Npc
from memory.hot import Session
from memory.recall import Recalled
from npcd.v1 import dialogue_pb2
from prompts.guards import Guard
from prompts.layout import Layout, Perception
from scheduler.ticket import Door


class Speaking:
    """Runs the works of turns. `perceived` is what an NPC sees now, as a model reads it; `spoke` hears of each NPC that
    is spoken with.
    """

    def __init__(
        self,
        sessions: Sessions,
        door: Door,
        replies: Replies,
        ends: Ends,
        readers: Readers,
        counts: DialogueCounts,
        perceived: Callable[[Npc, Layout], Perception | None],
        spoke: Callable[[NpcKey], None],
        first_text: Callable[[int, Timings], None],
        clock: Clock,
    ) -> None:
        self._sessions = sessions
        self._door = door
        self._replies = replies
        self._ends = ends
        self._readers = readers
        self._counts = counts
        self._perceived = perceived
        self._spoke = spoke
        self._first_text = first_text
        self._clock = clock

    def speak(self, turn: Turn, npc: Npc, session: Session, recalled: Recalled) -> None:
        """Submits the turn's work. Raises CallerError, Overloaded or Draining."""
        request, layout = turn.request, self._replies.layout_of(npc, session)
        # The prompt is not to have the line twice, so what an earlier try left goes first.
        replaced = self._sessions.hot.take_back(session, request.turn_id)
        line = player_line(request.text, request.player_name)
        turn.speech = Speech(npc, session, recalled, line, layout, layout.render(line).lost, replaced)
        digest = self._sessions.digest(npc.key, request.player_id)
        tail = layout.talk_tail(line, self._perceived(npc, layout), digest, session.told)
        self._spoke(npc.key)
        work = self._replies.reply(npc, session, request, tail)
        turn.speech.heard = layout.stays(tail)
        turn.text = Spoken(layout.stop_text, self._guard(turn, turn.speech))
        self._submit(turn, work)
        turn.stage, turn.session_id = Stage.SPEAKS, session.session_id
        self._counts.started += 1
        turn.wake()

    def _submit(self, turn: Turn, work: Work) -> None:
        assert turn.speech is not None
        number, draw = turn.tries + 1, Draw(work, expected(turn.speech.session.computed))

        def on_end(ended: Ended) -> None:
            assert turn.speech is not None
            self._replies.ended(turn.speech.session, draw, ended, again=number > 1)
            self._work_ended(turn, ended, number)

        turn.ticket = self._door.submit(work, on_end, lambda chunk: self._take(turn, chunk, number))
        turn.tries, turn.draw = number, draw

    def _guard(self, turn: Turn, speech: Speech) -> Guard:
        names = (turn.request.player_name, speech.recalled.bond.name)
        return self._replies.guard(speech.npc, speech.session, [name for name in names if name])

    def _take(self, turn: Turn, chunk: Chunk, number: int) -> None:
        """A chunk from the scheduler. Stop text and guards end the turn; after a stop nothing more is said."""
        if turn.finish or turn.tries != number:
            return
        takes = turn.text.takes
        turn.text.add(chunk.text)
        assert turn.draw is not None
        turn.draw.chunks.append(chunk)
        turn.chunks += 1
        if turn.text.takes != takes:
            turn.heard = 0
        if turn.text.stopped:
            assert turn.ticket is not None
            turn.ticket.cancel()
            if not self._draws_again(turn):
                self._ends.decide(turn, dialogue_pb2.TALK_FINISH_STOP)
        self._readers.wake(turn)

    def _draws_again(self, turn: Turn) -> bool:
        """Begins the reply once more if nothing is left of it. The first try then ends on its own."""
        assert turn.ticket is not None and turn.speech is not None
        if turn.text.said or turn.tries > 1 or (work := self._replies.again(turn.ticket.work)) is None:
            return False
        try:
            self._submit(turn, work)
        except (Overloaded, Draining):
            return False
        self._counts.drawn_again += 1
        layout = self._replies.layout_of(turn.speech.npc, turn.speech.session)
        turn.text.begin_again(layout.stop_text, self._guard(turn, turn.speech))
        return True

    def _work_ended(self, turn: Turn, ended: Ended, number: int) -> None:
        if turn.tries != number:
            return
        if not turn.finish and ended.finish in FINISHES:
            turn.text.end(whole=ended.finish is Finish.STOP)
            if self._draws_again(turn):
                return
        turn.ended = ended
        self._first_text(max(turn.received_ns, turn.called_ns), ended.timings)
        if turn.finish:
            self._ends.over_if_all_is_known(turn)
        elif ended.finish is Finish.REFUSED and not turn.text.said:
            assert turn.speech is not None, "its work was submitted"
            route = self._replies.route_of(turn.speech.npc, turn.speech.session)
            tier, retry_ms = route.tier, self._door.retry_ms(route.tier, self._clock(), route.engine)
            self._ends.fail(turn, Overloaded(f"the {tier.name.lower()} queue is full", retry_ms))
        elif ended.finish is Finish.FAILED and not turn.text.said:
            self._ends.fail(turn, EngineFailed(ended.reason))
        else:
            self._ends.decide(turn, FINISHES.get(ended.finish, dialogue_pb2.TALK_FINISH_FAILED))
