"""Turns under way, who reads them, and who may speak with an NPC. Plain state on the event loop; nothing here waits
long or knows a clock.

A turn belongs to no stream. Each stream that wants it is a Reader with its own place in the text, so a retry reads the
running turn from the beginning. daemon/talk/{dialogue,speaking,ends}.py move a turn
through its stages:

    WAITS ──▶ RECALLS ──▶ SPEAKS ──▶ ENDS ──▶ OVER
    for the    what is     the work   `finish` is decided and the text stands;
    floor      remembered  runs       the engine and the journal still have to answer

A stop leads from the first three to ENDS or OVER at once.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from core.script import Section
from core.spread import Spread
from core.words import NpcKey
from core.work import Chunk, Ended, Work
from daemon.talk.once import Expected
from daemon.talk.text import Spoken
from daemon.worlds.world import Npc
from memory.hot import Session
from memory.recall import Recalled
from npcd.v1 import dialogue_pb2
from prompts.layout import Layout
from scheduler.ticket import Ticket

WELL = (dialogue_pb2.TALK_FINISH_STOP, dialogue_pb2.TALK_FINISH_LENGTH)
GOOD_ENDS = (*WELL, dialogue_pb2.TALK_FINISH_REPEATED)


class Stage(Enum):
    """How far a turn is."""

    WAITS = "waits"
    RECALLS = "recalls"
    SPEAKS = "speaks"
    ENDS = "ends"
    OVER = "over"


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
    drawn_again: int = 0
    empty: int = 0  # turns of which the guards left nothing
    guarded: Counter[str] = field(default_factory=Counter)  # turns that a guard cut something of, by what it was
    again: Counter[str] = field(default_factory=Counter)  # prompt tokens that were computed a second time, by reason


@dataclass(slots=True, eq=False)
class Reader:
    """One stream that reads a turn: it has had `taken` characters, `ends` ends of sentences, `directions` stage
    directions, and all of the first `chunks` chunks; `takes`: as often as that all was taken back from it.

    `writing`: an event is with the stream; `patience` runs while that holds others up. `ended`: it has had END.
    """

    taken: int = 0
    ends: int = 0
    directions: int = 0
    takes: int = 0
    chunks: int = 0
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    writing: bool = False
    patience: asyncio.TimerHandle | None = None
    too_slow: bool = False
    ended: bool = False


@dataclass(slots=True, eq=False)
class Speech:
    """The parts of a turn from the moment that it is admitted."""

    npc: Npc
    session: Session
    recalled: Recalled
    line: Section
    layout: Layout  # of the model that speaks
    lost: int  # tokens of the line that were cut away
    replaced: list[Section]  # the same turn as an earlier try left it
    heard: tuple[Section, ...] = ()  # the sections that stay in the conversation before the reply


@dataclass(slots=True, eq=False)
class Draw:
    """One try of a reply: its work, the tokens that this may compute for the first time, and the chunks that came."""

    work: Work
    expects: Expected
    chunks: list[Chunk] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """The drawn tokens."""
        return [token for chunk in self.chunks for token in chunk.tokens]


@dataclass(slots=True, eq=False)
class Turn:
    """One turn under way. Its text is `text.said`, of which readers have had at most `heard` characters.

    `finish` is decided once, on the event loop; from then on the text does not grow, whatever the engine still makes.
    Invariant: OVER means that `end` or `error` is set.
    """

    tenant: str
    request: dialogue_pb2.TalkRequest
    floor: Floor
    received_ns: int
    text: Spoken = field(default_factory=Spoken)
    stage: Stage = Stage.WAITS
    called: asyncio.Event = field(default_factory=asyncio.Event)
    called_ns: int = 0  # when it had the floor
    task: asyncio.Task[None] | None = None
    readers: set[Reader] = field(default_factory=set)
    chunks: int = 0
    tries: int = 0  # how often its reply was begun
    draw: Draw | None = None  # the newest one
    heard: int = 0
    session_id: str = ""
    speech: Speech | None = None
    ticket: Ticket | None = None
    ended: Ended | None = None
    kept: asyncio.Future[bool] | None = None
    finish: dialogue_pb2.TalkFinish.ValueType = dialogue_pb2.TALK_FINISH_UNSPECIFIED
    end: dialogue_pb2.TalkEvent | None = None
    error: Exception | None = None

    @property
    def stoppable(self) -> bool:
        """True if a stop would change its end."""
        return not self.finish and self.error is None

    @property
    def may_be_joined(self) -> bool:
        """True if a retry gets this turn: it is not cut off."""
        return self.error is None and self.finish in (dialogue_pb2.TALK_FINISH_UNSPECIFIED, *GOOD_ENDS)

    @property
    def said(self) -> str:
        """The NPC's words. If no reader listened to the end: the words that were heard."""
        return self.text.said if self.readers or self.finish in WELL else self.text.said[: self.heard]

    @property
    def npc(self) -> NpcKey:
        """The NPC that it is with."""
        return NpcKey(self.tenant, self.request.world_id, self.request.npc_id)

    def event(self, kind: dialogue_pb2.TalkEventKind.ValueType, index: int = 0) -> dialogue_pb2.TalkEvent:
        """An event of this turn, with nothing but its kind and its place."""
        return dialogue_pb2.TalkEvent(kind=kind, turn_id=self.request.turn_id, session_id=self.session_id, index=index)

    def wake(self) -> None:
        """Lets every reader look again."""
        for reader in self.readers:
            reader.woken.set()


class Floor:
    """The turn that may speak with one NPC now, and the turns that wait for it, in order.

    Invariant: a turn waits only while another one speaks.
    """

    def __init__(self) -> None:
        self.speaker: Turn | None = None
        self._line: deque[Turn] = deque()

    def __iter__(self) -> Iterator[Turn]:
        """All turns with this NPC, the speaker's first."""
        if self.speaker is not None:
            yield self.speaker
        yield from self._line

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._line)

    def ask(self, turn: Turn) -> None:
        """Puts a turn in the line; its `called` is set when it has the floor."""
        if self.speaker is None:
            self.speaker = turn
            turn.called.set()
        else:
            self._line.append(turn)

    def leave(self, turn: Turn) -> None:
        """Takes a turn out; the floor goes to the next. Nothing happens when it is out already."""
        if turn is self.speaker:
            self.speaker = self._line.popleft() if self._line else None
            if self.speaker is not None:
                self.speaker.called.set()
        elif turn in self._line:
            self._line.remove(turn)
