"""The door counts permits, ends every ticket exactly once, and refuses at once when the queue is full."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from core.errors import Draining, Overloaded
from core.words import Finish, NpcKey, Tier, TrunkKey
from core.work import Chunk, Ended, Timings, Work
from engines.backend import Taken, TrunkPlace
from engines.sim import VirtualClock
from scheduler.ticket import Door, Ticket
from tests.patience import PATIENCE_S
from tests.scheduler.recording import Recording
from tiers.promises import Promises


class Sent:
    """A door whose commands are kept and not run."""

    def __init__(self, waiting_max: int = 2) -> None:
        self.clock = VirtualClock(10**9)
        promises = Promises()
        promises = replace(promises, silver=replace(promises.silver, waiting_max=waiting_max))
        self.backend = Recording(context_len=100)
        self.commands = self.backend.asked
        self.door = Door({"llama": self.backend}, promises, self.clock)
        self.said: list[str] = []

    def submit(self, tail: int = 1, max_tokens: int = 1) -> int:
        """Submits a Silver work and returns its ticket's number."""
        key = TrunkKey(NpcKey("", "w", "n"), "p")
        work = Work(Tier.SILVER, key, np.zeros(50, np.int32), np.zeros(tail, np.int32), max_tokens)

        def on_end(ended: Ended) -> None:
            self.said.append(ended.finish.value)

        return self.door.submit(work, on_end, lambda chunk: self.said.append(str(chunk.tokens))).id

    def ticket(self, ticket_id: int) -> Ticket:
        """The open ticket of that number."""
        return self.door._open[ticket_id]


def test_permits_are_for_waiting_works_only() -> None:
    """Two works wait and the third is refused with a retry time. Once a work runs, another one may wait."""
    sent = Sent()
    first, _ = sent.submit(), sent.submit()
    with pytest.raises(Overloaded) as caught:
        sent.submit()
    assert caught.value.retry_ms > 0
    assert sent.door.refused(Tier.SILVER) == 1
    assert len(sent.commands) == 2
    sent.door.deliver([(first, Taken(5))])
    assert sent.door.waiting(Tier.SILVER) == 1
    sent.submit()


