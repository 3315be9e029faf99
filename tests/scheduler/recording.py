"""A backend that only notes what it is asked: for tests of what stands before one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from core.spread import Spread
from core.words import Finish, NpcKey, Tier, TrunkKey
from core.work import Work
from engines.backend import Delivery, Health, Limits, Snapshot, Submitted, TierCounts, TrunkPlace

NOTHING_RAN = Snapshot(tuple(TierCounts(0, dict.fromkeys(Finish, 0), 0, Spread(), Spread()) for _ in Tier), Spread())


class Recording:
    """`asked` has everything in order: (ticket, work, moment) of what was submitted, with None in place of the work for
    what was cancelled, and names for the rest.
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
        """Has nothing to start."""

    def stop(self, timeout_s: float) -> bool:
        """Has nothing to stop."""
        return True

    def submit(self, group: Sequence[Submitted]) -> None:
        """Notes works."""
        self.asked += [(one.ticket_id, one.work, one.at_ns) for one in group]

    def cancel(self, ticket_id: int, at_ns: int) -> None:
        """Notes the ticket."""
        self.asked.append((ticket_id, None, at_ns))

    def forget(self, key: TrunkKey) -> None:
        """Notes it."""
        self.asked.append(f"forget {key.npc.npc}")

    def commit(self, fork: TrunkKey) -> None:
        """Notes it."""
        self.asked.append(f"commit {fork.npc.npc}")

    def coming_near(self, npc: NpcKey) -> None:
        """Notes it."""
        self.asked.append(f"coming near {npc.npc}")

    def moving_out(self, npc: NpcKey) -> None:
        """Notes it."""
        self.asked.append(f"moving out {npc.npc}")

    def expect(self, due_ns: int | None) -> None:
        """Notes it."""
        self.asked.append(f"expect {due_ns}")

    def places(self, npcs: Sequence[NpcKey], answer: Callable[[list[TrunkPlace]], None]) -> None:
        """Answers with `trunks`, unless it is silent."""
        if not self.silent:
            answer(self.trunks)

    def obeyed(self, passed: Callable[[], None]) -> None:
        """All that is done is to note it."""
        passed()
