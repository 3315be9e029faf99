"""Attention keeps its laws, and decides as a simple, slow twin does."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import hypothesis
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.words import Activation
from tiers.activation import Activations, ActivationSettings, Change, check_activation

ACTIVE, WARM, AMBIENT = Activation.ACTIVE, Activation.WARM, Activation.AMBIENT
S = 1_000_000_000
STEP_NS = S // 4
FREE = ActivationSettings(active_min=0, active_max=1000, warm_min=0, warm_max=1000)  # distance alone decides
SMALL = ActivationSettings(active_min=1, active_max=2, warm_min=1, warm_max=2)


@dataclass
class Known:
    """The slow twin's knowledge of one NPC."""

    number: int
    seen_ns: int | None = None
    distance_m: float = math.inf
    in_sight: bool = True
    override: Activation | None = None
    quest: bool = False
    relationship: float = 0.0
    spoke_ns: int | None = None
    near: Activation = AMBIENT
    level: Activation = AMBIENT
    promoted_ns: int | None = None


class SlowAttention:
    """The rules of tiers/activation.py one after the other: each place looks at every NPC again."""

    def __init__(self, settings: ActivationSettings) -> None:
        self.s = settings
        self.known: dict[int, Known] = {}
        self.met = 0

    def of(self, who: int) -> Known:
        if who not in self.known:
            self.known[who] = Known(self.met)
            self.met += 1
        return self.known[who]

    def effective_m(self, k: Known, now_ns: int) -> float:
        if k.spoke_ns is not None and now_ns - k.spoke_ns < self.s.speech_s * S:
            return 0.0
        factor = (self.s.quest_x if k.quest else 1.0) * (1.0 - self.s.bond_share * k.relationship)
        return k.distance_m * factor * (1.0 if k.in_sight else self.s.hidden_x)

    def near_by(self, k: Known, effective_m: float) -> Activation:
        s = self.s
        if effective_m <= (s.leave_m if k.near == ACTIVE else s.enter_m):
            return ACTIVE
        return WARM if effective_m <= (s.warm_enter_m if k.near == AMBIENT else s.warm_leave_m) else AMBIENT

    def rank(self, k: Known, level: Activation, now_ns: int) -> int | None:
        """0: override, 1: qualified, 2: fills up a floor, None: never."""
        if k.override is not None:
            return 0 if k.override <= level and k.override != AMBIENT else None
        stays = k.level <= level and k.promoted_ns is not None and now_ns - k.promoted_ns < self.s.stay_s * S
        return 1 if k.near <= level or stays else 2

    def decide(self, now_ns: int) -> dict[int, Activation]:
        s = self.s
        fresh = {
            who: k for who, k in self.known.items() if k.seen_ns is not None and now_ns - k.seen_ns < s.stale_s * S
        }
        for who, k in self.known.items():
            k.near = self.near_by(k, self.effective_m(k, now_ns)) if who in fresh else AMBIENT
        got: dict[int, Activation] = {}
        for level, least, most in ((ACTIVE, s.active_min, s.active_max), (WARM, s.warm_min, s.warm_max)):
            places = 0
            while places < most:
                best: tuple[int, float, bool, int] | None = None
                for k in (k for who, k in fresh.items() if who not in got):
                    rank = self.rank(k, level, now_ns)
                    if rank is None or (rank == 2 and places >= least):
                        continue
                    there = k.level <= level
                    score_m = self.effective_m(k, now_ns) * (1.0 - s.margin_share if there else 1.0)
                    best = min(best or (9, 0.0, False, 0), (rank, score_m, not there, k.number))
                if best is None:
                    break
                got[next(who for who, k in fresh.items() if k.number == best[3])] = level
                places += 1
        for who, k in self.known.items():
            level = got.get(who, AMBIENT)
            if level < k.level:
                k.promoted_ns = now_ns
            k.level = level
        return {who: k.level for who, k in self.known.items()}


