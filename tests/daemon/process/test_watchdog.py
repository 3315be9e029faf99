"""An engine that hangs is found. An engine that is slow is no hang, and neither is a machine that slept."""

from __future__ import annotations

import asyncio
import threading

from core.clock import MS, S
from daemon.process.watchdog import Hang, watch
from engines.backend import Submitted
from engines.base import StepPlan, StepResult
from engines.sim import SimEngine
from scheduler.loop import EngineLoop
from tests.patience import PATIENCE_S
from tests.scheduler.simulated import Sim
from tests.scheduler.test_loop import work

EVERY = 100 * MS


def looks(hang: Hang, count: int, beat_ns: int, expected_ns: int = 0, begin_ns: int = 0) -> list[bool]:
    """The results of looks at a beat that stands still."""
    return [hang.look(begin_ns + n * EVERY, beat_ns, expected_ns) for n in range(count)]


def test_a_beat_that_stands_still_for_two_seconds_is_a_hang() -> None:
    """It is found after two seconds, and not before."""
    assert looks(Hang(2 * S, EVERY), 22, beat_ns=5) == [False] * 21 + [True]


def test_a_beat_that_moves_is_none() -> None:
    """That holds for any slow beat."""
    hang = Hang(2 * S, EVERY)
    assert not any(hang.look(n * EVERY, n // 15, 0) for n in range(1000))


def test_a_step_that_should_take_long_may() -> None:
    """For a large model on a small machine half a second a step is normal, and 20 times that is not."""
    answers = looks(Hang(2 * S, EVERY), 120, beat_ns=5, expected_ns=S // 2)
    assert answers.index(True) == 101


def test_a_machine_that_slept_has_not_hung() -> None:
    """A gap between two looks counts as two at most."""
    hang = Hang(2 * S, EVERY)
    assert not any(looks(hang, 5, beat_ns=5))
    assert not any(looks(hang, 5, beat_ns=5, begin_ns=3600 * S))


async def test_the_engine_thread_is_watched() -> None:
    """A step that does not return is reported with its duration. An idle thread beats by itself."""
    gate, inside = threading.Event(), threading.Event()

    class Stuck(SimEngine):
        def step(self, plan: StepPlan) -> StepResult:
            inside.set()
            assert gate.wait(PATIENCE_S)
            return super().step(plan)

    sim = Sim()
    sim.engine.__class__ = Stuck
    loop = EngineLoop(sim.scheduler)
    loop.start(lambda _: None, lambda _: None)
    told: asyncio.Queue[float] = asyncio.Queue()
    times = iter(range(0, 10_000 * S, S // 5))
    watching = asyncio.create_task(watch(lambda: loop.health, 0.5, told.put_nowait, lambda: next(times)))
    loop.send([Submitted(1, work(1), 0)])
    assert await asyncio.to_thread(inside.wait, PATIENCE_S)
    async with asyncio.timeout(PATIENCE_S):
        assert 0.5 < await told.get() < 1.0
    watching.cancel()
    gate.set()
    assert loop.stop(PATIENCE_S)
