"""The scheduler: submitted works in, one step at a time out, what became known back.

Everything here runs on one thread (the engine thread, or a test's), synchronously; time comes in as `now_ns`. Owns
admission, composer, costs and running works. A driver calls plan(), lets the engine step, and calls apply() or
failed(). On cancel a work leaves as if it had never come, within the step that runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from core.clock import MS
from core.words import Finish, NpcKey, Tier, TrunkKey
from core.work import Chunk, Ended, Timings, Work
from engines.backend import Delivery, Taken
from engines.base import StepEngine, StepResult, tokens_of
from scheduler.admission import Admission, Left
from scheduler.budget import TalkShare
from scheduler.composing import Composer, Planned
from scheduler.costs import Costs, CostSettings
from scheduler.gold_room import GoldRoom
from scheduler.letting_go import LettingGo
from scheduler.meter import Meter
from scheduler.parking import Fetched
from scheduler.place import Part, Place
from scheduler.placing import KvSettings, Placer
from scheduler.planner import PlannerSettings
from scheduler.queues import Waiting
from scheduler.running import Running
from scheduler.speculation import Speculation
from scheduler.spending import Spending
from scheduler.way import make_way
from scheduler.window import Closed, WindowSettings
from tiers.promises import Promises


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """All settings of this folder."""

    kv: KvSettings = field(default_factory=KvSettings)
    window: WindowSettings = field(default_factory=WindowSettings)
    planner: PlannerSettings = field(default_factory=PlannerSettings)
    costs: CostSettings = field(default_factory=CostSettings)


class Scheduler:
    """Laws: a ticket ends exactly once; a queue is never over its bound; free + leased == all for lanes and
    residents. Of admission it is the seats.
    """

    def __init__(
        self,
        engine: StepEngine,
        promises: Promises,
        settings: SchedulerSettings,
        speculation: Speculation | None = None,
        costs: Costs | None = None,
    ) -> None:
        """`costs` have learned already what steps take on this engine."""
        self.engine = engine
        self.promises = promises
        self.settings = settings
        self.costs = Costs(settings.costs) if costs is None else costs
        self.placer = Placer(engine, settings.kv, self.costs)
        self.meter = Meter.of(promises.bounds_ns())
        self.spending = Spending(engine.geometry.micro_len)
        self.talk = TalkShare()
        self.running: dict[int, Running] = {}
        running_max = {tier: promises.of(tier).running_max for tier in Tier}
        # Gold without end would keep all others out of the sequences.
        residents = self.placer.homes.count
        running_max[Tier.GOLD] = min(running_max[Tier.GOLD], residents - residents // 8)
        self.admission = Admission(promises, settings.window, running_max)
        self.composer = Composer(engine, self.costs, promises, settings.planner, speculation)
        self._gold_ns: int | None = None
        self.gold_room = GoldRoom(self.costs, self.placer.homes, promises.gold.wait_max_ms * MS)
        self.changes = 0  # starts and ends of works: while it is the same, the same works run
        self.retrying: list[Running] = []
        self.put_back = dict.fromkeys(Tier, 0)  # works that gave way to a higher tier, by their own
        self.hurried = 0  # plans in which a work ran at a higher tier for one that waited
        self._hurried: list[Running] = []
        self._out: list[Delivery] = []
        self._letting_go = LettingGo(self.placer, self._works)

    # -- in ----------------------------------------------------------------------------------------------------

    def submit(self, ticket_id: int, work: Work, now_ns: int) -> None:
        """Puts a work into its queue. It is superseding, or refused, at once."""
        self._letting_go.comes(work.key)
        if work.tier is Tier.GOLD:
            self._gold_ns = now_ns
        self._end_waiting(self.admission.submit(ticket_id, work, now_ns))

    def cancel(self, ticket_id: int, now_ns: int) -> None:
        """Ends a work wherever it is; nothing happens when it has ended already."""
        left = self.admission.cancel(ticket_id)
        if left:
            self._end_waiting(left)
            return
        if (running := self.running.get(ticket_id)) is not None:
            self._end(running, Finish.CANCELLED, now_ns)
        for retry in [r for r in self.retrying if r.ticket_id == ticket_id]:
            self.retrying.remove(retry)
            self._deliver_end(retry, Finish.CANCELLED, "")

    def forget(self, key: TrunkKey) -> None:
        """Forgets a trunk's KV (of a plain key: with all adapters and forks), at once or when the work on it ends;
        works that would only bring it into place end too.
        """
        self._end_waiting(
            self.admission.drop(lambda w: key.covers(w.key) and not w.max_tokens, "the trunk was forgotten")
        )
        self._letting_go.forget(key)

    def load_ahead(self, npc: NpcKey, now_ns: int) -> None:
        """Begins to bring back what an NPC has in the store beyond RAM."""
        self.placer.moves.load_ahead(npc, now_ns)

    def move_out(self, npc: NpcKey) -> None:
        """Moves an NPC's trunks out of their sequences, except those in use."""
        self.placer.moves.move_out_npc(npc)

    def arrived(self, what: Fetched) -> None:
        """Takes in what the store beyond RAM gave."""
        self.placer.moves.arrived(what)

    def commit(self, key: TrunkKey) -> None:
        """Makes what a fork holds its origin's KV, at once or when the works on both allow it, and ends the fork."""
        assert key.fork, "only a fork is committed"
        self._letting_go.commit(key)

    # -- step --------------------------------------------------------------------------------------------------

    def plan(self, now_ns: int, next_due_ns: int | None = None) -> Planned:
        """The next step, or none and when to ask again (None: when something new comes)."""
        changes = self.changes
        for runner in self._hurried:
            runner.hurried = None
        self._hurried.clear()
        talked, talk_share = self.talk.look(now_ns), self.settings.planner.talk_share
        self.gold_room.begin(self.running.values(), min(talked, talk_share))
        wake_ns = self.admission.admit(self, now_ns, next_due_ns)
        recent_ns = self.settings.planner.gold_recent_ms * MS
        recently = self._gold_ns is not None and now_ns - self._gold_ns < recent_ns
        gold = recently or len(self.admission.queues.of[Tier.GOLD]) > 0
        planned = self.composer.compose(self.running, gold, self.changes, talked >= talk_share, now_ns)
        if planned.step is None and wake_ns is None and not self.idle:
            # Works whose choice was forced to its end left without a step, and others wait for what they held.
            wake_ns = now_ns
            if changes == self.changes and self.placer.moves.parking.coming:
                # All that waits waits for its trunk, which is on its way.
                wake_ns = self.placer.moves.parking.look_again_ns(now_ns)
        planned.wake_ns = wake_ns
        return planned

    def apply(self, planned: Planned, result: StepResult, took_ns: int, now_ns: int) -> None:
        """Takes in what a step gave: trunks grow, tokens are handed out, finished works end."""
        assert planned.step is not None
        self.meter.steps += 1
        self.meter.busy_ns += took_ns
        self.meter.step.add(now_ns, took_ns, planned.step.tokens)
        self.spending.step(planned, took_ns, self.costs)
        self.talk.add(took_ns, self.spending.shares[Tier.SILVER], now_ns)
        self.composer.learn(planned, result, now_ns)
        self.costs.add(planned.features, took_ns, planned.budget_ns)
        if planned.changes == self.changes:
            self._apply_decodes(planned, result.picked, now_ns)
            return
        eog = self.engine.vocab.eog_ids
        gave = zip(planned.step.slices, planned.runners, result.picked, result.probability, strict=True)
        for i, (s, runner, token, probability) in enumerate(gave):
            tokens = result.verified[i] if s.drafts else None
            count = len(s.tokens)
            if tokens is not None:
                count += len(tokens) - 1 - s.drafts
                self.engine.trim(s.seq, s.pos + count)
            runner.last_step_ns = now_ns
            self.placer.grown(runner.place, count)
            runner.took_in(count)
            if s.pick is None:
                continue
            if tokens is not None:
                chunk, finish = runner.all_picked(tokens, eog, now_ns)
            else:
                chunk, finish = runner.picked(token, probability, eog, now_ns)
            if chunk is not None:
                self._hand_out(runner, chunk, now_ns)
            if finish is not None:
                self._end(runner, finish, now_ns)
        for runner in list(self.running.values()):
            self.placer.advance(runner.place)
            if not runner.work.max_tokens and runner.place.part is Part.BRANCH:
                self._end(runner, Finish.STOP, now_ns)

    def _apply_decodes(self, planned: Planned, picked: list[int], now_ns: int) -> None:
        """The same for a step in which everybody just decoded, by far the most frequent: nobody moves on."""
        planned.picked = feed = tokens_of(picked)
        eog, piece = self.engine.vocab.eog_ids, self.engine.vocab.piece
        for i, (runner, token) in enumerate(zip(planned.runners, picked, strict=True)):
            runner.place.branch_len += 1
            runner.last_step_ns = now_ns
            if token in eog or token in runner.work.stop_ids:
                self._end(runner, Finish.STOP, now_ns)
                continue
            runner.made.append(token)
            runner.feed = feed[i : i + 1]
            self._hand_out(runner, Chunk((token,), now_ns, text=piece(token)), now_ns)
            if len(runner.made) >= runner.work.max_tokens:
                self._end(runner, Finish.LENGTH, now_ns)

    def failed(self, planned: Planned, reason: str, now_ns: int) -> None:
        """The engine failed in a step: rebuilds it; running works are retried once from their trunks, then end as
        FAILED.
        """
        self.meter.step_failures += 1
        self.changes += 1
        self.engine.rebuild()
        self.placer.engine_rebuilt()
        in_step = {id(r) for r in planned.runners}
        for runner in list(self.running.values()):
            del self.running[runner.ticket_id]
            self.placer.release(runner.place, now_ns)
            if runner.retried and id(runner) in in_step:
                self._deliver_end(runner, Finish.FAILED, reason)
                continue
            runner.retried = runner.retried or id(runner) in in_step
            self.retrying.append(runner)

    def take_deliveries(self) -> list[Delivery]:
        """The deliveries since the last call, in order."""
        out, self._out = self._out, []
        return out

    @property
    def undelivered(self) -> tuple[Delivery, ...]:
        """The deliveries that take_deliveries() will return; they stay."""
        return tuple(self._out)

    @property
    def idle(self) -> bool:
        """True if no work runs and none waits."""
        return not self.running and not self.retrying and not len(self.admission.queues)

    # -- seats -------------------------------------------------------------------------------------------------

    def works(self) -> Iterator[Work]:
        """Every work that was taken and has not ended."""
        return (r.work for r in (*self.running.values(), *self.retrying))

    def busy(self) -> bool:
        """True if works run now."""
        return bool(self.running)

    def could_stand(self, work: Work) -> bool:
        """True if a work could stand on its trunk now."""
        return self.placer.could_stand(work.key)

    def all_taken(self, work: Work) -> bool:
        """True if the work needs a lane and none is free."""
        return work.max_tokens > 0 and not self.placer.lanes.free

    def filled(self, work: Work) -> bool:
        """True if the Gold that runs takes all the time until the rule's answer stands, and this is one more."""
        return work.tier is Tier.GOLD and not self.gold_room.has(work)

    def go_on(self, tier: Tier, now_ns: int) -> None:
        """Places works that were preempted or are retried and count as `tier`; the one due longest is first."""
        those = [r for r in self.retrying if self.admission.counts_as(r.work) is tier]
        for runner in sorted(those, key=lambda r: r.work.due_ns):
            place = self._place(runner.work, now_ns)
            if place is not None:
                self.retrying.remove(runner)
                runner.restart(place)
                self._start(runner, now_ns)

    def _runs_as(self, runner: Running) -> Tier:
        return min(runner.tier, self.admission.counts_as(runner.work))

    def _place(self, work: Work, now_ns: int) -> Place | None:
        """A place for a work; works of lower tiers that are in its way are put back, or hurry. None: it must wait."""
        place = self.placer.place(work, now_ns)
        if place is not None:
            return place
        if work.max_tokens and self._overtake(work, now_ns):
            place = self.placer.place(work, now_ns)
            if place is not None:
                return place
        way = make_way(work, self.admission.counts_as(work), self.running.values(), self._runs_as, self.placer)
        if way is None:
            return None
        for runner in way.hurried:
            runner.hurried = work
            self.hurried += 1
            self._hurried.append(runner)
        for runner in way.put_back:
            self._put_back(runner, now_ns)
        return self.placer.place(work, now_ns) if way.put_back else None

    def _put_back(self, runner: Running, now_ns: int) -> None:
        """Takes a running work's place; it goes on when there is one again."""
        self.put_back[runner.work.tier] += 1
        self.changes += 1
        del self.running[runner.ticket_id]
        self.placer.release(runner.place, now_ns)
        self.retrying.append(runner)

    def take(self, entry: Waiting, rule: Closed, now_ns: int) -> bool:
        """Starts a waiting work; False when it has no place."""
        work = entry.work
        place = self._place(work, now_ns)
        if place is None:
            return False
        self.admission.queues.of[work.tier].take(entry)
        window_ns = 0 if rule is Closed.BUSY else now_ns - entry.submitted_ns
        timings = Timings(entry.submitted_ns, now_ns, window_ns, cached_tokens=place.cached)
        timings.loaded_tokens, timings.copied_tokens = place.loaded, place.copied
        runner = Running(entry.ticket_id, work, place, timings, work.tail, work.choice, last_step_ns=now_ns)
        if work.max_tokens and work.choice is None and not work.sampling.greedy:
            runner.sampler = self.engine.add_sampler(work.sampling, self._seen(work))
        if work.tier is Tier.GOLD:
            self.gold_room.take(runner)
        self._out.append((entry.ticket_id, Taken(now_ns)))
        self._start(runner, now_ns)
        return True

    def _overtake(self, work: Work, now_ns: int) -> bool:
        """Ends a work of the same or a lower tier that only brings this work's trunk into place; its computed tokens
        stay. Returns True if there was one.
        """
        trunk, tier = self.placer.homes.get(work.key), self.admission.counts_as(work)
        for runner in self.running.values():
            if runner.place.trunk is trunk and not runner.work.max_tokens and self._runs_as(runner) >= tier:
                self._end(runner, Finish.CANCELLED, now_ns)
                return True
        return False

    def _seen(self, work: Work) -> list[int]:
        """The tokens that the sampler's penalties know from the start: nothing that ends or closes an answer."""
        recent = work.said or work.tail.tolist()
        unseen = self.engine.vocab.eog_ids | work.stop_ids | work.closing
        return [token for token in recent if token not in unseen]

    def _start(self, runner: Running, now_ns: int) -> None:
        self.changes += 1
        self.running[runner.ticket_id] = runner
        first = not runner.made
        finish = runner.begin()
        if first and runner.made:
            self._hand_out(runner, Chunk(tuple(runner.made), now_ns, 1.0, tuple(runner.labels)), now_ns)
        if finish is not None:
            self._end(runner, finish, now_ns)

    def _hand_out(self, runner: Running, chunk: Chunk, now_ns: int) -> None:
        if not chunk.text and runner.work.choice is None:
            chunk = chunk._replace(text=b"".join(map(self.engine.vocab.piece, chunk.tokens)))
        meter, t = self.meter.tiers[runner.work.tier], runner.timings
        if not t.first_ns:
            t.first_ns = now_ns
            meter.first.add(now_ns, now_ns - t.submitted_ns)
        else:
            gap_ns = now_ns - runner.last_token_ns
            if gap_ns > t.gap_max_ns:
                t.gap_max_ns = gap_ns
            meter.gap.add(now_ns, gap_ns)
        runner.last_token_ns = t.last_ns = now_ns
        t.output_tokens += len(chunk.tokens)
        meter.output_tokens += len(chunk.tokens)
        self._out.append((runner.ticket_id, chunk))

    def _end(self, runner: Running, finish: Finish, now_ns: int) -> None:
        self.changes += 1
        del self.running[runner.ticket_id]
        # Its prefix may have taken from another one since it began.
        runner.timings.cached_tokens, runner.timings.copied_tokens = runner.place.cached, runner.place.copied
        if runner.work.keep and finish in (Finish.STOP, Finish.LENGTH):
            self.placer.keep(runner.place, runner.made)
        elif runner.work.adopt and runner.made:
            runner.timings.adopted_tokens = self.placer.adopt(runner.place, runner.made, now_ns)
        self.placer.release(runner.place, now_ns)
        self._deliver_end(runner, finish, "")

    def _deliver_end(self, runner: Running, finish: Finish, reason: str) -> None:
        if runner.sampler >= 0:
            self.engine.drop_sampler(runner.sampler)
            runner.sampler = -1
        self.meter.cached_tokens += runner.timings.cached_tokens
        self.meter.prefilled_tokens += runner.timings.prefilled_tokens
        self.meter.tiers[runner.work.tier].count_end(finish)
        self.spending.ended(runner, finish)
        self._out.append((runner.ticket_id, Ended(finish, runner.timings, reason, 0, tuple(runner.labels))))
        self._letting_go.ended(runner.work.key)

    def _end_waiting(self, left: Sequence[Left]) -> None:
        for waiting, finish, reason in left:
            self.meter.tiers[waiting.work.tier].count_end(finish)
            timings = Timings(submitted_ns=waiting.submitted_ns)
            self._out.append((waiting.ticket_id, Ended(finish, timings, reason)))
            self._letting_go.ended(waiting.work.key)

    def _works(self) -> Iterator[Work]:
        """Every work that has not ended."""
        yield from self.works()
        yield from self.admission.works()
