"""Sessions: a conversation begins with an NPC's memory of the player, and ends as something to remember.

Owns memory.hot; on the event loop. An NPC's memory of a player (memory.bond) stands in the trunk between persona and
turns, as of the session's beginning or its last rebuild. When a session is over the model sums it up as Bronze work on
a fork of the trunk, so it blocks no other work. Sentences that the conversation supports are kept; without any, rules
make the summary (memory.noting).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.clock import MS, Clock, S
from core.errors import Draining, NotFound, Overloaded
from core.script import SITUATION, Script, Section, SectionKind, npc_line, player_line
from core.words import Finish, NpcKey, TrunkKey
from core.work import Chunk, Ended
from daemon.talk.text import Spoken
from daemon.worlds.guide import Guide
from daemon.worlds.language import name_of as language_name
from daemon.worlds.works import Works
from daemon.worlds.world import Npc
from daemon.worlds.worlds import Worlds
from memory import cards
from memory.bond import Bond, Exchange, OpenSession, salient, within
from memory.hot import Finished, Hot, Session
from memory.memory import Memory
from memory.noting import PLAYER, believed, covered, facts_of, name_of, sentences, summary_by_rule, with_name
from memory.recall import Recalled
from memory.records import Body, Kind
from prompts.guards import Guard
from prompts.layout import Layout
from scheduler.ticket import Door, Ticket
from tiers.routing import Route, WorkKind

SUMMARIES_TOLD = 2
SUMMED_UP_IMPORTANCE = 0.5
REMEMBERED_AT_HAND = Recalled(Bond(), ("hot",))


@dataclass(slots=True)
class SessionCounts:
    """Counted since start."""

    begun: int = 0
    revived: int = 0
    summaries_model: int = 0
    summaries_rule: int = 0


class Sessions:
    """Conversations under way, and the bonds that they begin and end with."""

    def __init__(
        self,
        hot: Hot,
        memory: Memory,
        worlds: Worlds,
        works: Works,
        door: Door,
        guide: Guide,
        epoch: int,
        clock: Clock,
    ) -> None:
        self.counts = SessionCounts()
        self.hot = hot
        self._memory = memory
        self._worlds = worlds
        self._works = works
        self._guide = guide
        self._layout = guide.layout(guide.own(WorkKind.REPLY))
        self._door = door
        self._recalls = guide.own(WorkKind.REPLY).recall
        self._epoch = epoch
        self._clock = clock
        self._ending: set[Session] = set()

    async def open(self, npc: Npc, player: str) -> tuple[Session, Recalled]:
        """The session under way, or a new one that begins with what is remembered; and how that was found."""
        under_way = self.hot.find(npc.key, player, self._clock())
        recalled = REMEMBERED_AT_HAND
        self._door.coming_near(npc.key)
        if under_way is None or under_way.said >= self.hot.settings.session_turns_max or not under_way.recalled:
            recalled = await self._recall(npc.key, player)
        session, over = self.hot.open(npc.key, player, self._epoch, self._clock())
        for ended in over:
            self.close(ended)
        if session.summary is None:
            self.counts.begun += 1
            kept = recalled.bond.session
            if kept is not None and kept.session_id not in {s.session_id for s in over}:
                self._take_up(npc, session, kept, recalled.bond.name)
            self.tell(npc, session)
        elif not session.recalled and not recalled.late:
            self.tell(npc, session)  # the late memory is in the trunk from now on
        session.recalled = not recalled.late
        return session, recalled

    def digest(self, npc: NpcKey, player: str) -> str:
        """One line about a player for a tail, from this process alone; often empty."""
        bond = self._memory.at_hand(npc, player)
        if bond is None:
            return ""
        return cards.digest(with_name(PLAYER, bond.name), bond.relationship, bond.quest)

    def tell(self, npc: Npc, session: Session) -> None:
        """Puts what is remembered now into the trunk: summaries, then cards, then the facts that have room."""
        now_ms = self._memory.wall_ms()
        bond = within(self._memory.at_hand(npc.key, session.player) or Bond(), now_ms)
        name = with_name(PLAYER, bond.name)
        known = cards.full(name, bond.relationship, bond.quest)
        if bond.name and not known:
            known = [f"{bond.name}."]
        known += [with_name(f.text, bond.name) for f in salient(bond.facts, now_ms)]
        kept = self._with_room(known)
        session.known = (Section(SectionKind.CARD, " ".join(kept)),) if kept else ()
        past = [x for s in bond.summaries[-SUMMARIES_TOLD:] for x in sentences(with_name(s.text, bond.name))]
        news = [x for i, x in enumerate(past) if x not in kept and x not in past[:i]]
        session.summary = (Section(SectionKind.SUMMARY, " ".join(news)),) if news else ()

    def script(self, npc: Npc, session: Session, room: int, context_len: int, layout: Layout) -> Script:
        """The dialogue's script without a tail; facts, summary and then the oldest turns go while `room` more tokens
        would not fit, as the model of `layout` counts them.
        """
        while True:
            sections = session.sections
            if not layout.situation_stays:
                sections = tuple(section for section in sections if section.kind not in SITUATION)
            script = npc.script.goes_on(sections)
            if len(layout.trunk(script).tokens) + room <= context_len or not self.hot.make_room(session):
                return script

    def add(
        self,
        npc: Npc,
        session: Session,
        turn_id: str,
        heard: Sequence[Section],
        reply: Section,
        player_name: str,
        emotion: str,
        cut: str,
    ) -> Body:
        """Appends a turn: what the NPC heard, the line last, and its reply. Returns its record for the journal
        (Kind.TURN). `cut` says how it was cut off, if it was.
        """
        line, said = heard[-1], reply.text
        noted = facts_of(line.text, npc.name)
        session.noted += [n for n in noted if n not in session.noted]
        rebuilt = self.hot.add(session, [*heard, reply], self._clock(), turn_id if cut else "")
        body: Body = {"session": session.session_id, "line": line.text, "reply": said}
        named = {"turn_id": turn_id, "name": player_name or name_of(line.text), "emotion": emotion, "finish": cut}
        body.update((key, value) for key, value in named.items() if value)
        if noted:
            body["facts"] = [list(n) for n in noted]
        if rebuilt:
            # Turns that left took their facts with them, and the trunk is computed anew in any case.
            self.tell(npc, session)
        return body

    def close(self, session: Session) -> None:
        """Ends a session: it is summed up and remembered, and its KV is dropped."""
        if not session.exchanges:
            self._forget_trunk(session)
            return
        self._memory.keep_soon(Kind.ENDED, session.npc, session.player, {"session": session.session_id})
        try:
            npc = self._worlds.npc(*session.npc)
            self._sum_up(npc, session)
        except (NotFound, Overloaded, Draining):
            self._remember(session, "")

    def drop(self, session: Session) -> None:
        """Drops a session that is to leave nothing behind."""
        session.forgotten = True
        self._forget_trunk(session)

    def drop_ending(self, of: Callable[[Session], bool]) -> None:
        """The same for sessions that are over and being summed up."""
        for session in self._ending:
            if of(session):
                session.forgotten = True

    # -- the end -----------------------------------------------------------------------------------------------

    def _sum_up(self, npc: Npc, session: Session) -> None:
        """Has the model sum up what is left of the conversation in hot memory. Raises Overloaded or Draining."""
        route = self._summary_route(npc, session)
        layout, context_len = self._guide.layout(route), route.context_len(self._door.context_len(route.engine))
        tail = layout.summary_tail(language_name(self._worlds.of_npc(npc.key).language))
        text = Spoken(layout.stop_text, Guard(self._works.guards.summary()))
        tickets: list[Ticket] = []
        room = len(tail.tokens) + route.output_max
        script = self.script(npc, session, room, context_len, layout)
        # On a trunk of its own: the player's next conversation may begin before this one is summed up.
        fork = f"summary/{session.session_id}"
        work = self._works.sums_up(npc, route, tail, self._clock(), script, session.player, fork)

        def on_chunk(chunk: Chunk) -> None:
            text.add(chunk.text)
            if text.stopped:
                tickets[0].cancel()

        def on_end(ended: Ended) -> None:
            over = text.stopped
            text.end()
            self._ending.discard(session)
            self._door.forget(work.key)
            well = over or ended.finish in (Finish.STOP, Finish.LENGTH)
            self._remember(session, text.said if well else "")

        tickets.append(self._door.submit(work, on_end, on_chunk))
        self._ending.add(session)

    def _summary_route(self, npc: Npc, session: Session) -> Route:
        """Where the conversation is summed up: on the engine that has its trunk, unless the settings say otherwise."""
        if session.engine and self._guide.follows(WorkKind.SUMMARY):
            return self._guide.to(WorkKind.SUMMARY, session.engine)
        return self._guide.route(WorkKind.SUMMARY, npc, npc.script.goes_on(session.sections))

    def _remember(self, session: Session, said: str) -> None:
        """Keeps a summary: the model's as far as it is borne out, or one by rule. Then the KV is forgotten."""
        if not session.forgotten:
            bond = self._memory.at_hand(session.npc, session.player) or Bond()
            try:
                npc = self._worlds.npc(*session.npc).name
            except NotFound:
                npc = session.npc.npc  # it was removed; its memories stay
            names = (npc, bond.name or "player")
            text = believed(said, _exchanges(session.lines), names) if said else ""
            body: Body = {"session": session.session_id, "text": text, "by": "model"}
            if text:
                self.counts.summaries_model += 1
                heard = [with_name(t, bond.name) for t, _ in session.noted]
                news = [s for s in sentences(text)[1:] if not covered(s, heard)]
                if news:
                    body["facts"] = [[s, SUMMED_UP_IMPORTANCE] for s in news]
            else:
                self.counts.summaries_rule += 1
                body |= {"text": summary_by_rule(npc, session.noted), "by": "rule"}
            self._memory.keep_soon(Kind.SUMMARY, session.npc, session.player, body)
        if self.hot.find(session.npc, session.player, self._clock()) is None:
            self._forget_trunk(session)

    # -- the beginning -----------------------------------------------------------------------------------------

    async def _recall(self, npc: NpcKey, player: str) -> Recalled:
        """The memory of the player. If replies are not to wait: the part in this process, while the rest is fetched."""
        if self._recalls:
            return await self._memory.recall(npc, player)
        self._memory.near(npc, player)
        late = not self._memory.is_whole(npc, player)
        return Recalled(self._memory.at_hand(npc, player) or Bond(), ("hot",), late)

    def _take_up(self, npc: Npc, session: Session, kept: OpenSession, name: str) -> None:
        """A session that an earlier life of the daemon had: goes on when it is young, else it ends now."""
        settings = self.hot.settings
        silent_ms = self._memory.wall_ms() - kept.last_ms
        if silent_ms > settings.idle_s * S // MS or 2 * kept.count >= settings.session_turns_max:
            self._memory.keep_soon(Kind.ENDED, npc.key, session.player, {"session": kept.session_id})
            noted = [n for e in kept.exchanges for n in facts_of(e.line, npc.name)]
            body: Body = {"session": kept.session_id, "text": summary_by_rule(npc.name, noted), "by": "rule"}
            self._memory.keep_soon(Kind.SUMMARY, npc.key, session.player, body)
            return
        self.counts.revived += 1
        session.session_id = kept.session_id
        for e in kept.exchanges[-(settings.turns_max // 2 - 1) :]:
            self.hot.add(session, [player_line(e.line, name), npc_line(e.reply)], self._clock())
        session.said = 2 * kept.count
        session.exchanges = kept.count
        for e in kept.exchanges:
            if not e.finish:
                self.hot.finish(session, e.turn_id, Finished(e.reply, accepted=True))
        session.cut_turn = kept.exchanges[-1].turn_id if kept.exchanges and kept.exchanges[-1].finish else ""

    def _with_room(self, known: Sequence[str]) -> list[str]:
        """As many of these sentences as the card's cap holds, whole and in this order."""
        kept: list[str] = []
        for sentence in known:
            if self._layout.card(" ".join([*kept, sentence])).lost == 0:
                kept.append(sentence)
        return kept

    def _forget_trunk(self, session: Session) -> None:
        self._door.forget(TrunkKey(session.npc, session.player))


def _exchanges(turns: Sequence[Section]) -> list[Exchange]:
    by_player = SectionKind.PLAYER
    return [Exchange("", t.text, "") if t.kind is by_player else Exchange("", "", t.text) for t in turns]
