"""The Live stream of one world: observations out, intents in, for a frame loop that never waits.

Ownership: any thread calls observe(), latest(), activation() and tell_time(), which touch a deque, dicts, a tuple. All
else belongs to the client's event loop: one task keeps the stream up, one inside it writes. Cancelling that task closes
the stream; the table keeps its last intents, and unsent observations are dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import operator
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, TypeVar

import grpc

from npcd_client import wire
from npcd_client.errors import CallerError, NpcdError, TooLate, daemon_epoch
from npcd_client.perception import Activation, GameClock, Intent, Observation
from npcd_client.table import IntentTable
from npcd_client.v1 import intents_pb2

OBSERVATIONS_PER_FRAME_MAX = 1000  # the contract's limit

_INVALID = "INVALID_ARGUMENT"
_Waiting = tuple[Observation, int, int]  # observation, time of observe(), and the NPC's lease then

LiveCall = grpc.aio.StreamStreamCall[intents_pb2.ObservationFrame, intents_pb2.IntentFrame]


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """Bounds and paces of one Live stream.

    `flush_ms`: observations gather this long into one frame. After `idle_ms` without any the loop sleeps, and the next
    one wakes it; in a game that observes steadily no frame pays for a wake.
    """

    flush_ms: float = 2.0
    idle_ms: float = 250.0
    inbox_max: int = 16_384  # observations that the loop has not read yet; above it the oldest are dropped
    problems_max: int = 256  # newest problems that stay readable
    backoff_min_ms: float = 50.0
    backoff_max_ms: float = 2_000.0


LIVE_DEFAULTS = LiveSettings()


@dataclass(frozen=True, slots=True)
class LiveProblem:
    """A problem of one NPC's observation, or (empty `npc_id`) of the stream itself."""

    npc_id: str
    code: str
    field: str
    message: str
    lease_epoch: int = 0


@dataclass(slots=True)
class LiveCounters:
    """Counts of one Live stream, with all its reconnects. The client's loop writes them."""

    connects: int = 0
    frames_sent: int = 0
    frames_received: int = 0
    observations_sent: int = 0
    observations_coalesced: int = 0  # superseded by a newer one of the same NPC before they were sent
    observations_overrun: int = 0  # dropped from a full inbox
    observations_outdated: int = 0  # their lease ended before they were sent
    observations_dropped: int = 0  # by the daemon, because it had a newer tick (this stream)
    intents_received: int = 0
    confirmations_received: int = 0
    problems: int = 0
    sequence: int = 0  # of the newest frame received on this stream
    last_frame: int = 0  # the newest of our frames that the daemon has taken


_Value = TypeVar("_Value")


