"""Tickets: what submitting work returns. They live on the event loop's thread; chunks come out, cancel goes in.

Law: on_end is called exactly once per ticket, after every on_chunk, also when the loop stops.
Law: a permit is held by a work that waits and is not cancelled. Commands are obeyed in their order, so a cancelled work
has left its queue before a later one comes to it, and the permit is free at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from core.clock import MS, Clock
from core.errors import Draining, Overloaded
from core.words import Finish, NpcKey, Tier, TrunkKey
from core.work import Chunk, Ended, Timings, Work
from engines.backend import Delivery, Taken
from scheduler.drain import Drain
from scheduler.parking import Fetched
from tiers.promises import RETRY_MAX_NS, Promises

LEAVING_MAX = 16_384  # cancelled works that the engine thread has not answered yet; they hold memory and no permit


def _nothing(_: object) -> None:
    """For whoever only waits for the end."""


class Ticket:
    """One submitted work. `ended` is None until it is over."""

    __slots__ = ("_cancel", "cancelled", "ended", "id", "on_chunk", "on_end", "submitted_ns", "taken", "waits", "work")

    def __init__(
        self,
        ticket_id: int,
        work: Work,
        submitted_ns: int,
        on_chunk: Callable[[Chunk], None],
        on_end: Callable[[Ended], None],
        cancel: Callable[[Ticket], None],
    ) -> None:
        self.id = ticket_id
        self.work = work
        self.submitted_ns = submitted_ns
        self.waits = True  # holds a permit
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


class LoadAhead(NamedTuple):
    """Begins to bring back what an NPC has in the store beyond RAM."""

    npc: NpcKey


class MoveOut(NamedTuple):
    """Moves an NPC's trunks out of their sequences."""

    npc: NpcKey


class Fence(NamedTuple):
    """Calls `passed` on the engine thread when all commands before it have been obeyed."""

    passed: Callable[[], None]


class Commit(NamedTuple):
    """Makes a fork's KV its origin's."""

    fork: TrunkKey


# (id, work, when): submit; (id, None, when): cancel; a key: forget its trunk
Command = tuple[int, Work | None, int] | TrunkKey | Commit | LoadAhead | MoveOut | Fetched | Fence


