"""The choice of the waiting work that starts next: queues, the window, ageing, and the running works of each tier.

It serves every backend and knows nothing of sequences, lanes or KV. The backend brings its Seats, which say whether a
work has a place. Higher tiers are let in first; Bronze that waited past its bound counts as Silver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

from core.words import Finish, Tier
from core.work import Work
from scheduler.queues import Queues, Waiting
from scheduler.window import Closed, Window, WindowSettings
from tiers.promises import Promises


class Left(NamedTuple):
    """A work that left its queue without having run, and why."""

    waiting: Waiting
    finish: Finish
    reason: str


class Seats(Protocol):
    """Where works of one backend run."""

    def works(self) -> Iterable[Work]:
        """Every work that was taken and has not ended, those that were put back included."""

    def busy(self) -> bool:
        """True if works run now; a busy backend gathers for free, so no window is kept open."""

    def go_on(self, tier: Tier, now_ns: int) -> None:
        """Places works that were preempted or are retried and count as `tier`, while there is room."""

    def take(self, entry: Waiting, rule: Closed, now_ns: int) -> bool:
        """Starts a waiting work and takes it from its queue; False, and nothing is changed, when it has no place."""

    def filled(self, work: Work) -> bool:
        """True if what runs of the work's tier takes all the time that its works have: this one is to wait."""

    def could_stand(self, work: Work) -> bool:
        """True if only works that may give way keep this one from starting."""

    def all_taken(self, work: Work) -> bool:
        """True if no work like this one can start unless another one gives way."""


class Admission:
    """Laws: a queue is never over its bound; at most running_max works of a tier run; of one supersede value one waits.

    It ends no work: what left its queue goes back to the caller as Left.
    """

    def __init__(self, promises: Promises, window: WindowSettings, running_max: Mapping[Tier, int]) -> None:
        self.promises = promises
        self.queues = Queues({tier: promises.of(tier).waiting_max for tier in Tier})
        self.window = Window(window)
        self.running_max = dict(running_max)
        self._risen: Work | None = None  # the Bronze that counts as Silver now

    def submit(self, ticket_id: int, work: Work, now_ns: int) -> list[Left]:
        """Puts a work into its queue. Returns works that this ended: one that it superseded, or itself, refused."""
        left: list[Left] = []
        taken_in, superseded = self.queues.of[work.tier].add(ticket_id, work, now_ns)
        if superseded is not None:
            left.append(Left(superseded, Finish.SUPERSEDED, "a newer observation took its place"))
        if not taken_in:
            entry = Waiting(ticket_id, work, now_ns, work.deadline_ns)
            left.append(Left(entry, Finish.REFUSED, "the queue is full"))
        return left

    def cancel(self, ticket_id: int) -> list[Left]:
        """Takes a waiting work out of its queue; nothing when it does not wait here."""
        waiting = self.queues.cancel(ticket_id)
        return [Left(waiting, Finish.CANCELLED, "")] if waiting is not None else []

    def drop(self, unwanted: Callable[[Work], bool], reason: str) -> list[Left]:
        """Takes all works that are unwanted out of their queues."""
        left: list[Left] = []
        for queue in self.queues.of.values():
            for waiting in [w for w in queue if unwanted(w.work)]:
                queue.take(waiting)
                left.append(Left(waiting, Finish.CANCELLED, reason))
        return left

    def works(self) -> Iterable[Work]:
        """The works that wait."""
        return (w.work for queue in self.queues.of.values() for w in queue)

    def counts_as(self, work: Work) -> Tier:
        """The tier that a work counts as where something is to be had."""
        return Tier.SILVER if work is self._risen else work.tier

    def admit(self, seats: Seats, now_ns: int, next_due_ns: int | None) -> int | None:
        """Lets waiting works start when the window says so; when to look again, if it does not."""
        seats.go_on(Tier.GOLD, now_ns)
        waiting = len(self.queues)
        rule, again_ns = None, 0
        if waiting:
            oldest_ns = min(q.oldest_ns for q in self.queues.of.values() if q.oldest_ns is not None)
            rule, again_ns = self.window.close(now_ns, waiting, oldest_ns, seats.busy(), next_due_ns)
        if rule is None:
            self._risen = self.risen_bronze(seats, now_ns)
            seats.go_on(Tier.SILVER, now_ns)
            if not len(self.queues.of[Tier.SILVER]):
                seats.go_on(Tier.BRONZE, now_ns)
            return again_ns if waiting else None
        self._let_in(seats, Tier.GOLD, rule, now_ns)
        self._risen = risen = self.risen_bronze(seats, now_ns)  # of those whose place Gold has left free
        if risen is not None and not any(work is risen for work in seats.works()):
            self._let_in(seats, Tier.BRONZE, rule, now_ns, risen)
        seats.go_on(Tier.SILVER, now_ns)
        self._let_in(seats, Tier.SILVER, rule, now_ns)
        seats.go_on(Tier.BRONZE, now_ns)  # preempted works get the remaining room before new Bronze starts
        self._let_in(seats, Tier.BRONZE, rule, now_ns)
        return None

    def risen_bronze(self, seats: Seats, now_ns: int) -> Work | None:
        """The Bronze that is due longest, when it is overdue: it counts as Silver, also for a place.

        Otherwise Silver that never stops waiting would hold all places for ever. A work that could not start even so
        is passed over.
        """
        works = [work for work in seats.works() if work.tier is Tier.BRONZE]
        for waiting in self.queues.of[Tier.BRONZE].in_order():
            if seats.could_stand(waiting.work):
                works.append(waiting.work)
                break
        longest = min(works, key=lambda work: work.due_ns, default=None)
        overdue = longest is not None and now_ns >= self.promises.overdue_ns(Tier.BRONZE, longest.due_ns)
        return longest if overdue else None

    def _let_in(self, seats: Seats, tier: Tier, rule: Closed, now_ns: int, only: Work | None = None) -> None:
        """Starts waiting works of a tier (or `only` that one), earliest deadline first, while there is room."""
        room = self._room(seats, tier)
        for entry in self.queues.of[tier].in_order():
            if room <= 0:
                break
            if only is not None and entry.work is not only:
                continue
            if seats.filled(entry.work):
                break  # it waits in the queue, where a newer work of the same NPC can take its place
            takes_nothing = tier is Tier.BRONZE and entry.work is not self._risen
            if takes_nothing and seats.all_taken(entry.work):
                break  # nothing gives way to it, and there may be a thousand of them
            if seats.take(entry, rule, now_ns):
                room = self._room(seats, tier)  # it may have ended already, or another one for it

    def _room(self, seats: Seats, tier: Tier) -> int:
        """How many more works of a tier may run."""
        return self.running_max[tier] - sum(work.tier is tier for work in seats.works())
