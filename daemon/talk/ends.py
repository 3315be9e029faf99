"""The end of a turn, however it comes to it. It is decided here, once, and not by the engine, so that the answer of a
cancel is true.

Everything happens on the event loop. The finished turn is appended to its session (daemon/talk/sessions.py) and to the
journal before its last event leaves, and its KV is made ready in the background. A turn that is cancelled leaves
behind what was really said, and nothing when nothing was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from core.clock import US, Clock
from core.words import Finish
from core.work import Ended
from daemon.talk.floors import Floors
from daemon.talk.once import GUARD, REBUILD, RECOMPUTED
from daemon.talk.readers import Readers
from daemon.talk.replies import Replies
from daemon.talk.sessions import Sessions
from daemon.talk.text import Spoken
from daemon.talk.turns import GOOD_ENDS, WELL, DialogueCounts, Speech, Stage, Turn
from daemon.words import whole
from daemon.worlds.world import Npc
from memory.hot import Finished, Session
from memory.memory import Memory
from memory.records import Kind
from npcd.v1 import dialogue_pb2, words_pb2
from prompts.guard_rules import Cut
from scheduler.ticket import Door

# Any other end of a work that was not stopped here is the engine's failure.
FINISHES = {Finish.STOP: dialogue_pb2.TALK_FINISH_STOP, Finish.LENGTH: dialogue_pb2.TALK_FINISH_LENGTH}
# How the journal names turns that a retry makes again.
CUT_OFF = {dialogue_pb2.TALK_FINISH_CANCELLED: "cancelled", dialogue_pb2.TALK_FINISH_FAILED: "failed"}
# The last event names these. Emphasis and space say nothing about a reply.
TOLD_OF = frozenset(Cut) - {Cut.EMPHASIS, Cut.SPACE}


class Ends:
    """Brings turns to their end, and what was said to memory."""

    def __init__(
        self,
        sessions: Sessions,
        memory: Memory,
        door: Door,
        replies: Replies,
        floors: Floors,
        readers: Readers,
        counts: DialogueCounts,
        felt: Callable[[Npc], str],
        clock: Clock,
    ) -> None:
        self._sessions = sessions
        self._hot = sessions.hot
        self._memory = memory
        self._door = door
        self._replies = replies
        self._floors = floors
        self._readers = readers
        self._counts = counts
        self._felt = felt
        self._clock = clock

    # -- ways to an end ----------------------------------------------------------------------------------------

    def stop(self, turn: Turn, keep: bool = True, goes_on: bool = True) -> bool:
        """Ends a turn as CANCELLED, wherever it is; false when it has come to another end already.

        Its words are kept unless `keep` is false; with `goes_on` the next line is expected in the same session.
        """
        if not turn.stoppable:
            return False
        self._counts.cancelled += 1
        if turn.stage is Stage.SPEAKS:
            assert turn.ticket is not None
            turn.ticket.cancel()
            self.decide(turn, dialogue_pb2.TALK_FINISH_CANCELLED, keep, goes_on)
            return True
        assert turn.task is not None
        turn.task.cancel()
        turn.finish = dialogue_pb2.TALK_FINISH_CANCELLED
        self._over(turn)
        return True

    def stop_all(self, turns: Sequence[Turn], keep: bool = True, goes_on: bool = True) -> None:
        """The same for several."""
        for turn in turns:
            self.stop(turn, keep, goes_on)

    def decide(
        self, turn: Turn, finish: dialogue_pb2.TalkFinish.ValueType, keep: bool = True, goes_on: bool = True
    ) -> None:
        """The turn's end is known: its text stands and is kept. END leaves when engine and journal have answered."""
        assert turn.speech is not None and not turn.finish
        turn.text.end(whole=finish == dialogue_pb2.TALK_FINISH_STOP)
        turn.stage, turn.finish = Stage.ENDS, finish
        self._count(turn)
        session = turn.speech.session
        if self._hot.holds(session):
            if keep and turn.said:
                turn.kept = self._commit(turn, turn.speech, goes_on)
                turn.kept.add_done_callback(lambda _: self.over_if_all_is_known(turn))
            elif keep:
                self._put_back(turn, turn.speech)
        elif self._hot.find(session.npc, session.player, self._clock()) is None:
            # It was ended while the NPC spoke, and no other has begun: nothing of this turn stays.
            self._door.forget(turn.speech.npc.trunk_key(session.player))
        self._leave_unless_heard_out(turn)
        self.over_if_all_is_known(turn)
        turn.wake()

    def repeat(self, turn: Turn, session: Session, finished: Finished, timings: words_pb2.Timings) -> None:
        """Ends a turn with what was said at its first try. `timings` are told when those of then are not known."""
        self._counts.repeated += 1
        turn.text = Spoken.again(finished.text)
        turn.session_id, turn.finish = session.session_id, dialogue_pb2.TALK_FINISH_REPEATED
        turn.end = turn.event(dialogue_pb2.TALK_EVENT_KIND_END)
        turn.end.accepted = finished.accepted
        turn.end.timings.CopyFrom(timings)
        turn.end.timings.MergeFromString(finished.timings)
        turn.end.flags[:] = finished.flags
        self._over(turn)

    def fail(self, turn: Turn, error: Exception) -> None:
        """Ends a turn of which nothing was said: its streams raise the error."""
        self._counts.failed += 1
        if turn.speech is not None:
            self._put_back(turn, turn.speech)
        turn.error = error
        self._over(turn)

    # -- what an end leaves ------------------------------------------------------------------------------------

    def _commit(self, turn: Turn, speech: Speech, goes_on: bool) -> asyncio.Future[bool]:
        """Appends the turn to its session and to the journal. The future says later if it is in the journal."""
        npc, session, request = speech.npc, speech.session, turn.request
        self._counts.finished += 1
        self._counts.finished_of[npc.key.tenant] += 1
        self._counts.cut_tokens += speech.lost
        cut = CUT_OFF.get(turn.finish, "")
        reply, spoken = self._replies.spoken(turn)
        body = self._sessions.add(
            npc, session, request.turn_id, speech.heard, reply, request.player_name, self._felt(npc), cut
        )
        if goes_on:
            self._replies.go_on(turn, speech, spoken)
        return self._memory.keep_soon(Kind.TURN, npc.key, request.player_id, body)

    def _put_back(self, turn: Turn, speech: Speech) -> None:
        """A try that said nothing leaves what the one before it had left."""
        if speech.replaced and self._hot.holds(speech.session):
            self._hot.add(speech.session, speech.replaced, self._clock(), turn.request.turn_id)
            speech.replaced = []

    def over_if_all_is_known(self, turn: Turn) -> None:
        """The last event leaves once the engine and the journal have answered."""
        kept, speech = turn.kept, turn.speech
        if turn.stage is not Stage.ENDS or turn.ended is None or (kept is not None and not kept.done()):
            return
        assert speech is not None
        event = _last(turn, turn.ended, speech)
        self._counts.again.update(speech.session.computed.again)
        speech.session.computed.again.clear()
        event.accepted = kept is not None and not kept.cancelled() and kept.result()
        turn.end = event
        if turn.finish in WELL and turn.said:
            finished = Finished(turn.said, event.accepted, event.timings.SerializeToString(), tuple(event.flags))
            self._hot.finish(speech.session, turn.request.turn_id, finished)
        self._over(turn)

    def _count(self, turn: Turn) -> None:
        self._counts.guarded.update(why.value for why in turn.text.verdict().cut if why is not Cut.SPACE)
        self._counts.empty += turn.finish in WELL and not turn.said

    def _over(self, turn: Turn) -> None:
        turn.stage = Stage.OVER
        if turn.end is None and turn.error is None:
            turn.end = turn.event(dialogue_pb2.TALK_EVENT_KIND_END)
        if turn.end is not None:
            turn.end.finish = turn.finish
            turn.end.accepted_known = self._memory.keeps
        self._leave_unless_heard_out(turn)
        self._readers.wake(turn)

    def _leave_unless_heard_out(self, turn: Turn) -> None:
        """A turn that ended well keeps the floor while somebody still reads it; any other one is in nobody's way."""
        if not turn.readers or turn.finish not in GOOD_ENDS:
            self._floors.leave(turn, self._clock())


