"""A scheduler on the simulated engine, driven step by step on a virtual clock. The house's laws are checked after every
step.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from core.choice import Node, Tokens
from core.words import NpcKey, Tier, TrunkKey
from core.work import GREEDY, Chunk, Ended, Sampling, Work
from engines.backend import Taken
from engines.base import Geometry
from engines.sim import SimCost, SimEngine, SimVocab, VirtualClock, computed, next_token
from prompts.marks import MARKS
from scheduler.place import Part
from scheduler.placing import KvSettings
from scheduler.scheduler import Scheduler, SchedulerSettings
from tiers.promises import Promises

FIRST_WORD = len(MARKS)


def words(*numbers: int) -> Tokens:
    """Tokens that are not control tokens."""
    return np.asarray([FIRST_WORD + n for n in numbers], np.int32)


def npc(n: int) -> NpcKey:
    """An NPC's name."""
    return NpcKey("", "world", f"npc{n}")


class Sim:
    """One scheduler, its engine and its clock. `ended` and `chunks` collect the tickets' ends and tokens."""

    def __init__(
        self,
        *,
        sequences: int = 40,
        context_len: int = 512,
        kv: KvSettings = KvSettings(prefixes=2, lanes=6, ram_mib=1),
        fail_at: frozenset[int] = frozenset(),
        end_every: int = 0,
        promises: Promises = Promises(),
        cost: SimCost = SimCost(),
    ) -> None:
        self.clock = VirtualClock()
        self.vocab = SimVocab(list(MARKS.values()))
        geometry = Geometry(sequences, context_len, 512, 128, self.vocab.size)
        self.engine = SimEngine(geometry, self.vocab, self.clock, cost, end_every, fail_at)
        self.end_every = end_every
        self.scheduler = Scheduler(self.engine, promises, SchedulerSettings(kv=kv))
        self.promises = promises
        self.submitted: dict[int, Work] = {}
        self.taken: dict[int, int] = {}
        self.chunks: dict[int, list[int]] = {}
        self.ended: dict[int, Ended] = {}
        self.trace: list[tuple[int, int, str]] = []
        self._next = 1

    def submit(self, work: Work) -> int:
        """Submits a work and returns its ticket's number."""
        ticket, self._next = self._next, self._next + 1
        self.submitted[ticket] = work
        self.chunks[ticket] = []
        self.scheduler.submit(ticket, work, self.clock())
        self._collect()
        return ticket

    def cancel(self, ticket: int) -> None:
        """Cancels a ticket."""
        self.scheduler.cancel(ticket, self.clock())
        self._collect()
        self.check()

    def forget(self, key: TrunkKey) -> None:
        """Forgets a trunk."""
        self.scheduler.forget(key)
        self._collect()

    def step(self) -> bool:
        """Plans and runs one step, or moves time to the next moment with one. Returns False when no work is left."""
        if self.scheduler.idle:
            return False
        planned = self.scheduler.plan(self.clock())
        if planned.step is None:
            assert planned.wake_ns is not None or self.scheduler.idle, "it would wait for ever"
            self.clock.advance(max(1, (planned.wake_ns or 0) - self.clock()))
        else:
            began = self.clock()
            try:
                result = self.engine.step(planned.step)
            except Exception as error:
                if type(error).__name__ != "EngineFailed":
                    raise
                self.scheduler.failed(planned, str(error), self.clock())
            else:
                self.scheduler.apply(planned, result, self.clock() - began, self.clock())
        self._collect()
        self.check()
        return True

    def run(self, until: Callable[[], bool] = lambda: False, steps_max: int = 100_000) -> int:
        """Steps until idle or `until`. Returns the number of steps."""
        for n in range(steps_max):
            if until() or not self.step():
                return n
        raise AssertionError(f"not idle after {steps_max} steps")

    def check(self) -> None:
        """Checks the laws that hold between any two steps."""
        check_book(self.scheduler, self.engine)
        check_tokens(self.scheduler, self.engine)

    def alone(self, work: Work) -> list[int]:
        """The tokens that the work must get."""
        same = work.adapter == work.key.adapter
        return alone(work, self.vocab, self.end_every, 0 if same else self.engine.adapter_from(work.adapter, work.tail))

    def _collect(self) -> None:
        for ticket, what in self.scheduler.take_deliveries():
            assert ticket not in self.ended, f"ticket {ticket} was told something after its end"
            if isinstance(what, Chunk):
                self.chunks[ticket] += what.tokens
            elif isinstance(what, Taken):
                assert ticket not in self.taken, f"ticket {ticket} was taken twice"
                self.taken[ticket] = what.at_ns
            else:
                self.ended[ticket] = what
            self.trace.append((self.clock(), ticket, repr(what)))


