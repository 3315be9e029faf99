"""Intents: what NPCs see, who is asked when, and what becomes of the answers.

Owns a heap of due moments and one timer; all on the event loop. An observation never waits: it lands in its mind, and
when the NPC's cadence says so the newest one becomes a Gold work. The table (daemon/table.py) always has an answer: the
model's, or the rule policy's when the model's is late. When an NPC is removed its work is cancelled and its trunk
forgotten.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable

import numpy as np

from core.clock import MS, Clock
from core.errors import CallerError, Draining, Overloaded
from core.observation import Observation
from core.words import Finish, NpcKey, Source, TrunkKey
from core.work import Chunk, Ended, Work
from daemon.barks import Barks
from daemon.minds import IntentSettings, Mind, Question
from daemon.prompt import Layout, state_of
from daemon.table import Subscriber, Table
from daemon.words import ID_BYTES_MAX, observation
from daemon.worlds import Npc, World, Worlds
from memory.memory import Memory
from npcd.v1 import intents_pb2
from scheduler.ticket import Door
from tiers.cadence import due_ns
from tiers.policy import evaluate
from tiers.promises import Promises
from tiers.routing import Routes, WorkKind

PLAYER_KIND = "player"  # a percept of this kind is a player, and its entity_id the player_id of Dialogue
ASK_MAX = 32  # questions built in one go: about a millisecond of the event loop


class Intents:
    """The whole of it. Call start() on the running loop."""

    def __init__(
        self,
        table: Table,
        barks: Barks,
        worlds: Worlds,
        layout: Layout,
        door: Door,
        promises: Promises,
        routes: Routes,
        settings: IntentSettings,
        memory: Memory,
        digest: Callable[[NpcKey, str], tuple[int, ...]],
        expect: Callable[[int | None], None],
        comes_near: Callable[[NpcKey], None],
        clock: Clock,
    ) -> None:
        self._table = table
        self._barks = barks
        self._worlds = worlds
        self._layout = layout
        self._door = door
        self._promises = promises
        self._route = routes.of(WorkKind.INTENT)
        self._trunk_route = routes.of(WorkKind.TRUNK)
        self._settings = settings
        self._memory = memory
        self._digest = digest
        self._expect = expect
        self._comes_near = comes_near
        self._clock = clock
        self._paused: set[tuple[str, str]] = set()
        # (moment, order, mind, question): a due mind (no question), or a question whose answer is late.
        self._heap: list[tuple[int, int, Mind, Question | None]] = []
        self._order = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0

    # -- in ----------------------------------------------------------------------------------------------------

    def observe(
        self, world: World, said: intents_pb2.Observation, game_time_ms: int, subscriber: Subscriber | None
    ) -> intents_pb2.NpcError | None:
        """Takes one observation in; what is wrong with it, if something is. Call pump() after a frame's last one."""
        npc = world.npcs.get(said.npc_id)
        if npc is None:
            return _error(said.npc_id, "UNKNOWN_NPC", "npc_id", f"not registered in world '{world.world_id}'")
        if said.lease_epoch != npc.lease_epoch:
            text = f"lease epoch {said.lease_epoch} is not the present one; register again to observe for this NPC"
            error = _error(said.npc_id, "STALE_LEASE", "lease_epoch", text)
            error.lease_epoch = npc.lease_epoch
            return error
        mind = self._table.mind_of(npc)
        self._table.counts.observations += 1
        mind.observations += 1
        if said.tick <= mind.tick:
            mind.dropped += 1
            self._table.counts.dropped += 1
            if subscriber is not None:
                subscriber.dropped += 1
            return None
        try:
            seen = observation(said, game_time_ms, self._clock())
        except CallerError as error:
            return _error(said.npc_id, "INVALID_FIELD", error.field, str(error))
        # An event is urgent when it happens, not for as long as the game goes on mentioning it.
        urgent = any(event not in mind.seen.events for event in seen.events) if mind.seen else bool(seen.events)
        mind.seen, mind.tick = seen, said.tick
        mind.state = state_of(seen, self._layout.caps.percepts)
        for percept in seen.percepts:
            if percept.kind == PLAYER_KIND:
                self._memory.near(npc.key, percept.entity_id)
                self._comes_near(npc.key)
        if mind.intent is not None and mind.intent.state == mind.state:
            mind.due_ns = 0
            self._table.confirm(mind, seen)
        elif mind.asking is None or mind.asking.state != mind.state:
            self._set_due(mind, seen, urgent)
        return None

    def pause(self, tenant: str, world_id: str, paused: bool) -> None:
        """While a game is paused its NPCs are not asked."""
        if paused:
            self._paused.add((tenant, world_id))
        else:
            self._paused.discard((tenant, world_id))

    def pump(self) -> None:
        """Asks for minds that are due, as one group, lets the policy answer for late ones, and sets the timer."""
        now_ns = self._clock()
        due: list[Question] = []
        # What is left is due still: the timer comes back for it in the loop's next turn, and others get theirs between.
        while self._heap and self._heap[0][0] <= now_ns and len(due) < ASK_MAX:
            mind, late = self._pop()
            if late is not None:
                if mind.asking is late and not mind.removed:
                    self._answer_by_policy(mind, late.due_ns, late.seen, late.state)
            elif mind.due_ns and mind.due_ns <= now_ns and not mind.removed:
                question = self._question(mind)
                if question is not None:
                    due.append(question)
        if due:
            self._ask(due, now_ns)
        self._set_timer()

    def load_ahead(self, npcs: Iterable[Npc]) -> None:
        """Brings trunks into place in the background, before anybody is asked; stops when the queue is full."""
        now_ns = self._clock()
        for npc in npcs:
            work = Work(
                tier=self._trunk_route.tier,
                key=npc.trunk_key(""),
                trunk=npc.trunk,
                shared=npc.shared,
                near=npc.number,
                tail=np.empty(0, np.int32),
                max_tokens=0,
                adapter=npc.adapter,
                due_ns=now_ns,
                deadline_ns=self._promises.deadline_ns(self._trunk_route.tier, now_ns),
                supersede=(npc.key, "trunk"),
            )
            try:
                self._door.submit(work, lambda _: None)
            except (Overloaded, Draining):
                return

    def remove(self, npc: Npc) -> None:
        """Takes an NPC out of the table."""
        mind = self._table.drop(npc)
        if mind is not None:
            for ticket in (mind.asking.ticket if mind.asking else None, mind.barking):
                if ticket is not None:
                    ticket.cancel()
        self._door.forget(TrunkKey(npc.key, ""))

    def replaced(self, npc: Npc) -> None:
        """An NPC was registered anew (other trunk or lease): its mind goes on with what it saw, a new lease's ticks
        begin.
        """
        mind = self._table.mind(npc.key)
        if mind is not None:
            if mind.npc.lease_epoch != npc.lease_epoch:
                mind.tick = -1
            mind.npc = npc

    # -- asking ------------------------------------------------------------------------------------------------

    def _set_due(self, mind: Mind, seen: Observation, urgent: bool = False) -> None:
        cadence = self._settings.cadence
        at_ns = due_ns(mind.npc.number, cadence.slot_ns, seen.at_ns, mind.asked_ns, urgent)
        if mind.due_ns and mind.due_ns <= at_ns:
            return  # it is due already; the newest observation will be asked about
        mind.due_ns = at_ns
        # Invariant: a mind stands in the heap once for each of its moments, however often it changes until then.
        if at_ns not in mind.moments:
            mind.moments.add(at_ns)
            self._push(at_ns, mind, None)

    def _push(self, at_ns: int, mind: Mind, late: Question | None) -> None:
        self._order += 1
        heapq.heappush(self._heap, (at_ns, self._order, mind, late))

    def _pop(self) -> tuple[Mind, Question | None]:
        at_ns, _, mind, late = heapq.heappop(self._heap)
        if late is None:
            mind.moments.discard(at_ns)
        return mind, late

    def _question(self, mind: Mind) -> Question | None:
        world = self._worlds.world(mind.npc.key.tenant, mind.npc.key.world)
        if (world.tenant, world.world_id) in self._paused:
            mind.due_ns = 0
            return None
        seen, asked_for_ns = mind.seen, mind.due_ns
        assert seen is not None, "a mind is due because it saw something"
        mind.due_ns = 0
        perception = self._layout.perceive(seen)
        players = (p.entity_id for p in perception.percepts if p.kind == PLAYER_KIND)
        nearest = next(players, "")  # the most notable one
        digest = self._digest(mind.npc.key, nearest) if nearest else ()
        tail = self._layout.intent_tail(perception, digest)
        # Due is the later of "observation received" and "cadence due".
        return Question(mind, world, seen, mind.state, perception, tail, max(asked_for_ns, seen.at_ns))

    def _ask(self, due: list[Question], now_ns: int) -> None:
        group = [(self._work(q), _ender(self._answered, q), _taker(q)) for q in due]
        try:
            tickets = self._door.submit_group(group)
        except (Overloaded, Draining):
            for q in due:
                self._answer_by_policy(q.mind, q.due_ns, q.seen, q.state)
            return
        late_ns = self._settings.answer_within_ms * MS
        for q, ticket in zip(due, tickets, strict=True):
            # A question that is still on its way is superseded while it waits; while it runs, its answer still counts.
            q.ticket = ticket
            q.mind.asking = q
            q.mind.asked_ns = now_ns
            self._push(now_ns + late_ns, q.mind, q)

    def _work(self, q: Question) -> Work:
        npc = q.mind.npc
        choice = q.world.choices[len(q.perception.percepts)]
        return Work(
            tier=self._route.tier,
            key=npc.trunk_key(""),
            trunk=npc.trunk,
            shared=npc.shared,
            near=npc.number,
            tail=np.asarray(q.tail, np.int32),
            max_tokens=max(self._route.output_max, choice.longest),
            choice=choice,
            adapter=npc.adapter,
            due_ns=q.due_ns,
            deadline_ns=self._promises.deadline_ns(self._route.tier, q.due_ns),
            supersede=(npc.key, "intent"),
        )

    def _answered(self, q: Question, ended: Ended) -> None:
        mind = q.mind
        if mind.asking is q:
            mind.asking = None
        if mind.removed or ended.finish in (Finish.SUPERSEDED, Finish.CANCELLED):
            return
        if ended.finish is not Finish.STOP:
            self._answer_by_policy(mind, q.due_ns, q.seen, q.state)
        else:
            choice = dict(ended.labels)
            action = q.world.actions[choice["actions"]]
            target = choice["targets"]
            # While it was thought about, newer observations may have said the same: the intent is as young as they are.
            seen = mind.seen if mind.seen is not None and mind.state == q.state else q.seen
            self._table.stand(
                mind,
                action=action.word,
                target=q.perception.percepts[target - 1].entity_id if target else "",
                emotion=q.world.emotions[choice["emotions"]],
                bark="",
                source=Source.MODEL,
                state=q.state,
                seen=seen,
                due_ns=q.due_ns,
                confidence=q.confidence,
            )
            if action.speaks:
                self._barks.bark(q)
        if mind.seen is not None and mind.state != q.state and not mind.due_ns and mind.asking is None:
            self._set_due(mind, mind.seen)
            self._set_timer()

    def _answer_by_policy(self, mind: Mind, due_ns: int, seen: Observation, state: str) -> None:
        world = self._worlds.world(mind.npc.key.tenant, mind.npc.key.world)
        answer = evaluate(world.policy, mind.npc.archetype_id, seen)
        assert answer is not None, "a compiled policy ends with a row that holds for everybody"
        self._table.stand(
            mind,
            action=answer.action,
            target=answer.target.entity_id if answer.target else "",
            emotion=answer.emotion,
            bark=answer.bark,
            source=Source.POLICY,
            state=state,
            seen=seen,
            due_ns=due_ns,
            confidence=0.0,
        )

    # -- pieces ------------------------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        while self._heap and self._stale(self._heap[0]):
            self._pop()
        if not self._heap:
            self._expect(None)
            return
        at_ns = self._heap[0][0]
        # Only a due mind brings new work; a late answer does not.
        self._expect(at_ns if self._heap[0][3] is None else None)
        if self._timer is not None:
            if self._timer_ns <= at_ns and not self._timer.cancelled() and self._timer_ns > self._clock():
                return
            self._timer.cancel()
        self._timer_ns = at_ns
        # Timers may fire a millisecond early: pump() then finds nothing due and sets the next one.
        delay_s = max(0, at_ns - self._clock()) / 1e9
        self._timer = asyncio.get_running_loop().call_later(delay_s, self.pump)

    @staticmethod
    def _stale(entry: tuple[int, int, Mind, Question | None]) -> bool:
        at_ns, _, mind, late = entry
        if late is not None:
            return mind.removed or mind.asking is not late
        return mind.removed or mind.due_ns != at_ns


def _ender(answered: Callable[[Question, Ended], None], q: Question) -> Callable[[Ended], None]:
    return lambda ended: answered(q, ended)


def _taker(q: Question) -> Callable[[Chunk], None]:
    def take(chunk: Chunk) -> None:
        if not q.tokens:
            q.confidence = chunk.confidence
        q.tokens.extend(chunk.tokens)

    return take


def _error(npc_id: str, code: str, field_name: str, text: str) -> intents_pb2.NpcError:
    return intents_pb2.NpcError(npc_id=npc_id[:ID_BYTES_MAX], code=code, field=field_name, message=text)
