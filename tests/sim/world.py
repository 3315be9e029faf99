"""A seeded world of NPCs that submits what the daemon would, with faults, on a simulated engine and a virtual clock.

Time passes in two ways. A step takes its cost; when there is nothing to do, the clock jumps to the next event. Events
of the time while a step runs are handed over after the step, as the engine thread does.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from core.choice import END, Node, stage
from core.clock import MS, S
from core.errors import EngineFailed
from core.words import Finish, NpcKey, Tier, TrunkKey
from core.work import GREEDY, Chunk, Ended, Sampling, Work
from engines.base import Geometry
from engines.sim import SimCost, SimEngine, SimVocab, VirtualClock
from prompts.marks import MARKS
from scheduler.composing import Planned
from scheduler.parking import Fetched
from scheduler.placing import KvSettings
from scheduler.scheduler import Scheduler, SchedulerSettings
from tests.sim.laws import Broken, Laws
from tiers.cadence import TOGETHER, CadenceSettings, next_slot_ns
from tiers.promises import Promises

ORDINARY = ("chronicle", "ghoul")  # adapters that compute trunks; the other trunks are the base model's
SPEAKS = 3  # the first so many actions have a bark


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """How much happens. `active` NPCs are asked at the cadence's rate. The `_every_s` are mean intervals; 0 is never.

    After `part_share` of the turns player and NPC part: the conversation is summed up, and the player comes back at
    once. Of the `sequences`, `prefixes` hold shared prefixes and `lanes` are lanes; trunks have the rest.
    """

    seconds: float = 120.0
    npcs: int = 1000
    archetypes: int = 6
    active: int = 76
    dialogues: int = 20
    stories_waiting: int = 6
    trunk_len_max: int = 900
    reply_len_max: int = 60
    end_every: int = 60  # a free text ends after so many tokens in the mean
    storm_every_s: float = 25.0
    overfill_every_s: float = 55.0
    forget_every_s: float = 1.5
    wonder_every_s: float = 0.7
    foresee_every_s: float = 0.0
    part_share: float = 0.0
    lull_every_s: float = 40.0
    lull_s: float = 4.0
    failures: int = 12
    ram_kib: int = 256
    sequences: int = 256
    prefixes: int = 8
    lanes: int = 24
    promises: Promises = Promises()
    cost: SimCost = SimCost(step_us=300.0, micro_us=350.0, token_us=70.0)


Ender = Callable[[Ended, list[int]], None]


@dataclass(slots=True, eq=False)
class Talk:
    """One dialogue, whose trunk grows turn by turn."""

    npc: int
    player: str
    tokens: list[int]
    adapter: str = ""


class SlowStore:
    """A store that takes 2 ms, and at times 12. Of twenty blobs it refuses one, has lost one, and returns one with a
    flipped bit.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = random.Random(world.seed)
        self.kept: dict[int, tuple[bytes, bytes]] = {}

    def park(self, number: int, header: bytes, payload: bytes) -> bool:
        """Takes most bytes, and refuses some."""
        if self._rng.random() < 0.05:
            return False
        self.kept[number] = (header, payload)
        return True

    def fetch(self, number: int) -> None:
        """Returns the bytes later, and drops them at once."""
        found = self.kept.pop(number, None)
        luck = self._rng.random()
        header, payload, fault = b"", b"", "gone"
        if found is not None and luck > 0.05:
            header, payload = found
            if luck < 0.1:
                payload = bytes([payload[0] ^ 1]) + payload[1:]
            fault = ""
        ms = self._rng.uniform(0.2, 2.0) if self._rng.random() < 0.9 else self._rng.uniform(4.0, 12.0)
        self._world.later(ms, lambda: self._world.fetched(number, header, payload, fault))

    def drop(self, number: int) -> None:
        """Removes bytes."""
        self.kept.pop(number, None)


