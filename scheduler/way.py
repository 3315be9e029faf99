"""The works that give way to a work without a place: no work waits for a lower tier longer than one step.

A work needs its trunk to itself, a lane when it is not Gold, and a sequence for its trunk. If a running work of a
lower tier holds one of these, it is preempted, and goes on later with the KV that is computed. A Silver that has begun
to speak is not preempted: it runs at the waiting work's tier until it ends. Works of the same tier are waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from core.words import Tier
from core.work import Work
from kvcache.homes import Trunk
from scheduler.placing import Placer
from scheduler.running import Running

Counts = Callable[[Running], Tier]


class Way(NamedTuple):
    """Works to put back, and works that are to run at the waiting work's tier meanwhile. One of the two is empty."""

    put_back: Sequence[Running] = ()
    hurried: Sequence[Running] = ()


def make_way(work: Work, tier: Tier, running: Iterable[Running], counts: Counts, placer: Placer) -> Way | None:
    """The preemptions that give `work`, which counts as `tier`, a place. None: it waits for its own tier or a higher
    one, or for its trunk to come from the store. `counts` gives the tier that a running work counts as.

    No work is preempted in vain: after all of them there is a place.
    """
    lower = [r for r in running if counts(r) > tier] if tier is not Tier.BRONZE else []
    trunk = placer.homes.find(work.key)
    if not lower or (trunk is not None and trunk.fetching_ns):
        return None
    put_back: list[Running] = []
    if trunk is not None and trunk.users:
        holder = next((r for r in lower if r.place.trunk is trunk and r.place.stands), None)
        if holder is None:
            return None
        if not _may_be_put_back(holder):
            return Way(hurried=[holder])
        put_back.append(holder)
    if placer.needs_lane(work) and not placer.lanes.free and not any(r.place.lane >= 0 for r in put_back):
        last = _last(lower, lambda r: r.place.lane >= 0)
        if last is None:
            return None
        put_back.append(last)
    if not _has_sequence(trunk, placer) and not any(r.place.stands for r in put_back):
        standing = [r for r in lower if r.place.stands]
        last = _last(standing, _may_be_put_back)
        if last is None:
            return Way(hurried=standing) if standing else None
        put_back.append(last)
    return Way(put_back)


def _has_sequence(trunk: Trunk | None, placer: Placer) -> bool:
    """True if there is a sequence for a trunk: its own, a free one, or that of a trunk on which no work stands."""
    homes = placer.homes
    return (trunk is not None and trunk.seq >= 0) or homes.free > 0 or any(not t.users for t in homes.residents)


def _may_be_put_back(runner: Running) -> bool:
    """Bronze at any step, Silver before its first byte."""
    return runner.work.tier is Tier.BRONZE or not runner.made


def _last(runners: Iterable[Running], may: Callable[[Running], bool]) -> Running | None:
    """Of those that may be put back: the lowest tier, then what is due last, then what came last."""
    found = (r for r in runners if may(r) and _may_be_put_back(r))
    return max(found, key=lambda r: (r.work.tier, r.work.due_ns, r.ticket_id), default=None)
