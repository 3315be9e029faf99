"""The works of a conversation: a reply, and the trunk made ready for the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

import numpy as np

from core.choice import common_len
from core.clock import Clock
from core.errors import CallerError, Draining, Overloaded
from core.script import Script, Section, npc_line
from core.words import Finish, Tier, TrunkKey
from core.work import Ended, Sampling, Work
from daemon.talk.drawn import Drawn, said_by
from daemon.talk.once import Expected, count, expected, finished
from daemon.talk.sessions import Sessions
from daemon.talk.settings import DialogueSettings
from daemon.talk.turns import WELL, Draw, Speech, Turn
from daemon.worlds.guide import Guide
from daemon.worlds.works import Works
from daemon.worlds.world import Npc
from memory.hot import Session
from npcd.v1 import dialogue_pb2
from prompts.guards import Guard
from prompts.layout import Layout, Tail
from scheduler.ticket import Door
from tiers.routing import Route, WorkKind


class Replies:
    """Makes works, and submits those that nobody waits for. `route` and `layout` are those of replies by default; a
    conversation has the ones of the engine that it began on.
    """

    def __init__(
        self, works: Works, door: Door, sessions: Sessions, guide: Guide, settings: DialogueSettings, clock: Clock
    ) -> None:
        self.route = guide.own(WorkKind.REPLY)
        self.layout = guide.layout(self.route)
        self._guide = guide
        self._works = works
        self._door = door
        self._sessions = sessions
        self._settings = settings
        self._clock = clock

    def route_of(self, npc: Npc, session: Session) -> Route:
        """The route of a conversation's next reply. Its engine stays the same until the trunk is computed anew, because
        the KV is there.
        """
        if session.may_move:
            session.may_move = False
            engine = self._guide.route(WorkKind.REPLY, npc, npc.script.goes_on(session.sections)).engine
            if session.engine not in ("", engine):
                self._door.forget(TrunkKey(session.npc, session.player))
            session.engine = engine
        return self._guide.to(WorkKind.REPLY, session.engine)

    def layout_of(self, npc: Npc, session: Session) -> Layout:
        """The layout of the model that speaks in a conversation."""
        return self._guide.layout(self.route_of(npc, session))

    def _context_len(self, route: Route) -> int:
        return route.context_len(self._door.context_len(route.engine))

    def reply(self, npc: Npc, session: Session, request: dialogue_pb2.TalkRequest, tail: Tail) -> Work:
        """A turn's work. Raises CallerError when persona and line have no room in the context."""
        route = self.route_of(npc, session)
        layout, context_len = self._guide.layout(route), self._context_len(route)
        room = context_len - len(layout.trunk(npc.script).tokens) - len(tail.tokens)
        if room < 1:
            raise CallerError("text", f"persona and line exceed the context by {1 - room} tokens; shorten one of them")
        max_tokens = min(request.max_tokens or self._settings.max_tokens, room)
        needed = len(tail.tokens) + max_tokens
        script = self._sessions.script(npc, session, needed, context_len, layout)
        seed = request.seed if request.has_seed else crc32(f"{session.session_id}/{session.said}".encode())
        sampling = Sampling(
            temperature=request.temperature if request.has_temperature else self._settings.temperature,
            unrepeat=self._settings.unrepeat if layout.native else 0.0,
            seed=seed,
        )
        return self._works.speaks(
            npc, route, tail, self._clock(), script, session.player, max_tokens, sampling, session.spoken
        )

    def guard(self, npc: Npc, session: Session, player_names: Sequence[str]) -> Guard:
        """A guard for one reply: it stands between the model and the player."""
        rules = self._works.guards.reply(self._works.made_for_npcd(self.route_of(npc, session)))
        return Guard(rules, (npc.name,), player_names)

    def again(self, work: Work) -> Work | None:
        """The same reply to be drawn once more, with another seed; None if the settings have no second draw."""
        if not self._works.guards.again:
            return None
        sampling = work.sampling
        warm = sampling.temperature or self._settings.temperature or DialogueSettings().temperature
        return replace(work, sampling=replace(sampling, seed=(sampling.seed + 1) % (1 << 64), temperature=warm))

    def spoken(self, turn: Turn) -> tuple[Section, Drawn]:
        """The NPC's finished line, and the drawn tokens that make it. It stands in the trunk with these tokens if the
        lane is to become the trunk.
        """
        draw, said = turn.draw, turn.said
        reply, drawn = npc_line(said), said_by(draw.chunks if draw else (), said)
        if drawn.tokens and draw and draw.work.adopt and turn.speech:
            turn.speech.layout.keep_drawn(reply, drawn.tokens, drawn.rest)
        return reply, drawn

    def ended(self, session: Session, draw: Draw, ended: Ended, again: bool) -> None:
        """Takes in what a draw computed. If a reply is drawn `again`, its tail is computed again."""
        made = draw.tokens[: _taken_in(draw.tokens, ended)]
        count(session.computed, draw.work, made, ended.timings, draw.expects, again)

    def go_on(self, turn: Turn, speech: Speech, drawn: Drawn) -> None:
        """The turn is part of its session. Has the conversation's KV made ready in the background, so that the next
        line finds it. Nothing is to be done if the lane became the trunk: the next work computes the end of the turn.
        """
        session, draw, ended = speech.session, turn.draw, turn.ended
        route = self.route_of(speech.npc, session)
        layout = self._guide.layout(route)
        room = layout.caps.talk_tail + self._settings.max_tokens
        script = self._sessions.script(speech.npc, session, room, self._context_len(route), layout)
        trunk = layout.trunk(script).tokens
        # Only a work that ended by itself has taken in its last token.
        fresh = layout.closing_len + (ended is None or ended.finish is not Finish.STOP)
        finished(session.computed, len(trunk), fresh, drawn.cut and turn.finish in WELL)
        here = draw is not None and draw.work.backend == route.engine
        if here and draw is not None and ended is not None and ended.timings.adopted_tokens:
            held = len(draw.work.trunk) + ended.timings.adopted_tokens
            there = np.concatenate([draw.work.trunk, draw.work.tail, np.asarray(draw.tokens, np.int32)])[:held]
            if len(trunk) - common_len(there, trunk) <= fresh:
                return
        self._make_ready(speech.npc, session, script, self._guide.to(WorkKind.REPLY_TRUNK, route.engine))

    def _make_ready(self, npc: Npc, session: Session, script: Script, route: Route) -> None:
        replaces = (npc.key, session.player, "trunk")
        # It is in nobody's way: the player is still listening.
        patient = Tier.BRONZE
        work = self._works.ready(npc, route, self._clock(), replaces, script, session.player, deadline=patient)
        expects = expected(session.computed)
        try:
            self._door.submit(work, lambda e: _count(session, work, e, expects))
        except (Overloaded, Draining):
            pass  # the next turn computes it


def _count(session: Session, work: Work, ended: Ended, expects: Expected) -> None:
    count(session.computed, work, (), ended.timings, expects)


def _taken_in(made: Sequence[int], ended: Ended) -> int:
    """How many of the made tokens steps took in: all only if the end was picked after them."""
    return len(made) if ended.finish is Finish.STOP else max(0, len(made) - 1)
