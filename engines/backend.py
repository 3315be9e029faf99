"""The port between the daemon and whatever runs a model.

The daemon hands works to a backend by ticket number and hears of each what becomes of it: it was taken, chunks, one
end. Everything else that it knows of a backend is one frozen Snapshot; nobody reads the objects of a backend's thread.
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
    """What one work may ask for. `context_len`: tokens of trunk, tail and output together."""

    context_len: int = NO_LIMIT


class Health(NamedTuple):
    """How a backend's thread does: when it last came round, how long what it does since then should take, and whether
    it takes works at all: it is warm, and has neither died nor been stopped.
    """

    beat_ns: int = 0
    expected_ns: int = 0
    ready: bool = False

    def stalled(self, now_ns: int, least_ns: int, times: float) -> bool:
        """Whether it has not come round for longer than `least_ns` and `times` as long as it should take."""
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
    """How a backend's KV caches are used, as far as npcd manages them: all 0 where the engine below does.

    `lanes` and `residents` are sequences, `away` the NPCs of which KV is in a store beyond RAM and not on its way back.
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
        """Whether no sequence is left for another NPC."""
        return 0 < self.residents <= self.residents_used

    @property
    def roomy(self) -> bool:
        """Whether another NPC's KV can be made without driving out what somebody may need."""
        return self.residents_used < self.residents or self.ram_bytes < self.ram_bytes_max / 2


class Windows(NamedTuple):
    """Gathering windows by the rule that closed them."""

    complete: int = 0
    full: int = 0
    time: int = 0


class Snapshot(NamedTuple):
    """How a backend stood after its last step. Frozen: the backend replaces it, and any thread may read it.

    `step` is how long the steps of the last seconds took and how many tokens came of them, `busy_ns` the time spent in
    steps since start. /metrics shows the times of Spreads that have the promises' bounds. `counters` are more numbers
    for metrics, by family and name; they may be a moment older.
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

    def running(self, tier: Tier) -> int:
        """How many works of a tier run."""
        return self.tiers[tier].running


class TrunkPlace(NamedTuple):
    """Where one trunk's KV rests: its key, its home's name as the contract spells it, and how it was used."""

    key: TrunkKey
    home: str
    tokens: int
    bytes: int
    hits: int
    used_ns: int


class Backend(Protocol):
    """One engine as the daemon sees it. Every method may be called from any thread, and none of them waits, but stop.

    Laws: each submitted work ends exactly once, after all its chunks; of one work what is delivered is in order; what
    is asked is done in the order in which it was asked.
    """

    @property
    def name(self) -> str:
        """Short name with version, for Status."""

    @property
    def limits(self) -> Limits:
        """What one work may ask for; fixed for the life of the backend."""

    @property
    def health(self) -> Health:
        """How its thread does now."""

    @property
    def snapshot(self) -> Snapshot:
        """How it stood after its last step."""

    def start(self, deliver: Callable[[Sequence[Delivery]], None], on_death: Callable[[BaseException], None]) -> None:
        """Begins to work. `deliver` is called on a thread of the backend, once per step, and only passes on what it is
        given; `on_death` is called there if the backend ends by an error of its own.
        """

    def stop(self, timeout_s: float) -> bool:
        """Ends after the step that runs; whether it ended in time. What waits and runs then gets no end."""

    def submit(self, group: Sequence[Submitted]) -> None:
        """Takes in works that are due together. Raises AssertionError, and takes none, for one that no backend of
        these limits could run: the prompt must be cut first.
        """

    def cancel(self, ticket_id: int, at_ns: int) -> None:
        """Has a work end as CANCELLED, wherever it is; nothing happens when it has ended."""

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
        """Has `answer` called, on a thread of the backend, with where the NPCs' trunks are."""

    def obeyed(self, passed: Callable[[], None]) -> None:
        """Has `passed` called, on a thread of the backend, when all that was asked before is done."""
