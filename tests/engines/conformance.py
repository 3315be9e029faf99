"""The laws that every backend keeps, as one suite: each law is a function that takes a Trial and runs on any backend.

A backend on trial has a gate that its thread passes before each step, so a law decides when the thread stops and goes
on. Nothing here depends on speed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from core.clock import now_ns
from core.errors import Overloaded
from core.words import Finish, NpcKey, Tier, TrunkKey
from core.work import Chunk, Ended, Work
from engines.backend import Backend, Delivery, Submitted, Taken, TrunkPlace
from scheduler.ticket import Door
from tests.patience import PATIENCE_S
from tiers.promises import Promises

WAITING_MAX = 4
_SHORT = Promises()
PROMISES = replace(
    _SHORT,
    gold=replace(_SHORT.gold, waiting_max=WAITING_MAX),
    silver=replace(_SHORT.silver, waiting_max=WAITING_MAX),
    bronze=replace(_SHORT.bronze, waiting_max=WAITING_MAX),
)


class Gate:
    """Stops a backend's thread before each step while it is closed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._closed = False
        self._passes = 0
        self._standing = False

    def step(self) -> None:
        """The backend's thread calls it: waits while the gate is closed."""
        with self._changed:
            self._standing = self._closed and not self._passes
            self._changed.notify_all()
            passed = self._changed.wait_for(lambda: not self._closed or self._passes, PATIENCE_S)
            assert passed, "the gate stayed closed"
            self._standing = False
            self._passes = max(0, self._passes - 1)

    def close(self) -> None:
        """From now on no step begins."""
        with self._changed:
            self._closed = True

    def let_pass(self, steps: int) -> None:
        """Lets so many steps begin."""
        with self._changed:
            self._passes += steps
            self._standing = False
            self._changed.notify_all()

    def open(self) -> None:
        """Lets all steps begin."""
        with self._changed:
            self._closed, self._passes = False, 0
            self._changed.notify_all()

    def wait_until_it_stands(self) -> None:
        """Waits until the backend's thread stands before the gate."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._standing, PATIENCE_S), "nobody came to the gate"


@dataclass
class OnTrial:
    """A backend that was made with PROMISES, its gate, and the form of its works: a key, a tier, a supersede value,
    whether it is to give pieces (at least three) or only to have its KV made, and when it was due.
    """

    backend: Backend
    gate: Gate
    work: Callable[[TrunkKey, Tier, object, bool, int], Work]


class Trial:
    """A running backend and all of its deliveries, by ticket."""

    def __init__(self, on_trial: OnTrial) -> None:
        self.backend, self.gate = on_trial.backend, on_trial.gate
        self.died: list[BaseException] = []
        self.said: dict[int, list[Chunk | Ended | Taken]] = {}
        self.order: list[int] = []  # tickets in the order in which they were taken
        self.also: Callable[[Sequence[Delivery]], object] = lambda _: None
        self._make = on_trial.work
        self._last = 0
        self._heard = threading.Condition()

    def work(
        self,
        npc: str = "mira",
        tier: Tier = Tier.SILVER,
        supersede: object = None,
        speaks: bool = True,
        due_ns: int | None = None,
    ) -> Work:
        """A work of an NPC, due now unless it says otherwise."""
        return self._make(TrunkKey(NpcKey("", "vale", npc), ""), tier, supersede, speaks, due_ns or now_ns())

    def submit(self, *works: Work) -> list[int]:
        """Submits works as one group and returns their tickets' numbers."""
        group = [Submitted(ticket, work, 0) for ticket, work in enumerate(works, self._last + 1)]
        self._last += len(group)
        self.backend.submit(group)
        return [one.ticket_id for one in group]

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        """The backend delivers through this call."""
        with self._heard:
            for ticket, what in deliveries:
                self.said.setdefault(ticket, []).append(what)
                if isinstance(what, Taken):
                    self.order.append(ticket)
            self._heard.notify_all()
        self.also(deliveries)

    def wait(self, ready: Callable[[], bool], what: str) -> None:
        """Waits until a delivery makes a condition true."""
        with self._heard:
            assert self._heard.wait_for(ready, PATIENCE_S), f"{what}: not so after {PATIENCE_S:g} s"

    def chunks(self, ticket: int) -> list[Chunk]:
        """The chunks of a work until now."""
        return [what for what in self.said.get(ticket, ()) if isinstance(what, Chunk)]

    def ended(self, ticket: int) -> Ended:
        """A work's end, once it is there."""
        self.wait(lambda: any(isinstance(what, Ended) for what in self.said.get(ticket, ())), f"the end of {ticket}")
        return next(what for what in self.said[ticket] if isinstance(what, Ended))

    def quiet(self) -> None:
        """Waits until the backend has done all earlier commands and has delivered their results."""
        for _ in range(2):  # two commands: the second comes after the first one's results
            passed = threading.Event()
            self.backend.obeyed(passed.set)
            assert passed.wait(PATIENCE_S), "it does not come to what was asked"

    def occupied(self) -> int:
        """Starts a work and closes the gate, so that later works wait. Returns its ticket's number."""
        self.gate.close()
        (ticket,) = self.submit(self.work("plug"))
        self.gate.wait_until_it_stands()
        return ticket


