"""The engine thread: receive, decide, run, deliver.

Owns the scheduler and, through it, the engine; nobody else touches either while it runs. Others hand commands in, get
one call back per step, and see health and snapshot.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from core.clock import Clock, S, now_ns
from core.errors import EngineFailed
from core.words import NpcKey, TrunkKey
from engines.backend import Delivery, Health, Snapshot, Submitted, TrunkPlace
from scheduler.parking import Fetched
from scheduler.scheduler import Scheduler
from scheduler.snapshots import Snapshots

REBUILD_NS = 2 * S  # a new context for a large model's KV


class Cancel(NamedTuple):
    """Ends a work."""

    ticket_id: int


class Forget(NamedTuple):
    """Forgets a trunk's KV."""

    key: TrunkKey


class Commit(NamedTuple):
    """Makes a fork's KV its origin's."""

    fork: TrunkKey


class LoadAhead(NamedTuple):
    """Begins to bring back what an NPC has in the store beyond RAM."""

    npc: NpcKey


class MoveOut(NamedTuple):
    """Moves an NPC's trunks out of their sequences."""

    npc: NpcKey


class Places(NamedTuple):
    """Calls `answer` on the engine thread with where the NPCs' trunks are."""

    npcs: Sequence[NpcKey]
    answer: Callable[[list[TrunkPlace]], None]


class Fence(NamedTuple):
    """Calls `passed` on the engine thread when all commands before it have been obeyed."""

    passed: Callable[[], None]


Command = Submitted | Cancel | Forget | Commit | LoadAhead | MoveOut | Fetched | Places | Fence


class EngineLoop:
    """Runs a scheduler on a thread of its own. `health` and `snapshot` are new values each time; any thread may read
    them.
    """

    def __init__(self, scheduler: Scheduler, clock: Clock = now_ns) -> None:
        self.health = Health()
        self._scheduler = scheduler
        self._snapshots = Snapshots(scheduler)
        self.snapshot: Snapshot = self._snapshots.take(clock())
        self._deliver: Callable[[list[Delivery]], None]
        self._on_death: Callable[[BaseException], None]
        self._clock = clock
        self._inbox: deque[Command] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        # Written by the event loop, read here: when the next intents will be due. A plain int, torn reads are
        # impossible.
        self.next_due_ns: int | None = None
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self, deliver: Callable[[list[Delivery]], None], on_death: Callable[[BaseException], None]) -> None:
        """Starts the thread.

        `deliver` is called on it once per step and must only pass the list on (call_soon_threadsafe). `on_death` is
        called on it when it ends by an error; the process should then end, a bug is not survived.
        """
        self._deliver, self._on_death = deliver, on_death
        self.health = Health(self._clock(), 0, ready=True)
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
        """Ends the thread after the step that runs, and returns True if it ended in time. Waiting works stay undone."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.health = self.health._replace(ready=False)
            self._on_death(error)
            raise
        self.health = self.health._replace(ready=False)

    def _run(self) -> None:
        scheduler, clock = self._scheduler, self._clock
        wake_ns: int | None = None
        busy = False
        while True:
            commands = self._receive(busy, wake_ns)
            if commands is None:
                return
            now = clock()
            self.health = Health(now, self.health.expected_ns, True)
            for command in commands:
                self._obey(command, now)
            planned = scheduler.plan(now, self.next_due_ns)
            busy, wake_ns = planned.step is not None, planned.wake_ns
            if planned.step is not None:
                self.health = Health(now, round(scheduler.costs.predict_ns(planned.features)), True)
                began = clock()
                try:
                    result = scheduler.engine.step(planned.step)
                except EngineFailed as error:
                    self.health = Health(now, REBUILD_NS, True)
                    scheduler.failed(planned, str(error), clock())
                else:
                    ended = clock()
                    scheduler.apply(planned, result, ended - began, ended)
            if busy or commands:
                self.snapshot = self._snapshots.take(now, anew=bool(commands))
            deliveries = scheduler.take_deliveries()
            if deliveries:
                self._deliver(deliveries)

    def _receive(self, busy: bool, wake_ns: int | None) -> list[Command] | None:
        """The commands that came in. Waits for one unless the engine has something to do. None: stop."""
        if busy and not self._inbox and not self._stopping:
            return []
        with self._wake:
            while not busy and not self._inbox and not self._stopping:
                left_ns = S if wake_ns is None else wake_ns - self._clock()
                if left_ns <= 0:
                    break
                if not self._wake.wait(left_ns / S) and wake_ns is None:
                    self.health = Health(self._clock(), self.health.expected_ns, True)
            if self._stopping:
                return None
            commands = list(self._inbox)
            self._inbox.clear()
            return commands

    def _obey(self, command: Command, now: int) -> None:
        scheduler = self._scheduler
        match command:
            case Submitted(ticket_id, work, at_ns):
                scheduler.submit(ticket_id, work, at_ns)  # the time in the inbox is part of its wait
            case Cancel(ticket_id):
                scheduler.cancel(ticket_id, now)
            case Forget(key):
                scheduler.forget(key)
            case Commit(fork):
                scheduler.commit(fork)
            case LoadAhead(npc):
                scheduler.load_ahead(npc, now)
            case MoveOut(npc):
                scheduler.move_out(npc)
            case Fetched():
                scheduler.arrived(command)
            case Places(npcs, answer):
                answer(self._snapshots.places(npcs))
            case Fence(passed):
                passed()
