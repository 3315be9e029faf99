"""How many Gold works run at once: as many as are done by the time the rule's answer stands, if all run from now.

More of them would not be answered sooner: each would only wait inside a step engine, where a newer observation of its
NPC cannot take its place, and all would stand before the players who wait for words. The rest wait in the queue.
"""

from __future__ import annotations

from collections.abc import Collection

from core.words import Tier
from core.work import Work
from kvcache.homes import Homes
from scheduler.costs import Costs
from scheduler.running import Running

CHOSEN_LEN = 3  # tokens of a choice that are not forced: an action, a target, an emotion


def takes_ns(costs: Costs, work: Work, left: int, made: int, pos: int) -> float:
    """The predicted time that a Gold work adds to the steps of others: `left` tokens before its first one, and its
    answer, of which `made` tokens are there. The cost of a step without any token is not counted: all share it.
    """
    answer = work.max_tokens if work.choice is None else min(work.max_tokens, CHOSEN_LEN)
    to_come = max(0, answer - made)
    _, fixed_ns, each_ns = costs.fit(0.0, pos, left + to_come, False)
    return (left + to_come) * each_ns + (1 + to_come) * fixed_ns


class GoldRoom:
    """The time that Gold has, and what of it the works that run take.

    Law: of the works that were taken through it in one plan, and those that ran before, all but one together take the
    time until the rule's answer stands at most.
    """

    def __init__(self, costs: Costs, homes: Homes, wait_ns: int) -> None:
        self._costs = costs
        self._homes = homes
        self._wait_ns = wait_ns
        self._runners: Collection[Running] = ()
        self._left_ns = 0.0
        self._any = False
        self._looked = True

    def begin(self, runners: Collection[Running], talked: float) -> None:
        """A plan begins; `runners` run, and conversations have the share `talked` of the engine."""
        self._runners = runners
        self._left_ns = self._wait_ns * (1.0 - talked)
        self._looked = False

    def has(self, work: Work) -> bool:
        """True if one more work is done in time beside those that run, or none runs."""
        if not self._looked:
            times = [self._runs_ns(r) for r in self._runners if r.work.tier is Tier.GOLD]
            self._left_ns -= sum(times)
            self._any = bool(times)
            self._looked = True
        if not self._any:
            return True
        trunk = self._homes.find(work.key)
        held = work.shared if trunk is None else max(work.shared, trunk.held)
        left = max(0, len(work.trunk) - held) + len(work.tail)
        return takes_ns(self._costs, work, left, 0, len(work.trunk)) <= self._left_ns

    def take(self, runner: Running) -> None:
        """One more work runs."""
        self._any = True
        self._left_ns -= self._runs_ns(runner)

    def _runs_ns(self, r: Running) -> float:
        return takes_ns(self._costs, r.work, r.left, len(r.made), r.place.pos)
