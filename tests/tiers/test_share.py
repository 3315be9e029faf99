"""Questions are shared by the laws, and as a simple, slow twin shares them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.words import Activation
from tiers.share import URGENT_IN_A_ROW, Share, ShareSettings, check_share

ACTIVE, WARM, AMBIENT = Activation.ACTIVE, Activation.WARM, Activation.AMBIENT
S = 1_000_000_000
MS = 1_000_000


@dataclass
class Due:
    """An NPC that waits in the slow twin."""

    level: Activation
    urgent: bool
    due_ns: int
    number: int


@dataclass
class SlowShare:
    """One list that is searched from the beginning for every question, with tokens in exact billionths."""

    s: ShareSettings
    due: dict[int, Due] = field(default_factory=dict)
    under_way: int = 0
    number: int = 0
    filled_ns: int = 0
    in_a_row: int = 0
    last_had: int = 0
    had: dict[Activation, int] = field(default_factory=lambda: {ACTIVE: 0, WARM: 0})

    def __post_init__(self) -> None:
        self.per_s, self.places = self.s.tokens_per_s, self.s.under_way_max
        self.full = round(self.per_s * self.s.burst_s * S)
        self.bucket = self.full

    def keep_pace(self, per_s: int, places: int, now_ns: int) -> None:
        self.fill(now_ns)
        unbounded = not self.per_s
        self.per_s = min((rate for rate in (per_s, self.s.tokens_per_s) if rate), default=0)
        self.places = min(places, self.s.under_way_max)
        self.full = round(self.per_s * self.s.burst_s * S)
        self.bucket = self.full if unbounded else min(self.bucket, self.full)

    def levels(self) -> set[Activation]:
        return {d.level for d in self.due.values() if not d.urgent}

    def add(self, who: int, level: Activation, urgent: bool, due_ns: int) -> None:
        old = self.due.get(who)
        before = self.levels()
        urgent = urgent or (old is not None and old.urgent)
        if level is AMBIENT and not urgent:
            self.due.pop(who, None)
            return
        if old is None:
            self.due[who] = Due(level, urgent, due_ns, self.number)
            self.number += 1
        else:
            self.due[who] = Due(level, urgent, old.due_ns, old.number)
        for back in self.levels() - before:
            self.had[back] = max(self.had[back], self.last_had)

    def fill(self, now_ns: int) -> None:
        self.bucket = min(self.full, self.bucket + (now_ns - self.filled_ns) * self.per_s)
        self.filled_ns = now_ns

    def give_back(self, each: int) -> None:
        self.under_way -= 1
        self.bucket = min(self.full, self.bucket + each * S) if self.per_s else self.bucket

    def take(self, now_ns: int, each: int) -> list[int]:
        self.fill(now_ns)
        out: list[int] = []
        while self.due:
            urgent = [who for who, d in self.due.items() if d.urgent]
            reserve = max(1, round(self.places * self.s.reserve_share)) if urgent else 0
            if self.under_way >= self.places + reserve:
                break
            need = min(each * S, self.full)
            overdraft = max(round(self.full * self.s.reserve_share), need) if urgent else 0
            if self.per_s and self.bucket + overdraft < need:
                break
            levels = self.levels()
            if urgent and (self.in_a_row < URGENT_IN_A_ROW or not levels):
                self.in_a_row += 1
                among = urgent
            else:
                self.in_a_row = 0
                level = min(levels, key=lambda each: (self.had[each], each))
                self.last_had = self.had[level]
                self.had[level] += round(1e6 / (self.s.warm_share if level is WARM else 1.0 - self.s.warm_share))
                among = [who for who, d in self.due.items() if d.level is level and not d.urgent]
            first = min(among, key=lambda who: (self.due[who].due_ns, self.due[who].number))
            del self.due[first]
            self.under_way += 1
            self.bucket -= each * S if self.per_s else 0
            out.append(first)
        return out


WHO = st.integers(0, 11)
EVENTS = st.one_of(
    st.tuples(st.just("add"), WHO, st.sampled_from([ACTIVE, ACTIVE, WARM, WARM, AMBIENT]), st.booleans()),
    st.tuples(st.just("add"), WHO, st.sampled_from([ACTIVE, WARM]), st.just(False)),
    st.tuples(st.just("add"), WHO, st.sampled_from([ACTIVE, WARM]), st.just(False)),
    st.tuples(st.just("remove"), WHO),
    st.tuples(st.just("take"), st.sampled_from([1, 10, 25, 200])),
    st.tuples(st.just("take and give back"), st.sampled_from([10, 25])),
    st.tuples(st.just("ended")),
    st.tuples(st.just("wait"), st.sampled_from([1, 10 * MS, 300 * MS, 2 * S])),
    st.tuples(st.just("wait until it can")),
    st.tuples(st.just("pace"), st.sampled_from([0, 3, 50, 1000]), st.sampled_from([1, 2, 50])),
)
SETTINGS = st.builds(
    ShareSettings,
    tokens_per_s=st.sampled_from([0, 7, 100]),
    burst_s=st.sampled_from([0.5, 1.0]),
    under_way_max=st.sampled_from([1, 3, 100]),
    warm_share=st.sampled_from([0.2, 0.5]),
    reserve_share=st.sampled_from([0.0, 0.1, 0.5]),
)


@hypothesis.settings(max_examples=300)
@given(SETTINGS, st.lists(EVENTS, min_size=20, max_size=100))
def test_shares_as_the_slow_version(settings: ShareSettings, events: list[tuple[object, ...]]) -> None:
    """The share asks the same NPCs in the same order as the slow twin. The bounds hold, and `next_ns` is the first
    moment that allows a question."""
    share: Share[int] = Share(settings)
    slow = SlowShare(settings)
    share.take(0, 1)
    now_ns = 0
    each = 1
    spent: list[tuple[int, int]] = []
    each_max = 0
    for event in events:
        match event:
            case ("add", int(who), Activation() as level, bool(urgent)):
                share.add(who, level, urgent, now_ns)
                slow.add(who, level, urgent, now_ns)
            case ("remove", int(who)):
                share.remove(who)
                slow.due.pop(who, None)
            case ("take", int(each)):
                each_max = max(each, each_max)
                taken = share.take(now_ns, each)
                assert taken == slow.take(now_ns, each)
                spent += [(now_ns, each)] * len(taken)
                assert share.take(now_ns, each) == [], "everybody that could be asked was asked"
            case ("take and give back", int(each)):
                each_max = max(each, each_max)
                taken = share.take(now_ns, each)
                assert taken == slow.take(now_ns, each)
                spent += [(now_ns, each)] * (len(taken) - 1)
                if taken:
                    share.give_back(now_ns)
                    slow.give_back(each)
            case ("ended",) if slow.under_way:
                share.ended(now_ns)
                slow.under_way -= 1
            case ("wait", int(ns)):
                now_ns += ns
            case ("pace", int(per_s), int(places)):
                share.keep_pace(per_s, places, now_ns)
                slow.keep_pace(per_s, places, now_ns)
            case ("wait until it can",):
                at_ns = share.next_ns(now_ns)
                if at_ns is None:
                    assert share.take(now_ns + 1000 * S, each) == slow.take(now_ns + 1000 * S, each) == []
                    now_ns += 1000 * S
                    continue
                assert at_ns >= now_ns
                if at_ns > now_ns:
                    assert share.take(at_ns - 1, each) == slow.take(at_ns - 1, each) == [], "not sooner"
                now_ns = at_ns
                taken = share.take(now_ns, each)
                assert taken == slow.take(now_ns, each) != []
                spent += [(now_ns, each)] * len(taken)
                each_max = max(each, each_max)
        assert share.under_way == slow.under_way
        assert len(share) == len(slow.due)
        assert share.under_way <= settings.under_way_max + max(
            1, round(settings.under_way_max * settings.reserve_share)
        )
    if settings.tokens_per_s:
        burst = settings.tokens_per_s * settings.burst_s
        bound = burst + max(each_max, burst * settings.reserve_share)
        for first, (from_ns, _) in enumerate(spent):
            tokens = 0
            for at_ns, one in spent[first:]:
                tokens += one
                assert tokens <= settings.tokens_per_s * (at_ns - from_ns) / S + bound + 1e-6


@given(st.integers(0, 2**32), st.sampled_from([0.1, 0.2, 0.5]))
def test_nobody_starves(seed: int, warm_share: float) -> None:
    """Far too many NPCs are due, most of them urgent and active. A warm one has its turn within a bounded number of
    questions."""
    dice = random.Random(seed)
    share: Share[str] = Share(ShareSettings(under_way_max=4, warm_share=warm_share))
    share.add("crowd", WARM, False, 0)
    share.add("in time", WARM, False, 1)
    since = 0
    for step in range(400):
        for n in range(8):
            share.add(f"urgent {step} {n}", AMBIENT, True, step)
            share.add(f"active {step} {n}", ACTIVE, False, step)
        for who in share.take(step, 25):
            since += 1
            if who == "in time":
                assert since <= 2 * (1 + 1 / warm_share) * (URGENT_IN_A_ROW + 1)
                return
        while share.under_way > dice.randrange(4):
            share.ended(step)
    pytest.fail("never asked")


@pytest.mark.parametrize("warm_share", [0.1, 0.2, 0.5])
def test_levels_get_their_shares(warm_share: float) -> None:
    """While both levels wait, warm has its share. A level that is alone has everything, and saves nothing up."""
    share: Share[str] = Share(ShareSettings(under_way_max=1, warm_share=warm_share))

    def ask(count: int) -> str:
        out = ""
        for _ in range(count):
            [who] = share.take(0, 25)
            out += who[0]
            share.ended(0)
        return out

    for n in range(1000):
        share.add(f"w{n}", WARM, False, n)
    assert ask(300) == "w" * 300
    for n in range(1000):
        share.add(f"a{n}", ACTIVE, False, n)
    assert ask(10).count("a") >= 10 * (1 - warm_share) - 1, "active is not behind for what warm had meanwhile"
    both = ask(500)
    assert both.count("w") == pytest.approx(500 * warm_share, abs=1)


def test_a_level_that_comes_and_goes_gets_no_more_than_its_share() -> None:
    """One warm NPC that is due again as soon as it was asked gets no more than warm's share beside many active ones."""
    share: Share[str] = Share(ShareSettings(under_way_max=1, warm_share=0.2))
    for n in range(1000):
        share.add(f"a{n}", ACTIVE, False, n)
    warm = 0
    for _ in range(500):
        share.add("w", WARM, False, 0)
        warm += share.take(0, 25) == ["w"]
        share.ended(0)
    assert warm == 100


