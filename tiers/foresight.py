"""The choice of expected states that are worth asking about, and the account of their outcome.

Every expected state is noted, whether the model is asked about it or not, and watched until it comes true or expires.
So npcd learns at no cost how often each kind of prediction comes true in this game. It asks about the best kinds, as
many as together keep within the allowed waste, and counts tokens spent, tokens wasted and time saved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass

from core.clock import MS
from core.words import Activation
from tiers.prediction import PredictionSettings

WHEN_MS = (500, 1_000, 2_000)  # near and far predictions of a kind are judged apart
PRIOR = 8  # the chance that a prediction comes with counts as so many cases
CASES_MAX = 400  # older cases count half when there are so many
MARGIN = 0.06  # of the allowed waste that is kept back
TIGHTEN = 4.0  # the factor by which more is required when more is wasted
CHOSEN_EVERY = 64  # cases after which the kinds are judged anew
KINDS_MAX = 256
OPEN_MAX = 32  # states that were asked about and may still come true, beyond the number of hits so far
SOON_MS = 500  # states within one such step are equally urgent


# Turns a moment into an NPC's game time: states come true, and expire, in game time.
GameTimeOf = Callable[[Hashable, int], int]


@dataclass(slots=True)
class ForesightCounts:
    """Counted since start; `wasted_tokens` of those that were spent on states that did not come in time."""

    predictions: int = 0
    hits: int = 0
    tokens: int = 0
    wasted_tokens: int = 0
    saved_ns: int = 0


@dataclass(frozen=True, slots=True)
class Offer:
    """A question that could be asked ahead of time: the NPC, the state, and the cost in tokens."""

    who: Hashable
    state: Hashable
    kind: str
    chance: float
    in_ms: int
    tokens: int
    activation: Activation = Activation.ACTIVE


@dataclass(slots=True)
class Judged:
    """The record of one kind of prediction: cases that are over, and those that came true."""

    cases: float
    true: float
    good: bool = False

    @property
    def share(self) -> float:
        """The share of its cases that came true."""
        return self.true / self.cases


@dataclass(slots=True, eq=False)
class _Noted:
    """One expected state of one NPC, and the kinds of its predictions. `tokens` -1: not asked about."""

    kinds: list[tuple[str, int]]
    due_ns: int  # in game time
    until_ns: int  # in game time
    look_ns: int = 0  # the moment at which its end is checked
    tokens: int = -1
    true: bool = False
    over: bool = False


class Foresight:
    """The books of all NPCs; an NPC without expected states has none. `who` and `state` are any hashable names.

    Invariant: an NPC has at most per_npc_max states that were asked about, and as many that are only watched.
    """

    def __init__(self, settings: PredictionSettings, game_time: GameTimeOf = lambda _, now_ns: now_ns) -> None:
        self.counts = ForesightCounts()
        self._settings = settings
        self._game_time = game_time
        self._ttl_ns = round(settings.ttl_s * 1e9)
        self._books: dict[Hashable, dict[Hashable, _Noted]] = {}
        self._ends: deque[tuple[int, Hashable, Hashable, _Noted]] = deque()  # by look_ns
        self._over: list[tuple[Hashable, Hashable]] = []
        self._kinds: dict[tuple[str, int], Judged] = {}
        self._judged = 0
        self._settled_tokens = 0
        self._open = 0  # asked about, neither come true nor over

    @property
    def expecting(self) -> Collection[Hashable]:
        """The NPCs of which states are expected."""
        return self._books.keys()

    # -- ahead of time -----------------------------------------------------------------------------------------

    def offer(self, who: Hashable, state: Hashable, kind: str, chance: float, in_ms: int, now_ns: int) -> bool:
        """True if asking about this state now is worth its tokens; notes it in any case, to see if it comes true."""
        if not self._settings.on:
            return False
        named = _named(kind, in_ms)
        judged = self._judge(named, chance)
        book = self._books.setdefault(who, {})
        noted = book.get(state)
        at_ns = self._game_time(who, now_ns)
        if noted is None:
            first = self._first(book, asked=False)
            if first is not None:
                if first[1].due_ns >= at_ns:
                    return False
                self._end(who, *first)
            noted = book[state] = _Noted([named], at_ns + in_ms * MS, at_ns + self._ttl_ns)
            self._look_later(who, state, noted, now_ns)
        elif named not in noted.kinds:
            noted.kinds.append(named)
        if noted.tokens >= 0 or noted.true:
            return False
        if not judged.good or self._open >= OPEN_MAX + self.counts.hits:
            return False
        first = self._first(book, asked=True)
        return first is None or first[1].due_ns < at_ns

    def choose(self, offers: Iterable[Offer], budget_tokens: int, now_ns: int) -> list[Offer]:
        """The questions to ask, in this order: active before warm, soon before later, likely before less likely."""
        worth = [o for o in offers if self.offer(o.who, o.state, o.kind, o.chance, o.in_ms, now_ns)]
        worth.sort(key=lambda o: (o.activation, o.in_ms // SOON_MS, -self.share(o.kind, o.in_ms, o.chance), o.in_ms))
        chosen = []
        for o in worth:
            if o.tokens <= budget_tokens:
                budget_tokens -= o.tokens
                chosen.append(o)
        return chosen

    def asked(self, who: Hashable, state: Hashable, kind: str, tokens: int, now_ns: int) -> None:
        """A question about this state was asked ahead of time, for so many tokens. It counts until its ttl is over."""
        self.counts.predictions += 1
        self.counts.tokens += tokens
        book = self._books.setdefault(who, {})
        noted = book.get(state)
        if noted is None or noted.tokens < 0:
            self._open += 1
            if noted is not None:
                noted.true = False  # a state that came true before the question is no hit
            first = self._first(book, asked=True)
            if first is not None:
                self._end(who, *first)
        at_ns = self._game_time(who, now_ns)
        if noted is None:
            noted = book[state] = _Noted([_named(kind, 0)], at_ns, 0)
            self._judge(noted.kinds[0], 0.0)
        noted.tokens, noted.until_ns = max(noted.tokens, 0) + tokens, at_ns + self._ttl_ns
        self._look_later(who, state, noted, now_ns)

    # -- in its time -------------------------------------------------------------------------------------------

    def came_true(self, who: Hashable, state: Hashable, saved_ns: int, now_ns: int) -> bool:
        """Call it for each new state of an NPC; True if it was asked about. `saved_ns` counts if it was."""
        book = self._books.get(who)
        noted = book.get(state) if book is not None else None
        if noted is None or noted.until_ns < self._game_time(who, now_ns):
            return False
        if not noted.true:
            noted.true = True
            if noted.tokens >= 0:
                self.counts.hits += 1
                self._open -= 1
        if noted.tokens >= 0:
            self.counts.saved_ns += saved_ns
        return noted.tokens >= 0

    def expire(self, now_ns: int) -> list[tuple[Hashable, Hashable]]:
        """Ends expired states. Returns those, of all that were asked about, that ended since the last call."""
        ends = self._ends
        while ends and ends[0][0] < now_ns:
            look_ns, who, state, noted = ends.popleft()
            if noted.over or noted.look_ns != look_ns:
                continue
            if self._game_time(who, now_ns) <= noted.until_ns:
                self._look_later(who, state, noted, now_ns)  # its game runs slowly, or was paused
                continue
            self._end(who, state, noted)
            if not self._books[who]:
                del self._books[who]
        over, self._over = self._over, []
        return over

    def _look_later(self, who: Hashable, state: Hashable, noted: _Noted, now_ns: int) -> None:
        noted.look_ns = now_ns + self._ttl_ns
        self._ends.append((noted.look_ns, who, state, noted))

    def remove(self, who: Hashable) -> None:
        """Forgets an NPC; questions about its states that did not come true are wasted."""
        for state, noted in list(self._books.get(who, {}).items()):
            self._end(who, state, noted, learn=False)
        self._books.pop(who, None)

    # -- learning ----------------------------------------------------------------------------------------

    def share(self, kind: str, in_ms: int, chance: float = 0.0) -> float:
        """The share of predictions of this kind that came true so far; without any, the chance."""
        judged = self._kinds.get(_named(kind, in_ms))
        return judged.share if judged else chance

    def _judge(self, named: tuple[str, int], chance: float) -> Judged:
        judged = self._kinds.get(named)
        if judged is None:
            assert len(self._kinds) < KINDS_MAX, "kinds of prediction are few"
            judged = Judged(PRIOR, PRIOR * chance, chance >= self._wanted)
            self._kinds[named] = judged
        return judged

    @property
    def _wanted(self) -> float:
        return min(1.0, 1.0 - self._settings.wasted_max + MARGIN)

    def _learn(self, named: tuple[str, int], true: bool) -> None:
        judged = self._kinds[named]
        judged.cases += 1.0
        judged.true += true
        if judged.cases >= CASES_MAX:
            judged.cases /= 2
            judged.true /= 2
        self._judged += 1
        if self._judged % CHOSEN_EVERY == 0:
            self._choose_kinds()

    def _choose_kinds(self) -> None:
        """Chooses the best kinds, as many as together come true often enough; fewer, when too much was wasted."""
        wanted = self._wanted
        if self._settled_tokens:
            meant = self._settings.wasted_max - MARGIN
            wanted += TIGHTEN * max(0.0, self.counts.wasted_tokens / self._settled_tokens - meant)
        cases = true = 0.0
        for judged in sorted(self._kinds.values(), key=lambda j: -j.share):
            cases += judged.cases
            true += judged.true
            judged.good = judged.share >= self._wanted or true >= wanted * cases

    # -- books -------------------------------------------------------------------------------------------------

    def _first(self, book: dict[Hashable, _Noted], asked: bool) -> tuple[Hashable, _Noted] | None:
        """The state that one more would replace: the one that was due first. None while there is room."""
        there = [(state, noted) for state, noted in book.items() if (noted.tokens >= 0) == asked]
        return None if len(there) < self._settings.per_npc_max else min(there, key=lambda at: at[1].due_ns)

    def _end(self, who: Hashable, state: Hashable, noted: _Noted, learn: bool = True) -> None:
        noted.over = True
        del self._books[who][state]
        if noted.tokens >= 0:
            self._settled_tokens += noted.tokens
            self._over.append((who, state))
            if not noted.true:
                self.counts.wasted_tokens += noted.tokens
                self._open -= 1
        if learn:
            # Hits count at the end of their time, too: else the first seconds, before any miss, would look too good.
            for kind in noted.kinds:
                self._learn(kind, noted.true)


def _named(kind: str, in_ms: int) -> tuple[str, int]:
    return kind, sum(in_ms >= ms for ms in WHEN_MS)
