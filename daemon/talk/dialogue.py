"""Dialogue: one turn from the player's line to the NPC's last word.

Owns the floors and with them the turns (daemon/talk/turns.py); all on the event loop. An NPC speaks with one player at
a time; others wait in order. A turn goes on while anybody listens. A turn that is cancelled leaves behind what was
really said, and nothing when nothing was. How a turn ends is decided here, once, and not by the engine, so the answer
of a cancel is true. The finished turn is appended to its session (daemon/talk/sessions.py) and to the journal before
the last event leaves, and its KV is made ready in the background, so that the next line finds it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from types import MappingProxyType
from zlib import crc32

from core.clock import MS, US, Clock
from core.errors import CallerError, Draining, EngineFailed, Overloaded
from core.script import player_line
from core.spread import Spread
from core.steps import Steps
from core.texts import check_name, check_prose
from core.words import Finish, NpcKey, Tier
from core.work import Chunk, Ended, Sampling, Work
from daemon.talk.sessions import Sessions
from daemon.talk.text import TextAssembler
from daemon.talk.turns import GOOD_ENDS, WELL, Floor, Reader, Speech, Stage, Turn
from daemon.words import check_id, check_number, whole
from daemon.worlds.works import Works
from daemon.worlds.world import Npc
from daemon.worlds.worlds import Worlds
from memory.hot import Finished, Session
from memory.memory import Memory
from memory.recall import Recalled
from memory.records import Kind
from npcd.v1 import dialogue_pb2, words_pb2
from prompts.layout import Perception, Tail
from scheduler.ticket import Door
from tiers.promises import RETRY_MAX_NS, Promises
from tiers.routing import Routes, WorkKind

TEXT_BYTES_MAX = 2048
TURNS_TIMED = 16  # the last turns tell how long a turn takes now
# Any other end of a work that was not stopped here is the engine's failure.
FINISHES = {Finish.STOP: dialogue_pb2.TALK_FINISH_STOP, Finish.LENGTH: dialogue_pb2.TALK_FINISH_LENGTH}
# How the journal names turns that a retry makes again.
CUT_OFF = {dialogue_pb2.TALK_FINISH_CANCELLED: "cancelled", dialogue_pb2.TALK_FINISH_FAILED: "failed"}


@dataclass(frozen=True, slots=True)
class DialogueSettings:
    """Conversations with players."""

    max_tokens: int = 96
    """Tokens of a reply when the request names none, `routes.reply.output_max` at most; a longer reply is cut (`finish`
    LENGTH); at least 1.
    """
    temperature: float = 0.7
    """Sampling temperature when the request names none."""
    unrepeat: float = 1.0
    """Strength with which models made for npcd are kept from saying the same sentence again; 0: not at all."""
    chunks_max: int = 64
    """Chunks that may pile up unread before `dialogue.slow_reader_s` begins to count."""
    slow_reader_s: float = 5.0
    """A reader that leaves its chunks, or the end of its turn, unread for this time loses the turn."""
    waiting_max: int = 8
    """Players who may wait for one NPC that is talking to somebody else."""


@dataclass(slots=True)
class DialogueCounts:
    """Counted since start. `ttft`: TalkRequest received -> first text handed to gRPC."""

    started: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    repeated: int = 0
    slow_readers: int = 0
    cut_tokens: int = 0
    ttft: Spread = field(default_factory=Spread)
    finished_of: Counter[str] = field(default_factory=Counter)  # by tenant


class Dialogue:
    """Turns and sessions of all NPCs."""

    def __init__(
        self,
        worlds: Worlds,
        works: Works,
        door: Door,
        sessions: Sessions,
        memory: Memory,
        promises: Promises,
        routes: Routes,
        settings: DialogueSettings,
        perceived: Callable[[Npc], Perception | None],
        felt: Callable[[Npc], str],
        spoke: Callable[[NpcKey], None],
        clock: Clock,
    ) -> None:
        self.counts = DialogueCounts(ttft=Spread(bounds_ns=promises.bounds_ns()))
        self.sessions = sessions
        self.hot = sessions.hot
        self._memory = memory
        self._worlds = worlds
        self._works = works
        self._door = door
        self._promises = promises
        self._route = routes.of(WorkKind.REPLY)
        self._trunk_route = routes.of(WorkKind.REPLY_TRUNK)
        self.layout = works.layout(self._route)
        self._settings = settings
        self._context_len = self._route.context_len(door.context_len(self._route.engine))
        self._perceived = perceived
        self._felt = felt
        self._spoke = spoke
        self._clock = clock
        self._floors: dict[NpcKey, Floor] = {}
        self._turns_ns: deque[int] = deque(maxlen=TURNS_TIMED)  # how long the last turns kept an NPC

    @property
    def floors(self) -> Mapping[NpcKey, Floor]:
        """The NPCs that are talked with now, to look at."""
        return MappingProxyType(self._floors)

    @property
    def open_turns(self) -> int:
        """Turns that an NPC speaks in now."""
        return sum(turn.stage is Stage.SPEAKS for floor in self._floors.values() for turn in floor)

    def open_turns_of(self, tenant: str) -> int:
        """Those with a tenant's NPCs."""
        return sum(turn.stage is Stage.SPEAKS for turn in self._of(tenant))

    @property
    def keeps(self) -> bool:
        """True if turns outlive this process."""
        return self._memory.keeps

    async def talk(
        self, tenant: str, request: dialogue_pb2.TalkRequest
    ) -> AsyncGenerator[dialogue_pb2.TalkEvent, None]:
        """One turn as events: STARTED, TEXT ..., END. The turn is cancelled when the last iterator over it is closed.

        With the turn_id of a turn under way, that turn's events from its beginning; with that of a finished one, the
        same text again. A turn that is cancelled before it was admitted has END alone.
        Raises CallerError and NotFound for a bad request, Overloaded before the first event, EngineFailed when the
        engine failed before anything was said.
        """
        received_ns = self._clock()
        npc = self._check(tenant, request)
        turn = self._known(tenant, npc.key, request) or self._begin(tenant, npc.key, request, received_ns)
        reader = Reader()
        turn.readers.add(reader)
        try:
            async with aclosing(self._events(turn, reader)) as events:
                async for event in events:
                    reader.writing = True
                    self._watch(turn, reader)
                    yield event
                    if reader.too_slow:
                        raise Overloaded(f"the reader left an event unread for {self._settings.slow_reader_s:g} s", 0)
                    self._unwatch(reader)
        finally:
            self._unwatch(reader)
            self._hang_up(turn, reader)

    def cancel(self, tenant: str, request: dialogue_pb2.CancelTurnRequest) -> bool:
        """Stops a player's turns (with a turn_id: that one), wherever they are. True if one will end CANCELLED."""
        npc = self._worlds.npc(tenant, request.world_id, request.npc_id)
        turns = self.turns(npc.key, check_id("player_id", request.player_id))
        return any([self._stop(t) for t in turns if request.turn_id in ("", t.request.turn_id)])

    def end_session(self, tenant: str, request: dialogue_pb2.EndSessionRequest) -> Session | None:
        """Ends a session and stops its turns; the session, if one was under way. It is summed up in the background."""
        npc = self._worlds.npc(tenant, request.world_id, request.npc_id)
        session = self._end(npc.key, check_id("player_id", request.player_id))
        if session is not None:
            self.sessions.close(session)
        return session

    def forget(self, tenant: str, world_id: str, player_id: str, npc_id: str) -> tuple[int, int]:
        """Forgets a player's sessions, and turns that are under way or wait: (sessions, turns)."""
        for npc in self._speaking_in(tenant, world_id):
            if npc_id in ("", npc.npc):
                self._stop_all(self.turns(npc, player_id), keep=False)
        sessions = [s for s in self.hot.of_player(tenant, world_id, player_id) if npc_id in ("", s.npc.npc)]
        for session in sessions:
            self.hot.end(session.npc, session.player)
            self.sessions.drop(session)
        self.sessions.drop_ending(
            lambda s: s.player == player_id and s.npc[:2] == (tenant, world_id) and npc_id in ("", s.npc.npc)
        )
        return len(sessions), sum(len(s.turns) for s in sessions)

    def removing(self, npc: NpcKey) -> Steps[None]:
        """Ends every session of an NPC that was taken out. Turns that wait for it find that it is gone."""
        for session in self.hot.of_npc(npc):
            self._stop_all([t for t in self.turns(npc, session.player) if t.stage is Stage.SPEAKS], goes_on=False)
            self.hot.end(npc, session.player)
            self.sessions.close(session)
            yield

    def turning_back(self, tenant: str, world_id: str) -> Steps[None]:
        """Drops every session and turn of a world: it goes on from an earlier time."""
        return self._dropping_world(tenant, world_id, tuple(Stage))

    def ending_world(self, tenant: str, world_id: str) -> Steps[None]:
        """The same for a world that is deleted: turns that wait find that it is gone."""
        return self._dropping_world(tenant, world_id, (Stage.SPEAKS,))

    def _dropping_world(self, tenant: str, world_id: str, stages: Sequence[Stage]) -> Steps[None]:
        for npc in self._speaking_in(tenant, world_id):
            self._stop_all([t for t in self.turns(npc) if t.stage in stages], keep=False)
            yield
        for session in self.hot.of_world(tenant, world_id):
            self.hot.end(session.npc, session.player)
            self.sessions.drop(session)
            yield
        self.sessions.drop_ending(lambda s: s.npc[:2] == (tenant, world_id))

    def sweeping(self) -> Steps[None]:
        """Ends the sessions that have been silent too long."""
        for session in self.hot.silent(self._clock()):
            if self.hot.end_if_silent(session, self._clock()):
                self.sessions.close(session)
            yield

    # -- who reads ---------------------------------------------------------------------------------------------

    async def _events(self, turn: Turn, reader: Reader) -> AsyncGenerator[dialogue_pb2.TalkEvent, None]:
        """A turn from its beginning, as one reader gets it."""
        index = 0
        while True:
            reader.woken.clear()
            if turn.error is not None:
                raise turn.error
            text = turn.text.said[reader.taken :]
            if not index and turn.session_id:
                event = _event(turn, dialogue_pb2.TALK_EVENT_KIND_STARTED, index)
            elif text:
                if not turn.heard and turn.speech is not None:
                    now_ns = self._clock()
                    self.counts.ttft.add(now_ns, now_ns - turn.received_ns)
                reader.taken += len(text)
                reader.chunks = turn.chunks
                turn.heard = max(turn.heard, reader.taken)
                event = _event(turn, dialogue_pb2.TALK_EVENT_KIND_TEXT, index)
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

    def _watch(self, turn: Turn, reader: Reader) -> None:
        """A reader that leaves an event unread may not hold up others for long: not with chunks that pile up, and not
        with an NPC that has said all.
        """
        late = not turn.stoppable or turn.chunks - reader.chunks > self._settings.chunks_max
        if late and reader.writing and reader.patience is None:
            loop = asyncio.get_running_loop()
            reader.patience = loop.call_later(self._settings.slow_reader_s, self._give_up, turn, reader)

    def _unwatch(self, reader: Reader) -> None:
        reader.writing = False
        if reader.patience is not None:
            reader.patience.cancel()
            reader.patience = None

    def _give_up(self, turn: Turn, reader: Reader) -> None:
        """The stream's writer is stuck; it hears of it when it comes back. Lane and floor are free if nobody else
        listens.
        """
        self.counts.slow_readers += 1
        reader.too_slow = True
        self._hang_up(turn, reader)

    def _hang_up(self, turn: Turn, reader: Reader) -> None:
        """A reader is gone. A turn that nobody listens to is stopped: what was heard stays said."""
        turn.readers.discard(reader)
        if turn.stage is Stage.OVER:
            if reader.ended or not turn.readers:
                self._leave(turn)
        elif not turn.readers:
            self._stop(turn)

    # -- one turn ----------------------------------------------------------------------------------------------

    def _known(self, tenant: str, npc: NpcKey, request: dialogue_pb2.TalkRequest) -> Turn | None:
        """The turn that this request repeats: under way, or finished in the session under way; None when it is new."""
        if not request.turn_id:
            return None
        for turn in self.turns(npc, request.player_id):
            if turn.request.turn_id == request.turn_id and turn.may_be_joined:
                return turn
        session = self.hot.find(npc, request.player_id, self._clock())
        finished = session.finished.get(request.turn_id) if session is not None else None
        if session is None or finished is None:
            return None
        turn = Turn(tenant, request, Floor(), self._clock(), TextAssembler())
        self._repeat(turn, session, finished, dialogue_pb2.TalkEvent().timings)
        return turn

    def _begin(self, tenant: str, npc: NpcKey, request: dialogue_pb2.TalkRequest, received_ns: int) -> Turn:
        """A new turn, in the line for its NPC. Raises Overloaded."""
        floor = self._floors.setdefault(npc, Floor())
        if floor.waiting >= self._settings.waiting_max:
            raise Overloaded(f"{floor.waiting} players wait for '{npc.npc}' already", self._line_ms(floor))
        turn = Turn(tenant, request, floor, received_ns, TextAssembler(self.layout.stop_text))
        floor.ask(turn)
        turn.task = asyncio.create_task(self._admit(turn))
        return turn

    async def _admit(self, turn: Turn) -> None:
        """Waits for the floor and for what is remembered, and has the NPC speak. _stop() cancels it."""
        request = turn.request
        try:
            await turn.called.wait()
            turn.called_ns = self._clock()
            turn.stage = Stage.RECALLS
            npc = self._check(turn.tenant, request)  # while it waited, the NPC may have been removed or changed
            session, recalled = await self.sessions.open(npc, request.player_id)
            npc = self._check(turn.tenant, request)
            finished = session.finished.get(request.turn_id) if request.turn_id else None
            if finished is not None:
                timings = words_pb2.Timings(recall_us=whole(recalled.took_ns // US, 64), recall_late=recalled.late)
                timings.stores[:] = recalled.stores
                self._repeat(turn, session, finished, timings)
            else:
                self._speak(turn, npc, session, recalled)
        except Exception as error:  # also a bug's: the streams raise it
            self._fail(turn, error)

    def _speak(self, turn: Turn, npc: Npc, session: Session, recalled: Recalled) -> None:
        """Submits the turn's work. Raises CallerError, Overloaded or Draining."""
        request = turn.request
        # The prompt is not to have the line twice, so what an earlier try left goes first.
        replaced = self.hot.take_back(session, request.turn_id)
        line = player_line(request.text, request.player_name)
        turn.speech = Speech(npc, session, recalled, line, self.layout.render(line).lost, replaced)
        digest = self.sessions.digest(npc.key, request.player_id)
        tail = self.layout.talk_tail(line, self._perceived(npc), digest)
        self._spoke(npc.key)
        room = self._context_len - len(self.layout.trunk(npc.script).tokens) - len(tail.tokens)
        if room < 1:
            raise CallerError("text", f"persona and line exceed the context by {1 - room} tokens; shorten one of them")
        max_tokens = min(request.max_tokens or self._settings.max_tokens, room)
        work = self._work(npc, session, request, tail, max_tokens)
        turn.ticket = self._door.submit(
            work, lambda ended: self._work_ended(turn, ended), lambda chunk: self._take(turn, chunk)
        )
        turn.stage, turn.session_id = Stage.SPEAKS, session.session_id
        self.counts.started += 1
        turn.wake()

    def _take(self, turn: Turn, chunk: Chunk) -> None:
        """A chunk from the scheduler. Stop text ends the turn; after a stop nothing more is said."""
        if turn.finish:
            return
        turn.text.add(chunk.text)
        turn.chunks += 1
        if turn.text.stopped:
            assert turn.ticket is not None
            turn.ticket.cancel()
            self._decide(turn, dialogue_pb2.TALK_FINISH_STOP)
        for reader in turn.readers:
            self._watch(turn, reader)
            reader.woken.set()

    def _work_ended(self, turn: Turn, ended: Ended) -> None:
        turn.ended = ended
        if turn.finish:
            self._over_if_all_is_known(turn)
        elif ended.finish is Finish.REFUSED and not turn.text.said:
            self._fail(turn, Overloaded(f"the {self._route.tier.name.lower()} queue is full", self._wait_ms()))
        elif ended.finish is Finish.FAILED and not turn.text.said:
            self._fail(turn, EngineFailed(ended.reason))
        else:
            self._decide(turn, FINISHES.get(ended.finish, dialogue_pb2.TALK_FINISH_FAILED))

    def _stop(self, turn: Turn, keep: bool = True, goes_on: bool = True) -> bool:
        """Ends a turn as CANCELLED, wherever it is; false when it has come to another end already.

        Its words are kept unless `keep` is false; with `goes_on` the next line is expected in the same session.
        """
        if not turn.stoppable:
            return False
        self.counts.cancelled += 1
        if turn.stage is Stage.SPEAKS:
            assert turn.ticket is not None
            turn.ticket.cancel()
            self._decide(turn, dialogue_pb2.TALK_FINISH_CANCELLED, keep, goes_on)
            return True
        assert turn.task is not None
        turn.task.cancel()
        turn.finish = dialogue_pb2.TALK_FINISH_CANCELLED
        self._over(turn)
        return True

    def _stop_all(self, turns: Sequence[Turn], keep: bool = True, goes_on: bool = True) -> None:
        for turn in turns:
            self._stop(turn, keep, goes_on)

    def _decide(
        self, turn: Turn, finish: dialogue_pb2.TalkFinish.ValueType, keep: bool = True, goes_on: bool = True
    ) -> None:
        """The turn's end is known: its text stands and is kept. END leaves when engine and journal have answered."""
        assert turn.speech is not None and not turn.finish
        turn.text.end()
        turn.stage, turn.finish = Stage.ENDS, finish
        session = turn.speech.session
        if self.hot.holds(session):
            if keep and (finish in WELL or turn.said):
                turn.kept = self._commit(turn, turn.speech, goes_on)
                turn.kept.add_done_callback(lambda _: self._over_if_all_is_known(turn))
            elif keep:
                self._put_back(turn, turn.speech)
        elif self.hot.find(session.npc, session.player, self._clock()) is None:
            # It was ended while the NPC spoke, and no other has begun: nothing of this turn stays.
            self._door.forget(turn.speech.npc.trunk_key(session.player))
        self._leave_unless_heard_out(turn)
        self._over_if_all_is_known(turn)
        turn.wake()

    def _commit(self, turn: Turn, speech: Speech, goes_on: bool) -> asyncio.Future[bool]:
        """Appends the turn to its session and to the journal. The future says later if it is in the journal."""
        npc, session, request = speech.npc, speech.session, turn.request
        self.counts.finished += 1
        self.counts.finished_of[npc.key.tenant] += 1
        self.counts.cut_tokens += speech.lost
        cut = CUT_OFF.get(turn.finish, "")
        body = self.sessions.add(
            npc, session, request.turn_id, speech.line, turn.said, request.player_name, self._felt(npc), cut
        )
        if goes_on:
            self._make_ready(npc, session)
        return self._memory.keep_soon(Kind.TURN, npc.key, request.player_id, body)

    def _over_if_all_is_known(self, turn: Turn) -> None:
        kept, speech = turn.kept, turn.speech
        if turn.stage is not Stage.ENDS or turn.ended is None or (kept is not None and not kept.done()):
            return
        assert speech is not None
        event = self._last(turn, turn.ended, speech)
        event.accepted = kept is not None and not kept.cancelled() and kept.result()
        turn.end = event
        if turn.finish in WELL:
            finished = Finished(turn.said, event.accepted, event.timings.SerializeToString(), tuple(event.flags))
            self.hot.finish(speech.session, turn.request.turn_id, finished)
        self._over(turn)

    def _repeat(self, turn: Turn, session: Session, finished: Finished, timings: words_pb2.Timings) -> None:
        """Ends a turn with what was said at its first try. `timings` are told when those of then are not known."""
        self.counts.repeated += 1
        turn.text.said = finished.text
        turn.session_id, turn.finish = session.session_id, dialogue_pb2.TALK_FINISH_REPEATED
        turn.end = _event(turn, dialogue_pb2.TALK_EVENT_KIND_END)
        turn.end.accepted = finished.accepted
        turn.end.timings.CopyFrom(timings)
        turn.end.timings.MergeFromString(finished.timings)
        turn.end.flags[:] = finished.flags
        self._over(turn)

    def _fail(self, turn: Turn, error: Exception) -> None:
        """Ends a turn of which nothing was said: its streams raise the error."""
        self.counts.failed += 1
        if turn.speech is not None:
            self._put_back(turn, turn.speech)
        turn.error = error
        self._over(turn)

    def _over(self, turn: Turn) -> None:
        turn.stage = Stage.OVER
        if turn.end is None and turn.error is None:
            turn.end = _event(turn, dialogue_pb2.TALK_EVENT_KIND_END)
        if turn.end is not None:
            turn.end.finish = turn.finish
            turn.end.accepted_known = self._memory.keeps
        self._leave_unless_heard_out(turn)
        for reader in turn.readers:
            self._watch(turn, reader)
            reader.woken.set()

    def _leave_unless_heard_out(self, turn: Turn) -> None:
        """A turn that ended well keeps the floor while somebody still reads it; any other one is in nobody's way."""
        if not turn.readers or turn.finish not in GOOD_ENDS:
            self._leave(turn)

    def _leave(self, turn: Turn) -> None:
        if turn is turn.floor.speaker and turn.ticket is not None:  # others say nothing about how long turns take
            self._turns_ns.append(self._clock() - turn.called_ns)
        turn.floor.leave(turn)
        npc = self._key(turn)
        if turn.floor.speaker is None and self._floors.get(npc) is turn.floor:
            del self._floors[npc]

    def _put_back(self, turn: Turn, speech: Speech) -> None:
        """A try that said nothing leaves what the one before it had left."""
        if speech.replaced and self.hot.holds(speech.session):
            self.hot.add(speech.session, speech.replaced, self._clock(), turn.request.turn_id)
            speech.replaced = []

    def _make_ready(self, npc: Npc, session: Session) -> None:
        """Has the KV of the conversation made ready in the background, so that the next line finds it."""
        room = self.layout.caps.talk_tail + self._settings.max_tokens
        script = self.sessions.script(npc, session, room, self._context_len, self.layout)
        replaces = (npc.key, session.player, "trunk")
        # It is in nobody's way: the player is still listening.
        patient = Tier.BRONZE
        work = self._works.ready(
            npc, self._trunk_route, self._clock(), replaces, script, session.player, deadline=patient
        )
        try:
            self._door.submit(work, lambda _: None)
        except (Overloaded, Draining):
            pass  # the next turn computes it

    def _work(
        self,
        npc: Npc,
        session: Session,
        request: dialogue_pb2.TalkRequest,
        tail: Tail,
        max_tokens: int,
    ) -> Work:
        room = len(tail.tokens) + max_tokens
        script = self.sessions.script(npc, session, room, self._context_len, self.layout)
        seed = request.seed if request.has_seed else crc32(f"{session.session_id}/{session.said}".encode())
        sampling = Sampling(
            temperature=request.temperature if request.has_temperature else self._settings.temperature,
            unrepeat=self._settings.unrepeat if self.layout.native else 0.0,
            seed=seed,
        )
        return self._works.speaks(
            npc, self._route, tail, self._clock(), script, session.player, max_tokens, sampling, session.spoken
        )

    def _last(self, turn: Turn, ended: Ended, speech: Speech) -> dialogue_pb2.TalkEvent:
        event = _event(turn, dialogue_pb2.TALK_EVENT_KIND_END)
        event.timings.CopyFrom(timings_message(ended))
        event.timings.cut_tokens = speech.lost
        event.timings.recall_us = whole(speech.recalled.took_ns // US, 64)
        event.timings.recall_late = speech.recalled.late
        event.timings.stores[:] = speech.recalled.stores
        if speech.lost:
            event.flags.append("cut:player_line")
        event.flags.extend(f"cut:{name}" for name in sorted(speech.session.cut))
        speech.session.cut.clear()
        return event

    # -- pieces ------------------------------------------------------------------------------------------------

    def _check(self, tenant: str, request: dialogue_pb2.TalkRequest) -> Npc:
        check_id("player_id", request.player_id)
        if request.turn_id:
            check_id("turn_id", request.turn_id)
        if request.player_name:
            check_name("player_name", request.player_name)
        size = len(request.text.encode("utf-8", "replace"))
        if not request.text.strip():
            raise CallerError("text", "is empty")
        if size > TEXT_BYTES_MAX:
            raise CallerError("text", f"{size} bytes, the limit is {TEXT_BYTES_MAX}")
        check_prose("text", request.text)
        if request.max_tokens > self._route.output_max:
            raise CallerError("max_tokens", f"is {request.max_tokens}, the limit is {self._route.output_max}")
        if request.has_temperature:
            check_number("temperature", request.temperature, 0.0, 2.0)
        return self._worlds.npc(tenant, request.world_id, request.npc_id)

    def _end(self, npc: NpcKey, player: str) -> Session | None:
        self._stop_all(self.turns(npc, player), goes_on=False)
        return self.hot.end(npc, player)

    def turns(self, npc: NpcKey, player: str | None = None) -> list[Turn]:
        """All turns with an NPC, or those of one player, in whatever stage; the one that has the floor comes first."""
        floor = self._floors.get(npc, ())
        return [t for t in floor if player is None or t.request.player_id == player]

    def _of(self, tenant: str) -> Iterator[Turn]:
        return (turn for npc, floor in self._floors.items() if npc.tenant == tenant for turn in floor)

    def _speaking_in(self, tenant: str, world_id: str) -> list[NpcKey]:
        return [npc for npc in self._floors if npc[:2] == (tenant, world_id)]

    def _key(self, turn: Turn) -> NpcKey:
        return NpcKey(turn.tenant, turn.request.world_id, turn.request.npc_id)

    def _line_ms(self, floor: Floor) -> int:
        """When a turn that a full line refused should come again: when half the line has had its turn, each as long as
        the last turns of all NPCs. A present turn that has taken longer already counts as one of them.
        """
        turns_ns, speaker = list(self._turns_ns), floor.speaker
        present_ns = self._clock() - speaker.called_ns if speaker is not None and speaker.called_ns else 0
        if not turns_ns:
            turns_ns = [self._promises.of(self._route.tier).first_ms * MS]
        if present_ns * len(turns_ns) > sum(turns_ns):
            turns_ns.append(present_ns)
        half_ns = floor.waiting / 2 * sum(turns_ns) / len(turns_ns)
        return max(1, round(min(half_ns, RETRY_MAX_NS) / MS))

    def _wait_ms(self) -> int:
        return self._door.retry_ms(self._route.tier, self._clock(), self._route.engine)


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


def _event(turn: Turn, kind: dialogue_pb2.TalkEventKind.ValueType, index: int = 0) -> dialogue_pb2.TalkEvent:
    return dialogue_pb2.TalkEvent(kind=kind, turn_id=turn.request.turn_id, session_id=turn.session_id, index=index)
