"""The door counts permits, ends every ticket exactly once, and answers a full queue at once."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from core.errors import Draining, Overloaded
from core.words import Finish, NpcKey, Tier, TrunkKey
from core.work import Chunk, Ended, Timings, Work
from engines.backend import Taken
from engines.sim import VirtualClock
from scheduler.ticket import Command, Door, Ticket
from tiers.promises import Promises


class Sent:
    """A door whose commands are kept instead of run."""

    def __init__(self, waiting_max: int = 2) -> None:
        self.clock = VirtualClock(10**9)
        self.commands: list[Command] = []
        promises = Promises()
        promises = replace(promises, silver=replace(promises.silver, waiting_max=waiting_max))
        self.door = Door(self._send, promises, context_len=100, clock=self.clock)
        self.said: list[str] = []

    def _send(self, commands: Sequence[Command]) -> None:
        self.commands += commands

    def submit(self, tail: int = 1, max_tokens: int = 1) -> int:
        """Submits a Silver work; its ticket's number."""
        key = TrunkKey(NpcKey("", "w", "n"), "p")
        work = Work(Tier.SILVER, key, np.zeros(50, np.int32), np.zeros(tail, np.int32), max_tokens)

        def on_end(ended: Ended) -> None:
            self.said.append(ended.finish.value)

        return self.door.submit(work, on_end, lambda chunk: self.said.append(str(chunk.tokens))).id

    def ticket(self, ticket_id: int) -> Ticket:
        """The open ticket of that number."""
        return self.door._open[ticket_id]


def test_permits_are_for_waiting_works_only() -> None:
    """Two wait, the third is refused with a retry time; once one runs, another may wait."""
    sent = Sent()
    first, _ = sent.submit(), sent.submit()
    with pytest.raises(Overloaded) as caught:
        sent.submit()
    assert caught.value.retry_ms > 0
    assert sent.door.refused[Tier.SILVER] == 1
    assert len(sent.commands) == 2
    sent.door.deliver([(first, Taken(5))])
    assert sent.door.waiting(Tier.SILVER) == 1
    sent.submit()


def test_a_cancelled_work_holds_no_permit() -> None:
    """However many come and are cancelled before the engine thread looks, one more may wait; what waits still counts,
    and each ends once.
    """
    sent = Sent()
    first = sent.submit()
    for _ in range(400):
        ticket = sent.ticket(sent.submit())
        ticket.cancel()
        ticket.cancel()
        assert sent.door.waiting(Tier.SILVER) == 1
    assert len(sent.commands) == 1 + 2 * 400 and sent.door.oldest_ns(Tier.SILVER) == sent.clock()
    last = sent.submit()
    with pytest.raises(Overloaded):
        sent.submit()
    for ticket_id in range(first + 1, last):
        sent.door.deliver([(ticket_id, Taken(1)), (ticket_id, Ended(Finish.CANCELLED, Timings()))])
    assert sent.said == ["cancelled"] * 400 and sent.door.waiting(Tier.SILVER) == 2 == sent.door.open


def test_a_work_that_was_taken_and_then_cancelled_gives_no_second_permit() -> None:
    """Taken is on its way while the work is cancelled."""
    sent = Sent()
    first, second = sent.submit(), sent.submit()
    sent.ticket(first).cancel()
    sent.door.deliver([(first, Taken(1)), (first, Ended(Finish.CANCELLED, Timings()))])
    assert sent.door.waiting(Tier.SILVER) == 1
    sent.door.deliver([(second, Taken(1))])
    sent.ticket(second).cancel()
    assert sent.door.waiting(Tier.SILVER) == 0


def test_works_that_only_make_kv_give_way_to_one_that_somebody_waits_for() -> None:
    """The newest of them is cancelled; with none of them the queue is full; among themselves they do not give way."""
    sent = Sent()
    older, newer = sent.submit(0, 0), sent.submit(0, 0)
    with pytest.raises(Overloaded):
        sent.submit(0, 0)
    wanted = sent.submit()
    assert [t for t in (older, newer, wanted) if not sent.ticket(t).cancelled] == [older, wanted]
    assert sent.commands[-2] == (newer, None, sent.clock())
    sent.submit()
    with pytest.raises(Overloaded):
        sent.submit()
    assert sent.door.waiting(Tier.SILVER) == 2


