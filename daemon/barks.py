"""Barks: a few words for an intent whose action speaks, made after it and put on top of it.

Owns the bark that is under way for each mind. When an NPC is removed its bark is cancelled.
"""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

import numpy as np

from core.clock import MS, Clock
from core.errors import Draining, Overloaded
from core.words import Finish
from core.work import Chunk, Ended, Sampling, Work
from daemon.minds import IntentSettings, Question
from daemon.prompt import Layout
from daemon.table import Table
from daemon.text import TextAssembler
from scheduler.ticket import Door
from tiers.promises import Promises
from tiers.routing import Routes, WorkKind


class Barks:
    """Asks for barks, one at a time per NPC, while there is time for them: `allowed` says so."""

    def __init__(
        self,
        table: Table,
        layout: Layout,
        door: Door,
        promises: Promises,
        routes: Routes,
        settings: IntentSettings,
        piece: Callable[[int], bytes],
        allowed: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self._table = table
        self._layout = layout
        self._door = door
        self._promises = promises
        self._route = routes.of(WorkKind.BARK)
        self._settings = settings
        self._piece = piece
        self._allowed = allowed
        self._clock = clock

    def bark(self, q: Question) -> None:
        """A few words for the action that was just chosen, as a work of its own after the intent."""
        mind, now_ns = q.mind, self._clock()
        every_ns = self._settings.bark_every_ms * MS
        if not every_ns or mind.barking is not None or (mind.barked_ns and now_ns - mind.barked_ns < every_ns):
            return
        if not self._allowed():
            return
        mind.barked_ns = now_ns
        tail = self._layout.bark_tail(q.tail, q.tokens)
        text = TextAssembler(self._layout.stop_text)
        assert mind.intent is not None
        version = mind.intent.version

        def spoken(chunk: Chunk) -> None:
            for token in chunk.tokens:
                text.add(self._piece(token))

        def done(ended: Ended) -> None:
            mind.barking = None
            text.end()
            if not text.said or mind.removed or ended.finish not in (Finish.STOP, Finish.LENGTH):
                return
            if mind.intent is not None and mind.intent.version == version:
                self._table.speak(mind, text.said)

        work = Work(
            tier=self._route.tier,
            key=mind.npc.trunk_key(""),
            trunk=mind.npc.trunk,
            shared=mind.npc.shared,
            near=mind.npc.number,
            tail=np.asarray(tail, np.int32),
            max_tokens=self._route.output_max,
            adapter=mind.npc.adapter,
            sampling=Sampling(
                temperature=self._settings.bark_temperature, seed=crc32(f"{mind.npc.key}{q.seen.tick}".encode())
            ),
            stop_ids=self._layout.stop_ids,
            due_ns=now_ns,
            deadline_ns=self._promises.deadline_ns(self._route.tier, now_ns),
            supersede=(mind.npc.key, "bark"),
        )
        try:
            mind.barking = self._door.submit(work, done, spoken)
        except (Overloaded, Draining):
            return
