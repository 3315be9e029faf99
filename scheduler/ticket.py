"""Tickets: what submitting work returns. They live on the event loop's thread; chunks come out, cancel goes in.

The Door is the only way to the backends. It owns every open ticket and starts and stops the backends' threads.

Law: on_end is called exactly once per ticket, after every on_chunk, also when a backend stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from core.clock import MS, Clock
from core.errors import Draining, Overloaded
from core.words import Finish, NpcKey, Tier, TrunkKey
from core.work import Chunk, Ended, Timings, Work
from engines.backend import Backend, Delivery, Submitted, TrunkPlace
from scheduler.permits import Permits
from tiers.promises import Promises

STALLED_NS = 20 * MS  # a step of a small model takes a few milliseconds
STALLED_X = 2


def _nothing(_: object) -> None:
    """For a caller that only waits for the end."""


class Ticket:
    """One submitted work. `ended` is None until it is over."""

    __slots__ = (
        "_cancel",
        "backend",
        "cancelled",
        "ended",
        "id",
        "on_chunk",
        "on_end",
        "submitted_ns",
        "taken",
        "work",
    )

    def __init__(
        self,
        ticket_id: int,
        work: Work,
        backend: str,
        submitted_ns: int,
        on_chunk: Callable[[Chunk], None],
        on_end: Callable[[Ended], None],
        cancel: Callable[[Ticket], None],
    ) -> None:
        self.id = ticket_id
        self.work = work
        self.backend = backend
        self.submitted_ns = submitted_ns
        self.taken = False
        self.cancelled = False
        self.ended: Ended | None = None
        self.on_chunk = on_chunk
        self.on_end = on_end
        self._cancel = cancel

    def cancel(self) -> None:
        """Asks for the end; it comes as CANCELLED through on_end, unless the work ended first. Its permit is free."""
        if self.ended is None and not self.cancelled:
            self.cancelled = True
            self._cancel(self)


Group = Sequence[tuple[Work, Callable[[Ended], None], Callable[[Chunk], None]]]


class Door:
    """Counts permits, hands works to the backend that their route names, deals out what comes back.

    Owns every open ticket. A full queue answers here, at once, without waking anybody.
    """

    def __init__(self, backends: Mapping[str, Backend], promises: Promises, clock: Clock) -> None:
        assert backends, "a door leads somewhere"
        self.backends = backends
        self.permits = {name: Permits(promises) for name in backends}
        self.draining = False
        self._first = next(iter(backends))
        self._promises = promises
        self._clock = clock
        self._open: dict[int, Ticket] = {}
        self._next_id = 1
        self._one_ended = asyncio.Event()

    # -- life --------------------------------------------------------------------------------------------------

    def start(self, on_death: Callable[[BaseException], None]) -> None:
        """Starts the backends and deals out their chunks and ends on the running event loop. A backend that dies calls
        `on_death` on its thread.
        """
        loop = asyncio.get_running_loop()

        def pass_on(deliveries: Sequence[Delivery]) -> None:
            loop.call_soon_threadsafe(self.deliver, deliveries)

        for backend in self.backends.values():
            backend.start(pass_on, on_death)

    def stop(self, timeout_s: float, reason: str) -> bool:
        """Stops the backends and ends every open ticket as CANCELLED. Returns True if all of them stopped in time."""
        stopped = [backend.stop(timeout_s) for backend in self.backends.values()]
        self.end_all(reason)
        return all(stopped)

    # -- in ----------------------------------------------------------------------------------------------------

    def submit(
        self, work: Work, on_end: Callable[[Ended], None], on_chunk: Callable[[Chunk], None] = _nothing
    ) -> Ticket:
        """Submits one work. Raises Overloaded when its queue is full and Draining when the daemon is going away."""
        return self.submit_group([(work, on_end, on_chunk)])[0]

    def submit_group(self, group: Group) -> list[Ticket]:
        """Submits works that are due together, with one hand-over to each backend. All or none are taken in."""
        now_ns = self._clock()
        if self.draining:
            raise Draining("the daemon is draining and takes no new work")
        need: dict[tuple[str, Tier], int] = {}
        wanted = False
        for work, _, _ in group:
            where = work.backend or self._first, work.tier
            assert where[0] in self.backends, f"no backend is called '{work.backend}'; the settings were checked"
            need[where] = need.get(where, 0) + 1
            wanted = wanted or work.max_tokens > 0
        in_the_way: list[int] = []
        for (name, tier), count in need.items():
            permits = self.permits[name]
            gives_way = permits.gives_way(tier, count, wanted)
            if gives_way is None:
                permits.refused[tier] += count
                raise Overloaded(f"{tier.name.lower()} queue is full", permits.retry_ms(tier, now_ns))
            in_the_way += gives_way
        for ticket_id in in_the_way:
            self._open[ticket_id].cancel()
        tickets = [
            Ticket(ticket_id, work, work.backend or self._first, now_ns, on_chunk, on_end, self._cancel)
            for ticket_id, (work, on_end, on_chunk) in enumerate(group, self._next_id)
        ]
        for name in {name for name, _ in need}:
            self.backends[name].submit([Submitted(t.id, t.work, now_ns) for t in tickets if t.backend == name])
        self._next_id += len(tickets)
        for ticket in tickets:
            self._open[ticket.id] = ticket
            self.permits[ticket.backend].submitted(ticket.id, ticket.work, now_ns)
        return tickets

    def forget(self, key: TrunkKey) -> None:
        """Forgets a trunk's KV, with all adapters and forks; of a key with a fork only that: it is discarded."""
        for backend in self.backends.values():
            backend.forget(key)

    def commit(self, fork: TrunkKey) -> None:
        """Makes what a fork holds the trunk's own, after the works on it that were submitted before; the fork ends."""
        for backend in self.backends.values():
            backend.commit(fork)

    def coming_near(self, npc: NpcKey) -> None:
        """A hint: a work of this NPC is likely soon."""
        for backend in self.backends.values():
            backend.coming_near(npc)

    def moving_out(self, npc: NpcKey) -> None:
        """A hint: no work of this NPC is likely for a while."""
        for backend in self.backends.values():
            backend.moving_out(npc)

    async def obeyed(self) -> None:
        """Waits until the backends have done all that was asked before."""
        loop = asyncio.get_running_loop()
        answers = asyncio.Queue[None]()

        def pass_on() -> None:
            loop.call_soon_threadsafe(answers.put_nowait, None)

        for backend in self.backends.values():
            backend.obeyed(pass_on)
        for _ in self.backends:
            await answers.get()

    async def places(self, npcs: Sequence[NpcKey], within_s: float) -> list[TrunkPlace]:
        """Where the NPCs' trunks are, on all backends. Raises TimeoutError when one does not answer in time."""
        loop = asyncio.get_running_loop()
        answers = asyncio.Queue[list[TrunkPlace]]()

        def pass_on(name: str, places: list[TrunkPlace]) -> None:
            named = [place._replace(engine=name) for place in places]
            loop.call_soon_threadsafe(answers.put_nowait, named)

        for name, backend in self.backends.items():
            backend.places(npcs, partial(pass_on, name))
        async with asyncio.timeout(within_s):
            return [place for _ in self.backends for place in await answers.get()]

    # -- back --------------------------------------------------------------------------------------------------

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        """Deals out what one step made known; called on the event loop, once per step."""
        for ticket_id, what in deliveries:
            ticket = self._open.get(ticket_id)
            if ticket is None:
                continue
            if isinstance(what, Chunk):
                ticket.on_chunk(what)
            elif isinstance(what, Ended):
                self._end(ticket, what)
            elif not ticket.taken:
                ticket.taken = True
                self.permits[ticket.backend].taken(ticket_id, ticket.work.tier, self._clock())

    def end_all(self, reason: str) -> None:
        """Ends every open ticket as CANCELLED: nothing runs any more."""
        for ticket in list(self._open.values()):
            self._end(ticket, Ended(Finish.CANCELLED, Timings(submitted_ns=ticket.submitted_ns), reason))

    async def all_ended(self) -> None:
        """Waits until no ticket is open."""
        while self._open:
            self._one_ended.clear()
            await self._one_ended.wait()

    # -- how it stands -----------------------------------------------------------------------------------------

    @property
    def open(self) -> int:
        """Tickets that have not ended."""
        return len(self._open)

    def context_len(self, backend: str) -> int:
        """Tokens that one work on a backend may have."""
        return self.backends[backend].limits.context_len

    def waiting(self, tier: Tier) -> int:
        """Works of a tier that were submitted and not yet taken."""
        return sum(permits.waiting(tier) for permits in self.permits.values())

    def waiting_max(self, tier: Tier) -> int:
        """How many of them there may be."""
        return self._promises.of(tier).waiting_max * len(self.permits)

    def refused(self, tier: Tier) -> int:
        """Works of a tier that were refused here."""
        return sum(permits.refused[tier] for permits in self.permits.values())

    def oldest_ns(self, tier: Tier) -> int | None:
        """When the longest waiting work of a tier was submitted; None when none waits."""
        return min((ns for p in self.permits.values() if (ns := p.oldest_ns(tier)) is not None), default=None)

    def retry_ms(self, tier: Tier, now_ns: int, backend: str = "") -> int:
        """When a work that a backend's full queue refused should come again (empty: the daemon's own engine)."""
        return self.permits[backend or self._first].retry_ms(tier, now_ns)

    def is_full(self, tier: Tier) -> bool:
        """True when a queue of the tier is full."""
        return any(p.waiting(tier) >= self._promises.of(tier).waiting_max for p in self.permits.values())

    def stalled(self, backend: str, now_ns: int) -> bool:
        """True when a backend has work and does not come round. A large model's step may take long, so it counts only
        when it takes longer than it should.
        """
        stands = self.backends[backend].health.stalled(now_ns, STALLED_NS, STALLED_X)
        return stands and self.permits[backend].open > 0

    def _cancel(self, ticket: Ticket) -> None:
        self.permits[ticket.backend].cancelled(ticket.id, ticket.work.tier)
        self.backends[ticket.backend].cancel(ticket.id, self._clock())

    def _end(self, ticket: Ticket, ended: Ended) -> None:
        assert ticket.ended is None, f"ticket {ticket.id} ended twice"
        ticket.ended = ended
        del self._open[ticket.id]
        finished = ticket.taken or ended.finish in (Finish.STOP, Finish.LENGTH)
        self.permits[ticket.backend].ended(
            ticket.id, ticket.work.tier, ticket.taken, finished, ticket.cancelled, self._clock()
        )
        self._one_ended.set()
        on_end, ticket.on_end, ticket.on_chunk = ticket.on_end, _nothing, _nothing  # it may hold who holds it
        on_end(ended)
