"""Answers become intents: the model's, the rule policy's, and those that an NPC remembers."""

from __future__ import annotations

from core.clock import S
from core.observation import Observation
from core.words import Source
from daemon.minds.barks import Barks
from daemon.minds.mind import Answer, IntentSettings, Mind, Question
from daemon.minds.questions import Questions
from daemon.minds.table import Table
from daemon.worlds.worlds import Worlds
from tiers.policy import evaluate


class Answers:
    """Puts answers into the table, and keeps the model's in the NPC's memory of answers."""

    def __init__(
        self, table: Table, barks: Barks, questions: Questions, worlds: Worlds, settings: IntentSettings
    ) -> None:
        self._table = table
        self._barks = barks
        self._questions = questions
        self._worlds = worlds
        self._remembers = settings.remember > 0
        self._remember_ns = round(settings.remember_s * S)
        self._most = settings.remember + settings.prediction.per_npc_max

    def by_model(self, q: Question, agrees: bool) -> None:
        """Stands the answer to a question. `agrees`: the NPC sees what it was asked about."""
        mind = q.mind
        assert q.answer is not None, "an answer about what the NPC was does not stand"
        # While it was thought about, newer observations may have said the same: the intent is as young as they are.
        seen = mind.seen if agrees and mind.seen is not None else q.seen
        self._stand(mind, q.answer, q.state, seen, q.due_ns)
        if q.answer.speaks:
            self._barks.bark(q)

    def by_rule(self, mind: Mind, due_ns: int) -> None:
        """Stands the rules' answer to what the NPC saw last."""
        assert mind.seen is not None
        world = self._worlds.of_npc(mind.npc.key)
        answer = evaluate(world.policy, mind.npc.archetype_id, mind.seen)
        assert answer is not None, "a compiled policy ends with a row that holds for everybody"
        self._table.stand(
            mind,
            action=answer.action,
            target=answer.target.entity_id if answer.target else "",
            emotion=answer.emotion,
            bark=answer.bark,
            source=Source.POLICY,
            state=mind.state,
            seen=mind.seen,
            due_ns=due_ns,
            confidence=0.0,
        )

    def from_memory(self, mind: Mind, due_ns: int) -> bool:
        """Stands what the model said to the very same question before; returns whether that still holds."""
        seen, answer = mind.seen, mind.answers.get(mind.state)
        assert seen is not None
        if answer is None:
            return False
        q = self._questions.about(mind, seen, mind.state, due_ns)
        if seen.at_ns - answer.at_ns > self._remember_ns or q.tail != answer.tail:
            del mind.answers[mind.state]
            return False
        self._table.counts.remembered += 1
        bark = answer.bark if answer.bark and self._barks.said_ahead(mind) else ""
        self._stand(mind, answer._replace(bark=bark), mind.state, seen, due_ns)
        if answer.speaks and not bark:
            q.chosen = answer.chosen
            self._barks.bark(q)
        return True

    def remember(self, mind: Mind, state: str, answer: Answer) -> None:
        """Keeps what the model said, for when the NPC sees that state again."""
        if self._remembers or answer.foreseen:
            mind.answers.pop(state, None)
            mind.answers[state] = answer
            while len(mind.answers) > self._most:
                del mind.answers[next(iter(mind.answers))]

    def _stand(self, mind: Mind, answer: Answer, state: str, seen: Observation, due_ns: int) -> None:
        self._table.stand(
            mind,
            action=answer.action,
            target=answer.target,
            emotion=answer.emotion,
            bark=answer.bark,
            source=Source.PREDICTED if answer.foreseen else Source.MODEL,
            state=state,
            seen=seen,
            due_ns=due_ns,
            confidence=answer.confidence,
        )
