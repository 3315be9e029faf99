"""The consequences for one NPC: of its state, its due moment, its turn, and the time that it waits.

Works on one record at a time (tiers/phase.py) and adds to what is wanted (tiers/ready.py). tiers/asking.py finds the
record that an input is about.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from core.clock import MS
from core.words import Activation
from tiers.cadence import CadenceSettings
from tiers.glimpses import Glimpses
from tiers.phase import Phase, Question, Record
from tiers.ready import Ask, Recall, Rule, Wanted
from tiers.rhythm import Rhythm
from tiers.share import ShareSettings

Who = TypeVar("Who", bound=Hashable)

STALL_LOOK_NS = 10 * MS  # how often it is looked whether the engine stands still, for those that wait

_AMBIENT = Activation.AMBIENT
_RESTING, _DUE, _IN_LINE, _CALLED, _ASKED = (
    Phase.RESTING, Phase.DUE, Phase.IN_LINE, Phase.CALLED, Phase.ASKED,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AskingSettings:
    """`answer_within_ms`: later than this after the due moment, the rule policy answers; after `stall_ms` already when
    the engine stands still.

    Of a warm or ambient NPC only one observation in `warm_look_ms` or `ambient_look_ms` is looked at, the newest,
    unless it tells of an event; of active ones together `looks_per_s`. Without `change_driven` an NPC is asked in every
    slot, also when nothing changed.
    """

    answer_within_ms: int = 100
    stall_ms: int = 20
    looks_per_s: int = 1_000
    warm_look_ms: int = 500
    ambient_look_ms: int = 1_000
    change_driven: bool = True
    cadence: CadenceSettings = field(default_factory=CadenceSettings)
    share: ShareSettings = field(default_factory=ShareSettings)


class Judge(Generic[Who]):
    """Decides about records. Owns what is wanted, the glimpses, and the questions under way."""

    def __init__(self, settings: AskingSettings) -> None:
        self.wanted: Wanted[Who] = Wanted()
        self.glimpses: Glimpses[Who] = Glimpses()
        self.rhythm: Rhythm[Who] = Rhythm(settings.cadence, settings.share)
        self.questions: dict[int, tuple[Record[Who], Question]] = {}  # under way, by number
        self.next_number = 1
        self.overdue = 0
        self.stalled = False
        self.change_driven = settings.change_driven
        self._within_ns, self._stall_ns = settings.answer_within_ms * MS, settings.stall_ms * MS

    # -- looking -----------------------------------------------------------------------------------------------

    def look(self, record: Record[Who]) -> None:
        """Nothing is decided about it before its glimpse was looked at."""
        if not record.looking:
            record.looking = True
            self.wanted.look.append(record.who)

    def drop_glimpse(self, record: Record[Who]) -> None:
        """Its glimpse was looked at, or is of an older lease."""
        if record.glimpse_ns:
            record.glimpse_ns = 0
            self.glimpses.remove(record)

    def go_on(self, record: Record[Who], now_ns: int) -> None:
        """It was looked at: decides what waited for that."""
        record.looking = False
        if record.phase is _CALLED:
            self.settle(record, now_ns)
        elif record.phase is _DUE and record.due_ns <= now_ns:
            self.line_up(record, now_ns)
        if 0 < record.watch_ns <= now_ns:
            self.check_lateness(record, now_ns)

    def judge(self, record: Record[Who], now_ns: int) -> bool:
        """Decides by its state: its intent stands, its memory answers, or it is to be asked. Returns whether its intent
        agrees with that state; it may be asked all the same.
        """
        agrees = record.answer == record.state
        if agrees:
            ambient = record.level is _AMBIENT
            if not record.by_rule or (ambient and not record.urgent):
                record.urgent = False
                self.rest(record, now_ns)
                if self.change_driven or ambient:
                    return True
        elif record.known and self._slot_is_over(record):
            self.wanted.recall.append(Recall(record.who, record.seen_ns))
            return False
        self.want(record, now_ns)
        return agrees

    def want(self, record: Record[Who], now_ns: int, since_ns: int = 0) -> None:
        """It has no answer of the model's to what it sees: it is to be asked, if that is not under way already. Then it
        has waited for the answer since `since_ns`, or since the question was due.
        """
        question = record.question
        if question is None:
            self.set_due(record, now_ns)
            return
        self.rest(record, now_ns)
        self.await_answer(record, since_ns or question.due_ns, now_ns)

    def _slot_is_over(self, record: Record[Who]) -> bool:
        """True if the NPC may have another intent already: with more intents than questions it would jitter."""
        part = 4 if record.urgent else 2
        return record.game.time.at(record.seen_ns) - record.stood_ns >= self.rhythm.slot_ns(record) // part

    # -- getting into line -------------------------------------------------------------------------------------

    def set_due(self, record: Record[Who], now_ns: int, at_once: bool = False) -> None:
        """It is to be asked when its slot comes, or `at_once`; an ambient NPC is answered by rule."""
        if record.phase is _IN_LINE:
            if record.urgent:
                self.rhythm.line.add(record.who, record.level, True, record.due_ns)
            return  # it will be asked about the newest
        if (record.load_ns or not record.decided) and not record.urgent:
            if record.load_ns:
                self.await_answer(record, record.seen_ns, now_ns)
            return  # until its KV is in place, or its attention was decided about
        if record.level is _AMBIENT and not record.urgent:
            if record.answer != record.state:
                self.answer_by_rule(record, record.seen_ns, now_ns)
            return
        # Its attention comes from an earlier observation; it is due from now on.
        self.due_from(record, now_ns if at_once else record.seen_ns, record.urgent or at_once, now_ns)

    def due_from(self, record: Record[Who], received_ns: int, urgent: bool, now_ns: int) -> None:
        """It is due in the slot that follows from something received then; never later than it was."""
        if record.game.time.paused:
            self.rhythm.become_put_off(record, now_ns)
            return
        at_ns = self.rhythm.due_game_ns(record, received_ns, urgent)
        if record.phase is _DUE and record.due_game_ns <= at_ns:
            return
        if self.rhythm.become_due(record, at_ns, now_ns):
            self.line_up(record, now_ns)

    def its_moment(self, record: Record[Who], now_ns: int) -> None:
        """Its due moment has come."""
        time = record.game.time
        early = record.due_game_ns > time.at(now_ns) and not time.paused  # it was set at another pace
        if not early or self.rhythm.become_due(record, record.due_game_ns, now_ns):
            self.line_up(record, now_ns)

    def line_up(self, record: Record[Who], now_ns: int) -> None:
        """It is due now."""
        if record.game.time.paused:
            self.rhythm.become_put_off(record, now_ns)
        elif record.glimpse_ns:
            self.look(record)
        elif record.stands and self.change_driven:
            self.wanted.confirm.append(record.who)
            self.rest(record, now_ns)
        else:
            self.rhythm.become_in_line(record, now_ns)
            self.rhythm.watch(record, record.due_ns + self._stall_ns, record.due_ns)

    # -- asking ------------------------------------------------------------------------------------------------

    def settle(self, record: Record[Who], now_ns: int) -> None:
        """Its turn has come: it is asked, unless there is nothing left to ask."""
        if record.game.time.paused:
            self.rhythm.become_put_off(record, now_ns)
        elif record.glimpse_ns:
            self.look(record)
        elif record.stands and self.change_driven:
            record.urgent = False
            self.wanted.confirm.append(record.who)
            self.rest(record, now_ns)
        elif record.known:
            self.wanted.recall.append(Recall(record.who, record.due_ns))
        elif record.question is not None:
            self.want(record, now_ns)
        else:
            self._ask(record, now_ns)

    def _ask(self, record: Record[Who], now_ns: int) -> None:
        assert record.state is not None, "an NPC is due because it saw something"
        number, self.next_number = self.next_number, self.next_number + 1
        question = Question(number, record.state, record.due_ns, record.asked_ns)
        record.questions.append(question)
        self.questions[number] = (record, question)
        self.wanted.ask.append(Ask(record.who, number, record.due_ns))
        record.phase, record.due_ns, record.urgent = _ASKED, 0, False
        record.asked_ns = record.game.time.at(now_ns)

    def end(self, number: int, now_ns: int, given_back: bool = False) -> tuple[Record[Who], Question]:
        """A question is over; `given_back`: it was never asked."""
        record, question = self.questions.pop(number)
        if given_back:
            self.rhythm.line.give_back(now_ns)
        else:
            self.rhythm.line.ended(now_ns)
        record.questions.remove(question)
        if record.phase is _ASKED:
            record.phase = record.waits_in
        return record, question

    # -- waiting -----------------------------------------------------------------------------------------------

    def check_lateness(self, record: Record[Who], now_ns: int) -> None:
        """Lets the rules answer for an NPC that has no answer in time."""
        if record.phase is _IN_LINE and record.game.time.paused:
            record.watch_ns = 0
            self.rhythm.become_put_off(record, now_ns)
            return
        within_ns = record.since_ns + self._within_ns
        if now_ns < within_ns and not self.stalled:
            self.rhythm.watch(record, min(within_ns, now_ns + STALL_LOOK_NS), record.since_ns)
            return
        if record.glimpse_ns:
            self.look(record)
            return
        record.watch_ns = 0
        self.overdue += bool(record.questions) and not self.stalled and not record.load_ns
        if record.answer != record.state:
            # Its state may have changed since it became due: then the new state is answered.
            self.answer_by_rule(record, max(record.since_ns, record.changed_ns), now_ns)
        waits = record.phase is _IN_LINE or record.load_ns
        if waits or (self.stalled and record.questions):  # meanwhile the rules keep up with what it sees
            again_ns = self._stall_ns if self.stalled else self._within_ns
            self.rhythm.watch(record, now_ns + again_ns, record.since_ns)

    def await_answer(self, record: Record[Who], since_ns: int, now_ns: int) -> None:
        """It waits for an answer since then, and nothing newer is asked: it is looked at when the model is late."""
        if record.answer != record.state and not record.watch_ns:
            self.rhythm.watch(record, max(now_ns, since_ns + self._stall_ns), since_ns)

    def load_first(self, record: Record[Who], in_crowd: bool, now_ns: int) -> None:
        """Its KV is brought into place before it is asked. Until then the rules answer for it."""
        if record.load_ns:
            return
        record.in_crowd = in_crowd
        self.wanted.load.append(record.who)
        self.rhythm.become_loading(record, now_ns)
        if not record.watch_ns:
            self.rhythm.watch(record, now_ns + self._stall_ns, now_ns)

    def rest(self, record: Record[Who], now_ns: int) -> None:
        """There is nothing newer to ask."""
        if record.phase is not _RESTING:
            self.rhythm.become_resting(record, now_ns)
        if record.answer == record.state:
            record.watch_ns = 0

    def answer(self, record: Record[Who], state: str, by_rule: bool, now_ns: int) -> None:
        """An answer to that state stands from now on."""
        record.answer, record.by_rule = state, by_rule
        record.stood_ns = record.game.time.at(now_ns)
        if state == record.state and record.phase is not _IN_LINE:
            record.watch_ns = 0

    def answer_by_rule(self, record: Record[Who], due_ns: int, now_ns: int) -> None:
        """The rules answer to what it saw last. If it is asked all the same, the model's answer takes their place."""
        assert record.state is not None, "it saw what it is answered to"
        self.wanted.rule.append(Rule(record.who, due_ns))
        self.answer(record, record.state, True, now_ns)
