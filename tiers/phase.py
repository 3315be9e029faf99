"""Where one NPC stands with its question: the phases, what is known of it in each, and the time of its game.

    RESTING   nothing to ask: it has its answer, or it saw nothing yet
    LOADING   it got attention; its KV is brought into place before it is asked
    PUT_OFF   it is due, but its game is paused
    DUE       it gets into line at `due_ns`
    IN_LINE   it waits for its share of the engine
    CALLED    its turn has come; one look, or its memory, decides whether it is asked
    ASKED     a question is under way, and there is nothing newer to ask

tiers/asking.py alone changes a record. A question under way does not keep an NPC from being due again: when something
else is seen, it goes from ASKED to DUE, and the answer to the question still counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

from core.words import Activation
from tiers.game_time import GameTime

Who = TypeVar("Who")

OUTDATED = "?"  # the state of an answer from another world than the present one: no state is written so


class Phase(Enum):
    """The phase of an NPC's question."""

    RESTING = "resting"
    LOADING = "loading"
    PUT_OFF = "put off"
    DUE = "due"
    IN_LINE = "in line"
    CALLED = "called"
    ASKED = "asked"


class Question(NamedTuple):
    """A question under way. `asked_before_ns` is when the NPC was asked before, in game time."""

    number: int
    state: str
    due_ns: int
    asked_before_ns: int | None


@dataclass(slots=True, eq=False)
class Record(Generic[Who]):
    """All that decides when one NPC is asked. Moments are of wall time, if they do not say that they are of game time.

    Invariants, checked by tests/tiers/test_asking.py after every input:

    * DUE: `due_ns` is set, and the record is in its game's `due` or among those that go on after a pause.
    * PUT_OFF: it is in its game's `put_off`, or among those that go on after a pause.
    * IN_LINE: it stands in the line once. In no other phase it does.
    * CALLED: it holds one of the engine's places, and so does every question under way.
    * ASKED: there are `questions`. No two are about one state, unless it was registered anew between them.
    * If its answer is not to `state`, something is set that ends in an answer: a due moment, a watch, or a decision.
    """

    who: Who
    serial: int  # in the order in which NPCs came; of those that are due at one moment the first is first
    number: int  # the phase of its cadence follows it
    game: Game[Who]
    phase: Phase = Phase.RESTING
    level: Activation = Activation.AMBIENT
    decided: bool = False  # True once its attention was decided
    urgent: bool = False  # something happened to it that it was not asked about
    removed: bool = False

    state: str | None = None  # its state as of the last look
    seen_ns: int = 0  # when that was received
    changed_ns: int = 0  # when it was first seen in that state
    known: bool = False  # an answer to that state may be remembered
    look_ns: int = 0  # from when on an observation is looked at
    glimpse_ns: int = 0  # when the newest observation came that was not looked at; 0: there is none
    sweep_ns: int = 0  # when the glimpse is looked at at the latest
    looking: bool = False  # a look was asked for; the decision that wanted it follows

    answer: str | None = None  # the state that its intent answers
    by_rule: bool = False  # and whether the rules made it
    stood_ns: int = 0  # when that was, in game time

    due_ns: int = 0  # DUE: when it gets into line; IN_LINE and CALLED: since when it is due
    due_game_ns: int = 0  # the same moment in game time
    asked_ns: int | None = None  # in game time; None: never
    questions: list[Question] = field(default_factory=list)  # under way, the newest last
    valid_from: int = 0  # questions with smaller numbers are about the NPC, or the world, as it was before

    load_ns: int = 0  # since when its KV is brought into place; 0: it is not
    in_crowd: bool = False  # many got attention with it, so that it is asked when its slot comes
    watch_ns: int = 0  # when it is looked next whether the model is late; 0: never
    since_ns: int = 0  # since when the model's answer is waited for

    @property
    def stands(self) -> bool:
        """True if its intent is the model's, for its present state."""
        return self.answer == self.state and not self.by_rule and self.state is not None

    @property
    def question(self) -> Question | None:
        """The newest question under way that is about what it sees."""
        return next((q for q in reversed(self.questions) if q.state == self.state), None)

    @property
    def waits_in(self) -> Phase:
        """The phase of an NPC with nothing newer to ask."""
        return Phase.ASKED if self.questions else Phase.LOADING if self.load_ns else Phase.RESTING


@dataclass(slots=True, eq=False, weakref_slot=True)
class Game(Generic[Who]):
    """A game server that observes NPCs: its time, and its NPCs whose moments hang on that."""

    time: GameTime
    due: set[Record[Who]] = field(default_factory=set)
    put_off: set[Record[Who]] = field(default_factory=set)
