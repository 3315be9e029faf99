"""The whole scheduler on a real engine and a real event loop, without the daemon around it.

Owns one LlamaEngine, its EngineLoop thread and a Door on the running loop. Times each stage of a step by wrapping the
stages' methods, about a microsecond each. Between rounds everything is idle, so settings may be exchanged then.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from core.choice import END, Node, Tokens, stage
from core.clock import MS, S, now_ns
from core.words import NpcKey, Tier, TrunkKey
from core.work import Chunk, Ended, Work
from engines.backend import Delivery
from engines.base import Vocab, tokens_of
from engines.llama import LlamaEngine, LlamaSettings, send_native_log_to
from engines.tune import tune
from scheduler.composing import Planned
from scheduler.placing import KvSettings
from scheduler.planner import PlannerSettings
from scheduler.scheduler import Scheduler, SchedulerSettings
from scheduler.step_backend import StepBackend
from scheduler.ticket import Door
from scheduler.warmup import sweep
from tiers.promises import Promises
from tiers.routing import LLAMA

NPCS = 200
TRUNK_LEN = 270  # the length of the demo village's intent trunks
TAIL_LEN = 24
LANES = 32
PREFIXES = 4
SEQUENCES = 250
CONTEXT_LEN = 2048
STOP_S = 5.0


@dataclass(slots=True)
class Stages:
    """Nanoseconds per call of each stage since the last clear."""

    ns: dict[str, list[int]] = field(default_factory=dict)

    def time(self, owner: Any, method: str, name: str) -> None:
        """Replaces `owner.method` by one that notes its time."""
        inner: Callable[..., Any] = getattr(owner, method)
        notes = self.ns.setdefault(name, [])

        def timed(*args: Any, **more: Any) -> Any:
            began = now_ns()
            try:
                return inner(*args, **more)
            finally:
                notes.append(now_ns() - began)

        setattr(owner, method, timed)

    def clear(self) -> None:
        """Forgets all notes."""
        for notes in self.ns.values():
            notes.clear()

    def median_us(self, name: str) -> float:
        """The median of one stage in microseconds; 0 when it never ran."""
        notes = self.ns.get(name)
        return median(notes) / 1000 if notes else 0.0

    def count(self, name: str) -> int:
        """The number of its runs."""
        return len(self.ns.get(name, ()))


@dataclass(frozen=True, slots=True)
class StepNote:
    """One step: its end, its time and budget, micro-batches, and tokens by tier."""

    ended_ns: int
    took_ns: int
    budget_ns: int
    micro_batches: int
    tokens: tuple[int, int, int]


class Rig:
    """Start it with `async with`. `steps` notes every step; with `lean` without the tokens' tiers."""

    def __init__(self, settings: LlamaSettings, waiting_max: int = 256) -> None:
        promises = Promises()
        self.promises = replace(
            promises,
            gold=replace(promises.gold, running_max=64),
            silver=replace(promises.silver, running_max=LANES, waiting_max=waiting_max),
        )
        self.engine = LlamaEngine(settings)
        # Greedy outputs must have the requested length, so no token ends a generation here.
        self.engine.vocab.eog_ids = frozenset()
        self.planner = PlannerSettings()
        self.planner = replace(self.planner, chunk_min=max(self.planner.chunk_min, self.engine.geometry.chunk_min))
        self.scheduler = Scheduler(
            self.engine, self.promises, SchedulerSettings(kv=KvSettings(PREFIXES, LANES), planner=self.planner)
        )
        self.stages = Stages()
        self.steps: list[StepNote] = []
        self.lean = False
        loop = asyncio.get_running_loop()
        self._handover = _Handover(lambda deliveries: loop.call_soon_threadsafe(self._dealer.deal, deliveries))
        self.backend = StepBackend(self.scheduler)
        self.door = Door({LLAMA: self.backend}, self.promises, now_ns)
        self._dealer = _Dealer(self.door)
        self._loop = loop
        self._death: BaseException | None = None
        self._instrument()

    async def __aenter__(self) -> Rig:
        sweep(self.engine, self.scheduler.costs, now_ns)
        self.stages.clear()
        self.backend.start(self._deliver, self._died)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.door.stop(STOP_S, "the benchmark is over"):
            self.engine.close()

    def use(self, planner: PlannerSettings) -> None:
        """Exchanges the planner's settings; only while no work runs."""
        assert not self.door.open, "settings are exchanged between rounds"
        self.scheduler.settings = replace(self.scheduler.settings, planner=planner)

    async def idle(self) -> None:
        """Waits until every ticket has ended. Raises the error that ended the engine thread."""
        await self.door.all_ended()
        if self._death is not None:
            raise self._death

    async def run(self, works: Sequence[Work]) -> int:
        """Runs works from submitting to the last end. Returns nanoseconds."""
        began = now_ns()
        self.door.submit_group([(work, lambda _: None, _ignore) for work in works])
        await self.idle()
        return now_ns() - began

    def _deliver(self, deliveries: Sequence[Delivery]) -> None:
        self._handover.pass_on(deliveries)

    def _died(self, error: BaseException) -> None:
        self._death = error
        self._loop.call_soon_threadsafe(self.door.end_all, "the engine thread died")

    def _instrument(self) -> None:
        scheduler = self.scheduler
        self.stages.time(self.engine.state, "decode", "decode")
        self.stages.time(self.engine.steps, "_pick", "sample")
        self.stages.time(self.engine, "step", "step")
        self.stages.time(self.engine, "copy", "copy")
        self.stages.time(scheduler, "plan", "plan")
        self.stages.time(scheduler, "apply", "apply")
        self.stages.time(self._handover, "pass_on", "handover")
        self.stages.time(self._dealer, "deal", "deliver")
        inner = scheduler.apply

        def apply(planned: Planned, result: Any, took_ns: int, now: int) -> None:
            assert planned.step is not None
            tokens = [0, 0, 0]
            if not self.lean:
                for s, runner in zip(planned.step.slices, planned.runners, strict=True):
                    tokens[runner.work.tier] += len(s.tokens)
            self.steps.append(
                StepNote(now, took_ns, planned.budget_ns, int(planned.features[1]), (tokens[0], tokens[1], tokens[2]))
            )
            inner(planned, result, took_ns, now)

        name = "apply"  # a method is replaced on purpose, and only on this object
        setattr(scheduler, name, apply)