def test_cancelled_works_that_nobody_answers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold memory: with an engine thread that stands still, admission ends at a number; it begins again."""
    monkeypatch.setattr("scheduler.ticket.LEAVING_MAX", 5)
    sent = Sent()
    ids = [sent.submit() for _ in range(2)]
    for _ in range(5):
        sent.ticket(ids[-1]).cancel()
        if len(ids) < 6:
            ids.append(sent.submit())
    with pytest.raises(Overloaded):
        sent.submit()
    sent.door.deliver([(ids[1], Ended(Finish.CANCELLED, Timings()))])
    sent.submit()


def test_chunks_then_exactly_one_end() -> None:
    """What comes after the end is for nobody; cancel after the end sends nothing."""
    sent = Sent()
    ticket = sent.submit()
    ended = Ended(Finish.STOP, Timings())
    sent.door.deliver([(ticket, Taken(1)), (ticket, Chunk((7, 8), 2)), (ticket, ended), (ticket, Chunk((9,), 3))])
    assert sent.said == ["(7, 8)", "stop"]
    assert sent.door.open == 0
    sent.door.deliver([(ticket, ended)])
    assert sent.said == ["(7, 8)", "stop"]


def test_cancel_goes_in_and_its_end_comes_back_through_the_scheduler() -> None:
    """The ticket stays open until the scheduler has said that it is over."""
    sent = Sent()
    key = TrunkKey(NpcKey("", "w", "n"), "p")
    work = Work(Tier.SILVER, key, np.zeros(5, np.int32), np.zeros(1, np.int32), 1)
    ticket = sent.door.submit(work, lambda ended: sent.said.append(ended.finish.value))
    ticket.cancel()
    assert sent.commands[-1] == (ticket.id, None, sent.clock())
    assert sent.door.open == 1
    sent.door.deliver([(ticket.id, Ended(Finish.CANCELLED, Timings()))])
    ticket.cancel()
    assert sent.commands[-1] == (ticket.id, None, sent.clock()) and len(sent.commands) == 2
    assert sent.said == ["cancelled"]


def test_retry_time_follows_the_measured_drain_rate() -> None:
    """Ten a second drained and a queue of two: come again in a tenth of a second, not in thirty."""
    sent = Sent()
    for _ in range(20):
        ticket = sent.submit()
        sent.clock.advance(100_000_000)
        sent.door.deliver([(ticket, Ended(Finish.STOP, Timings()))])
    assert 50 <= sent.door.retry_ms(Tier.SILVER, sent.clock()) <= 200


def test_retry_time_does_not_count_time_in_which_nothing_happened() -> None:
    """After an hour in which nobody came, the retry time is what it was before."""
    sent = Sent(waiting_max=64)
    for _ in range(20):
        ticket = sent.submit()
        sent.clock.advance(100_000_000)
        sent.door.deliver([(ticket, Ended(Finish.STOP, Timings()))])
    before_ms = sent.door.retry_ms(Tier.SILVER, sent.clock())
    assert 2_500 <= before_ms <= 3_500
    sent.clock.advance(3600 * 10**9)
    assert sent.door.retry_ms(Tier.SILVER, sent.clock()) == before_ms


def test_retry_time_knows_how_many_works_run_at_once() -> None:
    """One work at a time took 100 ms each: when ten run at once and take as long, the queue drains ten times faster."""
    sent = Sent(waiting_max=64)
    for _ in range(20):
        ticket = sent.submit()
        sent.door.deliver([(ticket, Taken(1))])
        sent.clock.advance(100_000_000)
        sent.door.deliver([(ticket, Ended(Finish.STOP, Timings()))])
    for _ in range(10):
        sent.door.deliver([(sent.submit(), Taken(1))])
    assert 250 <= sent.door.retry_ms(Tier.SILVER, sent.clock()) <= 350


def test_retry_time_grows_while_works_run_and_none_ends() -> None:
    """An engine that stands still is not an idle one: the retry time goes up to its limit of 30 seconds."""
    sent = Sent(waiting_max=64)
    for _ in range(20):
        ticket = sent.submit()
        sent.door.deliver([(ticket, Taken(1))])
        sent.clock.advance(1_000_000)
        sent.door.deliver([(ticket, Ended(Finish.STOP, Timings()))])
    sent.door.deliver([(sent.submit(), Taken(1))])
    before_ms = sent.door.retry_ms(Tier.SILVER, sent.clock())
    sent.clock.advance(5 * 10**9)
    assert 1 <= before_ms < 100 < 5_000 < sent.door.retry_ms(Tier.SILVER, sent.clock())
    sent.clock.advance(3600 * 10**9)
    assert sent.door.retry_ms(Tier.SILVER, sent.clock()) == 30_000


def test_draining_refuses_and_stopping_ends_all() -> None:
    """Nothing new; what is open ends as cancelled."""
    sent = Sent()
    sent.submit()
    sent.door.draining = True
    with pytest.raises(Draining):
        sent.submit()
    sent.door.end_all("stopped")
    assert sent.said == ["cancelled"]


def test_works_that_cannot_fit_are_bugs_found_at_the_door() -> None:
    """The prompt is cut before; here it is an assertion."""
    sent = Sent()
    with pytest.raises(AssertionError, match="exceed the context"):
        sent.submit(tail=40, max_tokens=20)
    with pytest.raises(AssertionError, match="a tail and output"):
        sent.submit(tail=0, max_tokens=2)


async def test_all_ended_waits_for_the_last() -> None:
    """At once with nothing open."""
    sent = Sent()
    await sent.door.all_ended()
    ticket = sent.submit()
    sent.door.deliver([(ticket, Ended(Finish.STOP, Timings()))])
    await sent.door.all_ended()
