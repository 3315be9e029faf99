"""The engine thread: receive, decide, run, deliver.

Owns the scheduler and, through it, the engine; nobody else touches either while it runs. The event loop hands
commands in and gets one call back per step.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from core.clock import Clock, S, now_ns
from core.errors import EngineFailed
from core.words import TrunkKey
from engines.backend import Delivery, Health
from scheduler.parking import Fetched
from scheduler.scheduler import Scheduler
from scheduler.ticket import Command, Commit, Fence, LoadAhead, MoveOut

REBUILD_NS = 2 * S  # a new context for a large model's KV


class EngineLoop:
    """Runs a scheduler on a thread of its own.

    `deliver` is called on the engine thread once per step and must only pass the list on (call_soon_threadsafe).
    `on_death` is called there when the thread ends by an error; the process should then end, a bug is not survived.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        deliver: Callable[[list[Delivery]], None],
        on_death: Callable[[BaseException], None],
        clock: Clock = now_ns,
    ) -> None:
        self._scheduler = scheduler
        self._deliver = deliver
        self._on_death = on_death
        self._clock = clock
        self._inbox: deque[Command] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        # Written by the event loop, read here: when the next intents will be due. A plain int, torn reads are
        # impossible.
        self.next_due_ns: int | None = None
        self.health = Health()  # a new value each time; any thread may read it
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def thread_id(self) -> int:
        """The thread's native id, for settings that the kernel keeps per thread. It must have been started."""
        assert self._thread.native_id is not None, "not started"
        return self._thread.native_id

    def send(self, commands: Sequence[Command]) -> None:
        """Hands commands over; wakes the thread. From any thread."""
        with self._wake:
            self._inbox.extend(commands)
            self._wake.notify()

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Ends the thread after the step that runs; whether it ended in time. What waits stays undone."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self._on_death(error)
            raise

    def _run(self) -> None:
        scheduler, clock = self._scheduler, self._clock
        wake_ns: int | None = None
        busy = False
        while True:
            commands = self._receive(busy, wake_ns)
            if commands is None:
                return
            now = clock()
            self.health = Health(now, self.health.expected_ns)
            for command in commands:
                self._obey(command, now)
            planned = scheduler.plan(now, self.next_due_ns)
            busy, wake_ns = planned.step is not None, planned.wake_ns
            if planned.step is not None:
                self.health = Health(now, round(scheduler.costs.predict_ns(planned.features)))
                began = clock()
                try:
                    result = scheduler.engine.step(planned.step)
                except EngineFailed as error:
                    self.health = Health(now, REBUILD_NS)
                    scheduler.failed(planned, str(error), clock())
                else:
                    ended = clock()
                    scheduler.apply(planned, result, ended - began, ended)
            deliveries = scheduler.take_deliveries()
            if deliveries:
                self._deliver(deliveries)

    def _receive(self, busy: bool, wake_ns: int | None) -> list[Command] | None:
        """What came in; waits for it unless the engine has something to do. None: stop."""
        if busy and not self._inbox and not self._stopping:
            return []
        with self._wake:
            while not busy and not self._inbox and not self._stopping:
                left_ns = S if wake_ns is None else wake_ns - self._clock()
                if left_ns <= 0:
                    break
                if not self._wake.wait(left_ns / S) and wake_ns is None:
                    self.health = Health(self._clock(), self.health.expected_ns)
            if self._stopping:
                return None
            commands = list(self._inbox)
            self._inbox.clear()
            return commands

    def _obey(self, command: Command, now: int) -> None:
        if isinstance(command, TrunkKey):
            self._scheduler.forget(command)
            return
        if isinstance(command, Commit):
            self._scheduler.commit(command.fork)
            return
        if isinstance(command, LoadAhead):
            self._scheduler.load_ahead(command.npc, now)
            return
        if isinstance(command, MoveOut):
            self._scheduler.move_out(command.npc)
            return
        if isinstance(command, Fetched):
            self._scheduler.arrived(command)
            return
        if isinstance(command, Fence):
            command.passed()
            return
        ticket_id, work, at_ns = command
        if work is None:
            self._scheduler.cancel(ticket_id, now)
        else:
            self._scheduler.submit(ticket_id, work, at_ns)  # what it waited in the inbox is part of its wait