NPCS = st.integers(0, 6)
DISTANCES = st.sampled_from([0.0, 5.0, 23.0, 25.0, 26.0, 30.0, 35.0, 36.0, 50.0, 60.0, 70.0, 80.0, 90.0, math.inf])
OVERRIDES = st.sampled_from([None, None, None, None, ACTIVE, WARM, AMBIENT])
EVENTS = st.one_of(
    st.tuples(st.just("saw"), NPCS, DISTANCES, st.booleans(), OVERRIDES),
    st.tuples(st.just("saw"), NPCS, DISTANCES, st.just(True), st.none()),
    st.tuples(st.just("knows"), NPCS, st.booleans(), st.sampled_from([0.0, 0.5, 1.0])),
    st.tuples(st.just("spoke"), NPCS),
    st.tuples(st.just("remove"), NPCS),
    st.tuples(st.just("wait"), st.sampled_from([1, 2, 11, 12, 13, 27, 39, 40, 41, 80])),
)
MOMENTS = st.lists(st.lists(EVENTS, min_size=1, max_size=4), min_size=10, max_size=40)  # each list ends with a decision
SETTINGS = st.builds(
    lambda active, warm: replace(
        FREE, active_min=active[0], active_max=active[1], warm_min=warm[0], warm_max=warm[1], speech_s=20.0
    ),
    *[st.tuples(st.integers(0, 4), st.integers(0, 4)).map(lambda p: (min(p), max(p)))] * 2,
)


def check_laws(attention: Activations[int], slow: SlowAttention, changes: Sequence[Change[int]], now_ns: int) -> None:
    """The laws that hold after every decision."""
    s = attention.settings
    levels = {who: attention.of(who) for who in slow.known}
    active, warm = (sum(v == level for v in levels.values()) for level in (ACTIVE, WARM))
    assert (active, warm) == (attention.active, attention.warm)
    assert active <= s.active_max and warm <= s.warm_max
    for who, level in levels.items():
        seen_ns = slow.known[who].seen_ns
        assert level == AMBIENT or (seen_ns is not None and now_ns - seen_ns < s.stale_s * S)
    may_be_active = [
        k for k in slow.known.values() if k.seen_ns is not None and now_ns - k.seen_ns < s.stale_s * S
        and k.override in (None, ACTIVE)
    ]  # fmt: skip
    assert active >= min(s.active_min, len(may_be_active))
    assert len({change.who for change in changes}) == len(changes)
    assert all(change.before != change.now == attention.of(change.who) for change in changes)
    ups = [change.now < change.before for change in changes]
    assert ups == sorted(ups), "demotions come first"


@hypothesis.settings(max_examples=200)
@given(SETTINGS, MOMENTS)
@example(SMALL, [[("saw", n, 20.0, True, None)] for n in range(4)])
def test_decides_as_the_slow_version(settings: ActivationSettings, moments: list[list[tuple[object, ...]]]) -> None:
    """For any observations, facts, overrides and times the levels equal those of the slow twin, and the laws hold."""
    attention: Activations[int] = Activations(settings)
    slow = SlowAttention(settings)
    told: dict[int, Activation] = {}
    now_ns = promotions = demotions = 0
    for events in moments:
        for event in events:
            match event:
                case ("saw", int(who), float(distance_m), bool(in_sight), override):
                    assert override is None or isinstance(override, Activation)
                    attention.saw(who, distance_m, in_sight, override, now_ns)
                    k = slow.of(who)
                    k.distance_m, k.in_sight, k.override, k.seen_ns = distance_m, in_sight, override, now_ns
                case ("knows", int(who), bool(quest), float(relationship)):
                    attention.knows(who, quest, relationship)
                    slow.of(who).quest, slow.of(who).relationship = quest, relationship
                case ("spoke", int(who)):
                    attention.spoke(who, now_ns)
                    slow.of(who).spoke_ns = now_ns
                case ("remove", int(who)):
                    attention.remove(who)
                    slow.known.pop(who, None)
                    told.pop(who, None)
                    assert attention.of(who) == AMBIENT
                case ("wait", int(steps)):
                    now_ns += steps * STEP_NS
                case _:
                    raise AssertionError(event)
            levels = [attention.of(who) for who in slow.known]
            assert (levels.count(ACTIVE), levels.count(WARM)) == (attention.active, attention.warm)
        changes = attention.decide(now_ns)
        expected = slow.decide(now_ns)
        assert {who: attention.of(who) for who in expected} == expected
        check_laws(attention, slow, changes, now_ns)
        for change in changes:
            assert told.get(change.who, AMBIENT) == change.before
            told[change.who] = change.now
            promotions += change.now < change.before
            demotions += change.now > change.before
            assert change.reason == attention.reason(change.who)
        assert {who: told.get(who, AMBIENT) for who in expected} == expected
        assert (attention.promotions, attention.demotions) == (promotions, demotions)
        assert attention.decide(now_ns) == [], "nothing new, nothing changes"
        slow.decide(now_ns)


