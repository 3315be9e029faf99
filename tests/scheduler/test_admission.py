"""Admission lets waiting works start on any backend. It needs seats, and knows no sequence, lane or KV."""

from core.clock import MS
from core.words import Finish, Tier, TrunkKey
from core.work import Work
from engines.base import tokens_of
from scheduler.admission import Admission
from scheduler.queues import Waiting
from scheduler.window import Closed, WindowSettings
from tests.scheduler.simulated import npc
from tiers.promises import Promises

PROMISES = Promises()


class Chairs:
    """A backend without tokens. A fixed number of works sit at once, whatever they are; none gives way."""

    def __init__(self, admission: Admission, count: int) -> None:
        self.sitting: list[Work] = []
        self._admission = admission
        self._count = count

    def works(self) -> list[Work]:
        """The works that sit."""
        return self.sitting

    def busy(self) -> bool:
        """True when a work sits."""
        return bool(self.sitting)

    def go_on(self, tier: Tier, now_ns: int) -> None:
        """Chairs never put a work back."""

    def filled(self, work: Work) -> bool:
        """Every work has time."""
        return False

    def could_stand(self, work: Work) -> bool:
        """All works are alike, so any of them could sit."""
        return True

    def all_taken(self, work: Work) -> bool:
        """True when no chair is free."""
        return len(self.sitting) >= self._count

    def take(self, entry: Waiting, rule: Closed, now_ns: int) -> bool:
        """The work sits down, if a chair is free."""
        if self.all_taken(entry.work):
            return False
        self._admission.queues.of[entry.work.tier].take(entry)
        self.sitting.append(entry.work)
        return True


def work(tier: Tier, n: int = 0, supersede: object = None, due_ns: int = 0) -> Work:
    """A work without tokens."""
    return Work(tier, TrunkKey(npc(n), ""), tokens_of([]), tokens_of([1]), 8, due_ns=due_ns, supersede=supersede)


def admission(**running_max: int) -> Admission:
    """An admission whose window never stays open."""
    most = {tier: running_max.get(tier.name.lower(), 100) for tier in Tier}
    return Admission(PROMISES, WindowSettings(gather_ms=0.0), most)


def test_higher_tiers_start_first_as_far_as_there_are_seats() -> None:
    """With two seats and a work of each tier, Gold and Silver sit and Bronze waits, in every order of arrival."""
    line = admission()
    chairs = Chairs(line, 2)
    bronze, silver, gold = (work(tier, n) for n, tier in enumerate((Tier.BRONZE, Tier.SILVER, Tier.GOLD)))
    for ticket, one in enumerate((bronze, silver, gold), 1):
        assert line.submit(ticket, one, MS) == []
    assert line.admit(chairs, MS, None) is None
    assert chairs.sitting == [gold, silver]
    assert list(line.works()) == [bronze]


def test_bronze_past_its_bound_takes_the_next_seat_before_silver() -> None:
    """A Bronze work that is overdue counts as Silver and sits before the Silver that waits."""
    line = admission()
    chairs = Chairs(line, 1)
    late_ns = PROMISES.overdue_ns(Tier.BRONZE, 0)
    bronze, silver = work(Tier.BRONZE, 1), work(Tier.SILVER, 2)
    for ticket, one in enumerate((bronze, silver), 1):
        line.submit(ticket, one, 0)
    line.admit(chairs, late_ns, None)
    assert chairs.sitting == [bronze]
    assert line.counts_as(bronze) is Tier.SILVER
    assert line.counts_as(silver) is Tier.SILVER

    young = admission()
    chairs = Chairs(young, 1)
    for ticket, one in enumerate((bronze, silver), 1):
        young.submit(ticket, one, 0)
    young.admit(chairs, late_ns - 1, None)
    assert chairs.sitting == [silver]


def test_no_more_of_a_tier_run_than_may() -> None:
    """With running_max 2, the third work of the tier waits though seats are free."""
    line = admission(silver=2)
    chairs = Chairs(line, 10)
    for n in range(3):
        line.submit(n, work(Tier.SILVER, n), 0)
    line.admit(chairs, 0, None)
    assert len(chairs.sitting) == 2
    assert len(line.queues.of[Tier.SILVER]) == 1


def test_a_work_that_leaves_a_queue_without_running_has_a_reason() -> None:
    """A newer work supersedes the older one, a full queue refuses, and cancel and drop remove waiting works: each end
    has its reason."""
    line = admission()
    old, new = work(Tier.GOLD, 1, "npc1"), work(Tier.GOLD, 1, "npc1")
    assert line.submit(1, old, 0) == []
    (left,) = line.submit(2, new, 0)
    assert (left.waiting.ticket_id, left.finish) == (1, Finish.SUPERSEDED)
    (left,) = line.cancel(2)
    assert (left.waiting.work, left.finish) == (new, Finish.CANCELLED)
    assert line.cancel(2) == []

    most = PROMISES.of(Tier.SILVER).waiting_max
    for n in range(most):
        assert line.submit(10 + n, work(Tier.SILVER, n), 0) == []
    (left,) = line.submit(10 + most, work(Tier.SILVER, most), 0)
    assert (left.waiting.ticket_id, left.finish) == (10 + most, Finish.REFUSED)
    (left,) = line.drop(lambda w: w.key.npc == npc(3), "forgotten")
    assert (left.waiting.ticket_id, left.finish, left.reason) == (13, Finish.CANCELLED, "forgotten")


def test_an_idle_backend_waits_for_a_work_that_is_due_within_the_window() -> None:
    """While the next work is due soon no work starts, and the result is the next time to look."""
    line = Admission(PROMISES, WindowSettings(), dict.fromkeys(Tier, 100))
    chairs = Chairs(line, 10)
    line.submit(1, work(Tier.GOLD), 0)
    again_ns = line.admit(chairs, 0, MS)
    assert again_ns is not None and 0 < again_ns <= 10 * MS
    assert not chairs.sitting
    assert line.admit(chairs, again_ns, None) is None
    assert len(chairs.sitting) == 1
