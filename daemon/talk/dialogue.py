"""Dialogue: conversations of players with NPCs, as the calls see them.

An NPC speaks with one player at a time; others wait in order (daemon/talk/floors.py). A turn goes on while anybody
listens. All of it is on the event loop, in these parts:

    dialogue ──▶ speaking ──▶ ends ──▶ readers
    a line is    the work     the end,   events for each stream,
    admitted     runs         memory     patience with slow ones
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing

from core.clock import MS, US, Clock
from core.errors import CallerError, Overloaded
from core.spread import Spread
from core.steps import Steps
from core.texts import check_name, check_prose
from core.words import NpcKey
from core.work import Timings
from daemon.talk.ends import Ends
from daemon.talk.floors import Floors
from daemon.talk.readers import Readers
from daemon.talk.replies import Replies
from daemon.talk.sessions import Sessions
from daemon.talk.settings import DialogueSettings
from daemon.talk.speaking import Speaking
from daemon.talk.turns import DialogueCounts, Floor, Reader, Stage, Turn
from daemon.words import check_id, check_number, whole
from daemon.worlds.guide import Guide
from daemon.worlds.works import Works
from daemon.worlds.world import Npc
from daemon.worlds.worlds import Worlds
from memory.hot import Session
from memory.memory import Memory
from npcd.v1 import dialogue_pb2, words_pb2
from prompts.layout import Layout, Perception
from scheduler.ticket import Door
from tiers.promises import Promises

TEXT_BYTES_MAX = 2048


class Dialogue:
    """Turns and sessions of all NPCs. `admits` raises Overloaded for a conversation that the engine cannot carry beside
    those under way; `first_text` hears how long turns took.
    """

    def __init__(
        self,
        worlds: Worlds,
        works: Works,
        door: Door,
        sessions: Sessions,
        memory: Memory,
        promises: Promises,
        guide: Guide,
        settings: DialogueSettings,
        perceived: Callable[[Npc, Layout], Perception | None],
        felt: Callable[[Npc], str],
        spoke: Callable[[NpcKey], None],
        admits: Callable[[NpcKey, str], None],
        first_text: Callable[[int, Timings], None],
        clock: Clock,
    ) -> None:
        self.counts = counts = DialogueCounts(ttft=Spread(bounds_ns=promises.bounds_ns()))
        self.sessions = sessions
        self.hot = sessions.hot
        self._memory = memory
        self._worlds = worlds
        self._admits = admits
        self._settings = settings
        self._clock = clock
        self._replies = replies = Replies(works, door, sessions, guide, settings, clock)
        self.layout = replies.layout
        self._floors = floors = Floors(promises.of(replies.route.tier).first_ms * MS)
        self._readers = readers = Readers(settings, counts, self._hang_up, felt, clock)
        self._ends = ends = Ends(sessions, memory, door, replies, floors, readers, counts, felt, clock)
        self._speaking = Speaking(sessions, door, replies, ends, readers, counts, perceived, spoke, first_text, clock)

    @property
    def floors(self) -> Mapping[NpcKey, Floor]:
        """The NPCs that are talked with now, to look at."""
        return self._floors.by_npc

    @property
    def open_turns(self) -> int:
        """Turns that an NPC speaks in now."""
        return sum(1 for _ in self._floors.speaking())

    def open_turns_of(self, tenant: str) -> int:
        """Those with a tenant's NPCs."""
        return sum(1 for _ in self._floors.speaking(tenant))

    @property
    def keeps(self) -> bool:
        """True if turns outlive this process."""
        return self._memory.keeps

    def turns(self, npc: NpcKey, player: str | None = None) -> list[Turn]:
        """All turns with an NPC, or those of one player, in whatever stage; the one that has the floor comes first."""
        return self._floors.turns(npc, player)

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
            async with aclosing(self._readers.events(turn, reader)) as events:
                async for event in events:
                    reader.writing = True
                    self._readers.watch(turn, reader)
                    yield event
                    if reader.too_slow:
                        raise Overloaded(f"the reader left an event unread for {self._settings.slow_reader_s:g} s", 0)
                    self._readers.unwatch(reader)
        finally:
            self._readers.unwatch(reader)
            self._hang_up(turn, reader)

    def cancel(self, tenant: str, request: dialogue_pb2.CancelTurnRequest) -> bool:
        """Stops a player's turns (with a turn_id: that one), wherever they are. True if one will end CANCELLED."""
        npc = self._worlds.npc(tenant, request.world_id, request.npc_id)
        turns = self.turns(npc.key, check_id("player_id", request.player_id))
        return any([self._ends.stop(t) for t in turns if request.turn_id in ("", t.request.turn_id)])

    def end_session(self, tenant: str, request: dialogue_pb2.EndSessionRequest) -> Session | None:
        """Ends a session and stops its turns; the session, if one was under way. It is summed up in the background."""
        npc = self._worlds.npc(tenant, request.world_id, request.npc_id)
        session = self._end(npc.key, check_id("player_id", request.player_id))
        if session is not None:
            self.sessions.close(session)
        return session

    def forget(self, tenant: str, world_id: str, player_id: str, npc_id: str) -> tuple[int, int]:
        """Forgets a player's sessions, and turns that are under way or wait: (sessions, turns)."""
        for npc in self._floors.in_world(tenant, world_id):
            if npc_id in ("", npc.npc):
                self._ends.stop_all(self.turns(npc, player_id), keep=False)
        sessions = [s for s in self.hot.of_player(tenant, world_id, player_id) if npc_id in ("", s.npc.npc)]
        for session in sessions:
            self.hot.end(session.npc, session.player)
            self.sessions.drop(session)
        self.sessions.drop_ending(
            lambda s: s.player == player_id and s.npc[:2] == (tenant, world_id) and npc_id in ("", s.npc.npc)
        )
        return len(sessions), sum(len(s.lines) for s in sessions)

    def removing(self, npc: NpcKey) -> Steps[None]:
        """Ends every session of an NPC that was taken out. Turns that wait for it find that it is gone."""
        for session in self.hot.of_npc(npc):
            self._ends.stop_all([t for t in self.turns(npc, session.player) if t.stage is Stage.SPEAKS], goes_on=False)
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
        for npc in self._floors.in_world(tenant, world_id):
            self._ends.stop_all([t for t in self.turns(npc) if t.stage in stages], keep=False)
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
        turn = Turn(tenant, request, Floor(), self._clock())
        self._ends.repeat(turn, session, finished, dialogue_pb2.TalkEvent().timings)
        return turn

    def _begin(self, tenant: str, npc: NpcKey, request: dialogue_pb2.TalkRequest, received_ns: int) -> Turn:
        """A new turn, in the line for its NPC. Raises Overloaded."""
        floor = self._floors.of(npc)
        if floor.waiting >= self._settings.waiting_max:
            retry_ms = self._floors.retry_ms(floor, self._clock())
            raise Overloaded(f"{floor.waiting} players wait for '{npc.npc}' already", retry_ms)
        self._admits(npc, request.player_id)
        turn = Turn(tenant, request, floor, received_ns)
        floor.ask(turn)
        turn.task = asyncio.create_task(self._admit(turn))
        return turn

    async def _admit(self, turn: Turn) -> None:
        """Waits for the floor and for what is remembered, and has the NPC speak. Ends.stop() cancels it."""
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
                self._ends.repeat(turn, session, finished, timings)
            else:
                self._speaking.speak(turn, npc, session, recalled)
        except Exception as error:  # also a bug's: the streams raise it
            self._ends.fail(turn, error)

    def _hang_up(self, turn: Turn, reader: Reader) -> None:
        """A reader is gone. A turn that nobody listens to is stopped: what was heard stays said."""
        turn.readers.discard(reader)
        if turn.stage is Stage.OVER:
            if reader.ended or not turn.readers:
                self._floors.leave(turn, self._clock())
        elif not turn.readers:
            self._ends.stop(turn)

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
        if request.max_tokens > self._replies.route.output_max:
            raise CallerError("max_tokens", f"is {request.max_tokens}, the limit is {self._replies.route.output_max}")
        if request.has_temperature:
            check_number("temperature", request.temperature, 0.0, 2.0)
        return self._worlds.npc(tenant, request.world_id, request.npc_id)

    def _end(self, npc: NpcKey, player: str) -> Session | None:
        self._ends.stop_all(self.turns(npc, player), goes_on=False)
        return self.hot.end(npc, player)
