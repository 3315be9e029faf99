"""The port between the daemon and the engines that run models.

The daemon hands works to a backend by ticket number. For each it hears that the work was taken, its chunks, and one
end. Everything else that it knows of a backend is in one frozen Snapshot; it never reads objects of a backend's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from core.spread import Spread
from core.words import Finish, NpcKey, Tier, TrunkKey
from core.work import Chunk, Ended, Work

NO_LIMIT = 1 << 30  # of tokens: more than a work will ever have


class Taken(NamedTuple):
    """A work left its queue and runs."""

    at_ns: int


Delivery = tuple[int, Chunk | Ended | Taken]  # by ticket id


class Submitted(NamedTuple):
    """A work on its way to a backend: its ticket's number, and when it was submitted."""

    ticket_id: int
    work: Work
    at_ns: int


class Limits(NamedTuple):
    """Limits of one work. `context_len`: tokens of trunk, tail and output together. A backend that `reads_text` gets
    works without tokens: they have script and options alone.
    """

    context_len: int = NO_LIMIT
    reads_text: bool = False


class Health(NamedTuple):
    """The state of a backend's thread: when it last came round (`beat_ns`), and how long its present step should take.
    It is `ready` from its start until it is stopped or dies.
    """

    beat_ns: int = 0
    expected_ns: int = 0
    ready: bool = False

    def stalled(self, now_ns: int, least_ns: int, times: float) -> bool:
        """True when it has not come round for longer than `least_ns` and `times` as long as it should take."""
        return now_ns - self.beat_ns > max(least_ns, times * self.expected_ns)


class Drafts(NamedTuple):
    """How guessed tokens do on one tier. `gain` is tokens per second against those without drafts (0.0: unknown)."""

    on: bool = False
    offered: int = 0
    accepted: int = 0
    gain: float = 0.0


class TierCounts(NamedTuple):
    """One tier's works: those that run now, and how many ended in which way since start. `first` is submitted to
    first token, `gap` token to next token of one work; of both any thread may read percentiles.
    """

    running: int
    ended: Mapping[Finish, int]
    output_tokens: int
    first: Spread
    gap: Spread
    drafts: Drafts = Drafts()


class KvUse(NamedTuple):
    """How full the KV caches are, as far as npcd manages them. All of it is 0 where the engine manages its own.

    `lanes` and `residents` are sequences. `away` are the NPCs that have KV in a store beyond RAM, not on its way back.
    """

    lanes: int = 0
    lanes_leased: int = 0
    residents: int = 0
    residents_used: int = 0
    ram_bytes: int = 0
    ram_bytes_max: int = 0
    away: frozenset[NpcKey] = frozenset()

    @property
    def crowded(self) -> bool:
        """True when no sequence is left for another NPC."""
        return 0 < self.residents <= self.residents_used

    @property
    def roomy(self) -> bool:
        """True when there is room for another NPC's KV without evicting KV that may be needed."""
        return self.residents_used < self.residents or self.ram_bytes < self.ram_bytes_max / 2


class Windows(NamedTuple):
    """Gathering windows by the rule that closed them."""

    complete: int = 0
    full: int = 0
    time: int = 0


class UnitCosts(NamedTuple):
    """The cost of things on this backend now, in nanoseconds of engine time; 0: the backend cannot tell.

    `intent_ns` is one of a group of intents that are answered side by side, `alone_ns` an intent by itself,
    `prefill_ns` one token of a long prefill, `token_ns` the next token of one sequence by itself.
    """

    intent_ns: int = 0
    alone_ns: int = 0
    prefill_ns: int = 0
    token_ns: int = 0


class Snapshot(NamedTuple):
    """The state of a backend after its last step. It never changes: the backend replaces it, so any thread may read it.

    `step` has how long the steps of the last seconds took, and their tokens; `busy_ns` is the time spent in steps since
    start. /metrics shows the times of Spreads that have the promises' bounds. `counters` are more numbers for metrics,
    by family and name; they may be a moment older, and so may `costs`. `spent_ns` by tier and `trunks_ns`, for trunks
    that were computed, add up to `busy_ns`. `expected_ns` is how long the same steps should have taken. All of them are
    0 where the backend cannot tell.
    """

    tiers: tuple[TierCounts, ...]  # by tier
    step: Spread
    steps: int = 0
    busy_ns: int = 0
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    windows: Windows = Windows()
    kv: KvUse = KvUse()
    counters: Mapping[str, Mapping[str, float]] = {}
    spent_ns: tuple[int, ...] = (0, 0, 0)
    trunks_ns: int = 0
    expected_ns: int = 0
    costs: UnitCosts = UnitCosts()

    def running(self, tier: Tier) -> int:
        """How many works of a tier run."""
        return self.tiers[tier].running


class TrunkPlace(NamedTuple):
    """Where one trunk's KV rests: its key, its home's name as the contract spells it, and how it was used. The Door
    fills in `engine`, the backend's name in routes.
    """

    key: TrunkKey
    home: str
    tokens: int
    bytes: int
    hits: int
    used_ns: int
    engine: str = ""


class Backend(Protocol):
    """One engine as the daemon sees it. Every method may be called from any thread, and none of them waits, but stop.

    Laws: each submitted work ends exactly once, after all its chunks. Chunks of one work are delivered in order. Calls
    take effect in the order in which they were made.
    """

    @property
    def name(self) -> str:
        """Short name with version, for Status."""

    @property
    def limits(self) -> Limits:
        """Limits of one work. They never change."""

    @property
    def health(self) -> Health:
        """The state of its thread now."""

    @property
    def snapshot(self) -> Snapshot:
        """Its state after the last step."""

    def start(self, deliver: Callable[[Sequence[Delivery]], None], on_death: Callable[[BaseException], None]) -> None:
        """Begins to work. The backend calls `deliver` on a thread of its own, once per step; it must only pass its
        argument on. The backend calls `on_death` there if it ends by an error of its own.
        """

    def stop(self, timeout_s: float) -> bool:
        """Ends after the step that runs, and returns True if it ended in time. Works that are left then get no end."""

    def submit(self, group: Sequence[Submitted]) -> None:
        """Takes in works that are due together. Raises AssertionError, and takes none of them, if one exceeds the
        limits: the prompt must be cut first.
        """

    def cancel(self, ticket_id: int, at_ns: int) -> None:
        """Ends a work as CANCELLED. Nothing happens when it has ended already."""

    def forget(self, key: TrunkKey) -> None:
        """Forgets a trunk's KV, with all adapters and forks; of a key with a fork only that: it is discarded."""

    def commit(self, fork: TrunkKey) -> None:
        """Makes what a fork holds the trunk's own, after the works on it that were submitted before; the fork ends."""

    def coming_near(self, npc: NpcKey) -> None:
        """A hint: a work of this NPC is likely soon."""

    def moving_out(self, npc: NpcKey) -> None:
        """A hint: no work of this NPC is likely for a while."""

    def expect(self, due_ns: int | None) -> None:
        """A hint: the moment at which the next works will be submitted; None when none are expected."""

    def places(self, npcs: Sequence[NpcKey], answer: Callable[[list[TrunkPlace]], None]) -> None:
        """Calls `answer` with where the NPCs' trunks are, on a thread of the backend."""

    def obeyed(self, passed: Callable[[], None]) -> None:
        """Calls `passed` on a thread of the backend, once all earlier calls have taken effect."""
