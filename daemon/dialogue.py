"""Dialogue: one turn from the player's line to the NPC's last word.

Owns the open turns; all on the event loop. An NPC speaks with one player at a time; others wait in order. A turn that
is cancelled leaves behind what was really said, and nothing when nothing was. The finished turn is appended to its
session (daemon/sessions.py) and to the journal before the last event leaves, and its KV is made ready in the
background, so that the next line finds it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from core.clock import US, Clock
from core.errors import CallerError, Draining, EngineFailed, Overloaded
from core.words import Finish, NpcKey, Tier
from core.work import Chunk, Ended, Sampling, Work
from daemon.prompt import Cut, Layout, Perception
from daemon.sessions import Sessions
from daemon.text import TextAssembler
from daemon.words import check_id, check_number, whole
from daemon.worlds import Npc, Worlds
from memory.hot import Session, Turn
from memory.memory import Memory
from memory.recall import Recalled
from memory.records import Body, Kind
from npcd.v1 import dialogue_pb2, words_pb2
from scheduler.ticket import Door, Ticket
from tiers.promises import Promises
from tiers.routing import Routes, WorkKind

TEXT_BYTES_MAX = 2048


@dataclass(frozen=True, slots=True)
class DialogueSettings:
    """`chunks_max` pending chunks (or a turn that is over) and then `slow_reader_s`, and a reader that does not read
    loses its turn.

    `waiting_max` players may wait for one busy NPC. `max_tokens` is a reply's length when the request names none;
    routes.reply.output_max bounds what it may name. `unrepeat` keeps models made for npcd from saying the same sentence
    again (core.work.Sampling).
    """

    max_tokens: int = 96
    temperature: float = 0.7
    unrepeat: float = 1.0
    chunks_max: int = 64
    slow_reader_s: float = 5.0
    waiting_max: int = 8


@dataclass(slots=True)
class DialogueCounts:
    """Counted since start. `ttft_ns`: TalkRequest received -> first text handed to gRPC."""

    started: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    repeated: int = 0
    slow_readers: int = 0
    cut_tokens: int = 0
    ttft_ns: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=4096))
    finished_of: Counter[str] = field(default_factory=Counter)  # by tenant


@dataclass(slots=True, eq=False)
class _Open:
    """A turn under way. Chunks wait in `pieces` until the stream's writer takes all of them at once.

    `writing`: an event is with the stream's reader; `patience` runs while that holds others up.
    """

    turn_id: str
    text: TextAssembler
    pieces: deque[Chunk] = field(default_factory=deque)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    ticket: Ticket | None = None
    ended: Ended | None = None
    leave: Callable[[], None] = lambda: None
    writing: bool = False
    patience: asyncio.TimerHandle | None = None
    too_slow: bool = False
    cancelled: bool = False
    committed: bool = False


@dataclass(slots=True, eq=False)
class _Floor:
    """Who may speak with one NPC now. asyncio.Lock wakes its waiters in order."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    speaker: object = None

    async def take(self, speaker: object) -> None:
        """Waits for the floor."""
        self.waiting += 1
        try:
            await self.lock.acquire()
        finally:
            self.waiting -= 1
        self.speaker = speaker

    def leave(self, speaker: object) -> None:
        """Gives the floor to the next; nothing happens when it is another's already."""
        if self.speaker is speaker:
            self.speaker = None
            self.lock.release()