@contextmanager
def on_trial(backend: OnTrial) -> Iterator[Trial]:
    """Starts the backend. In the end every work must have ended once, after its chunks, and the thread must end."""
    trial = Trial(backend)
    assert not trial.backend.health.ready, "it is not ready before it is started"
    trial.backend.start(trial.deliver, trial.died.append)
    try:
        yield trial
        trial.gate.open()
        for ticket in range(1, trial._last + 1):
            trial.ended(ticket)
        trial.quiet()
    finally:
        trial.gate.open()
        assert trial.backend.stop(PATIENCE_S), "it did not stop"
    assert not trial.died
    assert not trial.backend.health.ready, "it is not ready once it was stopped"
    for ticket, said in trial.said.items():
        kinds = [type(what) for what in said]
        assert kinds.count(Ended) == 1 and kinds[-1] is Ended, f"{ticket}: {said}"
        assert kinds.count(Taken) <= 1 and Taken not in kinds[1:], f"{ticket}: {said}"
        assert Taken in kinds or Chunk not in kinds, f"{ticket}: {said}"
    for tier in Tier:
        ends = trial.backend.snapshot.tiers[tier]
        assert not ends.running, f"{ends.running} works run for ever"
    assert sum(sum(t.ended.values()) for t in trial.backend.snapshot.tiers) == len(trial.said)


# -- the laws --------------------------------------------------------------------------------------------------------


def works_end_once_after_their_chunks(trial: Trial) -> None:
    """Of a group each work is taken, gives chunks in order, and ends well. Equal works give the same chunks."""
    tickets = trial.submit(*(trial.work(f"n{i % 3}", tier) for i, tier in enumerate([*Tier] * 2)))
    for ticket in tickets:
        assert trial.ended(ticket).finish in (Finish.STOP, Finish.LENGTH)
        assert len(trial.chunks(ticket)) >= 2
        at_ns = [chunk.at_ns for chunk in trial.chunks(ticket)]
        assert at_ns == sorted(at_ns)


def a_work_that_waits_is_cancelled(trial: Trial) -> None:
    """It ends without being taken, and the works beside it are not touched."""
    plug = trial.occupied()
    first, second = trial.submit(trial.work("a"), trial.work("b"))
    trial.backend.cancel(first, 0)
    trial.gate.open()
    assert trial.ended(first).finish is Finish.CANCELLED
    assert trial.said[first] == [trial.ended(first)]
    assert {trial.ended(t).finish for t in (plug, second)} <= {Finish.STOP, Finish.LENGTH}


def a_work_that_runs_is_cancelled(trial: Trial) -> None:
    """It ends after its first chunk, within the running step."""
    trial.gate.close()
    (ticket,) = trial.submit(trial.work())
    while not trial.chunks(ticket):
        trial.gate.wait_until_it_stands()
        trial.gate.let_pass(1)
        trial.gate.wait_until_it_stands()
    before = len(trial.chunks(ticket))
    trial.backend.cancel(ticket, 0)
    trial.gate.open()
    assert trial.ended(ticket).finish is Finish.CANCELLED
    assert len(trial.chunks(ticket)) <= before + 1


def a_cancel_after_the_end_does_nothing(trial: Trial) -> None:
    """A cancel of an unknown ticket does nothing either."""
    (ticket,) = trial.submit(trial.work())
    trial.ended(ticket)
    trial.backend.cancel(ticket, 0)
    trial.backend.cancel(10_000, 0)
    trial.quiet()
    assert trial.said.keys() == {ticket}


def higher_tiers_are_taken_first(trial: Trial) -> None:
    """That holds for works that wait together, in any order of arrival."""
    trial.occupied()
    bronze, silver, gold = trial.submit(*(trial.work(f"n{tier}", tier) for tier in reversed(Tier)))
    trial.gate.open()
    for ticket in (bronze, silver, gold):
        trial.ended(ticket)
    assert [t for t in trial.order if t in (bronze, silver, gold)] == [gold, silver, bronze]


def bronze_that_is_overdue_counts_as_silver(trial: Trial) -> None:
    """It is taken before an earlier Silver work, and after Gold."""
    trial.occupied()
    overdue = trial.work("old", Tier.BRONZE, due_ns=1)
    silver, bronze, gold = trial.submit(trial.work("a"), overdue, trial.work("b", Tier.GOLD))
    trial.gate.open()
    for ticket in (bronze, silver, gold):
        trial.ended(ticket)
    assert [t for t in trial.order if t in (bronze, silver, gold)] == [gold, bronze, silver]


def a_newer_work_takes_the_place_of_a_waiting_one(trial: Trial) -> None:
    """That holds for works with the same supersede value. The older one ends as superseded."""
    trial.occupied()
    (older,) = trial.submit(trial.work(supersede="intent of mira"))
    (newer,) = trial.submit(trial.work(supersede="intent of mira"))
    trial.gate.open()
    assert trial.ended(older).finish is Finish.SUPERSEDED
    assert trial.ended(newer).finish in (Finish.STOP, Finish.LENGTH)


