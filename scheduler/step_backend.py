"""A step engine as a backend: npcd's own scheduler on an engine thread, behind the port.

Owns the engine thread. Each call becomes a command in its inbox, so calls take effect in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from core.clock import Clock, now_ns
from core.words import NpcKey, TrunkKey
from core.work import Work
from engines.backend import Delivery, Health, Limits, Snapshot, Submitted, TrunkPlace
from scheduler.loop import Cancel, Commit, EngineLoop, Fence, Forget, LoadAhead, MoveOut, Places
from scheduler.parking import Fetched, Store
from scheduler.scheduler import Scheduler


class StepBackend:
    """A scheduler as a Backend. While it runs, `scheduler` belongs to its thread: others look at the snapshot."""

    def __init__(self, scheduler: Scheduler, clock: Clock = now_ns) -> None:
        self.scheduler = scheduler
        self._clock = clock
        self._loop = EngineLoop(scheduler, clock)
        self._limits = Limits(scheduler.engine.geometry.context_len)

    @property
    def name(self) -> str:
        """The engine's."""
        return self.scheduler.engine.name

    @property
    def limits(self) -> Limits:
        """A sequence's length."""
        return self._limits

    @property
    def health(self) -> Health:
        """The state of the engine thread now."""
        return self._loop.health

    @property
    def snapshot(self) -> Snapshot:
        """The scheduler's state after its last step or its last commands."""
        return self._loop.snapshot

    @property
    def thread_id(self) -> int:
        """The engine thread's native id, for settings that the kernel keeps per thread. It must have been started."""
        return self._loop.thread_id

    def park_in(self, store: Store) -> None:
        """Gives KV that has no room in RAM a store beyond it, which answers to fetched(); before start()."""
        self.scheduler.placer.moves.parking.store = store

    def fetched(self, number: int, header: bytes, payload: bytes, fault: str = "") -> None:
        """Takes in what the store gave for a fetch."""
        self._loop.send([Fetched(self._clock(), number, header, payload, fault)])

    def start(self, deliver: Callable[[Sequence[Delivery]], None], on_death: Callable[[BaseException], None]) -> None:
        """Starts the engine thread."""
        self._loop.start(deliver, on_death)

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Ends the engine thread after the step that runs, and returns True if it ended in time."""
        return self._loop.stop(timeout_s)

    def submit(self, group: Sequence[Submitted]) -> None:
        """Hands works over, all at once. Raises AssertionError for one that does not fit into a sequence."""
        for one in group:
            self._check(one.work)
        self._loop.send(group)

    def cancel(self, ticket_id: int, at_ns: int) -> None:
        """Ends a work within the step that runs."""
        self._loop.send([Cancel(ticket_id)])

    def forget(self, key: TrunkKey) -> None:
        """Forgets a trunk's KV at once, or when the work on it ends."""
        self._loop.send([Forget(key)])

    def commit(self, fork: TrunkKey) -> None:
        """Makes what a fork holds the trunk's own. It saves computing, and decides nothing: a work's tokens are those
        that it brings, whatever was committed.
        """
        assert fork.fork, "only a fork is committed"
        self._loop.send([Commit(fork)])

    def coming_near(self, npc: NpcKey) -> None:
        """Begins to bring back what the NPC has in the store beyond RAM."""
        if npc in self._loop.snapshot.kv.away:
            self._loop.send([LoadAhead(npc)])

    def moving_out(self, npc: NpcKey) -> None:
        """Moves the NPC's trunks out of their sequences where those are short."""
        if self._loop.snapshot.kv.crowded:
            self._loop.send([MoveOut(npc)])

    def expect(self, due_ns: int | None) -> None:
        """Lets an idle engine's window wait for works that are due within a moment."""
        self._loop.next_due_ns = due_ns

    def places(self, npcs: Sequence[NpcKey], answer: Callable[[list[TrunkPlace]], None]) -> None:
        """Answers between two steps."""
        self._loop.send([Places(npcs, answer)])

    def obeyed(self, passed: Callable[[], None]) -> None:
        """Calls `passed` between two steps."""
        self._loop.send([Fence(passed)])

    def _check(self, work: Work) -> None:
        room = self._limits.context_len - len(work.trunk) - len(work.tail) - work.max_tokens
        assert room >= 0, f"trunk, tail and output exceed the context by {-room} tokens; the prompt must be cut first"
        assert bool(work.max_tokens) == bool(len(work.tail)), "a work has a tail and output, or neither"
        same = work.key.adapter == work.adapter
        assert same or not (work.key.adapter or work.keep), "an activated adapter's trunk is the base model's"
