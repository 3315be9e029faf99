"""A scheduler on the simulated engine, driven step by step on a virtual clock, with the house's laws checked all the
way.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from core.choice import Node, Tokens
from core.words import NpcKey, Tier, TrunkKey
from core.work import GREEDY, Chunk, Ended, Sampling, Work
from daemon.prompt import MARKS
from engines.base import Geometry
from engines.sim import SimEngine, SimVocab, VirtualClock, next_token
from scheduler.placing import KvSettings, Phase
from scheduler.scheduler import Scheduler, SchedulerSettings, Taken
from tiers.promises import Promises

FIRST_WORD = len(MARKS)


def words(*numbers: int) -> Tokens:
    """Tokens that are not control tokens."""
    return np.asarray([FIRST_WORD + n for n in numbers], np.int32)


def npc(n: int) -> NpcKey:
    """An NPC's name."""
    return NpcKey("", "world", f"npc{n}")


class Sim:
    """One scheduler, its engine and its clock; `ended` and `chunks` collect what tickets say."""

    def __init__(
        self,
        *,
        sequences: int = 40,
        context_len: int = 512,
        kv: KvSettings = KvSettings(prefixes=2, lanes=6, ram_mib=1),
        fail_at: frozenset[int] = frozenset(),
        end_every: int = 0,
        promises: Promises = Promises(),
    ) -> None:
        self.clock = VirtualClock()
        self.vocab = SimVocab(list(MARKS.values()))
        geometry = Geometry(sequences, context_len, 512, 128, self.vocab.size)
        self.engine = SimEngine(geometry, self.vocab, self.clock, fail_at=fail_at, end_every=end_every)
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
        """Submits a work; its ticket's number."""
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
        """Plans and runs one step (or moves time to when one may be planned); False when nothing is left to do."""
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
        """Steps until idle or `until`; how many steps."""
        for n in range(steps_max):
            if until() or not self.step():
                return n
        raise AssertionError(f"not idle after {steps_max} steps")

    def check(self) -> None:
        """The laws that hold between any two steps."""
        placer, engine = self.scheduler.placer, self.engine
        resident = [t for t in placer.homes if t.seq >= 0]
        assert placer.homes.free + len(resident) == placer.homes.count
        assert placer.lanes.free + placer.lanes.leased == placer.lanes.count
        running = self.scheduler.running.values()
        assert placer.lanes.leased == sum(1 for r in running if r.place.lane >= 0)
        branched = {id(r.place.trunk): r for r in running if r.place.phase is Phase.BRANCH and r.place.lane < 0}
        for trunk in resident:
            above = branched[id(trunk)].place.branch_len if id(trunk) in branched else 0
            assert engine.length(trunk.seq) == trunk.held + above
            assert engine.tokens(trunk.seq)[: trunk.held] == trunk.tokens[: trunk.held].tolist()
        for tier in Tier:
            assert len(self.scheduler.queues.of[tier]) <= self.promises.of(tier).waiting_max
        assert engine.samplers_open == sum(1 for r in running if r.sampler >= 0) + sum(
            1 for r in self.scheduler.retrying if r.sampler >= 0
        )

    def alone(self, work: Work) -> list[int]:
        """What the work must give, computed without any scheduler: the dumb version."""
        held = work.trunk.tolist() + work.tail.tolist()
        made: list[int] = []
        node = work.choice
        seed = 0 if work.sampling.greedy else work.sampling.seed
        while True:
            if node is not None:
                if node.complete:
                    return made
                token = next_token(held, node.ids, seed, self.vocab, 0)[0] if not node.forced else int(node.ids[0])
                node, _ = node.step(token)
            else:
                if len(made) == work.max_tokens:
                    return made
                token = next_token(held, None, seed, self.vocab, self.end_every)[0]
                if token in self.vocab.eog_ids:
                    return made
            held.append(token)
            made.append(token)

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


def random_work(rng: random.Random, npcs: int, choices: list[Node], shared_len: int = 40) -> Work:
    """A work of any tier for one of `npcs` NPCs of three archetypes."""
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
