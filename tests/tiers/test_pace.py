"""The pace follows what is measured: by the laws after every input, and as a simple, slow twin decides."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any

import pytest

from core.clock import MS, S
from core.errors import ConfigError
from tiers.cadence import CadenceSettings
from tiers.pace import (
    BACK_S,
    BAND,
    CORRECTION,
    FALL,
    FALL_EVERY_NS,
    FEW,
    FULL,
    GIVES_WAY,
    RISE,
    RISE_BAND,
    RISE_S,
    ROOM,
    SLOW_X,
    TALK_S,
    TRUNKS,
    TURN_PREFILL,
    TURN_S,
    TURN_TOKENS,
    Carried,
    Measured,
    Pace,
    PaceSettings,
    Wanted,
    check_pace,
)  # fmt: skip

SETTINGS, CADENCE = PaceSettings(), CadenceSettings()
ACTIVE_MAX, WARM_MAX = 200, 400
ROUND_NS = 250 * MS


def pace() -> Pace:
    """A pace with the settings' defaults."""
    return Pace(SETTINGS, CADENCE, ACTIVE_MAX, WARM_MAX)


def costs(token_ms: float, **more: Any) -> Measured:
    """The measurements of a model that takes so long for a token. An intent is 25 tokens."""
    token_ns = token_ms * MS
    return Measured(25 * token_ns, 28 * token_ns, 0.4 * token_ns, token_ns, gold_share=0.8)._replace(**more)


def check_laws(carried: Carried, wanted: Wanted, measured: Measured) -> None:
    """The laws of one decision."""
    flags = [getattr(carried, name) for _, name in GIVES_WAY]
    assert flags == sorted(flags), f"a part that is named earlier gives way earlier: {carried}"
    assert 1 <= carried.active_max <= ACTIVE_MAX and 0 <= carried.warm_max <= WARM_MAX
    least_hz = SETTINGS.active_least_hz if carried.active_max > 1 else SETTINGS.warm_least_hz
    assert least_hz <= carried.active_hz <= CADENCE.active_hz
    assert carried.warm_hz <= min(carried.active_hz, CADENCE.warm_hz)
    assert carried.conversations_max >= 1 and carried.under_way_max >= 2
    active = min(wanted.active, carried.active_max)
    assert active * carried.active_hz <= carried.intents_per_s * 1.001 + SETTINGS.active_least_hz, (
        "no more than it carries"
    )
    assert carried.active_full <= (carried.active_hz == CADENCE.active_hz)


