"""The table of intents: what every NPC is about to do, and the streams that are told.

Owns one Mind per NPC that was observed, and each stream's view of them; all on the event loop. A stream that does not
read costs two sets of minds, however much happens meanwhile: its next frame is built from what stands then.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from types import MappingProxyType

from core.clock import MS, Clock
from core.observation import Observation
from core.steps import Steps, every
from core.words import Activation, NpcKey, Source
from daemon.minds.mind import Intent, IntentSettings, Mind, PastIntent
from daemon.words import activation_message, whole
from daemon.worlds.world import Npc, World
from memory.memory import Memory
from memory.records import Body, Kind
from npcd.v1 import intents_pb2, npcs_pb2


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
    remembered: int = 0  # of the model's: the same question had been asked before
    latency_ns: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=16_384))
    by_tenant: Counter[tuple[str, Source]] = field(default_factory=Counter)

    def add(self, source: Source, tenant: str) -> None:
        """Counts an intent by who made it, and whose NPC it is."""
        self.by_tenant[tenant, source] += 1
        if source is Source.MODEL:
            self.model += 1
        elif source is Source.PREDICTED:
            self.predicted += 1
        else:
            self.policy += 1


class Subscriber:
    """One stream's view of the table: which minds changed since its last frame. Bounded by the number of NPCs."""

    def __init__(self, wanted: frozenset[str], world: World) -> None:
        self.world = world
        self.wanted = wanted  # empty: all of the world
        self.changed: set[Mind] = set()
        self.confirmed: set[Mind] = set()
        self.attended: set[Mind] = set()  # NPCs with a changed activation
        self.errors: deque[intents_pb2.NpcError] = deque(maxlen=1000)
        self.dropped = 0
        self.last_frame = 0
        self.woken = asyncio.Event()
        self.deleted = False  # the world is: one last frame says so

    def note(self, mind: Mind, changed: bool) -> None:
        """Marks a mind for the next frame."""
        if self.wants(mind):
            (self.changed if changed else self.confirmed).add(mind)
            self.woken.set()

    def note_activation(self, mind: Mind) -> None:
        """Marks a mind whose activation changed."""
        if self.wants(mind):
            self.attended.add(mind)
            self.woken.set()

    def wants(self, mind: Mind) -> bool:
        """True if the stream is about this NPC."""
        return not self.wanted or mind.npc.key.npc in self.wanted

    def complain(self, error: intents_pb2.NpcError) -> None:
        """Adds an NPC's error to the next frame."""
        self.errors.append(error)
        self.woken.set()

    @property
    def waiting(self) -> bool:
        """True if there is anything for another frame."""
        return bool(self.changed or self.confirmed or self.attended or self.errors)

    def forget(self, mind: Mind) -> None:
        """A stream that does not read must not keep NPCs that come and go."""
        self.changed.discard(mind)
        self.confirmed.discard(mind)
        self.attended.discard(mind)


