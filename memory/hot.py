"""Hot memory: the turns of conversations under way, as text, with the hysteresis that keeps their KV valid.

A session keeps every turn until `turns_max`; then the oldest go at once and `turns_kept` stay, so that the trunk is
rebuilt once and not on every turn. Plain and synchronous; time comes in.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

import numpy as np

from core.choice import Tokens
from core.clock import S
from core.script import LINES, SITUATION, Section, SectionKind
from core.words import NpcKey

LINES_KEPT = 12  # an NPC does not say the same sentence twice within so many turns


@dataclass(frozen=True, slots=True)
class HotSettings:
    """Conversations in process. A player's line and an NPC's reply are two turns."""

    turns_max: int = 20
    """Turns that stand in a conversation's prompt; when there are so many, the oldest leave it."""
    turns_kept: int = 12
    """Turns that stay when the oldest leave."""
    idle_s: int = 1_800
    """A conversation ends after this time of silence."""
    session_turns_max: int = 400
    """A conversation ends after so many turns."""
    sessions_max: int = 10_000
    """Conversations at the same time; beyond that the one that is silent longest ends."""
    finished_kept: int = 16
    """Finished turns of a conversation that are kept for clients that retry."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished turn, for retries: the content of its last event. `timings` are bytes of the contract's message
    (empty: an earlier life of the daemon had the turn); `accepted`: it is in the journal.
    """

    text: str
    accepted: bool
    timings: bytes = b""
    flags: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Computed:
    """The part of a conversation that an engine computed: all `tokens`, in this order, of which the first `trunk_len`
    were the last work's trunk. Of the next trunk `fresh_from` to `fresh_to` will be computed for the first time. `cut`:
    the last reply was cut by a guard. `again` counts tokens that were computed a second time since the last turn, by
    reason.
    """

    tokens: Tokens = field(default_factory=lambda: np.empty(0, np.int32))
    trunk_len: int = 0
    fresh_from: int = 0
    fresh_to: int = 0
    cut: bool = False
    again: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Session:
    """One conversation of an NPC with a player. `finished` are the last turns that came to their end, by turn_id.

    `cut_turn` is the turn_id of the newest exchange if that was cut off: a retry takes its place.

    `turns` are the lines of both, and the situations that stay between them. `summary` and `known` (cards and facts)
    are the sections between persona and turns, as of the last rebuild; `summary` is None until the session has begun.
    `noted` was learned since then. A `forgotten` session is not kept. While it is not `recalled`, recent memory was
    late, and is asked again with every turn.
    `spoken` are the NPC's last lines, also those of turns that have left. `engine` has its trunk (empty: none yet); it
    may change only when the trunk is computed anew, `may_move`.
    """

    npc: NpcKey
    player: str
    session_id: str
    turns: list[Section] = field(default_factory=list)
    finished: OrderedDict[str, Finished] = field(default_factory=OrderedDict)
    cut_turn: str = ""
    last_ns: int = 0
    said: int = 0
    exchanges: int = 0
    rebuilds: int = 0
    spoken: deque[Section] = field(default_factory=lambda: deque(maxlen=LINES_KEPT))
    summary: tuple[Section, ...] | None = None
    known: tuple[Section, ...] = ()
    noted: list[tuple[str, float]] = field(default_factory=list)
    forgotten: bool = False
    recalled: bool = False
    engine: str = ""
    may_move: bool = True
    cut: set[str] = field(default_factory=set)  # parts that had no room in the context, until a turn reports them
    computed: Computed = field(default_factory=Computed)

    @property
    def sections(self) -> tuple[Section, ...]:
        """The summary, the facts and all kept turns, as they follow the persona."""
        return (*(self.summary or ()), *self.known, *self.turns)

    @property
    def lines(self) -> list[Section]:
        """The turns without situations."""
        return [turn for turn in self.turns if turn.kind in LINES]

    @property
    def told(self) -> tuple[Section, ...]:
        """The newest situation that stands in the conversation: at most one section of each kind."""
        return tuple({turn.kind: turn for turn in self.turns if turn.kind in SITUATION}.values())


