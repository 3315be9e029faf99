"""One town on one machine for a while: the real scheduler on engines/sim.py with a virtual clock, and the results.

Time passes as in the engine thread: a step takes its cost, and events during a step are handed over after it. The
daemon's event loop is not run here: its rules are those of the deciding files, and its time is stated.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from core.choice import Tokens
from core.clock import MS, S
from core.words import Finish, Tier, TrunkKey
from core.work import GREEDY, Chunk, Ended, Sampling, Work
from daemon.minds.mind import IntentSettings
from daemon.rpc.calls import CallSettings
from engines.base import Geometry
from engines.sim import SimCost, SimEngine, SimVocab, VirtualClock
from loadtests.capacity.costs import Column, Daemon
from loadtests.capacity.events import Events
from loadtests.capacity.minds import Minds
from loadtests.capacity.town import SPEAKS, Mind, Question, Talk, Texts, TownSettings, people
from prompts.caps import Caps
from prompts.marks import MARKS
from scheduler.composing import Planned
from scheduler.meter import percentile
from scheduler.placing import KvSettings
from scheduler.planner import PlannerSettings
from scheduler.scheduler import Scheduler, SchedulerSettings
from scheduler.warmup import sweep
from tiers.promises import Promises
from tiers.routing import Routes
from tiers.shedding import Load, Queued, Shedding, ShedSettings

FREE = SimCost(step_us=1.0, micro_us=0.0, token_us=0.0, kilo_context_us=0.0)
NO_TOKENS: Tokens = np.empty(0, np.int32)
ROUTES = Routes()
SLICE_NS = MS  # as in daemon.calls: other tasks get their turn this often
PATIENT = 3  # factor on Gold's time where it cannot keep its promise
LOOP_SHARE_MAX = 0.8  # of the event loop; above it the waiting time grows without bound


@dataclass(frozen=True, slots=True)
class Promised:
    """npcd's promises, as p95s, and the model's share, without which the p95s would mean nothing."""

    gold_token_ms: float = 16.0
    intent_latency_ms: float = 100.0
    intent_age_ms: float = 1_200.0
    silver_first_ms: float = 250.0
    model_share: float = 0.9


@dataclass(slots=True)
class Report:
    """The results of one run: p95s in milliseconds, shares, and rates."""

    npcs: int
    gold_token_ms: float = 0.0
    intent_latency_ms: float = 0.0
    intent_age_ms: float = 0.0
    silver_first_ms: float = 0.0
    model_share: float = 1.0
    loop_share: float = 0.0
    active: int = 0
    warm: int = 0
    talks: int = 0
    intents_per_s: float = 0.0
    turns_per_s: float = 0.0
    bronze_per_s: float = 0.0
    engine_share: float = 0.0
    steps_per_s: float = 0.0
    micros_per_step: float = 0.0
    loads_per_s: float = 0.0

    def broken(self, promised: Promised) -> dict[str, float]:
        """The broken promises, each with its factor: 1.5 is 1.5 times the promised value."""
        found = {
            "Gold per token": self.gold_token_ms / promised.gold_token_ms,
            "intent latency": self.intent_latency_ms / promised.intent_latency_ms,
            "intent age": self.intent_age_ms / promised.intent_age_ms,
            "Silver's first text": self.silver_first_ms / promised.silver_first_ms,
            "the model's share": (1.0 - self.model_share) / (1.0 - promised.model_share),
            "the event loop": self.loop_share / LOOP_SHARE_MAX,
        }
        return {name: over for name, over in found.items() if over > 1.0}


@dataclass(slots=True)
class _Noted:
    """Samples taken after the warm-up."""

    token_ns: list[int] = field(default_factory=list)
    first_ns: list[int] = field(default_factory=list)
    turns: int = 0
    bronze_tokens: int = 0
    busy_ns: int = 0
    steps: int = 0
    micros: int = 0
    loaded: int = 0


@dataclass(slots=True, eq=False)
class _Open:
    """A ticket: its work, its tokens, the time of the last one, and the action at its end."""

    work: Work
    at_ns: int
    ender: Callable[[_Open, Ended], None] | None
    tokens: list[int] = field(default_factory=list)
    last_ns: int = 0


class Simulation:
    """One run. Everything follows from column, town, number of NPCs and seed.

    With `patient` the policy waits PATIENT times as long for the model.
    """

    def __init__(
        self,
        column: Column,
        daemon: Daemon,
        npcs: int,
        town: TownSettings = TownSettings(),
        seconds: float = 10.0,
        warm_s: float = 3.0,
        seed: int = 1,
        frame_ms: float = CallSettings().frame_ms,
        patient: bool = False,
    ) -> None:
        self.column, self.daemon, self.town = column, daemon, town
        self.clock = VirtualClock()
        self.report = Report(npcs)
        self._noted = _Noted()
        self._rng = rng = random.Random(seed)
        vocab = SimVocab(list(MARKS.values()), size=2048)
        geometry = Geometry(column.sequences, column.context_len, 2048, 512, vocab.size)
        self.engine = SimEngine(geometry, vocab, self.clock, column.cost)
        self.promises = Promises()
        kv, planner = KvSettings(), PlannerSettings()
        planner = replace(planner, gold_step_ms=column.gold_step_ms, step_ms=max(planner.step_ms, column.gold_step_ms))
        if column.cost.one_pass:
            # Where neighbours save nothing, a work needs a lane only as a place that can be taken back.
            kv = replace(kv, lanes=max(kv.lanes, 64))
            self.promises = replace(
                self.promises, silver=replace(self.promises.silver, running_max=64, waiting_max=256)
            )
        self.scheduler = Scheduler(self.engine, self.promises, SchedulerSettings(kv=kv, planner=planner))
        homes = self.scheduler.placer.homes
        homes.ram_bytes_max = 4 * column.ram_tokens  # the simulated engine keeps four bytes of a token
        homes.parked_bytes_max = 0
        self.intents = IntentSettings()
        if patient:
            self.intents = replace(self.intents, answer_within_ms=PATIENT * self.intents.answer_within_ms)
        self._events = events = Events()
        self.texts = Texts(rng, vocab.size)
        self.minds = people(town, npcs, self.texts, rng)
        self._by_key = {mind.key: mind for mind in self.minds}
        # The search asks for the engine's capacity, so the caps must not bind.
        attention = self.intents.activation
        attention = replace(
            attention, active_max=max(attention.active_max, npcs), warm_max=max(attention.warm_max, npcs)
        )
        self.asked = Minds(
            self.minds, town, self.texts, self.intents, attention, Caps().intent_tail + ROUTES.intent.output_max,
            round(frame_ms * MS), events, rng, self._ask, self._load, self._move_out,
        )  # fmt: skip
        self.shedding = Shedding(ShedSettings())
        self._tickets = 0
        self._open: dict[int, _Open] = {}
        self._start_ns = round(warm_s * S)
        self._end_ns = self._start_ns + round(seconds * S)

    def run(self) -> Report:
        """Runs the whole time."""
        self._prepare()
        clock, scheduler = self.clock, self.scheduler
        began_ns = clock()
        self._start_ns += began_ns
        self._end_ns += began_ns
        self._begin()
        while clock() < self._end_ns:
            self._events.happen(clock())
            due_ns = self.asked.due_ns
            planned = scheduler.plan(clock(), due_ns if due_ns is not None and due_ns > clock() else None)
            if planned.step is None:
                self._deliver()
                # Without a step to run, time goes on to the next event, or to the end of the window.
                next_ns = self._events.next_ns if self._events.next_ns is not None else self._end_ns
                if planned.wake_ns is not None:
                    next_ns = min(next_ns, planned.wake_ns)
                clock.advance(max(0 if next_ns == planned.wake_ns else 1, next_ns - clock()))
                continue
            self._step(planned)
            self._deliver()
        return self._told()

    # -- time --------------------------------------------------------------------------------------------------

    def _step(self, planned: Planned) -> None:
        assert planned.step is not None
        clock, noted = self.clock, self._noted
        began_ns = clock()
        result = self.engine.step(planned.step)
        took_ns = clock() - began_ns
        self.scheduler.apply(planned, result, took_ns, clock())
        if began_ns >= self._start_ns:
            noted.busy_ns += took_ns
            noted.steps += 1
            noted.micros += int(planned.features[1])

    # -- works -------------------------------------------------------------------------------------------------

    def _submit(self, work: Work, ender: Callable[[_Open, Ended], None] | None) -> None:
        self._tickets += 1
        self._open[self._tickets] = _Open(work, self._events.at_ns, ender)
        self.scheduler.submit(self._tickets, work, self.clock())

    def _deliver(self) -> None:
        ended: list[tuple[_Open, Ended]] = []
        self._events.at_ns = self.clock()
        for ticket, what in self.scheduler.take_deliveries():
            if isinstance(what, Chunk):
                self._said(self._open[ticket], what)
            elif isinstance(what, Ended):
                ended.append((self._open.pop(ticket), what))
        for opened, end in ended:
            if opened.ender is not None:
                opened.ender(opened, end)

    def _said(self, opened: _Open, chunk: Chunk) -> None:
        tier, noted = opened.work.tier, self._noted
        if chunk.at_ns >= self._start_ns:
            if not opened.tokens and tier is Tier.SILVER:
                # It goes to the loop and into the stream.
                noted.first_ns.append(chunk.at_ns + self.asked.wait_ns - opened.at_ns)
            elif opened.last_ns and tier is Tier.GOLD:
                noted.token_ns.append(chunk.at_ns - opened.last_ns)
            elif tier is Tier.BRONZE:
                noted.bronze_tokens += len(chunk.tokens)
        opened.tokens.extend(chunk.tokens)
        opened.last_ns = chunk.at_ns

    def _work(
        self,
        tier: Tier,
        mind: Mind,
        partner: str,
        tail: Tokens,
        max_tokens: int,
        more: list[int] | None = None,
        due: int | None = None,
    ) -> Work:
        at_ns = self._events.at_ns if due is None else due
        trunk = np.concatenate([mind.trunk, np.asarray(more, np.int32)]) if more else mind.trunk
        return Work(
            tier,
            TrunkKey(mind.key, partner),
            trunk,
            tail,
            max_tokens,
            self.town.shared_len,
            sampling=GREEDY if tier is Tier.GOLD else Sampling(0.7, seed=self._rng.randrange(1 << 30)),
            due_ns=at_ns,
            deadline_ns=self.promises.deadline_ns(tier, at_ns),
            near=mind.number if not partner else -1,
        )

    # -- before it begins --------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """The work of a daemon before players come, done in no time: it has learned the times of steps and computed the
        trunks."""
        scheduler, engine = self.scheduler, self.engine
        sweep(engine, scheduler.costs, self.clock)
        engine.cost = FREE
        for mind in self.minds:
            self._submit(self._work(ROUTES.trunk.tier, mind, "", NO_TOKENS, 0), None)
            while len(scheduler.admission.queues) > 200:
                self._prepare_step()
        while not scheduler.idle:
            self._prepare_step()
        engine.cost = self.column.cost

    def _prepare_step(self) -> None:
        planned = self.scheduler.plan(self.clock())
        if planned.step is None:
            self.clock.advance(max(1, (planned.wake_ns or 0) - self.clock()))
        else:
            result = self.engine.step(planned.step)
            took_ns = round(self.scheduler.costs.predict_ns(planned.features))  # free steps teach nothing
            self.scheduler.apply(planned, result, took_ns, self.clock())
        self._deliver()

    # -- what goes on ------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        town, rng = self.town, self._rng
        self._events.at_ns = self.clock()
        self.asked.begin(self._start_ns)
        self._attend()
        talks = max(1, len(self.minds) // town.npcs_per_player) if town.npcs_per_player else 0
        for number in range(talks):
            talk = Talk(f"player{number}", self._partner())
            self._events.after(rng.uniform(0.0, town.line_every_s[1]), lambda talk=talk: self._line(talk))  # type: ignore[misc]
            self.report.talks += 1
        for _ in range(town.stories):
            self._story()
        self._events.at(self._start_ns, self._note_loads)

    def _attend(self) -> None:
        """Decides about attention four times a second, and states the event loop's load anew."""
        attention = self.asked.attention
        self.asked.attend()
        load = len(self.minds) * self.town.observe_hz * self.daemon.observation_us
        changes_per_s = 2.0 / sum(self.town.change_s)
        load += (attention.active * changes_per_s + attention.warm * 0.5) * self.daemon.question_us
        share = self.report.loop_share = load / 1e6
        # The loop gives others their turn every millisecond. The queue in front of it grows as in queueing theory.
        self.asked.wait_ns = round(0.1 * MS + SLICE_NS / 2 * share / max(0.05, 1.0 - share))
        self._events.after(attention.settings.every_ms / 1000, self._attend)

    def _move_out(self, mind: Mind) -> None:
        if not self.scheduler.placer.homes.free:
            self.scheduler.move_out(mind.key)

    def _load(self, mind: Mind) -> None:
        """Brings an NPC's KV into place. The event loop handles the end a little later."""
        work = self._work(ROUTES.trunk.tier, mind, "", NO_TOKENS, 0)
        work.supersede = (mind.key, "trunk")
        self._submit(work, lambda _opened, _ended: self._soon(lambda: self.asked.loaded(mind)))

    def _ask(self, mind: Mind, question: Question) -> None:
        choice = self.texts.choice(self._rng.randint(*self.town.targets))
        work = self._work(ROUTES.intent.tier, mind, "", question.tail, ROUTES.intent.output_max, due=question.due_ns)
        work.choice, work.supersede = choice, (mind.key, "intent")

        def ended(opened: _Open, end: Ended) -> None:
            self._soon(lambda: self._answered(mind, question, opened, end))

        self._submit(work, ended)

    def _answered(self, mind: Mind, question: Question, opened: _Open, ended: Ended) -> None:
        if ended.finish is Finish.STOP and self.town.barks and dict(ended.labels)["actions"] < SPEAKS:
            self._bark(mind, opened)
        self.asked.answered(question, ended.finish)

    def _soon(self, what: Callable[[], None]) -> None:
        """Runs it when the event loop gets to it, a little later."""
        self._events.at(self._events.at_ns + self.asked.wait_ns, what)

    def _bark(self, mind: Mind, opened: _Open) -> None:
        every_ns = self.intents.bark_every_ms * MS
        if mind.barking or (mind.barked_ns and self._events.at_ns - mind.barked_ns < every_ns):
            return
        self._look_at_load()
        if not self.shedding.allows_barks:
            return
        mind.barked_ns, mind.barking = self._events.at_ns, True
        tail = np.concatenate([opened.work.tail, np.asarray(opened.tokens, np.int32)])
        work = self._work(ROUTES.bark.tier, mind, "", tail, ROUTES.bark.output_max)
        work.sampling, work.supersede = Sampling(0.7, seed=mind.number), (mind.key, "bark")

        def over(_opened: _Open, _ended: Ended) -> None:
            mind.barking = False

        self._submit(work, over)

    def _look_at_load(self) -> None:
        gold = self.scheduler.admission.queues.of[Tier.GOLD]
        oldest_ns = gold.oldest_ns
        oldest_ms = 0.0 if oldest_ns is None else (self.clock() - oldest_ns) / MS
        self.shedding.look(Load(gold=Queued(len(gold), gold.waiting_max, oldest_ms)), self.clock())

    # -- conversations and stories -----------------------------------------------------------------------------

    def _partner(self) -> Mind:
        near = [mind for mind in self._rng.sample(self.minds, min(8, len(self.minds)))]
        return min(near, key=lambda mind: mind.distance_m)

    def _line(self, talk: Talk) -> None:
        town, texts, mind = self.town, self.texts, talk.npc
        said_ns = self._events.at_ns
        line = texts.between(town.line_len)
        tail = np.concatenate([texts.between(town.tail_len), line])
        work = self._work(ROUTES.reply.tier, mind, talk.player, tail, self._rng.randint(*town.reply_len), talk.said)
        self.asked.attention.spoke(mind, said_ns)

        def over(opened: _Open, ended: Ended) -> None:
            if said_ns >= self._start_ns:
                self._noted.turns += 1
                if not opened.tokens:  # refused, so there is no text
                    self._noted.first_ns.append(S)
            talk.said = [*talk.said, *line.tolist(), *opened.tokens]
            talk.turns += 1
            # The longer trunk is prepared while the player listens.
            ready = self._work(ROUTES.reply_trunk.tier, mind, talk.player, NO_TOKENS, 0, talk.said)
            ready.supersede = (mind.key, talk.player, "trunk")
            self._submit(ready, None)
            if talk.turns >= town.turns:
                talk.npc, talk.turns, talk.said = self._partner(), 0, []
            wait_ns = round(self._rng.uniform(*town.line_every_s) * S)
            self._events.at(max(said_ns + wait_ns, self._events.at_ns + S // 2), lambda: self._line(talk))

        # The answer begins when the loop has taken the line and recalled the memories.
        self._events.at(said_ns + self.asked.wait_ns, lambda: self._submit_at(work, over, said_ns))

    def _submit_at(self, work: Work, ender: Callable[[_Open, Ended], None], since_ns: int) -> None:
        self._submit(work, ender)
        self._open[self._tickets].at_ns = since_ns

    def _story(self) -> None:
        mind = self._rng.choice(self.minds)
        work = self._work(Tier.BRONZE, mind, "", self.texts.between(self.town.tail_len), self.town.story_len)
        self._submit(work, lambda _opened, _ended: self._story())

    # -- what came of it ---------------------------------------------------------------------------------------

    def _note_loads(self) -> None:
        self._noted.loaded = self.scheduler.placer.moves.loaded

    def _told(self) -> Report:
        noted, report = self._noted, self.report
        seconds = (self._end_ns - self._start_ns) / S
        # A work without an answer counts with its age.
        open_ns = [self._end_ns - o.at_ns for o in self._open.values() if o.work.tier is Tier.SILVER and not o.tokens]
        intents, attention = self.asked.noted, self.asked.attention
        report.gold_token_ms = percentile(noted.token_ns, 0.95) / MS
        report.intent_latency_ms = percentile(intents.latency_ns + self.asked.late_ns(self._end_ns), 0.95) / MS
        report.intent_age_ms = percentile(intents.age_ns, 0.95) / MS
        report.silver_first_ms = percentile(noted.first_ns + open_ns, 0.95) / MS
        report.model_share = intents.by_model / max(1, intents.by_model + intents.by_policy)
        report.active, report.warm = attention.active, attention.warm
        report.intents_per_s = len(intents.latency_ns) / seconds
        report.turns_per_s = noted.turns / seconds
        report.bronze_per_s = noted.bronze_tokens / seconds
        report.engine_share = noted.busy_ns / (seconds * S)
        report.steps_per_s = noted.steps / seconds
        report.micros_per_step = noted.micros / max(1, noted.steps)
        report.loads_per_s = (self.scheduler.placer.moves.loaded - noted.loaded) / seconds
        return report