def _last(turn: Turn, ended: Ended, speech: Speech) -> dialogue_pb2.TalkEvent:
    event = turn.event(dialogue_pb2.TALK_EVENT_KIND_END)
    event.timings.CopyFrom(timings_message(ended))
    event.timings.cut_tokens = speech.lost
    event.timings.recall_us = whole(speech.recalled.took_ns // US, 64)
    event.timings.recall_late = speech.recalled.late
    event.timings.stores[:] = speech.recalled.stores
    again = speech.session.computed.again
    event.timings.recomputed_tokens = again.get(RECOMPUTED, 0)
    event.timings.rebuild_tokens = again.get(REBUILD, 0)
    event.timings.guard_tokens = again.get(GUARD, 0)
    if turn.finish in WELL and not turn.said:
        event.flags.append("empty")
    if turn.tries > 1:
        event.flags.append("drawn_again")
    event.flags.extend(f"guarded:{why}" for why in sorted(w.value for w in turn.text.verdict().cut if w in TOLD_OF))
    if speech.lost:
        event.flags.append("cut:player_line")
    event.flags.extend(f"cut:{name}" for name in sorted(speech.session.cut))
    speech.session.cut.clear()
    return event


def timings_message(ended: Ended) -> words_pb2.Timings:
    """A work's timings as the contract has them."""
    t = ended.timings
    taken_ns = t.taken_ns or t.submitted_ns
    first_ns = t.first_ns or taken_ns
    return words_pb2.Timings(
        queue_us=whole((taken_ns - t.submitted_ns - t.window_ns) // US, 64),
        window_us=whole(t.window_ns // US, 64),
        prefill_us=whole((first_ns - taken_ns) // US, 64),
        decode_us=whole((t.last_ns - first_ns) // US, 64),
        cached_tokens=t.cached_tokens,
        loaded_tokens=t.loaded_tokens,
        copied_tokens=t.copied_tokens,
        prefilled_tokens=t.prefilled_tokens,
        output_tokens=t.output_tokens,
    )
