"""Queues are bounded and ordered by deadline, and a newer work of the same NPC takes the older one's place."""

import random

import numpy as np

from core.words import NpcKey, Tier, TrunkKey
from core.work import Work
from scheduler.queues import Queue

NOTHING = np.empty(0, np.int32)


def work(deadline_ns: int, supersede: object = None) -> Work:
    """A work with only the fields that a queue reads."""
    key = TrunkKey(NpcKey("", "w", "n"), "")
    return Work(Tier.GOLD, key, NOTHING, NOTHING, 1, deadline_ns=deadline_ns, supersede=supersede)


def test_against_a_dumb_version() -> None:
    """After random adds, takes and cancels the same works wait in the same order as in a plain list. A superseding work
    keeps the earlier deadline.
    """
    rng = random.Random(6)
    queue = Queue(20)
    dumb: dict[int, Work] = {}
    deadlines: dict[int, int] = {}
    for ticket in range(3000):
        act = rng.random()
        if act < 0.6:
            w = work(rng.randrange(1000), rng.choice([None, 1, 2, 3, 4]))
            taken, superseded = queue.add(ticket, w, ticket)
            old = next((t for t, d in dumb.items() if w.supersede is not None and d.supersede == w.supersede), None)
            assert (superseded.ticket_id if superseded else None) == old
            deadlines[ticket] = w.deadline_ns
            if old is not None:
                del dumb[old]
                deadlines[ticket] = min(w.deadline_ns, deadlines[old])
            assert taken == (len(dumb) < 20)
            if taken:
                dumb[ticket] = w
        elif act < 0.8 and dumb:
            gone = rng.choice(list(dumb))
            assert queue.cancel(gone) is not None
            assert queue.cancel(gone) is None
            del dumb[gone]
        else:
            order = []
            for i, waiting in enumerate(queue.in_order()):
                order.append(waiting.ticket_id)
                if i % 2:
                    queue.take(waiting)
            assert order == sorted(dumb, key=lambda t: (deadlines[t], t))
            for gone in order[1::2]:
                del dumb[gone]
        assert len(queue) == len(dumb) <= 20
        first = min(dumb, key=lambda t: (deadlines[t], t), default=None)
        assert (queue.first.ticket_id if queue.first else None) == first
        assert queue.oldest_ns == min(dumb, default=None)
        assert {w.ticket_id for w in queue} == set(dumb)


def test_a_queue_does_not_keep_entries_of_works_that_left() -> None:
    """A thousand questions of one NPC that never runs leave one entry. The order stays right when entries go while it
    is read.
    """
    queue = Queue(2000)
    for ticket in range(1000):
        queue.add(ticket, work(1000 - ticket, supersede="npc"), ticket)
    assert len(queue) == 1
    assert len(queue._heap) <= 65
    for ticket in range(1000, 1400):
        queue.add(ticket, work(ticket), ticket)
    left = []
    for waiting in queue.in_order():
        left.append(waiting.ticket_id)
        for other in (waiting.ticket_id + 1, waiting.ticket_id + 2):
            queue.cancel(other)
    assert left == [999, *range(1002, 1400, 3)]
    assert [w.ticket_id for w in queue.in_order()] == left