@dataclass
class Twin:
    """Keeps every input, and finds rate and correction from all of them with closed formulas."""

    seen: list[tuple[float, Measured]] = field(default_factory=list)  # seconds since the input before
    rate: float | None = None
    correction: float = 1.0
    rising: bool = False
    now_ns: int = 0
    above_ns: list[int] = field(default_factory=list)
    falls: list[int] = field(default_factory=list)
    strikes: list[int] = field(default_factory=list)
    late_texts: int = 0
    answers: list[bool] = field(default_factory=list)
    began_ns: int | None = None

    def average(self, within_s: float, value: list[float]) -> list[float]:
        """The exponential average after each input, as a weighted sum of all inputs."""
        at_s = list(accumulate(passed for passed, _ in self.seen))
        return [
            sum(
                value[k] * (1 - math.exp(-self.seen[k][0] / within_s)) * math.exp((at_s[k] - at_s[n]) / within_s)
                for k in range(n + 1)
            )
            for n in range(len(value))
        ]

    def decide(self, m: Measured, wanted: Wanted, now_ns: int) -> float:
        passed_s = min(1.0, (now_ns - self.now_ns) / S) if self.began_ns is not None else 0.0
        self.began_ns = now_ns if self.began_ns is None else self.began_ns
        self.now_ns = now_ns
        self.seen.append((passed_s, m))
        shares = self.average(TALK_S, [m.silver_share for _, m in self.seen])
        ages, age = [], 0.0
        for passed, _ in reversed(self.seen):
            ages.append(age)
            age += passed
        held = max(share * math.exp(-a / 60.0) for share, a in zip(reversed(shares), ages, strict=True))
        busy = self.average(2.0, [m.gold_share + m.silver_share for _, m in self.seen])[-1]
        self.answers += [True] * m.late + [False] * (m.answered - m.late)
        late = False
        if len(self.answers) >= FEW:
            late = sum(self.answers) > SETTINGS.late_share * len(self.answers)
            self.answers = []

        def target() -> float:
            x = max(
                1.0,
                *(
                    1 + (one.slow_x - 1) * math.exp(-a / 10)
                    for (_, one), a in zip(reversed(self.seen), ages, strict=True)
                ),
            )
            x = x if x >= SLOW_X else 1.0
            if not m.intent_ns:
                all_of_them = ACTIVE_MAX * CADENCE.active_hz + WARM_MAX * CADENCE.warm_hz
                return max(SETTINGS.warm_least_hz, 0.5 * all_of_them * self.correction)
            turn = m.talks * (TURN_PREFILL * m.prefill_ns + TURN_TOKENS * m.token_ns) / (TURN_S * S)
            talk = min(SETTINGS.talk_share, max(held, turn))
            room = max(0.1, SETTINGS.busy_share - talk)
            return max(SETTINGS.warm_least_hz, room * self.correction / (m.intent_ns * x / S))

        self.late_texts = 0 if m.texts > m.late_texts else self.late_texts + m.late_texts
        gold = self.average(TALK_S, [m.gold_share for _, m in self.seen])[-1]
        calm = not self.falls or now_ns - self.falls[-1] >= SETTINGS.calm_s * S
        struck = False
        sums = [m.gold_share + m.silver_share for _, m in self.seen]
        has_work = not m.token_ns or self.average(1.0, sums)[-1] >= SETTINGS.busy_share - ROOM
        if self.average(5.0, [m.trunks_share for _, m in self.seen])[-1] > TRUNKS:
            pass
        elif has_work and (
            late or (m.late_texts and self.late_texts > 1 and gold > shares[-1]) or (busy > FULL and m.gold_share)
        ):
            if not self.falls or now_ns - self.falls[-1] >= FALL_EVERY_NS:
                reached = min(1.0, self.rate / target()) if self.rate is not None else 1.0
                self.correction = max(CORRECTION[0], self.correction * FALL * reached)
                self.strikes.append(now_ns)
                struck = True
        elif not self.falls or now_ns - self.falls[-1] >= BACK_S * S <= now_ns - max([0, *self.strikes]):
            asked = wanted.active * CADENCE.active_hz + wanted.warm * CADENCE.warm_hz
            spare = busy < SETTINGS.busy_share - BAND or self.correction < 1.0
            if self.rate is not None and asked > self.rate and spare and calm:
                self.correction = min(CORRECTION[1], self.correction * RISE ** (passed_s / RISE_S))
        aim = target()
        if self.rate is None or (now_ns - self.began_ns < S and not self.falls):
            self.rate = aim
        elif has_work and aim < self.rate * (1.0 if struck else 1 - BAND):
            self.rate, self.rising, self.above_ns = aim, False, []
            self.falls.append(now_ns)
        elif aim > self.rate * (1.0 if self.rising else 1 + RISE_BAND):
            self.above_ns.append(now_ns)
            if now_ns - self.above_ns[0] >= SETTINGS.calm_s * S or (self.rising and len(self.above_ns) > 1):
                self.rate, self.rising = min(aim, self.rate * RISE ** (passed_s / RISE_S)), True
        else:
            self.rising, self.above_ns = False, []
        return self.rate


