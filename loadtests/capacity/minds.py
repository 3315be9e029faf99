"""The NPCs of a simulated town: each is observed ten times a second, and tiers/asking.py decides as in the daemon.

This does the acts of each Ready, as daemon/minds/intents.py does. The event loop's time is stated: its hand-overs come
`wait_ns` later, and the game gets their results with the next frame.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from core.clock import MS, S
from core.words import Activation, Finish
from daemon.minds.mind import IntentSettings
from loadtests.capacity.events import Events
from loadtests.capacity.town import Mind, Question, Texts, TownSettings, seen_ns
from tiers.activation import Activations, ActivationSettings
from tiers.asking import Asking
from tiers.game_time import GameTime
from tiers.phase import Game, Phase
from tiers.ready import Ready

SAMPLE_NS = 50 * MS  # interval of the game's frames, at which ages are sampled
LATE_NS = 100 * MS  # an NPC that has waited for so long when a run ends counts with its age
ROOM = 10_000  # looks and answers by rule at a time; the event loop's time is stated


@dataclass(slots=True)
class IntentsNoted:
    """Samples of intents, taken after the warm-up."""

    latency_ns: list[int] = field(default_factory=list)
    age_ns: list[int] = field(default_factory=list)
    by_model: int = 0
    by_policy: int = 0


class Minds:
    """All NPCs. `ask` and `load` submit a work, and call answered() and loaded() at its end."""

    def __init__(
        self,
        minds: list[Mind],
        town: TownSettings,
        texts: Texts,
        settings: IntentSettings,
        attention: ActivationSettings,
        tokens_each: int,
        frame_ns: int,
        events: Events,
        rng: random.Random,
        ask: Callable[[Mind, Question], None],
        load: Callable[[Mind], None],
        move_out: Callable[[Mind], None],
    ) -> None:
        self.attention: Activations[Mind] = Activations(attention)
        self.asking: Asking[Mind] = Asking(settings.asking, tokens_each)
        self.noted = IntentsNoted()
        self.wait_ns = 0
        self.due_ns: int | None = None  # when the next NPC joins the line, if known
        self._minds = minds
        self._town = town
        self._texts = texts
        self._frame_ns = frame_ns
        self._frame_last_ns = 0
        self._events = events
        self._rng = rng
        self._ask = ask
        self._load = load
        self._move_out = move_out
        self._observe_ns = round(S / town.observe_hz)
        self._under_way: dict[int, Question] = {}
        self._wake_ns: int | None = None
        self._start_ns = 0
        self._game: Game[Mind] = Game(GameTime(0))

    def begin(self, start_ns: int) -> None:
        """Observes every NPC for the first time and decides about it. Samples count from `start_ns` on."""
        events, town, rng = self._events, self._town, self._rng
        self._start_ns = start_ns
        self._game = Game(GameTime(events.at_ns))
        for mind in self._minds:
            self._observe(mind)
            events.at(seen_ns(mind, events.at_ns + 1, self._observe_ns), partial(self._observe_on, mind))
            events.after(rng.uniform(0.0, town.change_s[1]), partial(self._changes, mind))
        self.attend()
        for mind in self._minds:
            self.asking.decided(mind, events.at_ns)
        self._follow()
        if town.startle_every_s:
            events.after(town.startle_every_s, self._startle)
        events.at(start_ns, self._sample)

    # -- what NPCs see -----------------------------------------------------------------------------------------

    def attend(self) -> None:
        """Lets tiers/activation.py decide."""
        now_ns, sway_m = self._events.at_ns, self._town.sway_m
        for mind in self._minds:
            self.attention.saw(mind, mind.at_m(now_ns, sway_m), True, None, now_ns)
        changes = self.attention.decide(now_ns)
        for change in changes:
            mind = change.who
            mind.activation = change.now
            if change.now is Activation.AMBIENT:
                self._move_out(mind)
            self.asking.attended(mind, change.now, len(changes), now_ns)
            self._follow()

    def _changes(self, mind: Mind) -> None:
        """An NPC's sight changes in a meaningful way."""
        mind.news = bool(mind.news) or self._rng.random() < self._town.event_share
        self._events.after(self._rng.uniform(*self._town.change_s), partial(self._changes, mind))

    def _startle(self) -> None:
        """All NPCs see an event, in one frame."""
        for mind in self._minds:
            mind.news = True
            self._observe(mind)
        self._follow()
        self._events.after(self._town.startle_every_s, self._startle)

    def _observe_on(self, mind: Mind) -> None:
        """Observes an NPC now, and ten times a second from then on."""
        self._observe(mind)
        self._follow()
        self._events.at(self._events.at_ns + self._observe_ns, partial(self._observe_on, mind))

    def _observe(self, mind: Mind) -> None:
        now_ns, startled = self._events.at_ns, bool(mind.news)
        if mind.news is not None:
            mind.state, mind.news = mind.state + 1, None
        mind.observed_ns = now_ns
        if self.asking.observed(mind, mind.number, self._game, not startled, now_ns):
            self._look(mind, startled)

    def _look(self, mind: Mind, startled: bool) -> None:
        mind.seen_ns = mind.observed_ns
        if self.asking.saw(mind, str(mind.state), startled, False, mind.seen_ns, self._events.at_ns):
            self._tell(mind)

    # -- doing what is decided ---------------------------------------------------------------------------------

    def _tick(self) -> None:
        now_ns = self._events.at_ns
        while True:
            self.asking.tick(now_ns, ROOM, stalled=False)
            ready = self.asking.ready(now_ns)
            assert ready is not None, "a tick is always answered"
            self._do(ready)
            self._follow()
            if ready.nothing:
                break
        self.due_ns = ready.expect_ns
        self._wake(ready.wake_ns)

    def _follow(self) -> None:
        """Does all acts that followed from the inputs since the last tick."""
        while (ready := self.asking.ready(self._events.at_ns)) is not None:
            self._do(ready)
            self._wake(ready.wake_ns)

    def _wake(self, at_ns: int | None) -> None:
        if at_ns is not None and (self._wake_ns is None or at_ns < self._wake_ns):
            self._wake_ns = max(at_ns, self._events.at_ns)
            self._events.at(self._wake_ns, partial(self._fire, self._wake_ns))

    def _fire(self, at_ns: int) -> None:
        if self._wake_ns == at_ns:  # or an earlier tick was wanted
            self._wake_ns = None
            self._tick()

    def _do(self, ready: Ready[Mind]) -> None:
        now_ns = self._events.at_ns
        for mind in ready.confirm:
            self._tell(mind)
        for stand in ready.stand:
            question = self._under_way.pop(stand.number)
            observed_ns = stand.who.seen_ns if stand.agrees else question.seen_ns
            # The stream's next frame carries it.
            if self._frame_last_ns < now_ns:
                self._frame_last_ns = max(now_ns, self._frame_last_ns + self._frame_ns)
            self._events.at(self._frame_last_ns, partial(self._framed, stand.who, question, observed_ns))
        for number in ready.keep:
            del self._under_way[number]
        for rule in ready.rule:
            rule.who.ruled_ns = now_ns
            # An ambient NPC is the policy's, and no slot of it is due.
            self.noted.by_policy += now_ns >= self._start_ns and rule.who.activation is not Activation.AMBIENT
            self._tell(rule.who)
        for mind in ready.load:
            self._events.at(now_ns + self.wait_ns, partial(self._load, mind))
        for ask in ready.ask:
            mind = ask.who
            question = Question(ask.number, ask.due_ns, mind.seen_ns, self._texts.between(self._town.tail_len))
            self._under_way[ask.number] = question
            self._events.at(now_ns + self.wait_ns, partial(self._ask, mind, question))
        for mind in ready.look:
            self._look(mind, False)
        assert not ready.recall and not ready.cancel, "no sight comes twice, and no NPC is removed"

    def answered(self, question: Question, finish: Finish) -> None:
        """A question has ended."""
        now_ns = self._events.at_ns
        if finish is Finish.STOP:
            self.asking.answered(question.number, now_ns)
        else:
            del self._under_way[question.number]
            over = self.asking.dropped if finish is Finish.SUPERSEDED else self.asking.failed
            over(question.number, now_ns)
        self._follow()

    def loaded(self, mind: Mind) -> None:
        """An NPC's KV is in place."""
        self.asking.loaded(mind, self._events.at_ns)
        self._follow()

    # -- what the game is told ---------------------------------------------------------------------------------

    def _tell(self, mind: Mind) -> None:
        """With the next frame the game knows that the intent agrees with the newest observation that was looked at."""
        self._events.at(self._events.at_ns + self.wait_ns + self._frame_ns, partial(_agree, mind, mind.seen_ns))

    def _framed(self, mind: Mind, question: Question, observed_ns: int) -> None:
        if self._events.at_ns >= self._start_ns:
            self.noted.latency_ns.append(self._events.at_ns - question.due_ns)
            self.noted.by_model += mind.ruled_ns <= question.due_ns
        _agree(mind, observed_ns)

    def _sample(self) -> None:
        now_ns = self._events.at_ns
        for mind in self._minds:
            if mind.activation is Activation.ACTIVE and mind.agreed_ns:
                self.noted.age_ns.append(now_ns - mind.agreed_ns)
        self._events.at(now_ns + SAMPLE_NS, self._sample)

    def late_ns(self, now_ns: int) -> list[int]:
        """The waiting times of NPCs that wait for the model, and for long."""
        late = []
        for mind in self._minds:
            record = self.asking.record(mind)
            if record is None:
                continue
            asked_ns = record.questions[-1].due_ns if record.questions else 0
            since_ns = record.due_ns if record.phase is Phase.IN_LINE else asked_ns
            if since_ns and now_ns - since_ns > LATE_NS:
                late.append(now_ns - since_ns)
        return late


def _agree(mind: Mind, observed_ns: int) -> None:
    mind.agreed_ns = max(mind.agreed_ns, observed_ns)
