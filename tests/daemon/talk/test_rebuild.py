"""At 20 utterances a conversation's trunk is cut and rebuilt in the background, on the shipped model.

The engine stops at a gate where a test wants it to, so that a turn surely comes during a rebuild. The turn's wait is
counted in steps, with the fewest tokens of a prefill that a step ever takes.
"""

import asyncio
import math
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from core.choice import common_len
from core.clock import now_ns
from core.work import Work
from daemon.config import Config
from daemon.model import Model
from daemon.worlds.world import Npc
from engines.base import StepPlan, StepResult
from memory.hot import Session
from npcd.v1 import dialogue_pb2
from scheduler.ticket import Ticket
from tests.daemon.rig import Rig, running, until
from tests.patience import PATIENCE_S

CHUNK = 16
LINES = [f"Tell me about day number {n} at the mill." for n in range(10)]
END = dialogue_pb2.TALK_EVENT_KIND_END


@dataclass
class Watched:
    """A daemon whose engine's steps are recorded, and stop at a gate while it is closed."""

    rig: Rig
    steps: list[StepPlan] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    closes_at_rebuild: bool = False
    gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    gated: bool = False

    @property
    def session(self) -> Session:
        """npc0's with the player p1."""
        session, _ = self.rig.daemon.dialogue.hot.open(self.npc.key, "p1", 0, now_ns())
        return session

    @property
    def npc(self) -> Npc:
        """npc0."""
        return self.rig.daemon.worlds.npc("", "vale", "npc0")

    @property
    def turn(self) -> Work:
        """The work of the last turn."""
        return [work for work in self.works if work.max_tokens][-1]

    @property
    def own(self) -> int:
        """Tokens of world, archetype and persona."""
        return len(self.rig.trunk("npc0").tokens)

    @property
    def whole(self) -> int:
        """Tokens of its trunk towards p1."""
        return len(self.rig.trunk("npc0", self.session).tokens)

    @property
    def held(self) -> int:
        """The number of computed tokens of its trunk towards p1."""
        return self.rig.daemon.step_backend.scheduler.placer.homes.get(self.npc.trunk_key("p1")).held

    async def say(self, line: str) -> dialogue_pb2.TalkEvent:
        """The last event of a turn of npc0 and p1."""
        return (await self.rig.say("npc0", line, max_tokens=8, temperature=0.0, has_temperature=True))[-1]

    async def let_pass(self, steps: int) -> None:
        """Lets some steps through the gate, and waits until they have ended and the next one is there."""
        wanted = len(self.steps) + steps
        self.gate.release(steps)
        await until(lambda: len(self.steps) == wanted)

    def open(self) -> None:
        """Lets every step pass."""
        self.gated = False
        self.gate.release(1000)


