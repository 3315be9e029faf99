"""Thinking ahead: on time that the engine has to spare, NPCs are asked about what they will probably see next.

Feeds tiers/prediction.py with what NPCs see; tiers/foresight.py says which expected states are worth their tokens. The
questions are Bronze and few at a time, none while anybody waits or the engine is busy. An answer is kept with the
mind's others; when the state comes true it stands at once. For an NPC that a player walks up to, its first words are
made as well. Owns the questions under way; when an NPC is removed they are cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable

from core.clock import MS, Clock
from core.errors import Draining, Overloaded
from core.observation import Observation
from core.words import Activation, Finish
from core.work import Ended
from daemon.minds.attention import PLAYER_KIND
from daemon.minds.barks import Barks
from daemon.minds.mind import Answer, Mind, Question, answer_of, taker
from daemon.minds.questions import Questions
from prompts.sight import DISTANCE_EDGES_M, EVENTS_KEPT, HEALTH_EDGES, state_of
from scheduler.ticket import Door, Ticket
from tiers.foresight import Foresight, Offer
from tiers.prediction import Edges, Habits, Motion, PredictionSettings, approaches, expected

UNDER_WAY_MAX = 4  # more would be in the way of whoever comes next
LOOK_EVERY_NS = 250 * MS  # at what one NPC will see
CANDIDATES_MAX = 32  # looked at in one go: about a millisecond of the event loop

Found = Callable[[Mind, str, Answer], None]


class LookAhead:
    """Asks about expected states, when think() is called and there is time to spare."""

    def __init__(
        self,
        settings: PredictionSettings,
        questions: Questions,
        door: Door,
        barks: Barks,
        spare: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self.foresight = Foresight(settings, _game_time)
        self._settings = settings
        self._questions = questions
        self._door = door
        self._barks = barks
        self._spare = spare
        self._clock = clock
        self._edges = Edges(DISTANCE_EDGES_M, HEALTH_EDGES, questions.percepts_max, EVENTS_KEPT, ordered=False)
        self._habits: dict[tuple[str, str], Habits] = {}
        self._candidates: dict[Mind, None] = {}  # minds that saw something and have its answer, oldest first
        self._under_way: dict[Question, Ticket | None] = {}

    @property
    def candidates(self) -> Collection[Mind]:
        """The NPCs that may be asked ahead next."""
        return self._candidates.keys()

    def saw(self, mind: Mind, seen: Observation) -> None:
        """Takes in what an NPC sees now. Ambient ones are not looked ahead for: nobody is near."""
        if not self._settings.on or mind.activation is Activation.AMBIENT:
            return
        if mind.motion is None:
            habits = self._habits.setdefault(mind.npc.key[:2], Habits())
            mind.motion = Motion(habits)
        mind.motion.saw(seen, seen.game_time_ms or mind.game.time.at(seen.at_ns) // MS)
        if seen.at_ns >= mind.ahead_ns:
            self._candidates[mind] = None

    def came_true(self, mind: Mind, state: str, saved_ns: int, now_ns: int) -> None:
        """An NPC is in another state now; `saved_ns` is what it would have had to wait for an answer."""
        self.foresight.came_true(mind, state, saved_ns, now_ns)

    def rest(self, mind: Mind) -> None:
        """It is ambient now: how things around it move is not kept."""
        mind.motion = None
        self._candidates.pop(mind, None)

    def forget(self, mind: Mind) -> None:
        """Its time is another one now: what was expected at moments of the old one is not."""
        self.foresight.remove(mind)
        mind.motion = None

    def remove(self, mind: Mind) -> None:
        """The NPC is gone."""
        self._candidates.pop(mind, None)
        self.foresight.remove(mind)
        for question, ticket in self._under_way.items():
            if question.mind is mind and ticket is not None:
                ticket.cancel()

    def think(self, now_ns: int, found: Found) -> None:
        """Asks about what is worth it, if there is time to spare. `found` takes each answer: mind, state, answer."""
        self.foresight.expire(now_ns)
        if not self._candidates or len(self._under_way) >= UNDER_WAY_MAX or not self._spare():
            return
        offers: dict[tuple[Mind, str], Question] = {}
        worth: list[Offer] = []
        for mind in list(self._candidates)[:CANDIDATES_MAX]:
            del self._candidates[mind]
            mind.ahead_ns = now_ns + LOOK_EVERY_NS
            for question, offer in self._offers(mind, now_ns):
                offers[mind, question.state] = question
                worth.append(offer)
        budget = sum(offer.tokens for offer in worth)
        for offer in self.foresight.choose(worth, budget, now_ns)[: UNDER_WAY_MAX - len(self._under_way)]:
            assert isinstance(offer.who, Mind) and isinstance(offer.state, str)
            if not self._ask(offers[offer.who, offer.state], offer, now_ns, found):
                return

    def _offers(self, mind: Mind, now_ns: int) -> list[tuple[Question, Offer]]:
        seen, motion = mind.seen, mind.motion
        # An NPC without an answer to its present state is asked about that first.
        if mind.removed or seen is None or motion is None or mind.intent is None or mind.intent.state != mind.state:
            return []
        if mind.game.time.paused:
            return []  # nothing comes true meanwhile
        out = []
        for one in expected(motion, seen, self._edges, self._settings):
            state = state_of(one.observation, self._questions.percepts_max)
            if state == mind.state or state in mind.answers:
                continue
            question = self._questions.about(mind, one.observation, state, now_ns)
            tokens = self._questions.cost_ahead(question)
            out.append((question, Offer(mind, state, one.kind, one.chance, one.in_ms, tokens, mind.activation)))
        return out

    def _ask(self, q: Question, offer: Offer, now_ns: int, found: Found) -> bool:
        work = self._questions.prediction(q)
        self._under_way[q] = None
        try:
            self._under_way[q] = self._door.submit(work, lambda ended: self._ended(q, ended, found), taker(q))
        except (Overloaded, Draining):
            del self._under_way[q]
            return False
        self.foresight.asked(q.mind, q.state, offer.kind, offer.tokens, now_ns)
        return True

    def _ended(self, q: Question, ended: Ended, found: Found) -> None:
        mind, now_ns = q.mind, self._clock()
        self._under_way.pop(q, None)
        if mind.removed or ended.finish is not Finish.STOP:
            return
        answer = answer_of(q, ended, now_ns, foreseen=True)
        _tell(q, answer, found)
        if answer.speaks and self._walked_up_to(mind):
            self._barks.ahead(q, lambda bark: _tell(q, answer._replace(bark=bark), found))

    def _walked_up_to(self, mind: Mind) -> bool:
        seen, motion = mind.seen, mind.motion
        if seen is None or motion is None:
            return False
        players = [p.entity_id for p in seen.percepts if p.kind == PLAYER_KIND]
        return any(approaches(motion, seen, player, self._settings) is not None for player in players)


def _tell(q: Question, answer: Answer, found: Found) -> None:
    """Tells of an answer, if it is still about the NPC as it is."""
    if not q.mind.removed and q.mind.npc is q.npc:
        found(q.mind, q.state, answer)


def _game_time(who: Hashable, now_ns: int) -> int:
    """The game time of an NPC."""
    assert isinstance(who, Mind)
    return who.game.time.at(now_ns)