def test_the_urgent_stay_urgent_and_nobody_loses_a_place() -> None:
    """A later observation without the event, or another level, changes neither urgency nor place."""
    share: Share[str] = Share(ShareSettings(under_way_max=1))
    share.add("first", ACTIVE, False, 1)
    share.add("second", WARM, False, 2)
    share.add("third", ACTIVE, False, 3)
    share.add("second", ACTIVE, False, 9)
    share.add("late", AMBIENT, True, 8)
    share.add("late", AMBIENT, False, 9)
    share.add("gone", ACTIVE, False, 0)
    share.add("gone", AMBIENT, False, 0)
    assert share.take(9, 25) == ["late"]  # the places of the urgent are reserved
    order = []
    for _ in range(3):
        share.ended(9)
        order += share.take(9, 25)
    assert (order, len(share), share.next_ns(9)) == (["first", "second", "third"], 0, None)


def test_an_npc_that_keeps_changing_its_level_takes_no_room() -> None:
    """Outdated entries are removed."""
    share: Share[int] = Share()
    for n in range(10_000):
        share.add(n % 7, ACTIVE if n % 2 else WARM, False, n)
        share.remove(7 + n)
    assert len(share) == 7
    assert sum(len(heap) for heap in share._heaps) < 300


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tokens_per_s": -1}, "tokens_per_s: -1, must be 0"),
        ({"burst_s": 0.0}, "burst_s: 0, must be 0.05 to 60"),
        ({"under_way_max": 0}, "under_way_max: 0, must be 1"),
        ({"warm_share": 0.0}, "warm_share: 0, must be 0.01"),
        ({"warm_share": 1.0}, "warm_share: 1, must be 0.01"),
        ({"reserve_share": 2.0}, "reserve_share: 2, must be 0 to 1"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, float], said: str) -> None:
    """The error names the setting and the allowed range."""
    with pytest.raises(ConfigError) as caught:
        check_share(replace(ShareSettings(), **wrong))  # type: ignore[arg-type]
    assert f"intents.share.{said}" in str(caught.value)


def test_the_defaults_are_right() -> None:
    """The default settings pass their own check."""
    check_share(ShareSettings())