@asynccontextmanager
async def watched(model: Model, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    """A daemon on the shipped model, whose steps have room for CHUNK tokens of prefill."""
    config = Config()
    planner = replace(config.scheduler.planner, step_ms=0.001, gold_step_ms=0.001, chunk_min=CHUNK)
    # Each step is one chunk.
    planner = replace(planner, few_tokens_x=1e6, first_text_share=1e6, read_ms=1e6, first_step_ms=0.0)
    config = replace(config, scheduler=replace(config.scheduler, planner=planner))
    async with running(model, config) as rig:
        w = Watched(rig)
        engine, door = model.engine, rig.daemon.door
        step, submit = engine.step, door.submit

        def stepped(plan: StepPlan) -> StepResult:
            if w.gated:
                assert w.gate.acquire(timeout=PATIENCE_S), "nobody opened the gate"
            result = step(plan)
            w.steps.append(plan)
            return result

        def submitted(work: Work, *more: object) -> Ticket:
            w.works.append(work)
            if w.closes_at_rebuild and not work.max_tokens:
                w.gated = True
            return submit(work, *more)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(engine, "step", stepped)
            patch.setattr(door, "submit", submitted)
            try:
                yield w
            finally:
                w.open()
                await door.all_ended()


async def test_the_persona_is_not_computed_again_when_a_conversation_is_cut(
    real: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rebuild computes only the part behind world, archetype and persona, once. The first turn after it computes
    only its tail.
    """
    async with watched(real, monkeypatch) as w:
        placer, own = w.rig.daemon.step_backend.scheduler.placer, w.own
        for line in LINES[:-1]:
            await w.say(line)
        await w.rig.daemon.door.all_ended()
        assert w.session.rebuilds == 0
        w.closes_at_rebuild = True
        await w.say(LINES[-1])
        assert w.session.rebuilds == 1
        before, was = placer.tokens.computed, placer.homes.get(w.npc.trunk_key("p1")).tokens
        w.open()
        await w.rig.daemon.door.all_ended()
        behind = w.whole - own
        assert behind > 100, "there is something to rebuild"
        anew = [work.trunk for work in w.works if not work.max_tokens][-1]
        kept = common_len(was, anew)
        assert own <= kept < own + 16, "the lines begin alike"
        assert placer.tokens.computed - before == own + behind - kept
        assert w.held == own + behind
        timings = (await w.say("And today?")).timings
        assert timings.cached_tokens == own + behind
        assert timings.prefilled_tokens == len(w.turn.tail)
        assert (timings.copied_tokens, timings.loaded_tokens) == (0, 0)


async def test_a_turn_that_comes_during_a_rebuild_waits_for_what_is_left_of_it_and_no_longer(
    real: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first token comes after the steps for the rest of the trunk and for its own tail, CHUNK tokens each."""
    async with watched(real, monkeypatch) as w:
        for line in LINES[:-1]:
            await w.say(line)
        await w.rig.daemon.door.all_ended()
        w.closes_at_rebuild = True
        await w.say(LINES[-1])
        own, whole = w.own, w.whole
        await w.let_pass(2)
        await until(lambda: own < w.held < whole, "the rebuild is under way")
        turn = asyncio.create_task(w.say("And today?"))
        await until(lambda: bool(w.works[-1].max_tokens), "the turn was submitted")
        done, seen = w.held, len(w.steps)
        w.closes_at_rebuild = False
        w.open()
        last = await turn
        assert last.kind == END and last.timings.output_tokens > 0
        picked = next(n for n, plan in enumerate(w.steps[seen:], 1) if any(s.pick for s in plan.slices))
        tail = len(w.turn.tail)
        # One more: the step at the gate was composed before the turn came.
        assert picked <= 1 + math.ceil((whole - done) / CHUNK) + math.ceil(tail / CHUNK)
        assert last.timings.cached_tokens >= done, "the tokens of the rebuild are used"
        assert last.timings.cached_tokens + last.timings.prefilled_tokens == whole + tail


async def test_others_do_not_wait_for_a_rebuild(real: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another NPC's first token comes after the steps for its tail, and then one in every step, though the rebuild is
    longer than both.
    """
    async with watched(real, monkeypatch) as w:
        for line in LINES[:-1]:
            await w.say(line)
        await w.rig.daemon.door.all_ended()
        w.closes_at_rebuild = True
        await w.say(LINES[-1])
        whole = w.whole
        await w.let_pass(1)
        seen = len(w.steps)
        line = "Tell me all you know."
        other = asyncio.create_task(w.rig.say("npc1", line, "p2", max_tokens=6, temperature=0.0, has_temperature=True))
        await until(lambda: w.works[-1].max_tokens == 6, "the other turn was submitted")
        turn = w.works[-1]
        w.closes_at_rebuild = False
        w.open()
        said = (await other)[-1].timings
        await w.rig.daemon.door.all_ended()
        spoken = [n for n, plan in enumerate(w.steps[seen:], 1) if any(s.pick for s in plan.slices)]
        # One more: the step at the gate was composed before the turn came.
        assert spoken[0] <= 1 + math.ceil(said.prefilled_tokens / CHUNK) <= 2 + math.ceil(len(turn.tail) / CHUNK)
        assert spoken == list(range(spoken[0], spoken[-1] + 1))
        assert len(spoken) >= said.output_tokens
        assert w.held == whole