def check_book(scheduler: Scheduler, engine: SimEngine) -> None:
    """No lane, sequence or sampler is lost, every sequence is as long as the book says, and no queue is over its
    bound."""
    placer, running = scheduler.placer, scheduler.running.values()
    homes, lanes = placer.homes, placer.lanes
    assert lanes.free + lanes.leased == lanes.count, "lanes: free + leased != all"
    leased = {r.place.lane for r in running if r.place.lane >= 0}
    assert lanes.leased == len(leased), f"lanes: {lanes.leased} are leased, {len(leased)} in use"
    above: dict[int, int] = {}  # tokens of a branch beyond its trunk, by sequence
    samplers = 0
    for r in running:
        samplers += r.sampler >= 0
        place = r.place
        if place.part is not Part.BRANCH:
            assert place.lane < 0 or not engine.length(place.lane), f"residents: lane {place.lane} should be empty"
        elif place.lane < 0:
            above[place.trunk.seq] = place.branch_len
        else:
            assert engine.length(place.lane) == place.pos, f"residents: lane {place.lane} has not the book's length"
    assert homes.ram_bytes <= homes.ram_bytes_max, f"ram: {homes.ram_bytes} bytes are over the bound"
    assert homes.parked_bytes <= homes.parked_bytes_max, f"store: {homes.parked_bytes} bytes are over the bound"
    resident = list(homes.residents)
    assert homes.free + len(resident) == homes.count, "residents: free + resident != all"
    seqs = [t.seq for t in resident]
    assert len(set(seqs)) == len(seqs), "residents: two trunks in one sequence"
    lengths = engine.lengths
    if [lengths[seq] for seq in seqs] != [t.held + above.get(t.seq, 0) for t in resident]:
        for t in resident:
            wanted = t.held + above.get(t.seq, 0)
            assert lengths[t.seq] == wanted, f"residents: sequence {t.seq} holds {lengths[t.seq]}, not {wanted}"
    used = sum(1 for fork in homes.forks.values() if fork.users)
    forks_max = scheduler.settings.kv.forks_max
    assert len(homes.forks) <= max(forks_max, used + 1), f"forks: {len(homes.forks)}, {forks_max} may be"
    for tier, queue in scheduler.admission.queues.of.items():
        assert len(queue) <= scheduler.promises.of(tier).waiting_max, f"queues: {tier.name} is over its bound"
    samplers += sum(1 for r in scheduler.retrying if r.sampler >= 0)
    assert engine.samplers_open == samplers, f"samplers: {engine.samplers_open} are open, {samplers} in use"


def check_tokens(scheduler: Scheduler, engine: SimEngine) -> None:
    """Every resident sequence begins with the tokens in the book, a trunk has one home, a clean copy equals it, and
    bytes are counted right.
    """
    homes, verifier = scheduler.placer.homes, scheduler.placer.moves.verifier
    in_ram = [sealed for t in homes for sealed in (t.blob, t.copy) if sealed is not None]
    assert homes.ram_bytes == sum(map(len, in_ram)), "ram: bytes are counted wrong"
    assert homes.parked_bytes == sum(t.parked_bytes for t in homes), "store: bytes are counted wrong"
    for t in homes:
        places = (t.seq >= 0) + (t.blob is not None) + (t.parked > 0)
        assert places <= 1 and (places or not t.held), f"homes: {t.key} has {places}"
        if t.seq >= 0:
            same = np.array_equal(engine.array(t.seq)[: t.held], computed(t.tokens[: t.held], t.key.adapter))
            assert same, f"tokens: sequence {t.seq} does not hold what the book says of {t.key}"
        if t.copy is not None:
            assert t.seq >= 0, f"copies: {t.key} has a copy and is not in a sequence"
            fault = verifier.fault(t.copy, t.tokens[: t.held], t.key.adapter)
            same = t.copy.payload == engine.array(t.seq)[: t.held].tobytes()
            assert same and not fault, f"copies: that of {t.key} is not what its sequence holds ({fault or 'bytes'})"


def alone(work: Work, vocab: SimVocab, end_every: int, adapter_from: int = 0) -> list[int]:
    """The tokens that a work must get, computed without any scheduler: the simple twin."""
    branch = np.concatenate([work.tail, np.zeros(work.max_tokens + 64, np.int32)])
    off, on = branch[:adapter_from], branch[adapter_from:]
    held = np.concatenate([computed(np.concatenate([work.trunk, off]), work.key.adapter), computed(on, work.adapter)])
    making = work.adapter if adapter_from <= len(work.tail) else work.key.adapter
    unmarked, mark = np.concatenate([work.trunk, branch]), computed(words(0), making) - words(0)
    length = first = len(work.trunk) + len(work.tail)
    node = work.choice
    seed = 0 if work.sampling.greedy else work.sampling.seed
    while True:
        if node is not None:
            if node.complete:
                break
            picked = int(node.ids[0]) if node.forced else next_token(held[:length], node.ids, seed, vocab, 0)[0]
            node, _ = node.step(picked)
        else:
            if length - first == work.max_tokens:
                break
            picked = next_token(held[:length], None, seed, vocab, end_every)[0]
            if picked in vocab.eog_ids or picked in work.stop_ids:
                break
        held[length] = picked + mark[0]
        unmarked[length] = picked
        length += 1
    made: list[int] = unmarked[first:length].tolist()
    return made


def random_work(rng: random.Random, npcs: int, choices: list[Node], shared_len: int = 40) -> Work:
    """A work of a random tier for one of `npcs` NPCs of three archetypes."""
    n = rng.randrange(npcs)
    shared = words(*range(n % 3 * 100, n % 3 * 100 + shared_len))
    persona = words(*range(1000 + n, 1020 + n))
    tier = rng.choice([Tier.GOLD, Tier.GOLD, Tier.SILVER, Tier.BRONZE])
    trunk = np.concatenate([shared, persona])
    tail = words(*(rng.randrange(3000) for _ in range(rng.randrange(1, 20))))
    if tier is Tier.GOLD:
        key = TrunkKey(npc(n), "")
        choice = rng.choice([*choices, None])
        return Work(tier, key, trunk, tail, 8, shared_len, choice, supersede=rng.choice([None, n]))
    turns = words(*(rng.randrange(3000) for _ in range(rng.randrange(0, 60))))
    partner = f"player{rng.randrange(2)}"
    sampling = Sampling(0.7, seed=rng.randrange(100)) if rng.random() < 0.7 else GREEDY
    trunk = np.concatenate([trunk, turns])
    if rng.random() < 0.1:
        return Work(tier, TrunkKey(npc(n), partner), trunk, words(), 0, shared_len)
    return Work(tier, TrunkKey(npc(n), partner), trunk, tail, rng.randrange(1, 40), shared_len, sampling=sampling)