class Table:
    """Minds by NPC; `stand` is the only way an intent comes about."""

    def __init__(self, settings: IntentSettings, memory: Memory, clock: Clock) -> None:
        self.counts = IntentCounts()
        self._settings = settings
        self._memory = memory
        self._clock = clock
        self._minds: dict[NpcKey, Mind] = {}
        self._version_last = 0  # of any NPC that was taken out
        self._subscribers: dict[tuple[str, str], set[Subscriber]] = {}

    # -- minds -------------------------------------------------------------------------------------------------

    @property
    def minds(self) -> Mapping[NpcKey, Mind]:
        """All of them, to look at."""
        return MappingProxyType(self._minds)

    @property
    def subscribers(self) -> Mapping[tuple[str, str], Set[Subscriber]]:
        """The streams by tenant and world, to look at; a world without streams has no entry."""
        return MappingProxyType(self._subscribers)

    def mind(self, key: NpcKey) -> Mind | None:
        """The mind of an NPC; None before its first observation."""
        return self._minds.get(key)

    def mind_of(self, npc: Npc) -> Mind:
        """The same, begun when it is the first time."""
        mind = self._minds.get(npc.key)
        if mind is None:
            # A client that knew an NPC of this name keeps the highest version: one that comes again goes on above it.
            mind = self._minds[npc.key] = Mind(npc, version=self._version_last)
        return mind

    def drop(self, npc: Npc) -> Mind | None:
        """Takes an NPC out; its mind, marked as removed, when it had one."""
        mind = self._minds.pop(npc.key, None)
        if mind is not None:
            mind.removed = True
            self._version_last = max(self._version_last, mind.version)
            for subscriber in self._subscribers.get((npc.key.tenant, npc.key.world), ()):
                subscriber.forget(mind)
        return mind

    def forgetting(self, tenant: str, world_id: str, player: str, npc_id: str) -> Steps[None]:
        """Takes a player out of the NPCs' earlier intents; the present state stays until the next observation."""
        for key in list(self._minds):  # the keys alone: nothing is made
            mind = self._minds.get(key)
            if mind is not None and key[:2] == (tenant, world_id) and npc_id in ("", key.npc):
                mind.forget(player)
            yield

    def stand(
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
        """Puts a new intent into the table, archives it when it says something else, and tells the streams."""
        now_ns = self._clock()
        mind.version += 1
        old = mind.intent
        previous = old.action if old else ""
        mind.intent = Intent(
            mind.version, action, target, emotion, bark, source, state, seen, due_ns, previous, confidence
        )
        latency_ns = max(0, now_ns - due_ns)
        past = PastIntent(mind.version, action, target, emotion, source, seen.tick, state, now_ns, latency_ns)
        mind.history.append(past)
        self.counts.add(source, mind.npc.key.tenant)
        if old is None or (old.action, old.target, old.emotion) != (action, target, emotion):
            target_kind = next((p.kind for p in seen.percepts if p.entity_id == target), "") if target else ""
            body: Body = {"action": action, "target": target, "target_kind": target_kind, "emotion": emotion}
            body |= {"source": source.value, "version": mind.version, "tick": seen.tick}
            self._memory.archive(Kind.INTENT, mind.npc.key, body)
        self._tell(mind, changed=True)

    def attend(self, mind: Mind) -> None:
        """Tells the streams that the NPC's activation has changed."""
        key = mind.npc.key
        for subscriber in self._subscribers.get((key.tenant, key.world), ()):
            subscriber.note_activation(mind)

    def confirm(self, mind: Mind, seen: Observation) -> None:
        """The world says the same as when the intent was made: it stands, and is as young as this observation."""
        assert mind.intent is not None
        mind.intent.seen = seen
        self.counts.confirmed += 1
        self._tell(mind, changed=False)

    def speak(self, mind: Mind, bark: str) -> None:
        """Words on top of an intent that was delivered already: its latency is counted once."""
        assert mind.intent is not None
        self.counts.barks += 1
        mind.version += 1
        mind.intent.version, mind.intent.bark, mind.intent.due_ns = mind.version, bark, 0
        self._tell(mind, changed=True)

    # -- streams -----------------------------------------------------------------------------------------------

    def subscribe(self, world: World, npc_ids: Iterable[str]) -> Subscriber:
        """A view of one world's table: what changes from now on. See marking() for what stands already."""
        subscriber = Subscriber(frozenset(npc_ids), world)
        self._subscribers.setdefault((world.tenant, world.world_id), set()).add(subscriber)
        return subscriber

    def marking(self, subscriber: Subscriber) -> Steps[None]:
        """Marks all that stands for a view's first frame."""
        for npc, pause in every(32, list(subscriber.world.npcs.values())):
            if pause:
                yield
            mind = self._minds.get(npc.key)
            if mind is None:
                continue
            if mind.intent is not None:
                subscriber.note(mind, changed=True)
            if mind.activation is not Activation.AMBIENT:
                subscriber.note_activation(mind)

    def unsubscribe(self, world: World, subscriber: Subscriber) -> None:
        """Ends a view."""
        views = self._subscribers.get((world.tenant, world.world_id), set())
        views.discard(subscriber)
        if not views:
            self._subscribers.pop((world.tenant, world.world_id), None)

    def end_world(self, tenant: str, world_id: str) -> None:
        """Tells the streams of a world that it is deleted. They end themselves."""
        for subscriber in self._subscribers.get((tenant, world_id), ()):
            subscriber.deleted = True
            subscriber.woken.set()

    def framing(self, subscriber: Subscriber, daemon_epoch: int, sequence: int) -> Steps[intents_pb2.IntentFrame]:
        """The next frame of a stream, in steps: the newest state of everything marked. Marks that come meanwhile are
        for the frame after it.
        """
        now_ns = self._clock()
        changed, subscriber.changed = subscriber.changed, set()
        confirmed, subscriber.confirmed = subscriber.confirmed - changed, set()
        attended, subscriber.attended = subscriber.attended, set()
        subscriber.woken.clear()
        frame = intents_pb2.IntentFrame(
            daemon_epoch=daemon_epoch,
            sequence=sequence,
            snapshot=sequence == 1,
            observations_dropped=subscriber.dropped,
            last_frame=subscriber.last_frame,
        )
        for mind, pause in every(16, changed):
            if pause:
                yield
                now_ns = self._clock()
            if mind.intent is not None and not mind.removed:
                # It is told as it is now, whatever was marked since this frame was begun.
                subscriber.changed.discard(mind)
                subscriber.confirmed.discard(mind)
                frame.intents.append(self.message(mind, mind.intent, now_ns))
                # A snapshot tells again what stands; how long it took was counted when it was told first.
                if not frame.snapshot and mind.intent.source is not Source.POLICY and mind.intent.due_ns:
                    self.counts.latency_ns.append((now_ns, now_ns - mind.intent.due_ns))
        for mind, pause in every(16, confirmed):
            if pause:
                yield
            # An NPC that has changed since then is told whole, in the next frame.
            if mind.intent is not None and not mind.removed and mind not in subscriber.changed:
                frame.confirmed.append(
                    intents_pb2.IntentConfirmed(
                        npc_id=mind.npc.key.npc,
                        version=mind.intent.version,
                        observed_tick=mind.intent.seen.tick,
                        game_time_ms=mind.intent.seen.game_time_ms,
                        age_ms=whole((now_ns - mind.intent.seen.at_ns) // MS),
                        lease_epoch=mind.intent.seen.lease_epoch,
                    )
                )
        for mind, pause in every(32, attended):
            if pause:
                yield
            if not mind.removed:
                frame.activations.append(
                    intents_pb2.ActivationChanged(
                        npc_id=mind.npc.key.npc, activation=activation_message(mind.activation)
                    )
                )
        while subscriber.errors:
            frame.errors.append(subscriber.errors.popleft())
        return frame

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
            age_ms=whole((now_ns - intent.seen.at_ns) // MS),
            ttl_ms=self._settings.ttl_ms,
            previous_action=intent.previous_action,
            blend_ms=self._settings.blend_ms,
            latency_ms=whole((now_ns - intent.due_ns) // MS) if intent.due_ns else 0,
            confidence=intent.confidence,
            activation=activation_message(mind.activation),
            lease_epoch=intent.seen.lease_epoch,
        )

    def _tell(self, mind: Mind, changed: bool) -> None:
        key = mind.npc.key
        for subscriber in self._subscribers.get((key.tenant, key.world), ()):
            subscriber.note(mind, changed)


def past_message(past: PastIntent, now_ns: int) -> npcs_pb2.PastIntent:
    """An intent that stood once as the contract has it."""
    return npcs_pb2.PastIntent(
        version=past.version,
        action=past.action,
        target_entity_id=past.target,
        emotion=past.emotion,
        source=past.source.value,
        observed_tick=past.tick,
        state=past.state,
        age_ms=whole((now_ns - past.made_ns) // MS, 64),
        latency_ms=whole(past.latency_ns // MS),
    )


_SOURCES = {
    Source.MODEL: intents_pb2.INTENT_SOURCE_MODEL,
    Source.POLICY: intents_pb2.INTENT_SOURCE_POLICY,
    Source.PREDICTED: intents_pb2.INTENT_SOURCE_PREDICTED,
}