class Hot:
    """All sessions. Invariant: at most sessions_max; beyond that the one that is silent longest ends."""

    def __init__(self, settings: HotSettings) -> None:
        self.settings = settings
        self._sessions: OrderedDict[tuple[NpcKey, str], Session] = OrderedDict()
        self._by_npc: dict[NpcKey, dict[str, Session]] = {}  # the same, for those that go with their NPC
        self._opened = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, npc: NpcKey, player: str, now_ns: int) -> Session | None:
        """The session under way, or None; one that has been silent too long is over."""
        session = self._sessions.get((npc, player))
        if session is None or now_ns - session.last_ns > self.settings.idle_s * S:
            return None
        return session

    def holds(self, session: Session) -> bool:
        """True if this very session is still under way."""
        return self._sessions.get((session.npc, session.player)) is session

    def open(self, npc: NpcKey, player: str, epoch: int, now_ns: int) -> tuple[Session, list[Session]]:
        """The session under way or a new one, and the sessions that ended because of it (too old, or no room)."""
        session = self.find(npc, player, now_ns)
        over: list[Session] = []
        if session is not None and session.said < self.settings.session_turns_max:
            self._sessions.move_to_end((npc, player))
            return session, over
        stale = self._take_out((npc, player))
        if stale is not None:
            over.append(stale)
        while len(self._sessions) >= self.settings.sessions_max:
            oldest = self._take_out(next(iter(self._sessions)))
            assert oldest is not None
            over.append(oldest)
        self._opened += 1
        session = Session(npc, player, f"{epoch:x}-{self._opened}", last_ns=now_ns)
        self._sessions[npc, player] = session
        self._by_npc.setdefault(npc, {})[player] = session
        return session, over

    def add(self, session: Session, turns: list[Section], now_ns: int, cut_turn: str = "") -> bool:
        """Adds an exchange's turns. Returns True if old ones left (the trunk must be rebuilt)."""
        session.exchanges += 1
        session.cut_turn = cut_turn
        session.turns += turns
        session.spoken += (turn for turn in turns if turn.kind is SectionKind.NPC)
        session.said += sum(turn.kind in LINES for turn in turns)
        session.last_ns = now_ns
        if len(session.lines) < self.settings.turns_max:
            return False
        _keep_last(session, self.settings.turns_kept)
        session.rebuilds += 1
        session.may_move = True
        return True

    def make_room(self, session: Session) -> bool:
        """Makes room in the context: drops facts, then the summary, then two turns at a time. False if none is left."""
        if session.known:
            session.known = ()
            session.cut.add("facts")
        elif session.summary:
            session.summary = ()
            session.cut.add("summary")
        elif session.turns:
            _keep_last(session, len(session.lines) - 2)
            session.cut.add("turns")
        else:
            return False
        session.rebuilds += 1
        session.may_move = True
        return True

    def take_back(self, session: Session, turn_id: str) -> list[Section]:
        """Takes out the newest exchange when it is an earlier, cut off try of this turn; its turns, else none."""
        if not turn_id or session.cut_turn != turn_id:
            return []
        session.cut_turn = ""
        session.exchanges -= 1
        at = len(session.turns) - 2
        while at > 0 and session.turns[at - 1].kind in SITUATION:
            at -= 1
        taken = session.turns[at:]
        del session.turns[at:]
        session.said -= 2
        if session.spoken:
            session.spoken.pop()
        return taken

    def finish(self, session: Session, turn_id: str, finished: Finished) -> None:
        """Remembers how a turn came to its end, for retries."""
        if turn_id:
            session.finished[turn_id] = finished
            session.finished.move_to_end(turn_id)
            while len(session.finished) > self.settings.finished_kept:
                session.finished.popitem(last=False)

    def end(self, npc: NpcKey, player: str) -> Session | None:
        """Ends a session; the session that was under way."""
        return self._take_out((npc, player))

    def of_npc(self, npc: NpcKey) -> list[Session]:
        """All sessions of one NPC."""
        return list(self._by_npc.get(npc, {}).values())

    def of_player(self, tenant: str, world: str, player: str) -> list[Session]:
        """All sessions of one player in a world."""
        return [s for (owner, who), s in self._sessions.items() if who == player and owner[:2] == (tenant, world)]

    def of_world(self, tenant: str, world: str) -> list[Session]:
        """All sessions in a world."""
        return [s for (owner, _), s in self._sessions.items() if owner[:2] == (tenant, world)]

    def silent(self, now_ns: int) -> list[Session]:
        """Sessions that have been silent too long."""
        return [s for s in self._sessions.values() if now_ns - s.last_ns > self.settings.idle_s * S]

    def end_if_silent(self, session: Session, now_ns: int) -> bool:
        """Takes a session out if it is still silent. Returns True if it did."""
        pair = (session.npc, session.player)
        if self._sessions.get(pair) is not session or now_ns - session.last_ns <= self.settings.idle_s * S:
            return False
        self._take_out(pair)
        return True

    def _take_out(self, pair: tuple[NpcKey, str]) -> Session | None:
        session = self._sessions.pop(pair, None)
        if session is not None:
            npc, player = pair
            of_npc = self._by_npc[npc]
            del of_npc[player]
            if not of_npc:
                del self._by_npc[npc]
        return session


def _keep_last(session: Session, count: int) -> None:
    """Leaves the last `count` lines, and of the situations only the newest: at its place, or before the first line."""
    newest = session.told
    kept: list[Section] = []
    for turn in reversed(session.turns):
        if turn.kind in LINES:
            if count <= 0:
                break
            count -= 1
            kept.append(turn)
        elif any(turn is one for one in newest):
            kept.append(turn)
    if kept:
        kept += [one for one in reversed(newest) if not any(turn is one for turn in kept)]
    session.turns[:] = reversed(kept)
