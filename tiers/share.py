"""The choice of the due NPCs that are asked now: levels and NPCs share the capacity of the engine.

Two bounds: tokens per second, as a bucket that holds `burst_s` of them (`tokens_per_s` 0: no such bound), and
`under_way_max` questions under way. The pace (tiers/pace.py) may lower both. An NPC that is not asked stays due, and is
asked later about its state then.

* **Urgent** NPCs (attacked, spoken to) go first. They alone may use a reserve: `reserve_share` more places, and as much
  more of the bucket, which is paid back before any other NPC is asked (of both, one question at least).
* Between the **levels**, warm NPCs get `warm_share` of the other questions and active ones the rest while both wait.
  A level gets the unused share of the other one, and no level saves up a share.
* Inside a level, and among the urgent, the NPC that has been due longest goes first.

No NPC starves: after `URGENT_IN_A_ROW` urgent ones a waiting level has its turn, on the terms of the urgent; the shares
bound how many NPCs of the other level go before; and NPCs that become due later come later.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from core.clock import S
from core.errors import ConfigError
from core.words import Activation

Who = TypeVar("Who", bound=Hashable)

URGENT_IN_A_ROW = 8


@dataclass(frozen=True, slots=True)
class ShareSettings:
    """How many questions for intents the engine gets, and how urgent, active and warm NPCs share them."""

    tokens_per_s: int = 0
    """Tokens per second that questions may cost the engine; 0: no bound but `intents.share.under_way_max`. From 0 to
    10000000.
    """
    burst_s: float = 1.0
    """Seconds of `intents.share.tokens_per_s` that may be saved up and spent at once. From 0.05 to 60."""
    under_way_max: int = 48
    """Questions that are with the engine at the same time. From 1 to 4096."""
    warm_share: float = 0.2
    """Share of the questions that warm NPCs get while active ones wait as well. From 0.01 to 0.99."""
    reserve_share: float = 0.1
    """Extra share of places and tokens that only urgent NPCs (attacked, spoken to) may use. From 0 to 1."""


def check_share(settings: ShareSettings, section: str = "intents.share") -> None:
    """Checks bounds. Raises ConfigError naming the setting, which is in `section`."""

    def check(right: bool, name: str, must: str) -> None:
        if not right:
            raise ConfigError(f"{section}.{name}: {getattr(settings, name):g}, must be {must}")

    s = settings
    check(0 <= s.tokens_per_s <= 10_000_000, "tokens_per_s", "0 (no bound) to 10000000")
    check(0.05 <= s.burst_s <= 60, "burst_s", "0.05 to 60 seconds")
    check(1 <= s.under_way_max <= 4096, "under_way_max", "1 to 4096")
    check(0.01 <= s.warm_share <= 0.99, "warm_share", "0.01 to 0.99: nobody waits for ever")
    check(0 <= s.reserve_share <= 1, "reserve_share", "0 to 1")


class _Queue(IntEnum):
    URGENT = 0
    ACTIVE = 1
    WARM = 2


_URGENT, _ACTIVE, _WARM = _Queue


@dataclass(slots=True, eq=False)
class _Wait(Generic[Who]):
    """One NPC that is due. `queue` None: it was taken, removed, or waits elsewhere."""

    who: Who
    due_ns: int
    number: int
    queue: _Queue | None


_Entry = tuple[int, int, int, _Wait[Who]]  # due_ns, number; and how many entries there were before it


class Share(Generic[Who]):
    """Due NPCs, and how many questions are `under_way`. `len` is how many wait."""

    def __init__(self, settings: ShareSettings = ShareSettings()) -> None:
        self.settings = settings
        self.under_way = 0
        self._rate = 0
        self._tokens = 0
        self._filled_ns: int | None = None
        self._bound(settings.tokens_per_s, settings.under_way_max)
        self._each = S
        self._waits: dict[Who, _Wait[Who]] = {}
        self._heaps: tuple[list[_Entry[Who]], ...] = ([], [], [])
        self._waiting = [0, 0, 0]
        self._next_number = 0
        self._entries = 0
        self._urgent_in_a_row = 0
        # Start-time fair queueing: the questions of each level, divided by its share. The level with less is next.
        self._had = [0, 0, 0]
        self._last_had = 0  # of the level that was asked last, before it was
        self._question = (0, round(1e6 / (1.0 - settings.warm_share)), round(1e6 / settings.warm_share))

    def __len__(self) -> int:
        return len(self._waits)

    def __iter__(self) -> Iterator[Who]:
        return iter(self._waits)

    def keep_pace(self, tokens_per_s: int, under_way_max: int, now_ns: int) -> None:
        """Lowers both bounds to what the engine carries now; 0 tokens per second: that bound is the settings' alone.
        The settings' bounds stay the highest.
        """
        self._fill(now_ns)
        rate = self.settings.tokens_per_s
        rate = min(rate, tokens_per_s) if rate and tokens_per_s else rate or tokens_per_s
        places = min(self.settings.under_way_max, max(1, under_way_max))
        if (rate, places) != (self._rate, self._places):
            self._bound(rate, places)

    def _bound(self, rate: int, places: int) -> None:
        self._places = places
        self._reserve_places = max(1, round(places * self.settings.reserve_share))
        # The bucket counts billionths of a token, so that what flows in during a nanosecond is a whole number.
        full = round(rate * self.settings.burst_s * S)
        self._tokens = min(self._tokens, full) if self._rate else full
        self._rate, self._full = rate, full
        self._reserve = round(full * self.settings.reserve_share)

    def add(self, who: Who, activation: Activation, urgent: bool, due_ns: int) -> None:
        """It is due since `due_ns`. Again: its level changes, it may become urgent; its first due moment counts.

        Urgent it stays until it is taken. An ambient one waits only when it is urgent.
        """
        wait = self._waits.get(who)
        urgent = urgent or (wait is not None and wait.queue is _URGENT)
        if not urgent and activation is Activation.AMBIENT:
            self.remove(who)
            return
        queue = _URGENT if urgent else _ACTIVE if activation is Activation.ACTIVE else _WARM
        if wait is None:
            self._enter(who, queue, due_ns, self._next_number)
            self._next_number += 1
        elif wait.queue is not queue:
            self._leave(wait)
            self._enter(who, queue, wait.due_ns, wait.number)

    def remove(self, who: Who) -> None:
        """It is due no longer. A question under way is still to be ended."""
        wait = self._waits.get(who)
        if wait is not None:
            self._leave(wait)

    def take(self, now_ns: int, tokens_each: int) -> list[Who]:
        """The NPCs to ask now, in this order; each has a place under way from now on, and `tokens_each` spent."""
        assert tokens_each >= 0, tokens_each
        self._fill(now_ns)
        self._each = tokens_each * S
        taken: list[Who] = []
        while self._waits and self._wanting(bool(self._waiting[_URGENT])) == 0 and self._has_place():
            queue = self._next_queue()
            wait = self._first(queue)
            self._leave(wait)
            self.under_way += 1
            if self._rate:
                self._tokens -= self._each
            taken.append(wait.who)
        return taken

    def ended(self, now_ns: int) -> None:
        """A question came to its end, however: its place is free."""
        assert self.under_way > 0, "more questions ended than were taken"
        self.under_way -= 1
        self._fill(now_ns)

    def give_back(self, now_ns: int) -> None:
        """One of the last take was not asked after all: its place is free and its tokens are not spent."""
        self.ended(now_ns)
        if self._rate:
            self._tokens = min(self._full, self._tokens + self._each)

    def next_ns(self, now_ns: int) -> int | None:
        """When the bucket has tokens for another question as large as the last; None: nobody waits, or whoever waits
        needs a place first.
        """
        self._fill(now_ns)
        if not self._waits or not self._has_place():
            return None
        wanting = self._wanting(bool(self._waiting[_URGENT]))
        return now_ns + (-(-wanting // self._rate) if wanting else 0)

    def _has_place(self) -> bool:
        return self.under_way < self._places + (self._reserve_places if self._waiting[_URGENT] else 0)

    def _wanting(self, urgent: bool) -> int:
        """The tokens that the bucket lacks for one more question. A larger question needs a full bucket."""
        if not self._rate:
            return 0
        need = min(self._each, self._full)
        return max(0, need - (max(self._reserve, need) if urgent else 0) - self._tokens)

    def _fill(self, now_ns: int) -> None:
        if self._filled_ns is not None and now_ns > self._filled_ns:
            self._tokens = min(self._full, self._tokens + (now_ns - self._filled_ns) * self._rate)
        self._filled_ns = now_ns if self._filled_ns is None else max(self._filled_ns, now_ns)

    def _next_queue(self) -> _Queue:
        """The queue whose turn it is, of those that wait."""
        active, warm = self._waiting[_ACTIVE], self._waiting[_WARM]
        if self._waiting[_URGENT] and (self._urgent_in_a_row < URGENT_IN_A_ROW or not (active or warm)):
            self._urgent_in_a_row += 1
            return _URGENT
        self._urgent_in_a_row = 0
        had = self._had
        queue = _ACTIVE if active and (not warm or had[_ACTIVE] <= had[_WARM]) else _WARM
        self._last_had = had[queue]
        had[queue] += self._question[queue]
        return queue

    def _first(self, queue: _Queue) -> _Wait[Who]:
        heap = self._heaps[queue]
        while heap[0][3].queue is not queue:
            heappop(heap)
        return heappop(heap)[3]

    def _enter(self, who: Who, queue: _Queue, due_ns: int, number: int) -> None:
        if not self._waiting[queue]:
            # A level that was away has saved nothing up, and keeps any excess over its share.
            self._had[queue] = max(self._had[queue], self._last_had)
        wait = self._waits[who] = _Wait(who, due_ns, number, queue)
        self._waiting[queue] += 1
        heap = self._heaps[queue]
        heappush(heap, (due_ns, number, self._entries, wait))
        self._entries += 1
        if len(heap) > 2 * self._waiting[queue] + 64:
            heap[:] = [entry for entry in heap if entry[3].queue is queue]
            heapify(heap)

    def _leave(self, wait: _Wait[Who]) -> None:
        assert wait.queue is not None
        self._waiting[wait.queue] -= 1
        wait.queue = None
        del self._waits[wait.who]