def walk(seed: int, npcs: int, settings: ActivationSettings, steps: int = 400) -> list[list[Change[int]]]:
    """The changes of each step while a player walks among NPCs that walk as well."""
    dice = random.Random(seed)
    attention: Activations[int] = Activations(settings)
    at = [(dice.uniform(-150, 150), dice.uniform(-150, 150)) for _ in range(npcs + 1)]
    out = []
    for step in range(steps):
        at = [(x + dice.uniform(-1.5, 1.5), y + dice.uniform(-1.5, 1.5)) for x, y in at]
        for who, place in enumerate(at[:-1]):
            if dice.random() < 0.9:
                attention.saw(who, math.dist(place, at[-1]), dice.random() < 0.95, None, step * STEP_NS)
        out.append(attention.decide(step * STEP_NS))
    return out


@pytest.mark.parametrize("seed", range(4))
def test_a_walk_keeps_the_minimum_stay(seed: int) -> None:
    """No NPC is demoted within 3 s of its promotion, except by another one at a cap. The same walk gives the same
    changes."""
    changes = walk(seed, 60, replace(FREE, active_min=5, active_max=8, warm_min=10, warm_max=20))
    assert changes == walk(seed, 60, replace(FREE, active_min=5, active_max=8, warm_min=10, warm_max=20))
    promoted: dict[int, int] = {}
    demotions = 0
    for step, made in enumerate(changes):
        for change in made:
            if change.now < change.before:
                promoted[change.who] = step
            else:
                demotions += 1
                assert (step - promoted[change.who]) * STEP_NS >= 3 * S or change.reason.startswith("cap of ")
    assert demotions > 20


@given(st.lists(st.floats(25.1, 34.9), max_size=40), st.sampled_from([20.0, 50.0]))
def test_between_the_borders_nothing_changes(distances: list[float], first: float) -> None:
    """Between 25 and 35 m an NPC that was nearer stays active and one that was farther stays warm, however long."""
    attention: Activations[str] = Activations(FREE)
    for step, distance_m in enumerate([first, *distances]):
        attention.saw("npc", distance_m, True, None, step * 2 * S)
        changes = attention.decide(step * 2 * S)
        assert (changes != []) == (step == 0)
    assert attention.of("npc") == (ACTIVE if first == 20.0 else WARM)


@given(st.integers(0, 2**32))
def test_a_full_level_does_not_churn(seed: int) -> None:
    """Twenty NPCs at nearly the same distance compete for eight places: those that got one keep it while all jitter by
    less than 5 %."""
    dice = random.Random(seed)
    attention: Activations[int] = Activations(replace(FREE, active_max=8))
    for step in range(30):
        for who in range(20):
            attention.saw(who, 20.0 * dice.uniform(0.953, 1.0), True, None, step * STEP_NS)
        changes = attention.decide(step * STEP_NS)
        assert step == 0 or changes == []
    attention.saw(99, 17.0, True, None, 30 * STEP_NS)
    assert [(c.who, c.now) for c in attention.decide(30 * STEP_NS) if c.now < c.before] == [(99, ACTIVE)]