class World:
    """One world from its start to its end. Everything follows from `seed`. `make` builds the scheduler."""

    def __init__(
        self,
        seed: int,
        settings: WorldSettings = WorldSettings(),
        make: Callable[[SimEngine, Promises, SchedulerSettings], Scheduler] = Scheduler,
    ) -> None:
        self.settings = settings
        self.seed = seed
        self.rested = 0
        self.adopted = 0  # replies whose lane became the trunk
        self._rng = rng = random.Random(seed)
        self.clock = VirtualClock()
        vocab = SimVocab(list(MARKS.values()))
        self._first_word, self._words = len(MARKS), vocab.size - len(MARKS)
        steps = round(settings.seconds * 200)
        fail_at = {rng.randrange(steps) for _ in range(settings.failures)}
        fail_at |= {step + 1 for step in fail_at if step % 2}  # if the step after a failure fails, works fail twice
        self.engine = SimEngine(
            Geometry(settings.sequences, 2048, 2048, 512, vocab.size),
            vocab,
            self.clock,
            settings.cost,
            end_every=settings.end_every,
            fail_at=frozenset(fail_at),
        )
        self.promises = settings.promises
        kv = KvSettings(settings.prefixes, settings.lanes, ram_mib=1, redis_mib=1)
        self.scheduler = make(self.engine, self.promises, SchedulerSettings(kv=kv))
        self.scheduler.placer.homes.ram_bytes_max = settings.ram_kib << 10
        self.store = SlowStore(self)
        self.scheduler.placer.moves.parking.store = self.store
        self.laws = Laws(self.scheduler, self.engine, settings.end_every)
        self._slot_ns = CadenceSettings().slot_ns
        self._end_ns = round(settings.seconds * S)
        self._lull_until_ns = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self._due: dict[int, int] = {}  # when an active group of NPCs is asked next
        self._at_ns = 0  # the moment of the event that is happening
        self._tickets = 0
        self._open: dict[int, tuple[Work, list[int], Ender | None]] = {}
        self._prefixes = [self._text(rng.randrange(180, 220)) for _ in range(settings.archetypes)]
        self._personas = [self._text(rng.randrange(30, 50)) for _ in range(settings.npcs)]
        self._choice = self._choices()
        self._players = 0
        self._wonders = 0

    def run(self) -> Laws:
        """Runs the whole time, then lets every work end. Raises Broken when a law does not hold."""
        self._begin()
        scheduler, clock = self.scheduler, self.clock
        while True:
            self._happen()
            if scheduler.idle and clock() >= self._end_ns:
                break
            if scheduler.idle:
                self.rested += 1
                self.laws.rested(clock())
                clock.advance((self._events[0][0] if self._events else self._end_ns) - clock())
                continue
            planned = scheduler.plan(clock(), min(self._due.values(), default=None))
            self.laws.planned(planned, clock())
            if planned.step is None:
                self._deliver()
                wake_ns = planned.wake_ns
                assert wake_ns is not None or scheduler.idle, "it would wait for ever"
                if wake_ns is not None:
                    next_ns = self._events[0][0] if self._events else wake_ns
                    clock.advance(max(0, min(wake_ns, next_ns) - clock()))
                continue
            self._step(planned)
            self._deliver()
        self.laws.rested(clock())
        return self.laws

    def _step(self, planned: Planned) -> None:
        clock, scheduler = self.clock, self.scheduler
        assert planned.step is not None
        began_ns = clock()
        try:
            result = self.engine.step(planned.step)
        except EngineFailed as error:
            scheduler.failed(planned, str(error), clock())
        else:
            scheduler.apply(planned, result, clock() - began_ns, clock())
        self.laws.stepped(planned, clock() - began_ns, clock())

    # -- time --------------------------------------------------------------------------------------------------

    def _at(self, at_ns: int, what: Callable[[], None]) -> None:
        """Runs `what` at that moment, if the world has not ended."""
        if at_ns < self._end_ns:
            self._order += 1
            heapq.heappush(self._events, (at_ns, self._order, what))

    def _after(self, ms: float, what: Callable[[], None]) -> None:
        self._at(self._at_ns + round(ms * MS), what)

    def _again(self, every_s: float, what: Callable[[], None]) -> None:
        """Runs `what` again and again, at random intervals of `every_s` in the mean."""
        if every_s:
            self._after(self._rng.uniform(0.5, 1.5) * every_s * 1000, what)
            self._after(self._rng.uniform(0.5, 1.5) * every_s * 1000, lambda: self._again(every_s, what))

    def _happen(self) -> None:
        now_ns = self.clock()
        while self._events and self._events[0][0] <= now_ns:
            self._at_ns, _, what = heapq.heappop(self._events)
            what()
        if now_ns >= self._end_ns:
            self._due.clear()  # the only events left are answers of the store
        self._at_ns = now_ns

    def later(self, ms: float, what: Callable[[], None]) -> None:
        """Runs `what` after a delay, also while the world ends."""
        self._order += 1
        heapq.heappush(self._events, (self.clock() + round(ms * MS), self._order, what))

    def fetched(self, number: int, header: bytes, payload: bytes, fault: str) -> None:
        """The store has answered."""
        self.scheduler.arrived(Fetched(self._at_ns, number, header, payload, fault))

    # -- works -------------------------------------------------------------------------------------------------

    def _submit(self, work: Work, ender: Ender | None = None) -> int:
        self._tickets += 1
        ticket = self._tickets
        self._open[ticket] = (work, [], ender)
        self.laws.submitted(ticket, work, self._at_ns)
        self.scheduler.submit(ticket, work, self.clock())
        self._deliver()
        return ticket

    def _cancel(self, ticket: int) -> None:
        self.scheduler.cancel(ticket, self.clock())
        self._deliver()

    def _deliver(self) -> None:
        deliveries = self.scheduler.take_deliveries()
        if not deliveries:
            return
        self.laws.delivered(deliveries, self.clock())
        ended = []
        for ticket, what in deliveries:
            if isinstance(what, Ended):
                _, said, ender = self._open.pop(ticket)
                ended.append((ender, what, said))
            elif isinstance(what, Chunk):
                self._open[ticket][1].extend(what.tokens)
        for ender, what, said in ended:
            if ender is not None:
                ender(what, said)

    def _work(
        self,
        tier: Tier,
        npc: int,
        partner: str,
        tail: list[int],
        max_tokens: int,
        *,
        more: list[int] | None = None,
        choice: Node | None = None,
        sampling: Sampling = GREEDY,
        deadline: Tier | None = None,
        supersede: object = None,
        adapter: str = "",
        fork: str = "",
        adopt: bool = False,
    ) -> Work:
        shared = self._prefixes[npc % len(self._prefixes)]
        trunk = np.asarray(shared + self._personas[npc] + (more or []), np.int32)
        at_ns = self._at_ns
        return Work(
            tier,
            TrunkKey(NpcKey("", "world", f"npc{npc}"), partner, adapter if adapter in ORDINARY else "", fork),
            trunk,
            np.asarray(tail, np.int32),
            max_tokens,
            len(shared),
            choice,
            sampling,
            due_ns=at_ns,
            deadline_ns=self.promises.deadline_ns(tier if deadline is None else deadline, at_ns),
            supersede=supersede,
            near=npc if tier is Tier.GOLD else -1,
            adapter=adapter,
            keep=bool(fork and max_tokens),
            adopt=adopt,
        )

    # -- what goes on ------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        settings = self.settings
        for npc in range(settings.npcs):
            self._submit(self._work(Tier.BRONZE, npc, "", [], 0, supersede=(npc, "trunk")))
        groups = settings.npcs // TOGETHER
        for group in self._rng.sample(range(groups), settings.active // TOGETHER):
            self._wake(group)
        for n in range(settings.dialogues):
            self._after(self._rng.uniform(0, 5000), lambda n=n: self._meet(n))  # type: ignore[misc]
        if settings.stories_waiting:
            self._again(0.2, self._stories)
        self._again(1.0, self._walk)
        self._again(settings.storm_every_s, self._storm)
        self._again(settings.overfill_every_s, self._overfill)
        self._again(settings.forget_every_s, self._forget)
        self._again(settings.wonder_every_s, self._wonder)
        self._again(settings.foresee_every_s, self._foresee)
        self._again(settings.lull_every_s, self._lull)

    def _wake(self, group: int) -> None:
        """The NPCs of a group become active: they are asked in every slot of their cadence."""
        at_ns = next_slot_ns(group * TOGETHER, self._slot_ns, self._at_ns + 1)
        self._due[group] = at_ns
        self._at(at_ns, lambda: self._ask(group, at_ns))

    def _ask(self, group: int, at_ns: int) -> None:
        if self._due.get(group) != at_ns:
            return  # it went to sleep meanwhile
        self._wake(group)
        if at_ns < self._lull_until_ns:
            return
        for npc in range(group * TOGETHER, (group + 1) * TOGETHER):
            self._intent(npc)
            if self._rng.random() < 0.03:  # attacked: asked again at once, which supersedes a question that still waits
                self._after(self._rng.uniform(0, 4), lambda npc=npc: self._intent(npc))  # type: ignore[misc]

    def _walk(self) -> None:
        """Players walk on: one group of NPCs falls asleep and another one wakes."""
        if self._due:
            del self._due[self._rng.choice(list(self._due))]
            asleep = [g for g in range(self.settings.npcs // TOGETHER) if g not in self._due]
            self._wake(self._rng.choice(asleep))

    def _intent(self, npc: int) -> None:
        tail = self._text(self._rng.randrange(12, 32))

        def answered(ended: Ended, said: list[int]) -> None:
            if ended.finish is Finish.STOP and dict(ended.labels)["actions"] < SPEAKS and self._rng.random() < 0.2:
                self._bark(npc, tail + said)

        work = self._work(Tier.GOLD, npc, "", tail, 8, choice=self._choice, supersede=(npc, "intent"))
        self._submit(work, answered)

    def _bark(self, npc: int, tail: list[int], supersede: bool = True) -> int:
        sampling = Sampling(0.7, seed=self._rng.randrange(1000))
        name = (npc, "bark") if supersede else None
        return self._submit(self._work(Tier.GOLD, npc, "", tail, 8, sampling=sampling, supersede=name))

    def _meet(self, number: int) -> None:
        """A player begins to talk to an NPC."""
        self._players += 1
        npc = self._rng.randrange(self.settings.npcs)
        adapter = {0: "vampire", 3: "ghoul", 8: "lich"}.get(number % 16, "")
        self._say(number, Talk(npc, f"player{self._players}", self._text(self._rng.randrange(200)), adapter))

    def _say(self, number: int, talk: Talk) -> None:
        if self._at_ns < self._lull_until_ns:
            self._after(self.settings.lull_s * 1000, lambda: self._say(number, talk))
            return
        line = self._text(self._rng.randrange(5, 60))
        sampling = Sampling(0.7, seed=self._rng.randrange(1000))
        max_tokens = self._rng.randrange(20, self.settings.reply_len_max + 1)

        def answered(ended: Ended, said: list[int]) -> None:
            if ended.finish in (Finish.REFUSED, Finish.FAILED):
                self._after(400, lambda: self._say(number, talk))
                return
            talk.tokens += line + said
            adopted = ended.timings.adopted_tokens
            if adopted > len(line) + len(said):
                raise Broken(f"adopted: {adopted} tokens of {len(line)} + {len(said)}")
            self.adopted += adopted > 0
            if self.settings.part_share and self._rng.random() < self.settings.part_share:
                self._part(number, talk)
                return
            if len(talk.tokens) > self.settings.trunk_len_max - 250:
                if self._rng.random() < 0.5:
                    self.scheduler.forget(TrunkKey(NpcKey("", "world", f"npc{talk.npc}"), talk.player))
                    self._after(self._rng.uniform(500, 3000), lambda: self._meet(number))
                    return
                talk.tokens = talk.tokens[-300:]
            if not adopted or self._rng.random() < 0.5:
                self._submit(
                    self._work(
                        Tier.SILVER,
                        talk.npc,
                        talk.player,
                        [],
                        0,
                        more=talk.tokens,
                        deadline=Tier.BRONZE,
                        supersede=(talk.npc, talk.player, "trunk"),
                        adapter=talk.adapter,
                    )
                )
            self._after(self._rng.uniform(1000, 6000), lambda: self._say(number, talk))

        work = self._work(
            Tier.SILVER,
            talk.npc,
            talk.player,
            line,
            max_tokens,
            more=talk.tokens,
            sampling=sampling,
            adapter=talk.adapter,
            adopt=number % 3 > 0,
        )
        ticket = self._submit(work, answered)
        if self.settings.part_share:  # while it speaks, and when it ends, other works want its trunk
            for _ in range(4):
                self._after(self._rng.uniform(0, 600), lambda: self._look(work))
        if self._rng.random() < 0.1:  # the player interrupts
            self._after(self._rng.uniform(0, 500), lambda: self._cancel(ticket))

    def _part(self, number: int, talk: Talk) -> None:
        """A conversation ends and is summed up on its own trunk. The next one begins there at once."""
        tail = self._text(6)
        summary = self._work(Tier.BRONZE, talk.npc, talk.player, tail, 40, more=talk.tokens, adapter=talk.adapter)
        self._submit(summary)
        again = Talk(talk.npc, talk.player, self._text(self._rng.randrange(100)), talk.adapter)
        self._after(self._rng.uniform(0, 30), lambda: self._say(number, again))

    def _foresee(self) -> None:
        """Look-ahead: Bronze asks about possible states on the trunk of an NPC's intents, many at a time."""
        for npc in self._rng.sample(range(self.settings.npcs), 8):
            tier = Tier.SILVER if self._rng.random() < 0.2 else Tier.BRONZE
            tail = self._text(self._rng.randrange(12, 32))
            self._submit(self._work(tier, npc, "", tail, 8, choice=self._choice))

    def _stories(self) -> None:
        """A Bronze work always waits."""
        if self._at_ns >= self._lull_until_ns:
            for _ in range(self.settings.stories_waiting - len(self.scheduler.admission.queues.of[Tier.BRONZE])):
                self._story()

    def _story(self) -> int:
        rng = self._rng
        npc = rng.randrange(self.settings.npcs)
        more, tail = self._text(rng.randrange(50, 400)), self._text(rng.randrange(10, 120))
        adapter = "chronicle" if rng.random() < 0.1 else ""
        work = self._work(Tier.BRONZE, npc, "story", tail, rng.randrange(20, 150), more=more, adapter=adapter)
        return self._submit(work)

    def _wonder(self) -> None:
        """A speculative reply: Bronze tries it on a fork, further and further, then the fork is committed or
        discarded."""
        self._wonders += 1
        fork, npc = f"if{self._wonders}", self._rng.randrange(self.settings.npcs)
        self._try(npc, fork, self._text(self._rng.randrange(200)), self._rng.randrange(1, 4))

    def _try(self, npc: int, fork: str, more: list[int], left: int) -> None:
        tail = self._text(self._rng.randrange(5, 40))
        tier = Tier.SILVER if self.settings.part_share and self._rng.random() < 0.3 else Tier.BRONZE
        work = self._work(tier, npc, "wonder", tail, self._rng.randrange(10, 60), more=more, fork=fork)
        if tier is Tier.SILVER and self._rng.random() < 0.5:  # while it speaks, other works want its trunk
            self._after(self._rng.uniform(0, 200), lambda: self._look(work))

        def answered(ended: Ended, said: list[int]) -> None:
            if ended.finish in (Finish.STOP, Finish.LENGTH) and left > 1:
                self._try(npc, fork, more + tail + said, left - 1)
            elif ended.finish in (Finish.STOP, Finish.LENGTH) and self._rng.random() < 0.5:
                self.scheduler.commit(work.key)
                self._submit(self._work(Tier.BRONZE, npc, "wonder", tail, 20, more=more + tail + said))
            else:
                self.scheduler.forget(work.key)

        self._submit(work, answered)

    def _look(self, at: Work) -> None:
        """Gold asks on the trunk of another work, while that trunk is there."""
        if any(work is at for work, _, _ in self._open.values()):
            now_ns = self._at_ns
            deadline_ns = self.promises.deadline_ns(Tier.GOLD, now_ns)
            tail = np.asarray(self._text(8), np.int32)
            self._submit(Work(Tier.GOLD, at.key, at.trunk, tail, 2, at.shared, due_ns=now_ns, deadline_ns=deadline_ns))

    # -- faults ------------------------------------------------------------------------------------------------

    def _storm(self) -> None:
        """Hundreds of works arrive at once, and a moment later hundreds are cancelled."""
        rng = self._rng
        for npc in rng.sample(range(self.settings.npcs), min(300, self.settings.npcs)):
            self._bark(npc, self._text(10), supersede=False)

        def cancel() -> None:
            for ticket in [t for t in self._open if rng.random() < 0.8]:
                self._cancel(ticket)

        self._after(rng.uniform(0, 60), cancel)

    def _overfill(self) -> None:
        """More works arrive than a queue may hold."""
        rng = self._rng
        npcs = self.settings.npcs
        tier = rng.choice(list(Tier))
        count = self.promises.of(tier).waiting_max + self.promises.of(tier).running_max + 20
        if tier is Tier.GOLD:
            tickets = [self._bark(rng.randrange(npcs), self._text(8), supersede=False) for _ in range(count)]
        elif tier is Tier.SILVER:
            tickets = [
                self._submit(self._work(Tier.SILVER, rng.randrange(npcs), "crowd", self._text(20), 30))
                for _ in range(count)
            ]
        else:
            tickets = [self._story() for _ in range(count)]

        def cancel() -> None:
            for ticket in tickets:
                if ticket in self._open and rng.random() < 0.95:
                    self._cancel(ticket)

        self._after(2000, cancel)

    def _forget(self) -> None:
        """An NPC or a session is removed."""
        keys = [t.key for t in self.scheduler.placer.homes]
        if keys:
            self.scheduler.forget(self._rng.choice(keys))
            self._deliver()

    def _lull(self) -> None:
        """For a while no work arrives; then something happens that very many NPCs see at once."""
        self._lull_until_ns = self._at_ns + round(self.settings.lull_s * S)
        crowd = self._rng.sample(range(self.settings.npcs), min(80, self.settings.npcs))
        for npc in crowd:
            self._after(self.settings.lull_s * 900, lambda npc=npc: self._intent(npc))  # type: ignore[misc]

    # -- words -------------------------------------------------------------------------------------------------

    def _text(self, count: int) -> list[int]:
        first, words, draw = self._first_word, self._words, self._rng.random
        return [first + int(draw() * words) for _ in range(count)]

    def _choices(self) -> Node:
        """12 actions (some of two tokens that begin alike), 6 targets, 8 emotions."""
        first = self._first_word
        feel = stage("emotions", [(i, [first + 50 + i], END) for i in range(8)])
        target = stage("targets", [(i, [first + 30 + i], feel) for i in range(6)])
        actions = [(i, [first + i] if i < 9 else [first + 9, first + i], target if i % 3 else feel) for i in range(12)]
        return stage("actions", actions)