def test_a_cancelled_work_holds_no_permit() -> None:
    """After any number of works that come and are cancelled before the engine thread looks, one more may wait. Waiting
    works still count, and each ends once.
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
    """The work is cancelled while the message that it was taken is on its way."""
    sent = Sent()
    first, second = sent.submit(), sent.submit()
    sent.ticket(first).cancel()
    sent.door.deliver([(first, Taken(1)), (first, Ended(Finish.CANCELLED, Timings()))])
    assert sent.door.waiting(Tier.SILVER) == 1
    sent.door.deliver([(second, Taken(1))])
    sent.ticket(second).cancel()
    assert sent.door.waiting(Tier.SILVER) == 0


def test_works_that_only_make_kv_give_way_to_one_that_somebody_waits_for() -> None:
    """The newest work that only prepares KV is cancelled. Without one the queue is full. Such works do not give way to
    each other."""
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
    """Cancelled works hold memory until the engine thread answers. With a stalled engine thread admission stops at a
    bound, and starts again later."""
    monkeypatch.setattr("scheduler.permits.LEAVING_MAX", 5)
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
    """Chunks after the end are dropped, and a cancel after the end sends nothing."""
    sent = Sent()
    ticket = sent.submit()
    ended = Ended(Finish.STOP, Timings())
    sent.door.deliver([(ticket, Taken(1)), (ticket, Chunk((7, 8), 2)), (ticket, ended), (ticket, Chunk((9,), 3))])
    assert sent.said == ["(7, 8)", "stop"]
    assert sent.door.open == 0
    sent.door.deliver([(ticket, ended)])
    assert sent.said == ["(7, 8)", "stop"]


def test_cancel_goes_in_and_its_end_comes_back_through_the_scheduler() -> None:
    """The ticket stays open until the scheduler reports its end."""
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
    """With a drain of ten a second and a queue of two, the retry time is a tenth of a second, and not thirty."""
    sent = Sent()
    for _ in range(20):
        ticket = sent.submit()
        sent.clock.advance(100_000_000)
        sent.door.deliver([(ticket, Ended(Finish.STOP, Timings()))])
    assert 50 <= sent.door.retry_ms(Tier.SILVER, sent.clock()) <= 200


def test_retry_time_does_not_count_time_in_which_nothing_happened() -> None:
    """After an hour without works the retry time is as it was before."""
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
    """One work at a time took 100 ms. When ten run at once and take as long each, the queue drains ten times faster."""
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
    """A stalled engine is not an idle one: the retry time grows to its limit of 30 seconds."""
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
    """New works are refused, and open ones end as cancelled."""
    sent = Sent()
    sent.submit()
    sent.door.draining = True
    with pytest.raises(Draining):
        sent.submit()
    sent.door.end_all("stopped")
    assert sent.said == ["cancelled"]


async def test_all_ended_waits_for_the_last() -> None:
    """With no open ticket it returns at once."""
    sent = Sent()
    await sent.door.all_ended()
    ticket = sent.submit()
    sent.door.deliver([(ticket, Ended(Finish.STOP, Timings()))])
    await sent.door.all_ended()


class Two:
    """A door to two backends of one permit each, and the finishes of its works by their backend."""

    def __init__(self) -> None:
        self.clock = VirtualClock(10**9)
        promises = Promises()
        promises = replace(promises, silver=replace(promises.silver, waiting_max=1))
        self.backends = {"llama": Recording(), "far": Recording()}
        self.door = Door(self.backends, promises, self.clock)
        self.said: list[tuple[str, str]] = []

    def work(self, backend: str, tier: Tier = Tier.SILVER) -> Work:
        """A work for a backend."""
        key = TrunkKey(NpcKey("", "w", "n"), "p")
        return Work(tier, key, np.zeros(5, np.int32), np.zeros(1, np.int32), 1, backend=backend)

    def submit(self, *works: Work) -> list[Ticket]:
        """Submits works as one group."""

        def heard(work: Work) -> tuple[Work, Callable[[Ended], None], Callable[[Chunk], None]]:
            return work, lambda ended: self.said.append((work.backend, ended.finish.value)), lambda _: None

        return self.door.submit_group([heard(work) for work in works])


def test_a_work_goes_to_the_backend_that_it_names() -> None:
    """Without a name it goes to the first one. A group of both is handed over once to each."""
    two = Two()
    tickets = two.submit(two.work("far"), two.work(""), two.work("far", Tier.GOLD))
    asked = {name: [one[0] for one in b.asked] for name, b in two.backends.items()}
    assert asked == {"llama": [tickets[1].id], "far": [tickets[0].id, tickets[2].id]}
    two.door.deliver([(tickets[0].id, Ended(Finish.STOP, Timings())), (tickets[1].id, Ended(Finish.STOP, Timings()))])
    assert two.said == [("far", "stop"), ("", "stop")]


def test_a_full_backend_refuses_its_own_works_alone() -> None:
    """Each backend has permits of its own by tier. A group with one work too many for one of them is refused whole."""
    two = Two()
    (first,) = two.submit(two.work("far"))
    with pytest.raises(Overloaded):
        two.submit(two.work("llama"), two.work("far"))
    assert not two.backends["llama"].asked, "all or none"
    two.submit(two.work("llama"), two.work("far", Tier.GOLD))
    assert two.door.waiting(Tier.SILVER) == two.door.waiting_max(Tier.SILVER) == 2
    assert two.door.is_full(Tier.SILVER) and not two.door.is_full(Tier.GOLD)
    assert two.door.refused(Tier.SILVER) == 1 == two.door.permits["far"].refused[Tier.SILVER]
    two.door.deliver([(first.id, Taken(1))])
    two.submit(two.work("far"))


def test_a_cancel_goes_to_the_backend_that_has_the_work() -> None:
    """The other one does not hear of it. Hints, and what is to be forgotten, reach both."""
    two = Two()
    here, there = two.submit(two.work("llama"), two.work("far"))
    there.cancel()
    assert two.backends["far"].asked[-1] == (there.id, None, two.clock())
    assert len(two.backends["llama"].asked) == 1 and not here.cancelled
    npc = NpcKey("", "w", "n")
    two.door.forget(TrunkKey(npc, ""))
    two.door.coming_near(npc)
    two.door.moving_out(npc)
    for backend in two.backends.values():
        assert backend.asked[-3:] == ["forget n", "coming near n", "moving out n"]


def test_a_backend_is_stalled_only_while_it_has_works() -> None:
    """Its beat stands still in both cases, and the other backend's does not count."""
    two = Two()
    late_ns = 10**12
    assert not two.door.stalled("far", late_ns)
    (ticket,) = two.submit(two.work("far"))
    assert two.door.stalled("far", late_ns) and not two.door.stalled("llama", late_ns)
    two.door.deliver([(ticket.id, Ended(Finish.STOP, Timings()))])
    assert not two.door.stalled("far", late_ns)


async def test_the_door_waits_for_all_backends() -> None:
    """obeyed() returns when both are through, places() has the trunks of both with their backends' names, and start()
    and stop() reach both.
    """
    two = Two()
    two.door.start(lambda _: None)
    await two.door.obeyed()
    place = TrunkPlace(TrunkKey(NpcKey("", "w", "n"), ""), "ram", 5, 10, 1, 0)
    two.backends["far"].trunks = [place]
    assert await two.door.places([NpcKey("", "w", "n")], within_s=PATIENCE_S) == [place._replace(engine="far")]
    two.backends["llama"].silent = True
    with pytest.raises(TimeoutError):
        await two.door.places([NpcKey("", "w", "n")], within_s=0.0)
    two.submit(two.work("far"))
    assert two.door.stop(1.0, "over") and two.said == [("far", "cancelled")]