class Live:
    """One world's stream. Made by Client.live(); use it in `async with`. Reconnects by itself until it is closed."""

    def __init__(
        self,
        world_id: str,
        open_call: Callable[[], LiveCall],
        lease_epochs: Mapping[str, int],
        announce: Callable[[int], Awaitable[None]],
        settings: LiveSettings,
        on_intent: Callable[[Intent], None] | None,
        on_problem: Callable[[LiveProblem], None] | None,
        known_by: Callable[[], int] = lambda: 0,
        world_number: Callable[[], int] = lambda: 0,
        on_deleted: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.world_id = world_id
        self.clock = GameClock()
        self.counters = LiveCounters()
        self.problems: deque[LiveProblem] = deque(maxlen=settings.problems_max)
        self.daemon_epoch = 0
        self._open_call = open_call
        self._lease_epochs = lease_epochs
        self._announce = announce
        self._settings = settings
        self._on_intent = on_intent
        self._on_problem = on_problem
        self._known_by = known_by
        self._world_number = world_number
        self._on_deleted = on_deleted
        self._number = 0  # of the present stream's world: a world that is defined anew has another number
        self._was_with = 0  # the epoch of the last daemon that had this world
        self._table = IntentTable(self.clock)
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[_Waiting] = deque(maxlen=settings.inbox_max)
        self._woken = False  # Invariant: while it is True a flush is scheduled, and will read all of the inbox
        self._newest: dict[str, _Waiting] = {}
        self._unsent = asyncio.Event()
        self._connected = asyncio.Event()
        self._frame = 0
        self._flush: asyncio.TimerHandle | None = None
        self._idle_ms = 0.0
        self._task: asyncio.Task[None] | None = None
        self._announcing: asyncio.Task[None] | None = None
        self._closed = False

    # -- for frame loops: any thread, no lock, no wait ---------------------------------------------------------

    def observe(self, observation: Observation) -> None:
        """Sends an NPC's new observation. Any thread. It costs an append, and after a pause a wake of the client's
        loop.

        Raises CallerError for an `npc_id` or a `tick` of another type. Any other faulty field becomes a LiveProblem of
        this NPC, and the stream goes on.
        """
        if (
            type(observation) is not Observation
            or type(observation.npc_id) is not str
            or type(observation.tick) is not int
        ):
            observation = _told_apart(observation)
        inbox = self._inbox
        if len(inbox) == inbox.maxlen:
            self.counters.observations_overrun += 1
        inbox.append((observation, time.monotonic_ns(), self._lease_epochs.get(observation.npc_id, 0)))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._schedule_flush)

    def latest(self, npc_id: str) -> Intent | None:
        """The newest intent of an NPC, at once; None before the first one. Any thread."""
        return self._table.rows.get(npc_id)

    def activation(self, npc_id: str) -> Activation:
        """The attention that npcd gives an NPC now; AMBIENT also for an NPC that it has not reported. Any thread.

        For an ambient NPC the rule policy gives the intents, so a game may observe it less often.
        """
        return self._table.activations.get(npc_id, Activation.AMBIENT)

    def tell_time(self, game_time_ms: float, time_scale: float = 1.0, paused: bool = False) -> None:
        """Reports game time, by which intents expire. Until the first report it runs with wall time from 0. Any
        thread."""
        self.clock.tell(game_time_ms, time_scale, paused)

    @property
    def connected(self) -> bool:
        """True when the stream is up and its snapshot has arrived. Any thread."""
        return self._connected.is_set()

    @property
    def intents_stale(self) -> int:
        """Intents that were ignored because a newer version was here already."""
        return self._table.stale

    # -- life --------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._task = self._loop.create_task(self._keep_up(), name=f"npcd-live-{self.world_id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the stream and waits until it is gone. The last intents stay readable; observe() then does nothing."""
        self._closed = True
        self._woken = True  # no call may wake a loop that may be gone; the inbox keeps its bound
        if self._flush:
            self._flush.cancel()
        for task in (self._task, self._announcing):
            if task:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def wait_connected(self, timeout_s: float) -> None:
        """Returns when the first snapshot has arrived; raises TooLate."""
        try:
            await asyncio.wait_for(self._connected.wait(), timeout_s)
        except TimeoutError:
            last = f": {self.problems[-1].message}" if self.problems else ""
            raise TooLate(f"no snapshot of world {self.world_id} within {timeout_s:g} s{last}") from None

    # -- the client's loop -------------------------------------------------------------------------------------

    def _schedule_flush(self) -> None:
        if self._flush is None and not self._closed:
            self._idle_ms = 0.0
            self._flush = self._loop.call_later(self._settings.flush_ms / 1000, self._take_in)

    def _take_in(self) -> None:
        """Moves the inbox into `_newest`, one observation per NPC, wakes the writer, and schedules its next run."""
        self._flush = None
        if self._inbox:
            self._idle_ms = 0.0
            self._gather()
        else:
            self._idle_ms += self._settings.flush_ms
        if self._idle_ms >= self._settings.idle_ms:
            # First allow a wake, then read: an observation between the two is read now, or wakes the loop.
            self._woken = self._closed
            if not self._inbox:
                return
            self._woken = True
        if not self._closed:
            self._flush = self._loop.call_later(self._settings.flush_ms / 1000, self._take_in)

    def _gather(self) -> None:
        inbox, newest, counters = self._inbox, self._newest, self.counters
        while inbox:
            waiting = inbox.popleft()
            observation, _, lease_epoch = waiting
            held = newest.get(observation.npc_id)
            if held is not None:
                counters.observations_coalesced += 1
                # Ticks start anew with a lease: of two leases the later observation is the newer one.
                if held[2] == lease_epoch and held[0].tick > observation.tick:
                    continue
            newest[observation.npc_id] = waiting
        self._unsent.set()

    async def _keep_up(self) -> None:
        backoff_ms = self._settings.backoff_min_ms
        while True:
            frames_before = self.counters.frames_received
            try:
                await self._stream()
                self._problem(LiveProblem("", "ENDED", "", "the daemon ended the stream"))
            except grpc.aio.AioRpcError as error:
                self._problem(LiveProblem("", error.code().name, "", error.details() or error.code().name))
                if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
                    await self._not_found(daemon_epoch(error))
            except Exception as error:
                # This is a bug of ours. The game gets it as a problem, and its other NPCs go on over a new connection.
                if self._closed:
                    return  # close() waits for this task
                self._problem(LiveProblem("", "CLIENT_FAILED", "", f"{type(error).__name__}: {error}"))
                self._loop.call_exception_handler({"message": "npcd_client: the stream failed", "exception": error})
            self._connected.clear()
            if self.counters.frames_received > frames_before:
                backoff_ms = self._settings.backoff_min_ms
            # Spread out, so that many game servers do not reconnect in one moment.
            await asyncio.sleep(backoff_ms * random.uniform(0.5, 1.0) / 1000)
            backoff_ms = min(backoff_ms * 2, self._settings.backoff_max_ms)

    async def _not_found(self, daemon_epoch: int) -> None:
        """The daemon does not know our world: it was deleted while we were away, or this daemon never had it."""
        if self._number != self._world_number():
            return  # it was defined meanwhile
        if daemon_epoch and daemon_epoch in (self._was_with, self._known_by()):
            self._deleted()
        else:
            await self._announce_again(daemon_epoch)

    def _deleted(self) -> None:
        # The stream comes back by itself when a client defines the world anew.
        self._was_with = 0
        self._on_deleted(self._number)
        self._problem(LiveProblem("", "WORLD_DELETED", "world_id", f"world '{self.world_id}' was deleted"))

    async def _stream(self) -> None:
        """One connection, from the hello to its end. Raises AioRpcError when the daemon or the network ends it."""
        self._number = self._world_number()
        call = self._open_call()
        self.counters.connects += 1
        writer = self._loop.create_task(self._write(call))
        # A writer that fails for a reason of its own ends the stream too, and `await writer` below raises the reason.
        writer.add_done_callback(lambda _: call.cancel())
        try:
            async for frame in call:
                self._take_frame(frame)
        finally:
            call.cancel()
            writer.cancel()
            # The writer's error is the end that the reader met, too.
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await writer

    async def _write(self, call: LiveCall) -> None:
        await call.write(self._frame_of([]))  # names the world; the daemon answers with the snapshot
        self._unsent.set()
        while True:
            await self._unsent.wait()
            self._unsent.clear()
            while self._newest:
                # Taken as late as possible: an observation that waited for the last write is superseded by a newer one.
                taken = list(self._newest.values())[:OBSERVATIONS_PER_FRAME_MAX]
                for observation, _, _ in taken:
                    del self._newest[observation.npc_id]
                # Under a new lease the tick of an older observation would hide the ticks that start anew.
                present = [w for w in taken if w[2] in (0, self._lease_epochs.get(w[0].npc_id, 0))]
                # Counted as they are handed to gRPC: the daemon may have them before the write comes back.
                self.counters.observations_outdated += len(taken) - len(present)
                self.counters.observations_sent += len(present)
                if present:
                    self.counters.frames_sent += 1
                    await call.write(self._frame_of(present))

    def _frame_of(self, taken: list[_Waiting]) -> intents_pb2.ObservationFrame:
        self._frame += 1
        observations = []
        for observation, at_ns, _ in taken:
            npc_id = observation.npc_id
            lease_epoch = self._lease_epochs.get(npc_id, 0)
            try:
                message = wire.observation(observation, lease_epoch)
                self._table.sent(npc_id, observation.tick, at_ns, lease_epoch)
            except Exception as error:
                # An observation that cannot be sent does not stop those of the other NPCs.
                field, why = wire.fault(observation)
                said = f"cannot be sent: {field}: {why}" if field else f"cannot be sent: {wire.reason(error)}"
                self._problem(LiveProblem(npc_id, "INVALID_FIELD", field, said))
                continue
            observations.append(message)
        return intents_pb2.ObservationFrame(
            world_id=self.world_id,
            frame=self._frame,
            game_time_ms=self.clock.whole_ms(),
            time_scale=self.clock.time_scale,
            paused=self.clock.paused,
            observations=observations,
        )

    def _take_frame(self, frame: intents_pb2.IntentFrame) -> None:
        counters = self.counters
        counters.frames_received += 1
        counters.intents_received += len(frame.intents)
        counters.confirmations_received += len(frame.confirmed)
        counters.observations_dropped = frame.observations_dropped
        counters.sequence, counters.last_frame = frame.sequence, frame.last_frame
        self.daemon_epoch = self._was_with = frame.daemon_epoch
        fresh = self._table.apply(frame, time.monotonic_ns())
        if frame.snapshot:
            self._connected.set()
        if frame.world_deleted:
            self._deleted()
        if self._on_intent:
            for intent in fresh:
                self._tell(self._on_intent, intent)
        for error in frame.errors:
            self._problem(LiveProblem(error.npc_id, error.code, error.field, error.message, error.lease_epoch))
            if error.code == "UNKNOWN_NPC" and error.npc_id in self._lease_epochs and self._announcing is None:
                # We registered with a daemon that is gone, so register with this one.
                self._announcing = self._loop.create_task(self._announce_again(frame.daemon_epoch))

    async def _announce_again(self, daemon_epoch: int) -> None:
        try:
            await self._announce(daemon_epoch)
            # The game knows nothing of these new leases, so its ticks go on, and waiting observations belong to them.
            self._gather()
            for npc_id, (observation, at_ns, _) in self._newest.items():
                self._newest[npc_id] = (observation, at_ns, self._lease_epochs.get(npc_id, 0))
        except NpcdError as error:
            self._problem(LiveProblem("", error.code, "", f"could not register again: {error}"))
        finally:
            self._announcing = None

    def _problem(self, problem: LiveProblem) -> None:
        self.counters.problems += 1
        self.problems.append(problem)
        if self._on_problem:
            self._tell(self._on_problem, problem)

    def _tell(self, listener: Callable[[_Value], None], value: _Value) -> None:
        # A game's bug in a listener must not end the stream; asyncio's own hook reports it.
        try:
            listener(value)
        except Exception as error:
            self._loop.call_exception_handler({"message": "npcd_client: a listener failed", "exception": error})


def _told_apart(observation: Observation) -> Observation:
    """The observation with a plain int for its tick. Raises CallerError when npc_id and tick cannot be compared."""
    if not isinstance(observation, Observation):
        raise CallerError(f"observation: is of type {type(observation).__name__}, must be an Observation", _INVALID)
    if not isinstance(observation.npc_id, str):
        raise CallerError(f"npc_id: is of type {type(observation.npc_id).__name__}, must be a text", _INVALID)
    try:
        return replace(observation, tick=operator.index(observation.tick))
    except TypeError:
        said = f"tick: is of type {type(observation.tick).__name__}, must be a whole number"
        raise CallerError(said, _INVALID) from None