class Door:
    """The only way to the scheduler: counts permits, hands commands to the engine thread, deals out what comes back.

    Owns every open ticket. A full queue answers here, at once, without waking anybody.
    """

    def __init__(
        self, send: Callable[[Sequence[Command]], None], promises: Promises, context_len: int, clock: Clock
    ) -> None:
        self._send = send
        self._promises = promises
        self._context_len = context_len
        self._clock = clock
        self._open: dict[int, Ticket] = {}
        self._next_id = 1
        self._waiting: dict[Tier, dict[int, Ticket]] = {tier: {} for tier in Tier}  # oldest first
        self._leaving = 0  # cancelled, and not ended
        self._drains = {tier: Drain() for tier in Tier}
        self.refused = dict.fromkeys(Tier, 0)
        self.draining = False
        self._one_ended = asyncio.Event()

    def submit(
        self, work: Work, on_end: Callable[[Ended], None], on_chunk: Callable[[Chunk], None] = _nothing
    ) -> Ticket:
        """Submits one work. Raises Overloaded when its queue is full and Draining when the daemon is going away."""
        return self.submit_group([(work, on_end, on_chunk)])[0]

    def submit_group(
        self, group: Sequence[tuple[Work, Callable[[Ended], None], Callable[[Chunk], None]]]
    ) -> list[Ticket]:
        """Submits works that are due together, with one hand-over. All or none are taken in."""
        now_ns = self._clock()
        if self.draining:
            raise Draining("the daemon is draining and takes no new work")
        need = dict.fromkeys(Tier, 0)
        for work, _, _ in group:
            need[work.tier] += 1
            room = self._context_len - len(work.trunk) - len(work.tail) - work.max_tokens
            assert room >= 0, (
                f"trunk, tail and output exceed the context by {-room} tokens; the prompt must be cut first"
            )
            assert bool(work.max_tokens) == bool(len(work.tail)), "a work has a tail and output, or neither"
            same = work.key.adapter == work.adapter
            assert same or not (work.key.adapter or work.keep), "an activated adapter's trunk is the base model's"
        wanted = any(work.max_tokens for work, _, _ in group)
        for tier, count in need.items():
            if count and (self._leaving >= LEAVING_MAX or not self._has_room(tier, count, wanted)):
                self.refused[tier] += count
                raise Overloaded(f"{tier.name.lower()} queue is full", self.retry_ms(tier, now_ns))
        tickets: list[Ticket] = []
        commands: list[Command] = []
        for work, on_end, on_chunk in group:
            ticket = Ticket(self._next_id, work, now_ns, on_chunk, on_end, self._cancel)
            self._next_id += 1
            self._open[ticket.id] = ticket
            self._waiting[work.tier][ticket.id] = ticket
            self._drains[work.tier].submitted(now_ns)
            tickets.append(ticket)
            commands.append((ticket.id, work, now_ns))
        self._send(commands)
        return tickets

    def forget(self, key: TrunkKey) -> None:
        """Forgets a trunk's KV, with all adapters and forks; of a key with a fork only that: it is discarded."""
        self._send([key])

    def commit(self, key: TrunkKey) -> None:
        """Makes what a fork holds the trunk's own, after the works on it that were submitted before; the fork ends.

        It saves computing, and decides nothing: a work's tokens are those that it brings, whatever was committed.
        """
        assert key.fork, "only a fork is committed"
        self._send([Commit(key)])

    def load_ahead(self, npc: NpcKey) -> None:
        """Begins to bring back what an NPC has in the store beyond RAM: somebody comes near."""
        self._send([LoadAhead(npc)])

    def move_out(self, npc: NpcKey) -> None:
        """Moves an NPC's trunks out of their sequences: nobody is near any more."""
        self._send([MoveOut(npc)])

    async def obeyed(self) -> None:
        """Waits until the engine thread has obeyed all that was sent before."""
        loop, passed = asyncio.get_running_loop(), asyncio.Event()

        def pass_on() -> None:
            loop.call_soon_threadsafe(passed.set)

        self._send([Fence(pass_on)])
        await passed.wait()

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        """Deals out what one step made known; called on the event loop, once per step."""
        for ticket_id, what in deliveries:
            ticket = self._open.get(ticket_id)
            if ticket is None:
                continue
            if isinstance(what, Chunk):
                ticket.on_chunk(what)
            elif isinstance(what, Taken):
                self._leave_queue(ticket)
                if not ticket.taken:
                    ticket.taken = True
                    self._drains[ticket.work.tier].taken(self._clock())
            else:
                self._end(ticket, what)

    def end_all(self, reason: str) -> None:
        """Ends every open ticket as CANCELLED: the engine thread has stopped."""
        for ticket in list(self._open.values()):
            self._end(ticket, Ended(Finish.CANCELLED, Timings(submitted_ns=ticket.submitted_ns), reason))

    def waiting(self, tier: Tier) -> int:
        """Works of a tier that were submitted and not yet taken."""
        return len(self._waiting[tier])

    def oldest_ns(self, tier: Tier) -> int | None:
        """When the longest waiting work of a tier was submitted; None when nobody waits."""
        first = next(iter(self._waiting[tier].values()), None)
        return first.submitted_ns if first is not None else None

    async def all_ended(self) -> None:
        """Waits until no ticket is open."""
        while self._open:
            self._one_ended.clear()
            await self._one_ended.wait()

    @property
    def open(self) -> int:
        """Tickets that have not ended."""
        return len(self._open)

    def retry_ms(self, tier: Tier, now_ns: int) -> int:
        """When a refused work should come again: half the queue's length at the drain rate while there was work."""
        each_ns = self._drains[tier].each_ns(now_ns)
        if each_ns is None:
            return self._promises.of(tier).first_ms
        half = self._promises.of(tier).waiting_max / 2
        return max(1, round(min(half * each_ns, RETRY_MAX_NS) / MS))

    def _has_room(self, tier: Tier, count: int, wanted: bool) -> bool:
        """Whether so many more may wait. Works that only make KV give way to `wanted` ones, the newest first."""
        waiting = self._waiting[tier]
        over = len(waiting) + count - self._promises.of(tier).waiting_max
        if over <= 0 or not wanted:
            return over <= 0
        silent = [t for t in waiting.values() if not t.work.max_tokens][-over:]
        if len(silent) < over:
            return False
        for ticket in silent:
            ticket.cancel()
        return True

    def _cancel(self, ticket: Ticket) -> None:
        self._leaving += 1
        self._leave_queue(ticket)
        self._send([(ticket.id, None, self._clock())])

    def _leave_queue(self, ticket: Ticket) -> None:
        if ticket.waits:
            ticket.waits = False
            del self._waiting[ticket.work.tier][ticket.id]

    def _end(self, ticket: Ticket, ended: Ended) -> None:
        assert ticket.ended is None, f"ticket {ticket.id} ended twice"
        ticket.ended = ended
        del self._open[ticket.id]
        self._leaving -= ticket.cancelled
        self._leave_queue(ticket)
        finished = ticket.taken or ended.finish in (Finish.STOP, Finish.LENGTH)
        self._drains[ticket.work.tier].ended(ticket.taken, finished, self._clock())
        self._one_ended.set()
        on_end, ticket.on_end, ticket.on_chunk = ticket.on_end, _nothing, _nothing  # it may hold who holds it
        on_end(ended)