class _Handover:
    """The engine thread's one call per step to the event loop."""

    def __init__(self, pass_on: Callable[[Sequence[Delivery]], object]) -> None:
        self.pass_on = pass_on


class _Dealer:
    """The event loop's side of it."""

    def __init__(self, door: Door) -> None:
        self.deal: Callable[[Sequence[Delivery]], None] = door.deliver


def _ignore(_: Chunk) -> None:
    """A listener for callers that only wait for the end."""


def tuned(model: Path, note: Callable[[str], None]) -> LlamaSettings:
    """The engine settings of a daemon on this machine: the fastest by engines.tune."""
    send_native_log_to(None)
    asked = LlamaSettings(model, sequences=SEQUENCES, context_len=CONTEXT_LEN)
    tuned = tune(asked, now_ns)
    chosen = tuned.settings
    note(
        f"engine: threads {chosen.threads}, flash attention {chosen.flash_attention}, weights {chosen.weights}"
        f" (rounds: {', '.join(f'{t.flash_attention}/{t.weights} {t.round_ms:g} ms' for t in tuned.tried)})"
    )
    return chosen


class Village:
    """Works on the trunks of made-up NPCs: random words of the model, the same for the same seed."""

    def __init__(self, vocab: Vocab, seed: int = 7) -> None:
        self.chance = random.Random(seed)
        self._words = np.asarray(
            [i for i in range(vocab.size) if vocab.piece(i) and i not in vocab.eog_ids], dtype=np.int32
        )
        self._random = np.random.default_rng(seed)
        self.trunks = [self.text(TRUNK_LEN) for _ in range(NPCS)]
        self.choice = self._choice()

    def text(self, length: int) -> Tokens:
        """Random words of a length."""
        return self._random.choice(self._words, length).astype(np.int32)

    def trunk_only(self, number: int) -> Work:
        """Brings an NPC's trunk into place."""
        return self._work(Tier.BRONZE, number, tokens_of([]), 0)

    def intent(self, number: int) -> Work:
        """Gold: a tail of 24 tokens and a choice of three tokens (18 actions, 6 targets, 8 emotions)."""
        work = self._work(Tier.GOLD, number, self.text(TAIL_LEN), 8)
        work.choice = self.choice
        return work

    def speech(self, tier: Tier, number: int, tokens: int, tail_len: int = TAIL_LEN) -> Work:
        """A tail and `tokens` greedy tokens."""
        return self._work(tier, number, self.text(tail_len), tokens)

    def fresh(self, slot: int, trunk_len: int) -> Work:
        """Silver with a new trunk, a short tail and one token. One key per slot."""
        now = now_ns()
        return Work(
            tier=Tier.SILVER,
            key=TrunkKey(NpcKey("", "bench", f"stranger{slot}"), "player"),
            trunk=self.text(trunk_len),
            tail=self.text(16),
            max_tokens=1,
            due_ns=now,
            deadline_ns=now + 250 * MS,
        )

    def _work(self, tier: Tier, number: int, tail: Tokens, max_tokens: int) -> Work:
        now = now_ns()
        return Work(
            tier=tier,
            key=TrunkKey(NpcKey("", "bench", f"npc{number}"), ""),
            trunk=self.trunks[number],
            tail=tail,
            max_tokens=max_tokens,
            due_ns=now,
            deadline_ns=now + (16 * MS, 250 * MS, 5 * S)[tier],
        )

    def _choice(self) -> Node:
        ids = self._random.permutation(self._words)[:32].tolist()
        feel = stage("emotions", [(i, ids[i : i + 1], END) for i in range(8)])
        whom = stage("targets", [(i, ids[8 + i : 9 + i], feel) for i in range(6)])
        return stage("actions", [(i, ids[14 + i : 15 + i], whom) for i in range(18)])