def a_queue_has_a_bound(trial: Trial) -> None:
    """Works beyond the bound end as refused."""
    trial.occupied()
    tickets = trial.submit(*(trial.work(f"n{i}") for i in range(WAITING_MAX + 2)))
    trial.gate.open()
    assert [trial.ended(t).finish is Finish.REFUSED for t in tickets] == [False] * WAITING_MAX + [True] * 2


def a_full_queue_is_answered_at_the_door(trial: Trial) -> None:
    """The work is refused with a retry time before anything is handed over. When there is room, works are taken
    again."""

    async def knock() -> None:
        door = Door({"this": trial.backend}, PROMISES, lambda: 0)
        loop = asyncio.get_running_loop()
        trial.also = lambda deliveries: loop.call_soon_threadsafe(door.deliver, deliveries)
        ends: list[Finish] = []
        trial.gate.close()

        def fill() -> None:
            for i in range(WAITING_MAX + 2):  # one of them may run
                door.submit(trial.work(f"n{i}"), lambda ended: ends.append(ended.finish))

        with pytest.raises(Overloaded) as caught:
            fill()
        assert caught.value.retry_ms > 0 and door.waiting(Tier.SILVER) == WAITING_MAX
        taken_in = door.open
        trial.gate.open()
        await door.all_ended()
        assert len(ends) == taken_in and set(ends) <= {Finish.STOP, Finish.LENGTH}
        door.submit(trial.work(), lambda ended: ends.append(ended.finish))
        await door.all_ended()

    asyncio.run(asyncio.wait_for(knock(), PATIENCE_S))


def a_work_that_only_makes_kv_ends_well_without_chunks(trial: Trial) -> None:
    """That holds on a backend without KV of ours, too."""
    (ticket,) = trial.submit(trial.work(speaks=False))
    assert trial.ended(ticket).finish is Finish.STOP
    assert not trial.chunks(ticket)


def a_forgotten_trunk_is_nowhere(trial: Trial) -> None:
    """Its later works run as if it had never existed. Hints change no answer."""
    work = trial.work()
    (first,) = trial.submit(work)
    before = "".join(str(c) for c in _heard(trial, first))
    trial.backend.forget(work.key)
    trial.quiet()
    assert _places(trial, work.key.npc) == []
    trial.backend.coming_near(work.key.npc)
    trial.backend.moving_out(work.key.npc)
    trial.backend.expect(None)
    (second,) = trial.submit(trial.work())
    assert "".join(str(c) for c in _heard(trial, second)) == before
    trial.backend.forget(work.key)


def it_tells_how_it_does(trial: Trial) -> None:
    """It is ready while it runs and its beat is recent. The snapshot counts the ended works, and is a new value each
    time."""
    assert trial.backend.health.ready
    assert trial.backend.name
    before = trial.backend.snapshot
    (ticket,) = trial.submit(trial.work(tier=Tier.BRONZE))
    finish = trial.ended(ticket).finish
    trial.quiet()
    after = trial.backend.snapshot
    assert before.tiers[Tier.BRONZE].ended[finish] == 0, "a snapshot never changes"
    assert after.tiers[Tier.BRONZE].ended[finish] == 1
    assert after.tiers[Tier.GOLD].ended == before.tiers[Tier.GOLD].ended
    assert after.steps > before.steps


def one_that_stands_still_is_seen(trial: Trial) -> None:
    """Its beat does not move during a step, and moves again afterwards."""
    trial.occupied()
    health = trial.backend.health
    assert health.ready and trial.backend.health.beat_ns == health.beat_ns
    assert health.stalled(health.beat_ns + 10**12, 0, 2.0)
    assert trial.backend.snapshot.running(Tier.SILVER) <= 1
    trial.gate.open()
    trial.wait(lambda: trial.backend.health.beat_ns > health.beat_ns or trial.ended(1) is not None, "it goes on")


Law = Callable[[Trial], None]
LAWS: tuple[Law, ...] = (
    works_end_once_after_their_chunks,
    a_work_that_waits_is_cancelled,
    a_work_that_runs_is_cancelled,
    a_cancel_after_the_end_does_nothing,
    higher_tiers_are_taken_first,
    bronze_that_is_overdue_counts_as_silver,
    a_newer_work_takes_the_place_of_a_waiting_one,
    a_queue_has_a_bound,
    a_full_queue_is_answered_at_the_door,
    a_work_that_only_makes_kv_ends_well_without_chunks,
    a_forgotten_trunk_is_nowhere,
    it_tells_how_it_does,
    one_that_stands_still_is_seen,
)


def _heard(trial: Trial, ticket: int) -> list[tuple[object, ...]]:
    """The chunks and the end of a work, without times."""
    trial.ended(ticket)
    return [tuple(chunk._replace(at_ns=0)) for chunk in trial.chunks(ticket)]


def _places(trial: Trial, npc: NpcKey) -> list[TrunkPlace]:
    found: list[TrunkPlace] = []
    trial.backend.places([npc], found.extend)
    trial.quiet()
    return found
