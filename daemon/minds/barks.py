"""Barks: a few words for an intent whose action speaks, made after it and put on top of it.

Owns the bark that is under way for each mind. When an NPC is removed its bark is cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from zlib import crc32

from core.clock import MS, Clock
from core.errors import Draining, Overloaded
from core.words import Activation, Finish
from core.work import Chunk, Ended, Sampling
from daemon.minds.mind import IntentSettings, Mind, Question
from daemon.minds.table import Table
from daemon.talk.text import Spoken
from daemon.worlds.guide import Guide
from daemon.worlds.works import Works
from prompts.guards import Guard
from scheduler.ticket import Door, Ticket
from tiers.routing import WorkKind


class Barks:
    """Asks for barks, one at a time per NPC, while there is time for them: `allowed` says so."""

    def __init__(
        self,
        table: Table,
        works: Works,
        door: Door,
        guide: Guide,
        settings: IntentSettings,
        allowed: Callable[[Activation], bool],
        clock: Clock,
    ) -> None:
        self._table = table
        self._works = works
        self._door = door
        self._guide = guide
        self._settings = settings
        self._allowed = allowed
        self._clock = clock

    def bark(self, q: Question) -> None:
        """A few words for the action that was just chosen, as a work of its own after the intent."""
        mind, now_ns = q.mind, self._clock()
        if mind.barking is not None or not self._may(mind, now_ns):
            return
        mind.barked_ns = now_ns
        assert mind.intent is not None
        version = mind.intent.version

        def done(said: str) -> None:
            mind.barking = None
            if said and mind.intent is not None and mind.intent.version == version:
                self._table.speak(mind, said)

        mind.barking = self._submit(q, WorkKind.BARK, (mind.npc.key, "bark"), done)

    def ahead(self, q: Question, made: Callable[[str], None]) -> None:
        """Words for an intent that may come, made on time to spare; `made` is called if there are any."""

        def done(said: str) -> None:
            if said:
                made(said)

        if self._settings.bark_every_ms and self._allowed(q.mind.activation):
            self._submit(q, WorkKind.PREDICTION_BARK, (q.mind.npc.key, "bark", q.state), done)

    def said_ahead(self, mind: Mind) -> bool:
        """True if words that were made ahead may be said now; then they count as said."""
        now_ns = self._clock()
        if not self._may(mind, now_ns):
            return False
        mind.barked_ns = now_ns
        self._table.counts.barks += 1
        return True

    def _may(self, mind: Mind, now_ns: int) -> bool:
        every_ns = self._settings.bark_every_ms * MS
        return (
            bool(every_ns)
            and not (mind.barked_ns and now_ns - mind.barked_ns < every_ns)
            and self._allowed(mind.activation)
        )

    def _submit(self, q: Question, kind: WorkKind, supersede: Hashable, done: Callable[[str], object]) -> Ticket | None:
        """Asks for words; `done` hears what was said, or nothing when that came to naught."""
        npc, now_ns = q.mind.npc, self._clock()
        route = self._guide.route(kind, npc)
        layout = self._guide.layout(route)
        rules = self._works.guards.bark(self._works.made_for_npcd(route))
        text = Spoken(layout.stop_text, Guard(rules, (npc.name,)))

        def spoken(chunk: Chunk) -> None:
            text.add(chunk.text)

        def ended(ended: Ended) -> None:
            text.end()
            good = not q.mind.removed and ended.finish in (Finish.STOP, Finish.LENGTH)
            done(text.said if good else "")

        seed = crc32(f"{npc.key}{q.seen.tick}".encode())
        sampling = Sampling(temperature=self._settings.bark_temperature, seed=seed)
        tail = layout.bark_tail(q.tail, q.chosen)
        work = self._works.speaks(npc, route, tail, now_ns, sampling=sampling, supersede=supersede)
        try:
            return self._door.submit(work, ended, spoken)
        except (Overloaded, Draining):
            return None
