"""The engine thread takes commands from any thread, delivers once per step, and reports its own death."""

import queue
import threading

import numpy as np

from core.clock import MS, now_ns
from core.words import Finish, Tier, TrunkKey
from core.work import Ended, Work
from engines.backend import Delivery, Submitted
from engines.base import StepPlan, StepResult
from engines.sim import SimEngine
from scheduler.loop import Cancel, EngineLoop
from tests.patience import PATIENCE_S
from tests.scheduler.simulated import Sim, npc, words


def work(n: int) -> Work:
    """A short Silver work."""
    return Work(Tier.SILVER, TrunkKey(npc(n), "p"), words(1, 2, n), words(3), 5)


def test_works_from_many_threads_all_end() -> None:
    """While four threads submit and cancel, every ticket ends once."""
    sim = Sim()
    out: queue.Queue[list[Delivery]] = queue.Queue()
    died: list[BaseException] = []
    loop = EngineLoop(sim.scheduler)
    loop.start(out.put, died.append)

    def submit(first: int) -> None:
        for n in range(first, first + 15):
            loop.send([Submitted(n, work(n), now_ns())])
            if n % 5 == 0:
                loop.send([Cancel(n)])

    threads = [threading.Thread(target=submit, args=(100 * t,)) for t in range(1, 5)]
    for t in threads:
        t.start()
    ended: dict[int, Finish] = {}
    while len(ended) < 60:
        for ticket, what in out.get(timeout=PATIENCE_S):
            if isinstance(what, Ended):
                assert ticket not in ended
                ended[ticket] = what.finish
    for t in threads:
        t.join()
    assert loop.stop(PATIENCE_S)
    assert not died
    assert set(ended.values()) <= {Finish.LENGTH, Finish.CANCELLED}
    assert sim.scheduler.idle


def test_an_idle_loop_stops_at_once_and_a_dead_one_is_heard_of() -> None:
    """A bug in a step ends the thread and calls on_death. The thread does not go on."""
    sim = Sim()
    loop = EngineLoop(sim.scheduler)
    loop.start(lambda _: None, lambda _: None)
    assert loop.stop(PATIENCE_S)

    class Broken(SimEngine):
        def step(self, plan: StepPlan) -> StepResult:
            raise AssertionError("a bug")

    sim = Sim()
    sim.engine.__class__ = Broken
    heard = threading.Event()
    hook, threading.excepthook = threading.excepthook, lambda _: None
    try:
        loop = EngineLoop(sim.scheduler)
        loop.start(lambda _: None, lambda _: heard.set())
        loop.send([Submitted(1, work(1), now_ns())])
        assert heard.wait(PATIENCE_S)
        assert loop.stop(PATIENCE_S)
    finally:
        threading.excepthook = hook


def test_the_window_waits_for_the_next_due_and_no_longer() -> None:
    """While the next work is due within gather_ms, an idle engine waits for it. When that work does not come, the
    engine goes on."""
    sim = Sim()
    gather_ns = round(sim.scheduler.settings.window.gather_ms * MS)
    sim.clock.advance(1)
    sim.submit(work(1))
    next_due_ns = sim.clock() + gather_ns
    planned = sim.scheduler.plan(sim.clock(), next_due_ns)
    assert planned.step is None
    assert planned.wake_ns == next_due_ns + gather_ns
    sim.clock.advance(2 * gather_ns)
    planned = sim.scheduler.plan(sim.clock(), next_due_ns)
    assert planned.step is not None
    assert np.all(planned.step.slices[0].tokens == words(1, 2, 1))