@dataclass(slots=True)
class Asked:
    """One open-loop work: when it was due and submitted, and its ticket's times since."""

    due_ns: int
    submitted_ns: int = 0
    chunks_ns: list[int] = field(default_factory=list)
    ended_ns: int = 0
    ended: Ended | None = None

    @property
    def queue_ns(self) -> int:
        """Submitted -> taken into a step."""
        assert self.ended is not None
        return self.ended.timings.taken_ns - self.submitted_ns

    @property
    def gaps_ns(self) -> list[int]:
        """The times from one token to the next one, on the engine thread's clock."""
        return [b - a for a, b in zip(self.chunks_ns, self.chunks_ns[1:], strict=False)]


class OpenLoop:
    """Submits groups at their due moments, even while earlier ones wait; `asked` has all of them."""

    def __init__(self, rig: Rig, make: Callable[[int], Work]) -> None:
        self.asked: list[Asked] = []
        self._rig = rig
        self._make = make

    async def play(self, dues: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Plays (moment, NPC numbers), in order. Tells the window when the next are due, as the daemon does."""
        for i, (due_ns, numbers) in enumerate(dues):
            self._rig.backend.expect(due_ns)
            await until(due_ns)
            self._rig.backend.expect(dues[i + 1][0] if i + 1 < len(dues) else None)
            self._submit(due_ns, numbers)
        self._rig.backend.expect(None)

    def _submit(self, due_ns: int, numbers: Sequence[int]) -> None:
        group = []
        for number in numbers:
            asked = Asked(due_ns)
            work = self._make(number)
            work.due_ns, work.deadline_ns = due_ns, due_ns + 16 * MS

            def on_chunk(chunk: Chunk, asked: Asked = asked) -> None:
                asked.chunks_ns.append(chunk.at_ns)

            def on_end(ended: Ended, asked: Asked = asked) -> None:
                asked.ended, asked.ended_ns = ended, now_ns()

            group.append((work, on_end, on_chunk))
            self.asked.append(asked)
        now = now_ns()
        for asked in self.asked[-len(group) :]:
            asked.submitted_ns = now
        self._rig.door.submit_group(group)


async def until(moment_ns: int) -> None:
    """Sleeps until a moment, and again when the timer fired early."""
    left_ns = moment_ns - now_ns()
    while left_ns > 0:
        await asyncio.sleep(left_ns / S)
        left_ns = moment_ns - now_ns()


class Refill:
    """Keeps `count` works running: whenever one ends another is submitted, until stop()."""

    def __init__(self, rig: Rig, count: int, make: Callable[[int], Work]) -> None:
        self._rig = rig
        self._make = make
        self._running = True
        for slot in range(count):
            self._submit(slot)

    def _submit(self, slot: int) -> None:
        def on_end(_: Ended) -> None:
            if self._running:
                self._submit(slot)

        self._rig.door.submit(self._make(slot), on_end)

    def stop(self) -> None:
        """Lets the running works end, and submits no more."""
        self._running = False