def test_reasons_are_for_people() -> None:
    """Each reason names the rule that decided."""
    attention: Activations[str] = Activations(SMALL)
    assert attention.reason("nobody") == "never observed"
    attention.spoke("far", -100 * S)
    assert attention.reason("far") == "never observed"
    attention.saw("far", 70.0, False, None, 0)
    assert attention.reason("far") == "not decided yet"
    attention.decide(0)
    assert attention.reason("far") == "one of the 1 nearest"
    for who, distance_m in (("a", 10.0), ("b", 11.0), ("c", 12.0), ("d", 13.0), ("e", 14.0), ("f", math.inf)):
        attention.saw(who, distance_m, True, None, S)
    attention.saw("told", math.inf, True, ACTIVE, S)
    attention.spoke("b", S)
    attention.decide(21 * S // 20)
    assert {who: attention.reason(who) for who in ("told", "b", "a", "c", "d", "f")} == {
        "told": "override",
        "b": "spoke 0 s ago",
        "a": "cap of 2",
        "c": "cap of 2",
        "d": "cap of 2",
        "f": "no player near",
    }
    assert (attention.of("a"), attention.of("d")) == (WARM, AMBIENT)
    for change in attention.decide(30 * S):
        assert change.reason == attention.reason(change.who) == "not observed for 10 s"


def test_reasons_name_what_the_distance_counts_as() -> None:
    """The reason shows the distance after a wall, a quest, and the minimum stay."""
    attention: Activations[str] = Activations(FREE)
    attention.saw("npc", 40.0, False, None, 0)
    attention.decide(0)
    assert attention.reason("npc") == "player at 40.0 m out of sight, counts as 60.0 m"
    attention.knows("npc", True, 2.0)
    attention.decide(0)
    assert attention.reason("npc") == "player at 40.0 m out of sight, quest, counts as 21.0 m"
    attention.saw("npc", 400.0, True, None, S)
    attention.decide(S)
    assert attention.reason("npc") == "player at 400.0 m, quest, counts as 140.0 m, stays 3 s at least"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"enter_m": -1.0}, "enter_m: -1, must be 0 or more metres"),
        ({"leave_m": 20.0}, "leave_m: 20, must be at least intents.activation.enter_m (25)"),
        ({"warm_enter_m": 20.0}, "warm_enter_m: 20, must be at least intents.activation.enter_m (25)"),
        ({"warm_leave_m": 50.0}, "warm_leave_m: 50, must be at least intents.activation.warm_enter_m (60)"),
        ({"leave_m": 90.0}, "warm_leave_m: 80, must be at least intents.activation.leave_m (90)"),
        ({"warm_leave_m": math.inf}, "warm_leave_m: inf, must be"),
        ({"enter_m": math.nan}, "enter_m: nan, must be"),
        ({"hidden_x": 0.9}, "hidden_x: 0.9, must be 1"),
        ({"quest_x": 0.0}, "quest_x: 0, must be more than 0"),
        ({"bond_share": 1.0}, "bond_share: 1, must be 0"),
        ({"margin_share": 1.0}, "margin_share: 1, must be 0"),
        ({"speech_s": -1.0}, "speech_s: -1, must be 0 to 3600"),
        ({"stay_s": 4000.0}, "stay_s: 4000, must be 0 to 3600"),
        ({"stale_s": 0.5}, "stale_s: 0.5, must be 1 to 3600"),
        ({"active_max": 50}, "active_min: 80, must be 0 to intents.activation.active_max (50)"),
        ({"warm_max": -1}, "warm_max: -1, must be 0 or more"),
        ({"warm_min": -1}, "warm_min: -1, must be 0 to"),
        ({"every_ms": 10}, "every_ms: 10, must be 50 to 5000"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, float], said: str) -> None:
    """The error names the setting and the allowed range."""
    with pytest.raises(ConfigError) as caught:
        check_activation(replace(ActivationSettings(), **wrong))  # type: ignore[arg-type]
    assert f"intents.activation.{said}" in str(caught.value)


def test_the_defaults_are_right() -> None:
    """The default settings pass their own check."""
    check_activation(ActivationSettings())