@pytest.mark.parametrize("seed", range(12))
def test_decides_as_the_slow_version_and_keeps_the_laws(seed: int) -> None:
    """After every random input the rate is the twin's, the laws hold, and no rise is faster than 10 % in 5 s."""
    rng, ours, twin = random.Random(seed), pace(), Twin()
    now_ns, token_ms, wanted, talks, slow_x = 7 * S, rng.choice((0.3, 3.0, 12.0, 40.0, 0.0)), Wanted(10, 0), 0, 1.0
    rates: list[tuple[int, float]] = []
    for _ in range(160):
        if rng.random() < 0.05:
            token_ms *= rng.choice((0.5, 0.7, 1.5, 4.0))
        if rng.random() < 0.1:
            wanted, talks = Wanted(rng.choice((0, 1, 10, 80, 200)), rng.choice((0, 20, 400))), rng.randrange(6)
        if rng.random() < 0.1:
            slow_x = rng.choice((1.0, 1.0, 1.1, 2.0))
        answered = rng.randrange(9)
        measured = costs(
            token_ms, slow_x=slow_x, gold_share=rng.random() * 0.7, silver_share=rng.random() * rng.choice((0.1, 0.5)),
            answered=answered, late=min(answered, rng.choice((0, 0, 0, 0, 3))), texts=1, late_texts=rng.random() < 0.1,
            talks=talks,
            trunks_share=rng.choice((0.0, 0.0, 0.0, 0.3)) if seed % 2 else 0.0,
        )  # fmt: skip
        carried = ours.decide(measured, wanted, now_ns)
        assert carried.intents_per_s == pytest.approx(twin.decide(measured, wanted, now_ns), rel=1e-6)
        check_laws(carried, wanted, measured)
        rates.append((now_ns, carried.intents_per_s))
        now_ns += rng.choice((ROUND_NS, ROUND_NS, ROUND_NS, 40 * MS, 2 * S))
    first_ns = rates[0][0] + S
    for (from_ns, low), (to_ns, high) in pairwise(rates):
        if from_ns >= first_ns:
            assert high <= low * RISE ** (min(1.0, (to_ns - from_ns) / S) / RISE_S) * 1.0001
    assert ours.falls == len(twin.falls)


@pytest.mark.parametrize("token_ms", [0.3, 3.0, 12.0, 40.0])
def test_a_slower_engine_carries_less_within_a_second(token_ms: float) -> None:
    """When steps begin to take twice as long, the rate is halved by the next decision; nobody waited for an answer."""
    ours = pace()
    for n in range(20):
        before = ours.decide(costs(token_ms), Wanted(200, 400), n * ROUND_NS)
    after = ours.decide(costs(token_ms, slow_x=2.0), Wanted(200, 400), 20 * ROUND_NS)
    assert after.intents_per_s == pytest.approx(before.intents_per_s / 2, rel=0.12)
    assert after.active_max <= before.active_max


def test_it_rises_slowly_to_what_the_costs_allow() -> None:
    """After the engine is fast again the rate rises by 10 % in 5 s, and stops where the costs say."""
    ours, now_ns = pace(), 0
    rates = []
    for n in range(400):
        slow = 2.0 if 20 <= n < 40 else 1.0
        rates.append(ours.decide(costs(3.0, slow_x=slow), Wanted(200, 400), now_ns).intents_per_s)
        now_ns += ROUND_NS
    assert rates[39] == pytest.approx(rates[0] / 2, rel=0.12)
    assert all(rates[n + 20] <= rates[n] * 1.1001 for n in range(40, 380))
    assert rates[-1] == pytest.approx(rates[0], rel=0.12)
    assert ours.turns == 1


def test_late_intents_and_late_first_texts_make_it_fall() -> None:
    """Late answers lower what the costs promised; the rate does not rise for 60 s."""
    for wrong in ({"answered": 20, "late": 10}, {"texts": 1, "late_texts": 1}, {"gold_share": 1.2}):
        ours, now_ns = pace(), 0
        for _ in range(20):
            before = ours.decide(costs(3.0, gold_share=0.8), Wanted(200, 0), now_ns).intents_per_s
            now_ns += ROUND_NS
        for _ in range(40):
            ours.decide(costs(3.0, gold_share=0.8)._replace(**wrong), Wanted(200, 0), now_ns)
            now_ns += ROUND_NS
        for _ in range(4 * 4):
            ours.decide(costs(3.0), Wanted(200, 0), now_ns)
            now_ns += ROUND_NS
        fallen = ours.rate
        assert fallen is not None and fallen < 0.5 * before
        for _ in range(4 * 50):
            ours.decide(costs(3.0, gold_share=0.8), Wanted(200, 0), now_ns)
            now_ns += ROUND_NS
        assert ours.rate == pytest.approx(fallen)


