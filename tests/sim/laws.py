"""The laws of the simulation, checked after every step, and what was measured on the way.

once       a ticket is taken at most once, ends exactly once, and has no chunk after that
lanes      free + leased == all
residents  free + resident == all, and every sequence is as long as the book says
ram        the bytes in RAM and in the store never exceed their bounds; every trunk has one home at most
adopted    a reply that became the trunk added its line and its own tokens at most
forks      a fork is gone when its reply is decided; never are there more than forks_max, or one more than are in use
samplers   one sampler chain per running work that draws, none left over
queues     no queue is over its bound
adapters   all tokens of a step are computed with one adapter, which is that of the work or of its trunk
copies     a clean copy equals the contents of its trunk's sequence; no other trunk has a copy
tokens     every sequence holds the tokens in the book; every work gets exactly the tokens that it gets alone
gold       Gold whose trunk is free, with a sequence and a place among the running, is taken in the next plan or
           when the window closes: it waits for at most one step and the window. It waits longer only if the Gold that
           runs and itself, each alone, take more than GOLD_ALONE of the time until the rule's answer stands
room       of Gold that is taken no more runs than is done by the time the rule's answer stands
rotation   a decode of Gold or Silver gets a token at least every 2 x R steps, R being how many works may run
progress   no running work goes without a step for longer than its tier's wait_max_ms and 2 x R steps
way        after a plan no work that there is time for (see gold) waits for a trunk, lane or sequence that a running
           work of a lower tier holds, unless that work runs at the waiting one's tier now: the wait for a lower tier
           lasts at most the step of arrival
turns      of two steps in a row at least one has a part for the highest tier, if that tier runs in both
bronze     while Bronze waits, the overdue one that is due longest gets the next lane, before any Silver; so
           Bronze as a whole never goes without a token for longer than wait_max_ms and BRONZE_LANE_NS
"""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b

from core.clock import MS, S
from core.words import Finish, Tier, TrunkKey
from core.work import Chunk, Ended, Work
from engines.backend import Delivery, Taken
from engines.base import PAD_LEN
from engines.sim import SimEngine
from kvcache.homes import Homes
from scheduler.composing import Planned
from scheduler.meter import percentile
from scheduler.place import Part
from scheduler.running import Running
from scheduler.scheduler import Scheduler
from tests.scheduler.simulated import alone, check_book, check_tokens

GOLD_ALONE = 0.3  # conversations may have the rest of the engine
# How long every lane may be held by Silver that has begun to speak, before one is given back.
BRONZE_LANE_NS = 2 * S


class Broken(AssertionError):
    """A law does not hold. The message begins with the law's name."""


