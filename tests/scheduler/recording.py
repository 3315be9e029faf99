"""A backend that only records its calls, for tests of the code in front of a backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from core.spread import Spread
from core.words import Finish, NpcKey, Tier, TrunkKey
from core.work import Work
from engines.backend import Delivery, Health, Limits, Snapshot, Submitted, TierCounts, TrunkPlace

NOTHING_RAN = Snapshot(tuple(TierCounts(0, dict.fromkeys(Finish, 0), 0, Spread(), Spread()) for _ in Tier), Spread())


class Recording:
    """`asked` has all calls in order: (ticket, work, moment) of a submitted work, the same with None for the work of a
    cancelled one, and names for the rest.
    """

    def __init__(self, context_len: int = 100) -> None:
        self.asked: list[tuple[int, Work | None, int] | str] = []
        self.name = "recording"
        self.limits = Limits(context_len)
        self.health = Health(ready=True)
        self.snapshot = NOTHING_RAN
        self.trunks: list[TrunkPlace] = []
        self.silent = False

    def start(self, deliver: Callable[[Sequence[Delivery]], None], on_death: Callable[[BaseException], None]) -> None:
        """Does nothing."""

    def stop(self, timeout_s: float) -> bool:
        """Does nothing."""
        return True

    def submit(self, group: Sequence[Submitted]) -> None:
        """Records the works."""
        self.asked += [(one.ticket_id, one.work, one.at_ns) for one in group]

    def cancel(self, ticket_id: int, at_ns: int) -> None:
        """Records the ticket."""
        self.asked.append((ticket_id, None, at_ns))

    def forget(self, key: TrunkKey) -> None:
        """Records the call."""
        self.asked.append(f"forget {key.npc.npc}")

    def commit(self, fork: TrunkKey) -> None:
        """Records the call."""
        self.asked.append(f"commit {fork.npc.npc}")

    def coming_near(self, npc: NpcKey) -> None:
        """Records the call."""
        self.asked.append(f"coming near {npc.npc}")

    def moving_out(self, npc: NpcKey) -> None:
        """Records the call."""
        self.asked.append(f"moving out {npc.npc}")

    def expect(self, due_ns: int | None) -> None:
        """Records the call."""
        self.asked.append(f"expect {due_ns}")

    def places(self, npcs: Sequence[NpcKey], answer: Callable[[list[TrunkPlace]], None]) -> None:
        """Answers with `trunks`, unless it is silent."""
        if not self.silent:
            answer(self.trunks)

    def obeyed(self, passed: Callable[[], None]) -> None:
        """Records the call, and does nothing else."""
        passed()
