"""Asking, decided: which NPC is asked when, and whom the rules answer for until the model has answered.

An NPC is asked about a state that it has no answer to: once in a slot of its cadence, when it has its turn among those
that are due (tiers/share.py). Until an answer that is late has come, the rules' stands. The phases and their invariants
are in tiers/phase.py, the moves between them in tiers/rhythm.py:

    RESTING ──▶ DUE ──▶ IN_LINE ──▶ CALLED ──▶ ASKED ──▶ RESTING
    LOADING ────▲ │        │           │          │
                  └─ paused┴▶ PUT_OFF ◀┘          └─ sees something else ──▶ DUE

Inputs are methods; each changes records and adds to the next result of ready(). An NPC's state is a text here: equal
texts are the same question. A glimpse is an observation that was not looked at yet. It decides nothing: first
`Ready.look` asks for a look, and saw() or spoiled() goes on with the decision.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

from core.clock import MS, S
from core.words import Activation
from tiers.cadence import CadenceSettings
from tiers.judging import AskingSettings, Judge
from tiers.phase import OUTDATED, Game, Phase, Record
from tiers.ready import Ready, Recall, Stand
from tiers.share import Share

Who = TypeVar("Who", bound=Hashable)

ACTIVE_LOOK_MAX_NS = 250 * MS  # half a slot
CROWD = 16  # if more NPCs get attention at one moment, they are asked one after the other
POPPED_MAX = 256  # moments taken off the heap in one tick

_ACTIVE, _AMBIENT = Activation.ACTIVE, Activation.AMBIENT
_RESTING, _LOADING, _IN_LINE, _CALLED, _ASKED = (
    Phase.RESTING, Phase.LOADING, Phase.IN_LINE, Phase.CALLED, Phase.ASKED,
)  # fmt: skip
_NOT_DUE = (_RESTING, _LOADING, _ASKED)


class Held(NamedTuple):
    """How much is kept, for tests and for whoever looks for a leak."""

    npcs: int
    moments: int
    glimpses: int
    in_line: int
    under_way: int


class Asking(Generic[Who]):
    """Decides for any number of NPCs. `tokens_each` is what a question costs in the share."""

    def __init__(self, settings: AskingSettings, tokens_each: int) -> None:
        self._tokens_each = tokens_each
        self._looks_per_s = settings.looks_per_s
        self._look_ns = [0, settings.warm_look_ms * MS, settings.ambient_look_ms * MS]
        self._judge: Judge[Who] = Judge(settings)
        self._rhythm = self._judge.rhythm
        self._wanted = self._judge.wanted
        self._records: dict[Who, Record[Who]] = {}
        self._serial = 0
        self._active = 0
        self._ticked = False
        self._told_ns: int | None = None  # when the owner will tick at the latest

    # -- what NPCs see -----------------------------------------------------------------------------------------

    def observed(self, who: Who, number: int, game: Game[Who], may_wait: bool, now_ns: int) -> bool:
        """An observation came; returns whether it is to be looked at now. If not, it is the NPC's glimpse.

        `may_wait`: nothing in it says that something happened. `number` is the NPC's place in the cadence.
        """
        record = self._records.get(who)
        if record is None:
            self._serial += 1
            record = self._records[who] = Record(who, self._serial, number, game)
            self._rhythm.npcs += 1
        elif record.game is not game and self._rhythm.change_game(record, game, now_ns):
            self._again(record, now_ns)
        if not may_wait or now_ns >= record.look_ns:
            return True
        if not record.glimpse_ns:
            self._judge.glimpses.add(record)
        record.glimpse_ns = now_ns
        # It is looked at when its slot comes. A change is found then.
        phase = record.phase
        if (phase is _RESTING or (phase is _ASKED and not record.load_ns)) and record.level is not _AMBIENT:
            self._judge.due_from(record, now_ns, False, now_ns)
        return False

    def saw(self, who: Who, state: str, startled: bool, known: bool, at_ns: int, now_ns: int) -> bool:
        """Its newest observation, received at `at_ns`, was looked at. `startled`: it tells of a new event. `known`: an
        answer to this state may be remembered. Returns whether its intent is to be confirmed, before all that ready()
        says: most looks have no other consequence, and this way they cost no Ready.
        """
        record = self._records[who]
        if record.glimpse_ns:
            self._judge.drop_glimpse(record)
        if startled:
            record.urgent = True
        record.seen_ns, record.known = at_ns, known and self._judge.change_driven
        record.look_ns = at_ns + self._look_ns[record.level]
        if state != record.state:
            record.state, record.changed_ns = state, at_ns
        agrees = record.phase is not _CALLED and self._judge.judge(record, now_ns)
        if record.looking:
            self._judge.go_on(record, now_ns)
        return agrees

    def spoiled(self, who: Who, now_ns: int) -> None:
        """Its glimpse was looked at, and no observation could be read from it."""
        record = self._records[who]
        self._judge.drop_glimpse(record)
        if record.looking:
            self._judge.go_on(record, now_ns)
        if record.state is not None and record.phase in _NOT_DUE and record.answer != record.state:
            self._judge.want(record, now_ns)

    def knows(self, who: Who, state: str) -> None:
        """An answer to this state is remembered from now on."""
        record = self._records.get(who)
        if record is None or record.state != state or not self._judge.change_driven:
            return
        record.known = True
        if not record.stands and not record.questions and record.phase is not _CALLED:
            self._wanted.recall.append(Recall(who, record.due_ns or record.seen_ns))

    def would_wait_ns(self, who: Who, startled: bool, now_ns: int) -> int:
        """How long the NPC would wait until it is asked, if it saw something else now."""
        record = self._records.get(who)
        if record is None or record.game.time.paused:
            return 0
        due_game_ns = self._rhythm.due_game_ns(record, now_ns, record.urgent or startled)
        return max(0, record.game.time.wall(due_game_ns) - now_ns)

    # -- attention ---------------------------------------------------------------------------------------------

    def attended(self, who: Who, level: Activation, among: int, now_ns: int) -> None:
        """It gets another amount of attention, as one `among` so many at this moment."""
        record = self._records.get(who)
        if record is None or record.state is None:
            return
        before, record.level, record.decided = record.level, level, True
        self._count_active((level is _ACTIVE) - (before is _ACTIVE))
        if level is _AMBIENT and not record.urgent:
            self._judge.rest(record, now_ns)
            if record.glimpse_ns:
                self._judge.look(record)
            elif record.questions:
                self._judge.await_answer(record, record.questions[-1].due_ns, now_ns)
            elif record.answer != record.state:
                self._judge.answer_by_rule(record, record.seen_ns, now_ns)
            return
        if record.phase is _IN_LINE:
            self.line.add(who, level, record.urgent, record.due_ns)
        if level < before:
            # It has somebody's attention now: what it does should be of now, and by the model.
            record.look_ns = 0
            if record.glimpse_ns:
                self._judge.look(record)
            if before is _AMBIENT:
                self._judge.load_first(record, among > CROWD, now_ns)
            elif record.glimpse_ns or not record.stands:
                self._judge.set_due(record, now_ns, at_once=True)

    def decided(self, who: Who, now_ns: int) -> None:
        """Its attention was decided about for the first time."""
        record = self._records.get(who)
        if record is None:
            return
        record.decided = True
        if record.state is not None and record.phase in (_RESTING, _ASKED) and record.answer != record.state:
            self._judge.judge(record, now_ns)

    def overdue(self) -> int:
        """How often the model was late with a question since this was called last."""
        overdue, self._judge.overdue = self._judge.overdue, 0
        return overdue

    def loaded(self, who: Who, now_ns: int) -> None:
        """Its KV is in place: it is due at once, or when its slot comes if it is one of a crowd."""
        record = self._records.get(who)
        if record is None:
            return
        record.load_ns = 0
        if record.phase is not _LOADING:
            return
        self._judge.rest(record, now_ns)
        if record.stands:
            return
        if record.level is not _AMBIENT and record.in_crowd and not record.urgent:
            if record.answer != record.state:
                self._judge.answer_by_rule(record, now_ns, now_ns)
            if record.asked_ns is None:
                record.asked_ns = 0  # the first time is no reason to be asked out of turn
            self._judge.due_from(record, now_ns, False, now_ns)
        else:
            self._judge.set_due(record, now_ns, at_once=True)

    def not_loaded(self, who: Who, now_ns: int) -> None:
        """Its KV cannot be brought into place now: it is due at once."""
        record = self._records[who]
        record.load_ns = 0
        if record.phase is _LOADING:
            self._judge.rest(record, now_ns)
            self._judge.set_due(record, now_ns, at_once=True)

    # -- answers -----------------------------------------------------------------------------------------------

    def answered(self, number: int, now_ns: int) -> None:
        """The model has answered a question."""
        record, question = self._judge.end(number, now_ns)
        outdated = record.removed or number < record.valid_from
        if outdated or (record.stands and record.state != question.state):
            self._wanted.keep.append(number)  # or it sees again what it has an answer to
            if outdated:
                self._outdated(record, now_ns)
            return
        agrees = record.state == question.state
        self._wanted.stand.append(Stand(record.who, number, agrees))
        self._judge.answer(record, question.state, False, now_ns)
        if not agrees:
            if record.phase in _NOT_DUE:
                self._judge.want(record, now_ns, since_ns=now_ns)
        elif self._judge.change_driven and not record.glimpse_ns:
            self._judge.rest(record, now_ns)

    def failed(self, number: int, now_ns: int) -> None:
        """A question came to its end without an answer."""
        record, question = self._judge.end(number, now_ns)
        if number < record.valid_from:
            self._outdated(record, now_ns)
        elif not record.removed and record.answer != record.state:
            self._judge.answer_by_rule(record, question.due_ns, now_ns)
        elif record.phase in _NOT_DUE:
            self._judge.rest(record, now_ns)

    def dropped(self, number: int, now_ns: int) -> None:
        """A question was superseded by a newer one, or cancelled."""
        record, _ = self._judge.end(number, now_ns)
        if not record.removed and record.phase in _NOT_DUE and record.answer != record.state:
            self._judge.want(record, now_ns)

    def refused(self, numbers: Iterable[int], now_ns: int) -> None:
        """These questions could not be asked after all."""
        for number in numbers:
            record, question = self._judge.questions[number]
            record.asked_ns = question.asked_before_ns
            self._judge.end(number, now_ns, given_back=True)
            if record.answer != record.state:
                self._judge.answer_by_rule(record, question.due_ns, now_ns)

    def recalled(self, who: Who, now_ns: int) -> None:
        """Its memory has answered to what it sees."""
        record = self._records[who]
        assert record.state is not None, "it saw what its memory answers to"
        record.urgent = False
        self._judge.answer(record, record.state, False, now_ns)
        self._judge.rest(record, now_ns)

    def forgot(self, who: Who, now_ns: int) -> None:
        """Its memory has no answer that holds."""
        record = self._records[who]
        record.known = False
        if record.phase is _CALLED:
            self._judge.settle(record, now_ns)
        else:
            self._judge.want(record, now_ns)

    # -- NPCs and games ----------------------------------------------------------------------------------------

    def reregistered(self, who: Who, number: int, new_lease: bool, other: bool, now_ns: int) -> None:
        """It was registered anew: earlier questions are about what it was. `other`: its answer is, too."""
        record = self._records.get(who)
        if record is None:
            return
        record.number, record.valid_from, record.known = number, self._judge.next_number, False
        if new_lease and record.glimpse_ns:
            self.spoiled(who, now_ns)
        if other and record.answer is not None:
            record.answer = OUTDATED

    def removed(self, who: Who, now_ns: int) -> None:
        """It is gone."""
        record = self._records.pop(who, None)
        if record is None:
            return
        self._rhythm.npcs -= 1
        self._rhythm.become_resting(record, now_ns)
        self._judge.drop_glimpse(record)
        self._count_active(-(record.level is _ACTIVE))
        record.removed = True
        record.watch_ns = 0
        if record.looking and who in self._wanted.look:
            self._wanted.look.remove(who)
        self._wanted.cancel.extend(question.number for question in record.questions)

    def keep_pace(self, questions_per_s: float, under_way_max: int, cadence: CadenceSettings, now_ns: int) -> None:
        """Asks no more than the engine carries now, in all and of one NPC."""
        self._rhythm.keep_pace(cadence)
        self._rhythm.line.keep_pace(max(1, round(questions_per_s * self._tokens_each)), under_way_max, now_ns)

    def tell(self, game: Game[Who], scale: float, paused: bool, now_ns: int) -> None:
        """Says how fast a game's time runs from now on. While it is paused its NPCs are not asked; those that become
        due meanwhile are asked when it goes on.
        """
        self._rhythm.tell(game, scale, paused, now_ns)

    # -- time --------------------------------------------------------------------------------------------------

    def tick(self, now_ns: int, room: int, stalled: bool) -> None:
        """It is `now_ns`. There is time for about `room` looks and answers by rule; the rest stays due.
        `stalled`: the engine stands still.
        """
        self._judge.stalled = stalled
        if self._rhythm.resumes:
            room -= self._rhythm.resume(now_ns, room, lambda record: self._again(record, now_ns))
        for record in self._judge.glimpses.take(now_ns, room):
            self._judge.look(record)
            room -= 1
        popped = 0
        while room > 0 and popped < POPPED_MAX and (moment := self._rhythm.moments.pop(now_ns)) is not None:
            record, watch, counts = moment
            popped += 1
            if not counts:
                continue
            room -= 1
            if watch:
                self._judge.check_lateness(record, now_ns)
            else:
                self._judge.its_moment(record, now_ns)
        if len(self.line):
            for who in self.line.take(now_ns, self._tokens_each):
                record = self._records[who]
                record.phase = _CALLED
                self._judge.settle(record, now_ns)
        self._ticked = True

    # -- what comes out ----------------------------------------------------------------------------------------

    def ready(self, now_ns: int) -> Ready[Who] | None:
        """The acts to do now, each of them once; None: there are none."""
        at_ns, due = self._rhythm.moments.next(POPPED_MAX)
        line = self._rhythm.line
        turn_ns = line.next_ns(now_ns) if len(line) else None
        wake_ns = at_ns if turn_ns is None or (at_ns is not None and at_ns < turn_ns) else turn_ns
        if self._ticked:
            self._ticked = False
            sweep_ns = now_ns if self._rhythm.resumes else self._judge.glimpses.next_ns
            if wake_ns is None or (sweep_ns is not None and sweep_ns < wake_ns):
                wake_ns = sweep_ns
            self._told_ns = wake_ns
            return self._wanted.take(wake_ns, at_ns if due else None)
        if wake_ns is not None and (self._told_ns is None or wake_ns < self._told_ns):
            self._told_ns = wake_ns
        elif self._wanted.nothing:
            return None
        else:
            wake_ns = None
        return self._wanted.take(wake_ns, None)

    def at_once(self) -> Ready[Who] | None:
        """The same without a moment to wake at, for an owner that comes to tick() soon. None: nothing is to be done."""
        return None if self._wanted.nothing else self._wanted.take(None, None)

    # -- to look at --------------------------------------------------------------------------------------------

    @property
    def line(self) -> Share[Who]:
        """Those that are due and wait for their turn; read only."""
        return self._rhythm.line

    def record(self, who: Who) -> Record[Who] | None:
        """An NPC's record; read only. None: it was never observed, or it was removed."""
        return self._records.get(who)

    def held(self) -> Held:
        """The numbers of kept entries."""
        judge, rhythm = self._judge, self._rhythm
        return Held(
            len(self._records), len(rhythm.moments), len(judge.glimpses), len(rhythm.line), len(judge.questions)
        )

    # -- inside ------------------------------------------------------------------------------------------------

    def _again(self, record: Record[Who], now_ns: int) -> None:
        """It was put off, and its game goes on."""
        self._judge.rest(record, now_ns)
        if not record.stands:
            self._judge.set_due(record, now_ns)

    def _outdated(self, record: Record[Who], now_ns: int) -> None:
        """A question about the NPC as it was before is over; it is asked as it is now."""
        if not record.removed and record.phase in _NOT_DUE:
            self._judge.want(record, now_ns)

    def _count_active(self, more: int) -> None:
        """So many looks a second are for all active NPCs together."""
        self._active += more
        self._look_ns[_ACTIVE] = min(self._active * S // self._looks_per_s, ACTIVE_LOOK_MAX_NS)
