"""Intents: what NPCs saw last, who is asked when, and the table of what they are about to do.

Owns one Mind per NPC, a heap of due moments and one timer; all on the event loop. An observation never waits: it
lands in its mind, and when the NPC's cadence says so the newest one becomes a Gold work. The table always has an
answer: the model's, or the rule policy's when the model's is late. When an NPC is removed its work is cancelled and
its trunk forgotten.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from core.clock import MS, Clock
from core.errors import CallerError, Draining, Overloaded
from core.observation import Observation
from core.words import Finish, NpcKey, Source, Tier, TrunkKey
from core.work import Chunk, Ended, Sampling, Work
from daemon.prompt import Layout, Perception, state_of
from daemon.text import TextAssembler
from daemon.words import ID_BYTES_MAX, observation
from daemon.worlds import Npc, World, Worlds
from memory.memory import Memory
from memory.records import Body, Kind
from npcd.v1 import intents_pb2
from scheduler.ticket import Door, Ticket
from tiers.cadence import CadenceSettings, due_ns
from tiers.policy import evaluate
from tiers.promises import Promises

PLAYER_KIND = "player"  # a percept of this kind is a player, and its entity_id the player_id of Dialogue
ASK_MAX = 32  # questions built in one go: about a millisecond of the event loop


@dataclass(frozen=True, slots=True)
class IntentSettings:
    """`answer_within_ms`: later than this after the due moment, the rule policy answers. `ttl_ms` is game time.

    `bark_every_ms`: an NPC shouts at most this often; 0 switches barks off.
    """

    answer_within_ms: int = 100
    ttl_ms: int = 4_000
    blend_ms: int = 200
    bark_every_ms: int = 6_000
    bark_temperature: float = 0.7
    cadence: CadenceSettings = field(default_factory=CadenceSettings)


@dataclass(slots=True, eq=False)
class Intent:
    """What one NPC is about to do. `state` is the quantised observation that it answers, `seen` the newest that
    agrees.
    """

    version: int
    action: str
    target: str
    emotion: str
    bark: str
    source: Source
    state: str
    seen: Observation
    due_ns: int
    previous_action: str
    confidence: float


@dataclass(slots=True, eq=False)
class Mind:
    """One NPC's newest observation, the work that asks about it, and the intent that stands."""

    npc: Npc
    tick: int = -1  # the newest of the present lease
    seen: Observation | None = None
    state: str = ""
    intent: Intent | None = None
    version: int = 0
    due_ns: int = 0  # 0: nothing to ask
    moments: set[int] = field(default_factory=set)  # that stand in the heap for it
    asked_ns: int | None = None
    asking: _Question | None = None
    barking: Ticket | None = None
    barked_ns: int = 0
    observations: int = 0
    dropped: int = 0
    removed: bool = False


@dataclass(slots=True, eq=False)
class _Question:
    """A Gold work under way for one mind."""

    mind: Mind
    world: World
    seen: Observation
    state: str
    perception: Perception
    tail: tuple[int, ...]
    due_ns: int
    ticket: Ticket | None = None
    tokens: list[int] = field(default_factory=list)
    confidence: float = 0.0


@dataclass(slots=True)
class IntentCounts:
    """Counted since start."""

    observations: int = 0
    dropped: int = 0
    confirmed: int = 0
    model: int = 0
    policy: int = 0
    predicted: int = 0
    barks: int = 0
    latency_ns: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=16_384))


class Subscriber:
    """One stream's view of the table: which minds changed since its last frame. Bounded by the number of NPCs."""

    def __init__(self, wanted: frozenset[str]) -> None:
        self.wanted = wanted  # empty: all of the world
        self.changed: set[Mind] = set()
        self.confirmed: set[Mind] = set()
        self.errors: deque[intents_pb2.NpcError] = deque(maxlen=1000)
        self.dropped = 0
        self.last_frame = 0
        self.woken = asyncio.Event()

    def note(self, mind: Mind, changed: bool) -> None:
        """Marks a mind for the next frame."""
        if self.wanted and mind.npc.key.npc not in self.wanted:
            return
        (self.changed if changed else self.confirmed).add(mind)
        self.woken.set()

    def complain(self, error: intents_pb2.NpcError) -> None:
        """Adds an NPC's error to the next frame."""
        self.errors.append(error)
        self.woken.set()