def test_lateness_is_measured_by_what_the_model_can_do() -> None:
    """An intent is late after 80 ms, or after 1.5 times what it takes behind those that are with the engine already and
    one player's line; a first text after its promise or 1.5 times what it takes alone."""
    ours = pace()
    assert ours.late_ns(costs(0.1)._replace(intent_ns=0.2 * MS)) == pytest.approx(1.5 * (2.8 + 100.0) * MS)
    assert ours.late_ns(costs(0.1)._replace(intent_ns=0.0, alone_ns=0.0)) == 80 * MS
    assert ours.late_ns(costs(12.0)) == pytest.approx(1.5 * (28 + 2 * 25) * 12 * MS)
    assert ours.late_ns(costs(12.0, talks=1)) == pytest.approx(1.5 * (28 + 2 * 25 + 48 * 0.4) * 12 * MS)
    assert ours.first_text_ns(costs(0.1), 100, 250 * MS) == 250 * MS
    assert ours.first_text_ns(costs(40.0), 100, 250 * MS) == pytest.approx(1.5 * (100 * 16 + 40) * MS)


def test_conversations_are_bounded_by_their_share() -> None:
    """More conversations than 0.7 of the engine carries are not admitted; one always is. While they take more than
    that, none is admitted beside those under way."""
    assert pace().decide(costs(0.3), Wanted(), 0).conversations_max > 100
    assert pace().decide(costs(40.0), Wanted(), 0).conversations_max == 2
    assert pace().decide(costs(400.0), Wanted(), 0).conversations_max == 1
    least = Pace(replace(SETTINGS, conversations_min=5), CADENCE, ACTIVE_MAX, WARM_MAX)
    assert least.decide(costs(400.0), Wanted(), 0).conversations_max == 5
    ours = pace()
    for n in range(80):
        carried = ours.decide(costs(12.0, silver_share=0.9, talks=2), Wanted(), n * ROUND_NS)
    assert carried.conversations_max == 2


def test_a_backend_without_costs_is_found_by_trying() -> None:
    """Where costs are unknown the rate begins at half of all, falls while intents are late, and rises otherwise."""
    ours, now_ns = pace(), 0
    assert ours.decide(Measured(), Wanted(200, 400), now_ns).intents_per_s == pytest.approx(300.0)
    for _ in range(20):
        now_ns += ROUND_NS
        ours.decide(Measured(answered=10, late=10), Wanted(200, 400), now_ns)
    assert ours.rate is not None and ours.rate < 200
    for _ in range(4 * 300):
        now_ns += ROUND_NS
        ours.decide(Measured(answered=10), Wanted(200, 400), now_ns)
    assert ours.rate is not None and ours.rate >= 600.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (PaceSettings(busy_share=1.0), "busy_share: 1, must be 0.1 to 0.95"),
        (PaceSettings(talk_share=0.0), "talk_share: 0, must be 0.1 to 0.9"),
        (PaceSettings(active_least_hz=0.0), "active_least_hz: 0, must be 0.01 to 20"),
        (PaceSettings(warm_share=1.0), "warm_share: 1, must be 0 to 0.9"),
        (PaceSettings(late_ms=0.0), "late_ms: 0, must be 1 to 60000 milliseconds"),
        (PaceSettings(late_share=0.0), "late_share: 0, must be more than 0, less than 1"),
        (PaceSettings(calm_s=0.0), "calm_s: 0, must be 1 to 60 seconds"),
        (PaceSettings(conversations_min=0), "conversations_min: 0, must be 1 to 4096"),
        (PaceSettings(conversation_s=0.0), "conversation_s: 0, must be 1 to 3600 seconds"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: PaceSettings, said: str) -> None:
    """The error names the setting."""
    with pytest.raises(ConfigError, match=f"pace.{said}"):
        check_pace(settings)
