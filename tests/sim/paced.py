"""NPCs, players and one engine in virtual time, with the daemon's own parts between them: asking, attention, pacing,
scheduler. Nothing of it waits, so a minute takes a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from core.clock import MS, S
from core.errors import Overloaded
from core.words import Finish, NpcKey, Tier, TrunkKey
from core.work import Chunk, Ended, Sampling, Work
from daemon.minds.pacing import Pacing
from engines.backend import Snapshot
from engines.base import Geometry
from engines.sim import SimCost, SimEngine, SimVocab, VirtualClock
from prompts.marks import MARKS
from scheduler.placing import KvSettings
from scheduler.scheduler import Scheduler, SchedulerSettings
from scheduler.snapshots import Snapshots
from scheduler.ticket import Door
from scheduler.warmup import sweep
from tests.scheduler.simulated import words
from tests.scheduler.test_scheduler import ACT
from tiers.activation import Activations, ActivationSettings
from tiers.asking import Asking
from tiers.cadence import CadenceSettings
from tiers.game_time import GameTime
from tiers.judging import AskingSettings
from tiers.pace import Carried, PaceSettings
from tiers.phase import Game
from tiers.promises import Promises
from tiers.routing import LLAMA, Routes

OBSERVED_EVERY_NS = 100 * MS
CHANGES_EVERY = 10  # observations: each NPC sees something else every second
TAIL, REPLY, LINE_EVERY_NS = 30, 30, 6 * S


class Shown:
    """The scheduler as Pacing sees a backend."""

    def __init__(self, scheduler: Scheduler, clock: VirtualClock) -> None:
        self._snapshots = Snapshots(scheduler)
        self._clock = clock

    @property
    def snapshot(self) -> Snapshot:
        """The state now."""
        return self._snapshots.take(self._clock())


@dataclass
class Player:
    """One who says a line to an NPC every six seconds, or when the reply before is over."""

    npc: int
    next_ns: int
    asked_ns: int = 0
    speaks: bool = False
    tokens: int = 0
    first_ns: int = 0
    firsts_ns: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)  # tokens per second of each reply


class Paced:
    """One game on an engine that takes so many milliseconds for a token."""

    def __init__(self, token_ms: float, npcs: int, players: int) -> None:
        self.clock = clock = VirtualClock(100 * S)
        self.token_ms = token_ms
        vocab = SimVocab(list(MARKS.values()))
        self.engine = SimEngine(Geometry(128, 1024, 1024, 512, vocab.size), vocab, clock)
        self.slow(1.0)
        self.promises = Promises()
        kv = KvSettings(prefixes=2, lanes=12, ram_mib=1)
        self.scheduler = Scheduler(self.engine, self.promises, SchedulerSettings(kv=kv))
        sweep(self.engine, self.scheduler.costs, clock)
        shown = Shown(self.scheduler, clock)
        door = Door({"llama": shown}, self.promises, clock)  # type: ignore[dict-item]
        settings = ActivationSettings()
        self.pacing = Pacing(
            door, self.promises, Routes(), PaceSettings(), (LLAMA,), CadenceSettings(), settings, 100, clock
        )
        self.activations: Activations[int] = Activations(settings)
        self.asking: Asking[int] = Asking(AskingSettings(), 30)
        self.game = Game[int](GameTime(clock()))
        self.npcs = npcs
        self.players = [Player(n, clock() + 3 * S + n * S) for n in range(players)]
        self.under_way: dict[int, tuple[int, int, int]] = {}  # question -> (npc, due, ticket)
        self.tickets: dict[int, Callable[[Ended | Chunk], None]] = {}
        self.next_ticket = 1
        self.observed = 0
        self.observe_ns = clock()
        self.attend_ns = clock()
        self.wake_ns: int | None = None
        self.answers: list[tuple[int, int, int]] = []  # (moment, NPC, how long the engine had it)
        self.by_rule = self.refused = 0
        self.history: list[tuple[int, Carried]] = []

    def slow(self, times: float) -> None:
        """From now on the engine takes so many times longer."""
        us = self.token_ms * 1000.0 * times
        self.engine.cost = SimCost(step_us=200.0 * times, micro_us=250.0 * times, token_us=us, kilo_context_us=0.0)

    def run(self, seconds: float) -> None:
        """Plays on."""
        end_ns = self.clock() + round(seconds * S)
        while self.clock() < end_ns:
            self._happen()
            planned = self.scheduler.plan(self.clock())
            if planned.step is not None:
                began_ns = self.clock()
                result = self.engine.step(planned.step)
                self.scheduler.apply(planned, result, self.clock() - began_ns, self.clock())
            else:
                moments = [self.observe_ns, self.attend_ns, *(p.next_ns for p in self.players if not p.speaks)]
                moments += [ns for ns in (self.wake_ns, planned.wake_ns) if ns is not None]
                self.clock.advance(max(1000, min(moments) - self.clock()))
            self._deliver()

    def _happen(self) -> None:
        now_ns = self.clock()
        if now_ns >= self.observe_ns:
            self.observe_ns = max(self.observe_ns + OBSERVED_EVERY_NS, now_ns)
            self._observe(now_ns)
        if now_ns >= self.attend_ns:
            self.attend_ns = now_ns + 250 * MS
            self._attend(now_ns)
        for player in self.players:
            if not player.speaks and now_ns >= player.next_ns:
                self._say(player, now_ns)
        self.asking.tick(now_ns, 10_000, False)
        ready = self.asking.ready(now_ns)
        while ready is not None:
            if ready.wake_ns is not None:
                self.wake_ns = ready.wake_ns
            self.by_rule += len(ready.rule)
            for number in (*ready.keep, *(stand.number for stand in ready.stand)):
                self.under_way.pop(number, None)
            for npc in ready.load:
                self.asking.not_loaded(npc, now_ns)
            for npc in ready.look:
                self._look(npc, now_ns)
            for ask in ready.ask:
                self._ask(ask.who, ask.number, ask.due_ns)
            ready = self.asking.ready(now_ns)

    def _state(self, npc: int) -> str:
        return str((self.observed + npc) // CHANGES_EVERY)

    def _observe(self, now_ns: int) -> None:
        self.observed += 1
        for npc in range(self.npcs):
            if self.asking.observed(npc, npc, self.game, True, now_ns):
                self._look(npc, now_ns)

    def _look(self, npc: int, now_ns: int) -> None:
        self.activations.saw(npc, 5.0 + npc, True, None, now_ns)
        self.asking.saw(npc, self._state(npc), False, False, now_ns, now_ns)

    def _attend(self, now_ns: int) -> None:
        self.pacing.overdue(self.asking.overdue())
        carried = self.pacing.intents
        self.history.append((now_ns, carried))
        self.activations.active_max, self.activations.warm_max = carried.active_max, carried.warm_max
        changes = self.activations.decide(now_ns)
        self.pacing.wanted = self.activations.wanted
        self.asking.keep_pace(carried.intents_per_s, carried.under_way_max, carried.cadence, now_ns)
        for change in changes:
            self.asking.attended(change.who, change.now, len(changes), now_ns)
        for npc in range(self.npcs):
            record = self.asking.record(npc)
            if record is not None and not record.decided:
                self.asking.decided(npc, now_ns)

    def _submit(self, work: Work, hears: Callable[[Ended | Chunk], None]) -> int:
        ticket, self.next_ticket = self.next_ticket, self.next_ticket + 1
        self.tickets[ticket] = hears
        self.scheduler.submit(ticket, work, self.clock())
        return ticket

    def _work(self, tier: Tier, npc: int, player: str, tail: int, tokens: int) -> Work:
        now_ns = self.clock()
        key = TrunkKey(NpcKey("", "w", f"n{npc}"), player)
        trunk = words(*range(100), *range(200 + npc, 220 + npc))
        return Work(
            tier, key, trunk, words(*range(300, 300 + tail)), tokens, 100, due_ns=now_ns,
            deadline_ns=self.promises.deadline_ns(tier, now_ns),
        )  # fmt: skip

    def _ask(self, npc: int, number: int, due_ns: int) -> None:
        work = replace(self._work(Tier.GOLD, npc, "", 20, 8), choice=ACT, supersede=(npc, "intent"), near=npc)

        def hears(what: Ended | Chunk) -> None:
            if not isinstance(what, Ended):
                return
            now_ns = self.clock()
            if what.finish is Finish.STOP:
                self.pacing.answered(what.timings, 20, now_ns)
                self.answers.append((now_ns, npc, now_ns - what.timings.submitted_ns))
                self.asking.answered(number, now_ns)
            else:
                self.asking.dropped(number, now_ns)

        self._submit(work, hears)

    def _say(self, player: Player, now_ns: int) -> None:
        try:
            self.pacing.admit(NpcKey("", "w", f"n{player.npc}"), "p")
        except Overloaded as error:
            self.refused += 1
            player.next_ns = now_ns + error.retry_ms * MS
            return
        player.speaks, player.asked_ns, player.tokens = True, now_ns, 0
        self.activations.spoke(player.npc, now_ns)

        def hears(what: Ended | Chunk) -> None:
            at_ns = self.clock()
            if isinstance(what, Chunk):
                if not player.tokens:
                    player.first_ns = at_ns
                    player.firsts_ns.append(at_ns - player.asked_ns)
                player.tokens += len(what.tokens)
            else:
                self.pacing.first_text(player.asked_ns, what.timings)
                player.rates.append((player.tokens - 1) / max(1e-9, (at_ns - player.first_ns) / S))
                player.speaks, player.next_ns = False, max(at_ns, player.asked_ns + LINE_EVERY_NS)

        work = self._work(Tier.SILVER, player.npc, "p", TAIL, REPLY)
        self._submit(replace(work, sampling=Sampling(0.7)), hears)

    def _deliver(self) -> None:
        for ticket, what in self.scheduler.take_deliveries():
            if isinstance(what, Ended):
                self.tickets.pop(ticket)(what)
            elif isinstance(what, Chunk):
                self.tickets[ticket](what)

    # -- to look at --------------------------------------------------------------------------------------------

    def covered(self) -> tuple[int, int]:
        """How many NPCs are active and warm."""
        return self.activations.active, self.activations.warm

    def turned(self, since_ns: int) -> int:
        """How often the rate of intents turned round since then."""
        rates = [c.intents_per_s for at_ns, c in self.history if at_ns >= since_ns]
        ways = [1 if b > a else -1 for a, b in itertools.pairwise(rates) if abs(b - a) > 1e-9 * a]
        return sum(a != b for a, b in itertools.pairwise(ways))