class Intents:
    """The whole of it. Call start() on the running loop."""

    def __init__(
        self,
        worlds: Worlds,
        layout: Layout,
        door: Door,
        promises: Promises,
        settings: IntentSettings,
        memory: Memory,
        digest: Callable[[NpcKey, str], tuple[int, ...]],
        piece: Callable[[int], bytes],
        expect: Callable[[int | None], None],
        comes_near: Callable[[NpcKey], None],
        clock: Clock,
    ) -> None:
        self.counts = IntentCounts()
        self._worlds = worlds
        self._layout = layout
        self._door = door
        self._promises = promises
        self._settings = settings
        self._memory = memory
        self._digest = digest
        self._piece = piece
        self._expect = expect
        self._comes_near = comes_near
        self._clock = clock
        self._minds: dict[NpcKey, Mind] = {}
        self._subscribers: dict[tuple[str, str], set[Subscriber]] = {}
        self._paused: set[tuple[str, str]] = set()
        # (moment, order, mind, question): a due mind (no question), or a question whose answer is late.
        self._heap: list[tuple[int, int, Mind, _Question | None]] = []
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
        mind = self._mind(npc)
        self.counts.observations += 1
        mind.observations += 1
        if said.tick <= mind.tick:
            mind.dropped += 1
            self.counts.dropped += 1
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
            # The world says the same as when the intent was made: it stands, and is as young as this observation.
            mind.intent.seen = seen
            mind.due_ns = 0
            self.counts.confirmed += 1
            self._tell(mind, changed=False)
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
        due: list[_Question] = []
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
                tier=Tier.BRONZE,
                key=npc.trunk_key(""),
                trunk=npc.trunk,
                shared=npc.shared,
                near=npc.number,
                tail=np.empty(0, np.int32),
                max_tokens=0,
                adapter=npc.adapter,
                due_ns=now_ns,
                deadline_ns=self._promises.deadline_ns(Tier.BRONZE, now_ns),
                supersede=(npc.key, "trunk"),
            )
            try:
                self._door.submit(work, lambda _: None)
            except (Overloaded, Draining):
                return

    def remove(self, npc: Npc) -> None:
        """Takes an NPC out of the table."""
        mind = self._minds.pop(npc.key, None)
        if mind is not None:
            mind.removed = True
            for ticket in (mind.asking.ticket if mind.asking else None, mind.barking):
                if ticket is not None:
                    ticket.cancel()
            # A stream that does not read must not keep NPCs that come and go.
            for subscriber in self._subscribers.get((npc.key.tenant, npc.key.world), ()):
                subscriber.changed.discard(mind)
                subscriber.confirmed.discard(mind)
        self._door.forget(TrunkKey(npc.key, ""))

    def replaced(self, npc: Npc) -> None:
        """An NPC was registered anew (other trunk or lease): its mind goes on with what it saw, a new lease's ticks
        begin.
        """
        mind = self._minds.get(npc.key)
        if mind is not None:
            if mind.npc.lease_epoch != npc.lease_epoch:
                mind.tick = -1
            mind.npc = npc

    # -- out ---------------------------------------------------------------------------------------------------

    def subscribe(self, world: World, npc_ids: Iterable[str]) -> Subscriber:
        """A view of one world's table, with everything that stands marked for its first frame."""
        subscriber = Subscriber(frozenset(npc_ids))
        self._subscribers.setdefault((world.tenant, world.world_id), set()).add(subscriber)
        for npc in world.npcs.values():
            mind = self._minds.get(npc.key)
            if mind is not None and mind.intent is not None:
                subscriber.note(mind, changed=True)
        return subscriber

    def unsubscribe(self, world: World, subscriber: Subscriber) -> None:
        """Ends a view."""
        views = self._subscribers.get((world.tenant, world.world_id), set())
        views.discard(subscriber)
        if not views:
            self._subscribers.pop((world.tenant, world.world_id), None)

    def frame(self, subscriber: Subscriber, daemon_epoch: int, sequence: int) -> intents_pb2.IntentFrame:
        """The next frame of a stream: the newest state of everything marked."""
        now_ns = self._clock()
        changed, subscriber.changed = subscriber.changed, set()
        confirmed, subscriber.confirmed = subscriber.confirmed - changed, set()
        subscriber.woken.clear()
        frame = intents_pb2.IntentFrame(
            daemon_epoch=daemon_epoch,
            sequence=sequence,
            snapshot=sequence == 1,
            observations_dropped=subscriber.dropped,
            last_frame=subscriber.last_frame,
        )
        for mind in changed:
            if mind.intent is not None:
                frame.intents.append(self.message(mind, mind.intent, now_ns))
                if mind.intent.source is Source.MODEL and mind.intent.due_ns:
                    self.counts.latency_ns.append((now_ns, now_ns - mind.intent.due_ns))
        for mind in confirmed:
            if mind.intent is not None:
                frame.confirmed.append(
                    intents_pb2.IntentConfirmed(
                        npc_id=mind.npc.key.npc,
                        version=mind.intent.version,
                        observed_tick=mind.intent.seen.tick,
                        game_time_ms=mind.intent.seen.game_time_ms,
                    )
                )
        while subscriber.errors:
            frame.errors.append(subscriber.errors.popleft())
        return frame

    def mind(self, key: NpcKey) -> Mind | None:
        """What is known of an NPC; None before its first observation."""
        return self._minds.get(key)

    def message(self, mind: Mind, intent: Intent, now_ns: int) -> intents_pb2.Intent:
        """An intent as the contract has it."""
        return intents_pb2.Intent(
            npc_id=mind.npc.key.npc,
            version=intent.version,
            action=intent.action,
            target_entity_id=intent.target,
            emotion=intent.emotion,
            bark=intent.bark,
            source=_SOURCES[intent.source],
            observed_tick=intent.seen.tick,
            game_time_ms=intent.seen.game_time_ms,
            age_ms=max(0, now_ns - intent.seen.at_ns) // MS,
            ttl_ms=self._settings.ttl_ms,
            previous_action=intent.previous_action,
            blend_ms=self._settings.blend_ms,
            latency_ms=max(0, now_ns - intent.due_ns) // MS if intent.due_ns else 0,
            confidence=intent.confidence,
        )

    # -- asking ------------------------------------------------------------------------------------------------

    def _mind(self, npc: Npc) -> Mind:
        mind = self._minds.get(npc.key)
        if mind is None:
            mind = self._minds[npc.key] = Mind(npc)
        return mind

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

    def _push(self, at_ns: int, mind: Mind, late: _Question | None) -> None:
        self._order += 1
        heapq.heappush(self._heap, (at_ns, self._order, mind, late))

    def _pop(self) -> tuple[Mind, _Question | None]:
        at_ns, _, mind, late = heapq.heappop(self._heap)
        if late is None:
            mind.moments.discard(at_ns)
        return mind, late

    def _question(self, mind: Mind) -> _Question | None:
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
        return _Question(mind, world, seen, mind.state, perception, tail, max(asked_for_ns, seen.at_ns))

    def _ask(self, due: list[_Question], now_ns: int) -> None:
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

    def _work(self, q: _Question) -> Work:
        npc = q.mind.npc
        choice = q.world.choices[len(q.perception.percepts)]
        return Work(
            tier=Tier.GOLD,
            key=npc.trunk_key(""),
            trunk=npc.trunk,
            shared=npc.shared,
            near=npc.number,
            tail=np.asarray(q.tail, np.int32),
            max_tokens=max(self._promises.gold.output_max, choice.longest),
            choice=choice,
            adapter=npc.adapter,
            due_ns=q.due_ns,
            deadline_ns=self._promises.deadline_ns(Tier.GOLD, q.due_ns),
            supersede=(npc.key, "intent"),
        )

    def _answered(self, q: _Question, ended: Ended) -> None:
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
            self._stand(
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
                self._bark(q)
        if mind.seen is not None and mind.state != q.state and not mind.due_ns and mind.asking is None:
            self._set_due(mind, mind.seen)
            self._set_timer()

    def _answer_by_policy(self, mind: Mind, due_ns: int, seen: Observation, state: str) -> None:
        world = self._worlds.world(mind.npc.key.tenant, mind.npc.key.world)
        answer = evaluate(world.policy, mind.npc.archetype_id, seen)
        assert answer is not None, "a compiled policy ends with a row that holds for everybody"
        self._stand(
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

    def _stand(
        self,
        mind: Mind,
        *,
        action: str,
        target: str,
        emotion: str,
        bark: str,
        source: Source,
        state: str,
        seen: Observation,
        due_ns: int,
        confidence: float,
    ) -> None:
        """Puts a new intent into the table and tells the streams."""
        mind.version += 1
        old = mind.intent
        previous = old.action if old else ""
        mind.intent = Intent(
            mind.version, action, target, emotion, bark, source, state, seen, due_ns, previous, confidence
        )
        if source is Source.MODEL:
            self.counts.model += 1
        else:
            self.counts.policy += 1
        if old is None or (old.action, old.target, old.emotion) != (action, target, emotion):
            target_kind = next((p.kind for p in seen.percepts if p.entity_id == target), "") if target else ""
            body: Body = {"action": action, "target": target, "target_kind": target_kind, "emotion": emotion}
            body |= {"source": source.value, "version": mind.version, "tick": seen.tick}
            self._memory.archive(Kind.INTENT, mind.npc.key, body)
        self._tell(mind, changed=True)

    def _bark(self, q: _Question) -> None:
        """A few words for an action that speaks, as a work of its own after the intent."""
        mind, now_ns = q.mind, self._clock()
        every_ns = self._settings.bark_every_ms * MS
        if not every_ns or mind.barking is not None or (mind.barked_ns and now_ns - mind.barked_ns < every_ns):
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
            intent = mind.intent
            if intent is not None and intent.version == version:
                self.counts.barks += 1
                mind.version += 1
                intent.version, intent.bark = mind.version, text.said
                # Words on top of an intent that was delivered already: its latency is counted once.
                intent.due_ns = 0
                self._tell(mind, changed=True)

        work = Work(
            tier=Tier.GOLD,
            key=mind.npc.trunk_key(""),
            trunk=mind.npc.trunk,
            shared=mind.npc.shared,
            near=mind.npc.number,
            tail=np.asarray(tail, np.int32),
            max_tokens=self._layout.caps.bark,
            adapter=mind.npc.adapter,
            sampling=Sampling(
                temperature=self._settings.bark_temperature, seed=crc32(f"{mind.npc.key}{q.seen.tick}".encode())
            ),
            stop_ids=self._layout.stop_ids,
            due_ns=now_ns,
            deadline_ns=self._promises.deadline_ns(Tier.GOLD, now_ns),
            supersede=(mind.npc.key, "bark"),
        )
        try:
            mind.barking = self._door.submit(work, done, spoken)
        except (Overloaded, Draining):
            return

    # -- pieces ------------------------------------------------------------------------------------------------

    def _tell(self, mind: Mind, changed: bool) -> None:
        key = mind.npc.key
        for subscriber in self._subscribers.get((key.tenant, key.world), ()):
            subscriber.note(mind, changed)

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
    def _stale(entry: tuple[int, int, Mind, _Question | None]) -> bool:
        at_ns, _, mind, late = entry
        if late is not None:
            return mind.removed or mind.asking is not late
        return mind.removed or mind.due_ns != at_ns


_SOURCES = {
    Source.MODEL: intents_pb2.INTENT_SOURCE_MODEL,
    Source.POLICY: intents_pb2.INTENT_SOURCE_POLICY,
    Source.PREDICTED: intents_pb2.INTENT_SOURCE_PREDICTED,
}


def _ender(answered: Callable[[_Question, Ended], None], q: _Question) -> Callable[[Ended], None]:
    return lambda ended: answered(q, ended)


def _taker(q: _Question) -> Callable[[Chunk], None]:
    def take(chunk: Chunk) -> None:
        if not q.tokens:
            q.confidence = chunk.confidence
        q.tokens.extend(chunk.tokens)

    return take


def _error(npc_id: str, code: str, field_name: str, text: str) -> intents_pb2.NpcError:
    return intents_pb2.NpcError(npc_id=npc_id[:ID_BYTES_MAX], code=code, field=field_name, message=text)