class Laws:
    """Watches one scheduler. Call submitted(), planned(), stepped() and delivered() as these things happen."""

    def __init__(self, scheduler: Scheduler, engine: SimEngine, end_every: int = 0, deep_every: int = 500) -> None:
        self.finishes: Counter[tuple[Tier, Finish]] = Counter()
        self.gold_wait_ns: list[int] = []  # waits of works that only the window and a step held up
        self.gold_held_up = 0
        self.bronze_gap_ns = 0
        self.rest_steps = dict.fromkeys(Tier, 0)
        self.rest_ns = dict.fromkeys(Tier, 0)
        self.checked_tokens = 0
        self.steps = 0
        self._scheduler = scheduler
        self._engine = engine
        self._end_every = end_every
        self._deep_every = deep_every
        promises = scheduler.promises
        self.rotation_steps = 2 * sum(promises.of(tier).running_max for tier in Tier)
        self._running_max = {tier: promises.of(tier).running_max for tier in Tier}
        residents = scheduler.placer.homes.count
        self._running_max[Tier.GOLD] = min(self._running_max[Tier.GOLD], residents - residents // 8)
        self._wait_max_ns = {tier: promises.of(tier).wait_max_ms * MS for tier in Tier}
        self._window_ns = scheduler.settings.window.window_ms * MS
        self._open: dict[int, tuple[Work, int, list[int]]] = {}  # work, arrival, tokens so far
        self._taken: set[int] = set()
        self._held_up: set[int] = set()
        self._served: dict[int, tuple[int, int]] = {}  # (step, moment) of a running work's last tokens, by ticket
        self._starved: dict[int, tuple[int, int]] = {}  # (starving since step, step of its last token), by ticket
        self._step_ns = 0  # duration of the last step
        self._before_ns = 0  # duration of the step before the last plan
        self._step_ns_max = 0
        self._passed_over: set[int] = set()  # tickets of the highest tier that had no part in the last step
        self._bronze_ns: int | None = None  # when Bronze last had a token, while Bronze works are there
        self._hash = blake2b(digest_size=16)

    # -- what happens ------------------------------------------------------------------------------------------

    def submitted(self, ticket: int, work: Work, arrived_ns: int) -> None:
        """A work arrived at `arrived_ns`, and was handed over after the step that ran then."""
        self._open[ticket] = (work, arrived_ns, [])

    def delivered(self, deliveries: list[Delivery], now_ns: int) -> None:
        """The tickets got these tokens and ends."""
        for ticket, what in deliveries:
            if ticket not in self._open:
                raise Broken(f"once: ticket {ticket} was told {what} after its end")
            work, arrived_ns, said = self._open[ticket]
            if isinstance(what, Chunk):
                if ticket not in self._taken:
                    raise Broken(f"once: ticket {ticket} was told tokens before it was taken")
                said.extend(what.tokens)
                self._hash.update(b"%d %d %a" % (now_ns, ticket, what.tokens))
            elif isinstance(what, Taken):
                if ticket in self._taken:
                    raise Broken(f"once: ticket {ticket} was taken twice")
                self._taken.add(ticket)
                self._hash.update(b"%d %d taken" % (now_ns, ticket))
                if work.tier is Tier.GOLD:
                    self._gold_taken(ticket, what.at_ns - arrived_ns)
            else:
                self._ended(ticket, what, now_ns)

    def planned(self, planned: Planned, now_ns: int) -> None:
        """A plan was made: each work that still waits has a reason."""
        scheduler = self._scheduler
        self._before_ns = self._step_ns
        step_adapter = planned.step.adapter if planned.step is not None else ""
        for runner in planned.runners:
            if runner.place.adapter != step_adapter:
                raise Broken(f"adapters: ticket {runner.ticket_id} is in a step of adapter '{step_adapter}'")
        if planned.step is not None:
            self._in_turn(planned)
            for tier in (Tier.GOLD, Tier.SILVER):
                self._way_is_made(tier, now_ns)
        if len(scheduler.admission.queues.of[Tier.GOLD]):
            self._gold_waits(planned, now_ns)
        self._in_time(now_ns)
        if len(scheduler.admission.queues.of[Tier.BRONZE]):
            self._bronze_waits(now_ns)

    def stepped(self, planned: Planned, took_ns: int, now_ns: int) -> None:
        """A step ended or failed: the book is right, and no work starves."""
        self.steps += 1
        self._step_ns = took_ns
        self._step_ns_max = max(self._step_ns_max, took_ns)
        scheduler = self._scheduler
        try:
            check_book(scheduler, self._engine)
            if self.steps % self._deep_every == 0:
                check_tokens(scheduler, self._engine)
        except AssertionError as error:
            raise Broken(str(error)) from error
        here = (self.steps, now_ns)
        bronze = False
        for runner in scheduler.retrying:
            self._served.pop(runner.ticket_id, None)
        for runner in planned.runners:
            bronze = bronze or runner.work.tier is Tier.BRONZE
            self._served[runner.ticket_id] = here
        self._nobody_starves(now_ns)
        there = len(scheduler.admission.queues.of[Tier.BRONZE]) or any(
            r.work.tier is Tier.BRONZE for r in (*scheduler.running.values(), *scheduler.retrying)
        )
        self._bronze_served(bool(there), bronze, now_ns)

    def rested(self, now_ns: int) -> None:
        """No work, fork or sampler is left."""
        self._bronze_ns = None
        if self._open:
            raise Broken(f"once: tickets {sorted(self._open)[:5]} are open and nothing is left to do")
        forks = self._scheduler.placer.homes.forks
        if forks:
            raise Broken(f"forks: {len(forks)} are left over, as {next(iter(forks))}")

    @property
    def trace(self) -> str:
        """A hash of everything that was delivered, and when."""
        return self._hash.hexdigest()

    def report(self) -> str:
        """The measured figures, as text for a reader."""
        waits = [percentile(self.gold_wait_ns, share) / MS for share in (0.5, 0.95, 0.99, 1.0)]
        ends = {t.name.lower(): {f.value: n for (tier, f), n in self.finishes.items() if tier is t} for t in Tier}
        rests = {t.name.lower(): (self.rest_steps[t], round(self.rest_ns[t] / MS, 1)) for t in Tier}
        return (
            f"{self.steps} steps, the longest {self._step_ns_max / MS:.1f} ms; ended: {ends}\n"
            f"gold waited p50/p95/p99/max {'/'.join(f'{w:.2f}' for w in waits)} ms ({len(self.gold_wait_ns)} works; "
            f"{self.gold_held_up} more were held up by a full running set or their own trunk)\n"
            f"longest without a step (steps, ms): {rests}; Bronze as a whole: {self.bronze_gap_ns / MS:.1f} ms\n"
            f"{self.checked_tokens} works had exactly their own tokens"
        )

    # -- the laws ----------------------------------------------------------------------------------------------

    def _ended(self, ticket: int, what: Ended, now_ns: int) -> None:
        work, _, said = self._open.pop(ticket)
        self._taken.discard(ticket)
        self._held_up.discard(ticket)
        self._served.pop(ticket, None)
        self._starved.pop(ticket, None)
        self.finishes[work.tier, what.finish] += 1
        self._hash.update(b"%d %d %a %a" % (now_ns, ticket, what.finish.value, what.labels))
        if what.finish in (Finish.SUPERSEDED, Finish.REFUSED):
            if said:
                raise Broken(f"once: ticket {ticket} was {what.finish.value} after it had spoken")
        elif work.tier is not Tier.BRONZE or ticket % 8 == 0:
            own = alone(work, self._engine.vocab, self._end_every) if work.max_tokens else []
            if what.finish not in (Finish.STOP, Finish.LENGTH):
                own = own[: len(said)]
            if said != own:
                raise Broken(f"tokens: ticket {ticket} of {work.key} was told {said}, alone it is told {own}")
            self.checked_tokens += 1

    def _gold_taken(self, ticket: int, wait_ns: int) -> None:
        if ticket in self._held_up:
            self.gold_held_up += 1
            return
        self.gold_wait_ns.append(wait_ns)
        if wait_ns > self._window_ns + self._before_ns:
            raise Broken(f"gold: ticket {ticket} waited {wait_ns / MS:.2f} ms, longer than the window and one step")

    def _gold_waits(self, planned: Planned, now_ns: int) -> None:
        """Each Gold that waits after a plan has one of five reasons. With any but the first it counts as held up."""
        scheduler, placer = self._scheduler, self._scheduler.placer
        waiting = list(scheduler.admission.queues.of[Tier.GOLD])
        if planned.step is None and planned.wake_ns is not None and not scheduler.running:
            oldest_ns = min(w.submitted_ns for queue in scheduler.admission.queues.of.values() for w in queue)
            if planned.wake_ns > oldest_ns + self._window_ns or now_ns >= oldest_ns + self._window_ns:
                raise Broken(f"gold: the window is open {(now_ns - oldest_ns) / MS:.2f} ms")
            return
        started = (*scheduler.running.values(), *scheduler.retrying)
        full = sum(1 for r in started if r.work.tier is Tier.GOLD) >= self._running_max[Tier.GOLD]
        room = placer.homes.free or any(t.seq >= 0 and not t.users for t in placer.homes)
        no_time = self._no_time()
        for w in waiting:
            if not (full or w.ticket_id in no_time or _in_use(placer.homes, w.work.key) or not room):
                raise Broken(f"gold: ticket {w.ticket_id} waits and nothing is in its way")
            self._held_up.add(w.ticket_id)

    def _in_time(self, now_ns: int) -> None:
        """When Gold was taken beside other Gold, the tokens of all their tails and answers fit into the time."""
        running = [r for r in self._scheduler.running.values() if r.work.tier is Tier.GOLD]
        if len(running) < 2 or not any(r.timings.taken_ns == now_ns for r in running):
            return
        token_ns, tokens = self._scheduler.costs.weights_ns[2], 0
        for r in running:
            answer = r.work.max_tokens if r.work.choice is None else min(r.work.max_tokens, 3)
            tokens += len(r.feed) + max(0, answer - len(r.made))
        if tokens * token_ns > self._wait_max_ns[Tier.GOLD]:
            raise Broken(f"room: {len(running)} Gold works of {tokens} tokens run at once")

    def _no_time(self) -> set[int]:
        """The tickets of waiting Gold for which the Gold that runs may have left no time, and of those behind them."""
        running = [r for r in self._scheduler.running.values() if r.work.tier is Tier.GOLD]
        running_ns = sum(self._alone_ns(r.work, r.place.pos, r.left, len(r.made)) for r in running)
        queue = self._scheduler.admission.queues.of[Tier.GOLD]
        if not running or not len(queue):
            return set()
        waiting = sorted(queue, key=lambda w: (w.deadline_ns, w.ticket_id))
        for number, w in enumerate(waiting):
            own_ns = self._alone_ns(w.work, len(w.work.trunk), len(w.work.trunk) + len(w.work.tail), 0)
            if running_ns + own_ns > GOLD_ALONE * self._wait_max_ns[Tier.GOLD]:
                return {behind.ticket_id for behind in waiting[number:]}
        return set()

    def _alone_ns(self, work: Work, pos: int, left: int, made: int) -> float:
        """The predicted time of a work in steps of its own: its prefill, then a step for each token."""
        step, micro, token, with_context, context = self._scheduler.costs.weights_ns
        answer = work.max_tokens if work.choice is None else min(work.max_tokens, 3)
        to_come = max(0, answer - made)
        padded = -(-(pos + left + to_come + 1) // PAD_LEN) * PAD_LEN / 1000.0
        each_ns = token + with_context * padded
        return (left + to_come) * each_ns + (1 + to_come) * (step + micro + context * padded)

    def _way_is_made(self, tier: Tier, now_ns: int) -> None:
        """A work that could have a place if the running works of lower tiers were gone has a place with them there,
        too."""
        scheduler, placer = self._scheduler, self._scheduler.placer
        waiting = [(r.ticket_id, r.work) for r in scheduler.retrying if r.work.tier is tier]
        started = sum(r.work.tier is tier for r in (*scheduler.running.values(), *scheduler.retrying))
        if started < self._running_max[tier]:
            no_time = self._no_time() if tier is Tier.GOLD else set()
            queue = scheduler.admission.queues.of[tier]
            waiting += [(w.ticket_id, w.work) for w in queue if w.ticket_id not in no_time]
        if not waiting:
            return
        running = list(scheduler.running.values())
        stories = [r for r in (*running, *scheduler.retrying) if r.work.tier is Tier.BRONZE]
        oldest_ns = min((r.work.due_ns for r in stories), default=0)
        overdue = now_ns >= scheduler.promises.overdue_ns(Tier.BRONZE, oldest_ns)

        def counts(r: Running) -> Tier:
            risen = overdue and r.work.tier is Tier.BRONZE and r.work.due_ns == oldest_ns
            return min(r.tier, Tier.SILVER) if risen else r.tier

        lower = [r for r in running if counts(r) > tier]
        stands = [r for r in running if r.place.part is not Part.BRANCH or r.place.lane < 0 or r.work.keep]
        resident = placer.homes.free or any(t.seq >= 0 and not t.users for t in placer.homes)
        for ticket, work in waiting:
            trunk = placer.homes.find(work.key)
            if trunk is not None and trunk.fetching_ns:
                continue
            lacks = []
            if trunk is not None and trunk.users:
                lacks.append(("trunk", [r for r in stands if r.place.trunk is trunk]))
            if tier is not Tier.GOLD and work.max_tokens and not placer.lanes.free:
                lacks.append(("lane", [r for r in running if r.place.lane >= 0]))
            if not resident and (trunk is None or trunk.seq < 0):
                lacks.append(("sequence", stands))
            if lacks and all(any(r in lower for r in holders) for _, holders in lacks):
                for_what = ", ".join(what for what, _ in lacks)
                raise Broken(f"way: ticket {ticket} ({tier.name}) waits for {for_what} that lower tiers hold")

    def _in_turn(self, planned: Planned) -> None:
        """No work of the highest tier is passed over twice in a row for a lower tier."""
        running = self._scheduler.running.values()
        highest = min(r.tier for r in running)
        those = [r for r in running if r.tier == highest]
        assert planned.step is not None
        seqs = {s.seq for s in planned.step.slices}  # several may wait for the same prefix
        over = set() if any(r.place.seq in seqs for r in those) else {r.ticket_id for r in those}
        if over & self._passed_over:
            raise Broken(f"turns: two steps in a row have nothing of {highest.name}, which is there")
        self._passed_over = over

    def _bronze_waits(self, now_ns: int) -> None:
        """The overdue Bronze that is due longest waits only while no lane is free for any work."""
        scheduler, placer = self._scheduler, self._scheduler.placer
        queue = scheduler.admission.queues.of[Tier.BRONZE]
        free = [w for w in queue if not _in_use(placer.homes, w.work.key)]
        if not (placer.homes.free or any(t.seq >= 0 and not t.users for t in placer.homes)):
            free = [w for w in free if (t := placer.homes.find(w.work.key)) is not None and t.seq >= 0]
        started = [r for r in (*scheduler.running.values(), *scheduler.retrying) if r.work.tier is Tier.BRONZE]
        if not free or len(started) >= self._running_max[Tier.BRONZE]:
            return
        head = min(free, key=lambda w: (w.deadline_ns, w.ticket_id))
        due_ns = head.work.due_ns
        if now_ns < scheduler.promises.overdue_ns(Tier.BRONZE, due_ns) or any(r.work.due_ns <= due_ns for r in started):
            return
        now_there = [self._open[ticket][0] for ticket, _ in scheduler.undelivered]
        if any(work.tier is Tier.BRONZE and work.due_ns <= due_ns for work in now_there):
            return  # the turn was another Bronze's, and it needed no step
        took = [r for r in scheduler.running.values() if r.place.lane >= 0 and r.timings.taken_ns == now_ns]
        if placer.lanes.free or took:
            raise Broken(f"bronze: ticket {head.ticket_id} is overdue, and others got the lane")

    def _nobody_starves(self, now_ns: int) -> None:
        steps, served = self.steps, self._served
        rest_steps, rest_ns = self.rest_steps, self.rest_ns
        for ticket, runner in self._scheduler.running.items():
            last = served.get(ticket)
            if last is None:
                # A started work counts from its first plan on.
                served[ticket] = (steps, now_ns)
                continue
            if last[0] == steps:
                continue
            tier = runner.work.tier
            rest = now_ns - last[1]
            rest_ns[tier] = max(rest_ns[tier], rest)
            if rest > self._wait_max_ns[tier]:
                since, after = self._starved.get(ticket, (steps, last[0]))
                if after != last[0]:
                    since = steps  # it had a step meanwhile
                self._starved[ticket] = (since, last[0])
                if steps - since > self.rotation_steps:
                    raise Broken(f"progress: ticket {ticket} ({tier.name}) had no step for {rest / MS:.1f} ms")
            if runner.decoding:
                rest_steps[tier] = max(rest_steps[tier], steps - last[0])
                if tier is not Tier.BRONZE and steps - last[0] > self.rotation_steps:
                    raise Broken(f"rotation: ticket {ticket} ({tier.name}) had no token for {steps - last[0]} steps")

    def _bronze_served(self, there: bool, served: bool, now_ns: int) -> None:
        if not there or self._bronze_ns is None or served:
            self._bronze_ns = now_ns if there else None
            return
        gap_ns = now_ns - self._bronze_ns
        self.bronze_gap_ns = max(self.bronze_gap_ns, gap_ns)
        if gap_ns > self._wait_max_ns[Tier.BRONZE] + BRONZE_LANE_NS:
            raise Broken(f"bronze: nothing for {gap_ns / MS:.0f} ms")


def _in_use(homes: Homes, key: TrunkKey) -> bool:
    trunk = homes.find(key)
    return trunk is not None and (trunk.users > 0 or trunk.fetching_ns > 0)