class Dialogue:
    """Turns and sessions of all NPCs."""

    def __init__(
        self,
        worlds: Worlds,
        layout: Layout,
        door: Door,
        sessions: Sessions,
        memory: Memory,
        promises: Promises,
        routes: Routes,
        settings: DialogueSettings,
        context_len: int,
        piece: Callable[[int], bytes],
        perceived: Callable[[Npc], Perception | None],
        felt: Callable[[Npc], str],
        spoke: Callable[[NpcKey], None],
        clock: Clock,
    ) -> None:
        self.counts = DialogueCounts()
        self.sessions = sessions
        self.hot = sessions.hot
        self._memory = memory
        self._worlds = worlds
        self._layout = layout
        self._door = door
        self._promises = promises
        self._route = routes.of(WorkKind.REPLY)
        self._trunk_route = routes.of(WorkKind.REPLY_TRUNK)
        self._settings = settings
        self._context_len = self._route.context_len(context_len)
        self._piece = piece
        self._perceived = perceived
        self._felt = felt
        self._spoke = spoke
        self._clock = clock
        self._open: dict[tuple[NpcKey, str], _Open] = {}
        self._floors: dict[NpcKey, _Floor] = {}

    @property
    def open_turns(self) -> int:
        """Turns under way."""
        return len(self._open)

    def open_turns_of(self, tenant: str) -> int:
        """Those of a tenant's NPCs."""
        return sum(1 for npc, _ in self._open if npc.tenant == tenant)

    async def talk(
        self, tenant: str, request: dialogue_pb2.TalkRequest
    ) -> AsyncGenerator[dialogue_pb2.TalkEvent, None]:
        """One turn as events: STARTED, TEXT ..., END. Closing the iterator cancels the turn.

        Raises CallerError and NotFound for a bad request, Overloaded before the first event, EngineFailed when the
        engine failed before anything was said.
        """
        received_ns = self._clock()
        npc = self._check(tenant, request)
        present = self._open.get((npc.key, request.player_id))
        if present is not None and present.turn_id == request.turn_id and request.turn_id:
            # A retry while the first try still runs: the client has lost that stream, this one takes over.
            self._stop(present)
        floor = self._floors.setdefault(npc.key, _Floor())
        if floor.waiting >= self._settings.waiting_max:
            raise Overloaded(f"{floor.waiting} players wait for '{npc.key.npc}' already", self._wait_ms())
        turn = _Open(request.turn_id, TextAssembler(self._layout.stop_text))
        try:
            await floor.take(turn)
            npc = self._check(tenant, request)  # while it waited, the NPC may have been removed or changed
            session, recalled = await self.sessions.open(npc, request.player_id)
            npc = self._check(tenant, request)
            said = session.finished.get(request.turn_id) if request.turn_id else None
            if said is not None:
                self.counts.repeated += 1
                floor.leave(turn)
                for event in _repeat(request.turn_id, session.session_id, said):
                    yield event
                return
            async with aclosing(self._turn(npc, session, recalled, request, turn, floor, received_ns)) as events:
                async for event in events:
                    turn.writing = True
                    self._watch(turn)
                    yield event
                    if turn.too_slow:
                        raise Overloaded(f"the reader left an event unread for {self._settings.slow_reader_s:g} s", 0)
                    self._unwatch(turn)
        finally:
            self._unwatch(turn)
            floor.leave(turn)
            if not floor.waiting and not floor.lock.locked() and self._floors.get(npc.key) is floor:
                del self._floors[npc.key]

    def cancel(self, tenant: str, request: dialogue_pb2.CancelTurnRequest) -> bool:
        """Stops a turn under way; whether there was one."""
        npc = self._worlds.npc(tenant, request.world_id, request.npc_id)
        turn = self._open.get((npc.key, check_id("player_id", request.player_id)))
        if turn is None or (request.turn_id and request.turn_id != turn.turn_id):
            return False
        self._stop(turn)
        return True

    def end_session(self, tenant: str, request: dialogue_pb2.EndSessionRequest) -> Session | None:
        """Ends a session; the session, if one was under way. It is summed up in the background."""
        npc = self._worlds.npc(tenant, request.world_id, request.npc_id)
        session = self._end(npc.key, check_id("player_id", request.player_id))
        if session is not None:
            self.sessions.close(session)
        return session

    def forget(self, tenant: str, world_id: str, player_id: str, npc_id: str) -> tuple[int, int]:
        """Forgets a player's sessions: (sessions, turns)."""
        sessions = [s for s in self.hot.of_player(tenant, world_id, player_id) if npc_id in ("", s.npc.npc)]
        for session in sessions:
            self._end(session.npc, session.player)
            self.sessions.drop(session)
        self.sessions.drop_ending(
            lambda s: s.player == player_id and s.npc[:2] == (tenant, world_id) and npc_id in ("", s.npc.npc)
        )
        return len(sessions), sum(len(s.turns) for s in sessions)

    def remove(self, npc: NpcKey) -> None:
        """Ends every session of an NPC that was taken out."""
        for session in self.hot.of_npc(npc):
            self._end(npc, session.player)
            self.sessions.close(session)

    def turn_back(self, tenant: str, world_id: str) -> None:
        """Drops every session of a world: it goes on from an earlier time."""
        for session in self.hot.of_world(tenant, world_id):
            self._end(session.npc, session.player)
            self.sessions.drop(session)
        self.sessions.drop_ending(lambda s: s.npc[:2] == (tenant, world_id))

    def sweep(self) -> None:
        """Ends the sessions that have been silent too long."""
        for session in self.hot.silent(self._clock()):
            self.sessions.close(session)

    # -- one turn ----------------------------------------------------------------------------------------------

    async def _turn(
        self,
        npc: Npc,
        session: Session,
        recalled: Recalled,
        request: dialogue_pb2.TalkRequest,
        turn: _Open,
        floor: _Floor,
        received_ns: int,
    ) -> AsyncGenerator[dialogue_pb2.TalkEvent, None]:
        key = (npc.key, request.player_id)
        line = self._layout.player_turn(request.text, request.player_name)
        digest = self.sessions.digest(npc.key, request.player_id)
        tail = self._layout.talk_tail(line.tokens, self._perceived(npc), digest)
        self._spoke(npc.key)
        room = self._context_len - len(npc.trunk) - len(tail)
        if room < 1:
            raise CallerError("text", f"persona and line exceed the context by {1 - room} tokens; shorten one of them")
        max_tokens = min(request.max_tokens or self._settings.max_tokens, room)
        work = self._work(npc, session, request, tail, max_tokens)

        def on_chunk(chunk: Chunk) -> None:
            self._take(turn, chunk)

        def on_end(ended: Ended) -> None:
            turn.ended = ended
            self._watch(turn)
            turn.woken.set()

        def leave() -> None:
            # The client went away, or we could not serve it: the lane is free within a step, what was said stays said.
            if turn.ended is None and turn.ticket is not None:
                turn.ticket.cancel()
            if turn.text.said and not turn.committed:
                self.counts.cancelled += 1
                kept = self._commit(npc, session, request, line, turn)
                if kept is not None:
                    self._memory.keep_soon(Kind.TURN, npc.key, request.player_id, kept)
            if self._open.get(key) is turn:
                del self._open[key]
            floor.leave(turn)

        turn.leave = leave
        turn.ticket = self._door.submit(work, on_end, on_chunk)
        self._open[key] = turn
        self.counts.started += 1
        index = 0
        try:
            yield _event(turn, session, dialogue_pb2.TALK_EVENT_KIND_STARTED, index)
            first = True
            while True:
                await turn.woken.wait()
                turn.woken.clear()
                text = self._text(turn)
                over = turn.ended is not None and not turn.pieces
                if over:
                    text += turn.text.end()
                if text:
                    index += 1
                    if first:
                        first = False
                        self.counts.ttft_ns.append((self._clock(), self._clock() - received_ns))
                    event = _event(turn, session, dialogue_pb2.TALK_EVENT_KIND_TEXT, index)
                    event.text = text
                    yield event
                if over:
                    break
            assert turn.ended is not None
            if turn.ended.finish in (Finish.FAILED, Finish.REFUSED) and not turn.text.said:
                self.counts.failed += 1
                if turn.ended.finish is Finish.REFUSED:
                    raise Overloaded(f"the {self._route.tier.name.lower()} queue is full", self._wait_ms())
                raise EngineFailed(turn.ended.reason)
            kept = self._commit(npc, session, request, line, turn)
            accepted = kept is not None and await self._memory.keep(Kind.TURN, npc.key, request.player_id, kept)
            event = self._last(turn, session, index + 1, line.lost, recalled)
            event.accepted, event.accepted_known = accepted, self._memory.keeps
            yield event
        finally:
            leave()

    def _take(self, turn: _Open, chunk: Chunk) -> None:
        """A chunk from the scheduler."""
        if turn.too_slow:
            return
        turn.pieces.append(chunk)
        self._watch(turn)
        turn.woken.set()

    def _watch(self, turn: _Open) -> None:
        """A reader that leaves an event unread may not hold up others for long: not with chunks that pile up, and not
        with an NPC that has said all.
        """
        late = turn.ended is not None or len(turn.pieces) > self._settings.chunks_max
        if late and turn.writing and turn.patience is None:
            loop = asyncio.get_running_loop()
            turn.patience = loop.call_later(self._settings.slow_reader_s, self._give_up, turn)

    def _unwatch(self, turn: _Open) -> None:
        turn.writing = False
        if turn.patience is not None:
            turn.patience.cancel()
            turn.patience = None

    def _give_up(self, turn: _Open) -> None:
        """Lane, floor and chunks are free now. The stream's writer is stuck; it hears of it when it comes back."""
        self.counts.slow_readers += 1
        turn.too_slow = True
        turn.pieces.clear()
        self._stop(turn)
        turn.leave()

    def _text(self, turn: _Open) -> str:
        """All text that waits. Stop text ends the turn."""
        out = []
        while turn.pieces:
            for token in turn.pieces.popleft().tokens:
                out.append(turn.text.add(self._piece(token)))
        if turn.text.stopped and turn.ended is None and turn.ticket is not None:
            turn.ticket.cancel()
        return "".join(out)

    def _stop(self, turn: _Open) -> None:
        turn.cancelled = True
        if turn.ticket is not None:
            turn.ticket.cancel()

    def _commit(
        self, npc: Npc, session: Session, request: dialogue_pb2.TalkRequest, line: Cut, turn: _Open
    ) -> Body | None:
        """Appends the turn to the session and makes its KV ready in the background; what the journal is to keep."""
        turn.committed = True
        self.counts.finished += 1
        self.counts.finished_of[npc.key.tenant] += 1
        self.counts.cut_tokens += line.lost
        if not self.hot.holds(session):
            # It was ended or forgotten while the NPC spoke: nothing of it stays.
            self.sessions.drop(session)
            return None
        said = Turn(True, request.text, line.tokens)
        kept = self.sessions.add(
            npc, session, request.turn_id, said, turn.text.said, request.player_name, self._felt(npc)
        )
        now_ns = self._clock()
        room = self._layout.caps.talk_tail + self._settings.max_tokens
        work = Work(
            tier=self._trunk_route.tier,
            key=npc.trunk_key(session.player),
            trunk=self.sessions.trunk(npc, session, room, self._context_len),
            shared=npc.shared,
            tail=np.empty(0, np.int32),
            max_tokens=0,
            adapter=npc.adapter,
            due_ns=now_ns,
            # It is in nobody's way: the player is still listening.
            deadline_ns=self._promises.deadline_ns(Tier.BRONZE, now_ns),
            supersede=(npc.key, session.player, "trunk"),
        )
        try:
            self._door.submit(work, lambda _: None)
        except (Overloaded, Draining):
            pass  # the next turn computes it
        return kept

    def _work(
        self,
        npc: Npc,
        session: Session,
        request: dialogue_pb2.TalkRequest,
        tail: tuple[int, ...],
        max_tokens: int,
    ) -> Work:
        now_ns = self._clock()
        seed = request.seed if request.has_seed else crc32(f"{session.session_id}/{session.said}".encode())
        return Work(
            tier=self._route.tier,
            key=npc.trunk_key(session.player),
            trunk=self.sessions.trunk(npc, session, len(tail) + max_tokens, self._context_len),
            shared=npc.shared,
            tail=np.asarray(tail, np.int32),
            max_tokens=max_tokens,
            adapter=npc.adapter,
            sampling=Sampling(
                temperature=request.temperature if request.has_temperature else self._settings.temperature,
                unrepeat=self._settings.unrepeat if self._layout.native else 0.0,
                seed=seed,
            ),
            said=session.lines,
            stop_ids=self._layout.stop_ids,
            closing=self._layout.closing_ids,
            due_ns=now_ns,
            deadline_ns=self._promises.deadline_ns(self._route.tier, now_ns),
        )

    def _last(self, turn: _Open, session: Session, index: int, lost: int, recalled: Recalled) -> dialogue_pb2.TalkEvent:
        ended = turn.ended
        assert ended is not None
        event = _event(turn, session, dialogue_pb2.TALK_EVENT_KIND_END, index)
        event.finish = _finish(turn, ended)
        event.timings.CopyFrom(timings_message(ended))
        event.timings.cut_tokens = lost
        event.timings.recall_us = whole(recalled.took_ns // US, 64)
        event.timings.recall_late = recalled.late
        event.timings.stores[:] = recalled.stores
        if lost:
            event.flags.append("cut:player_line")
        event.flags.extend(f"cut:{name}" for name in sorted(session.cut))
        session.cut.clear()
        return event

    # -- pieces ------------------------------------------------------------------------------------------------

    def _check(self, tenant: str, request: dialogue_pb2.TalkRequest) -> Npc:
        check_id("player_id", request.player_id)
        if request.turn_id:
            check_id("turn_id", request.turn_id)
        if request.player_name:
            check_id("player_name", request.player_name)
        size = len(request.text.encode("utf-8", "replace"))
        if not request.text.strip():
            raise CallerError("text", "is empty")
        if size > TEXT_BYTES_MAX:
            raise CallerError("text", f"{size} bytes, the limit is {TEXT_BYTES_MAX}")
        if request.max_tokens > self._route.output_max:
            raise CallerError("max_tokens", f"is {request.max_tokens}, the limit is {self._route.output_max}")
        if request.has_temperature:
            check_number("temperature", request.temperature, 0.0, 2.0)
        return self._worlds.npc(tenant, request.world_id, request.npc_id)

    def _end(self, npc: NpcKey, player: str) -> Session | None:
        turn = self._open.get((npc, player))
        if turn is not None:
            self._stop(turn)
        return self.hot.end(npc, player)

    def _wait_ms(self) -> int:
        return self._door.retry_ms(self._route.tier, self._clock())


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


def _finish(turn: _Open, ended: Ended) -> dialogue_pb2.TalkFinish.ValueType:
    if turn.text.stopped or ended.finish is Finish.STOP:
        return dialogue_pb2.TALK_FINISH_STOP
    if ended.finish is Finish.LENGTH:
        return dialogue_pb2.TALK_FINISH_LENGTH
    return dialogue_pb2.TALK_FINISH_CANCELLED if turn.cancelled else dialogue_pb2.TALK_FINISH_FAILED


def _event(
    turn: _Open, session: Session, kind: dialogue_pb2.TalkEventKind.ValueType, index: int
) -> dialogue_pb2.TalkEvent:
    return dialogue_pb2.TalkEvent(kind=kind, turn_id=turn.turn_id, session_id=session.session_id, index=index)


def _repeat(turn_id: str, session_id: str, said: str) -> list[dialogue_pb2.TalkEvent]:
    kinds = (
        dialogue_pb2.TALK_EVENT_KIND_STARTED,
        dialogue_pb2.TALK_EVENT_KIND_TEXT,
        dialogue_pb2.TALK_EVENT_KIND_END,
    )
    events = [
        dialogue_pb2.TalkEvent(kind=kind, turn_id=turn_id, session_id=session_id, index=i)
        for i, kind in enumerate(kinds)
    ]
    events[1].text = said
    events[2].finish = dialogue_pb2.TALK_FINISH_REPEATED
    return events
