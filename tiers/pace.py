"""Pace: how much one backend carries here, and what gives way first when that is less than what is wanted.

From measured costs follow the intents per second that fit into the engine's time beside the conversations. That rate
falls as soon as the costs rise, intents or first texts are late, or the engine is full. It rises by at most 10 % in
5 s. Everything that costs follows from it, and gives way in this order:

    looking ahead, Bronze above its bound, the rate of warm NPCs, their barks, computing KV ahead, all barks,
    the rate of active NPCs, the number of active NPCs (one stays), new conversations

A conversation under way never gives way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from core.clock import MS, S
from core.errors import ConfigError
from tiers.cadence import CadenceSettings


@dataclass(frozen=True, slots=True)
class PaceSettings:
    """How much of the engine's time npcd plans for. From that share and from measured costs follow how many NPCs the
    model is asked about, how often, and how many conversations are admitted.
    """

    busy_share: float = 0.85
    """Share of the engine's time that intents and conversations together are planned for. From 0.1 to 0.95."""
    talk_share: float = 0.7
    """Share of the engine's time that conversations together may take; a new conversation beyond it is refused with a
    retry time. Of an engine that makes no intents they may take `pace.busy_share`. From 0.1 to 0.9.
    """
    active_least_hz: float = 0.25
    """Before an active NPC is asked less often than this, fewer NPCs are active; the last one is asked as often as the
    engine can. From 0.01 to 20.
    """
    warm_least_hz: float = 0.05
    """Before a warm NPC is asked less often than this, fewer NPCs are warm. From 0.01 to 20."""
    warm_share: float = 0.2
    """Share of the questions that warm NPCs keep at most when the engine cannot carry all, for asking each of them at
    `pace.warm_least_hz`. From 0 to 0.9.
    """
    late_ms: float = 80.0
    """An intent that is with the engine for longer than this is late, if the model alone would be faster. From 1 to
    60000.
    """
    late_share: float = 0.1
    """The pace falls when more than this share of the latest intents is late; more than 0, less than 1."""
    calm_s: float = 5.0
    """The pace rises after this time without a fall; where intents or first texts were late, after 60 s. From 1 to
    60.
    """
    conversations_min: int = 1
    """So many conversations are admitted at the same time, whatever they cost. From 1 to 4096."""
    conversation_s: float = 30.0
    """A conversation counts as under way for this time after its last turn. From 1 to 3600."""


def check_pace(settings: PaceSettings, section: str = "pace") -> None:
    """Checks bounds. Raises ConfigError naming the setting, which is in `section`."""

    def check(right: bool, name: str, must: str) -> None:
        if not right:
            raise ConfigError(f"{section}.{name}: {getattr(settings, name):g}, must be {must}")

    s = settings
    check(0.1 <= s.busy_share <= 0.95, "busy_share", "0.1 to 0.95")
    check(0.1 <= s.talk_share <= 0.9, "talk_share", "0.1 to 0.9")
    for name in ("active_least_hz", "warm_least_hz"):
        check(0.01 <= getattr(s, name) <= 20, name, "0.01 to 20")
    check(0 <= s.warm_share <= 0.9, "warm_share", "0 to 0.9")
    check(1 <= s.late_ms <= 60_000, "late_ms", "1 to 60000 milliseconds")
    check(0 < s.late_share < 1, "late_share", "more than 0, less than 1")
    check(1 <= s.calm_s <= 60, "calm_s", "1 to 60 seconds")
    check(1 <= s.conversations_min <= 4096, "conversations_min", "1 to 4096")
    check(1 <= s.conversation_s <= 3600, "conversation_s", "1 to 3600 seconds")


class Measured(NamedTuple):
    """The measurements of one backend. Costs are nanoseconds of its time, 0 while unknown; shares are of the time
    since the last decision. `slow_x` is how much longer the last second's steps took than the cost model expected.
    """

    intent_ns: float = 0.0
    alone_ns: float = 0.0
    prefill_ns: float = 0.0
    token_ns: float = 0.0
    slow_x: float = 1.0
    gold_share: float = 0.0
    silver_share: float = 0.0
    trunks_share: float = 0.0
    answered: int = 0
    late: int = 0
    texts: int = 0
    late_texts: int = 0
    talks: int = 0


class Wanted(NamedTuple):
    """The NPCs that would be active and warm if the engine carried all."""

    active: int = 0
    warm: int = 0


class Carried(NamedTuple):
    """The work that the backend carries from now on."""

    intents_per_s: float
    active_max: int
    warm_max: int
    active_hz: float
    warm_hz: float
    under_way_max: int
    look_ahead: bool
    bronze: bool
    warm_full: bool
    warm_barks: bool
    loads_ahead: bool
    barks: bool
    active_full: bool
    all_active: bool
    conversations_max: int

    @property
    def cadence(self) -> CadenceSettings:
        """How often NPCs are asked."""
        return CadenceSettings(self.active_hz, self.warm_hz)

    @property
    def gives_way(self) -> tuple[str, ...]:
        """The kinds of work that give way now, in their order."""
        return tuple(said for said, field in GIVES_WAY if not getattr(self, field))


GIVES_WAY = (
    ("looking ahead", "look_ahead"),
    ("Bronze above its bound", "bronze"),
    ("warm NPCs' rate", "warm_full"),
    ("warm NPCs' barks", "warm_barks"),
    ("computing ahead", "loads_ahead"),
    ("barks", "barks"),
    ("active NPCs' rate", "active_full"),
    ("number of active NPCs", "all_active"),
)

RISE, RISE_S = 1.1, 5.0  # it rises by at most this factor in this time
BACK_S = 60.0  # after late answers it does not rise above what was carried then for this time
FALL_EVERY_NS = S  # the effect of a fall shows after this time
FALL = 0.85
BAND, RISE_BAND = 0.1, 0.25  # a target that is so little below or above the present rate changes nothing
FEW = 8  # with fewer intents the share of late ones means nothing
SLOW_X = 1.2  # steps that take this many times longer than expected are no noise
FULL = 0.97  # of its time, above which an engine has no time left
LATE_X = 1.5  # an intent that takes this many times longer than it should is late
FIRST_X = 1.5  # the same for a first text
UNKNOWN_START = 0.5  # share of all that is wanted to begin with, where costs are unknown
CORRECTION = (0.4, 3.0)
TRUNKS = 0.1  # of its time
ROOM = 0.15  # an engine that is so much less busy than planned has time left
TALK_S = 10.0  # longer than from one line of a conversation to the next
READ_TOKENS_PER_S = 8.0
TURN_PREFILL, TURN_TOKENS, TURN_S = 48.0, 40.0, 10.0  # one turn of a conversation, and how often it comes
GROUP_WITHIN_NS = 100 * MS  # no more intents are with the engine than it answers in this time
GRID = 2.0 ** (1 / 8)  # rates change in such steps: each change shifts the slots of all NPCs
PLACES_MAX = 4096
PLENTY = 1 << 20


class Pace:
    """The pace of one backend. Laws: what is named earlier in GIVES_WAY gives way earlier; at least one NPC is active;
    the rate falls at any time and rises by at most 10 % in 5 s.
    """

    def __init__(self, settings: PaceSettings, cadence: CadenceSettings, active_max: int, warm_max: int) -> None:
        self.settings = settings
        self.rate: float | None = None  # intents per second
        self.falls = 0
        self.turns = 0  # how often it turned round, from falling to rising or back
        self._cadence = cadence
        self._most = (active_max, warm_max)
        self._active_least_hz = min(settings.active_least_hz, cadence.active_hz)
        self._warm_least_hz = min(settings.warm_least_hz, cadence.warm_hz)
        self._correction = 1.0
        self._rising = False
        self._above_ns: int | None = None  # since when the costs allow more
        self._way = 0  # 1: the last move was up, -1: down
        self._fell_ns: int | None = None
        self._struck_ns: int | None = None  # when a measurement corrected it last
        self._at_ns: int | None = None
        self._began_ns: int | None = None
        self._answered = self._late = self._late_texts = 0
        self._slow_held = 1.0  # how much slower than expected steps were lately
        self._gold = 0.0  # share of intents, over TALK_S
        self._talk = 0.0  # share of conversations, over TALK_S
        self._held = 0.0  # the largest of these, sinking slowly
        self._now = 0.0  # share of intents and conversations, over a second
        self._trunks = 0.0  # share of trunks that are computed, over 5 s
        self._busy = 0.0  # share of intents and conversations, over 2 s
        self._last: Carried | None = None

    @property
    def busy_share(self) -> float:
        """The share of the engine's time that intents and conversations took lately."""
        return self._busy

    @property
    def _slow_x(self) -> float:
        return self._slow_held if self._slow_held >= SLOW_X else 1.0

    # -- bounds of lateness ------------------------------------------------------------------------------------

    def late_ns(self, measured: Measured, trunk_len: int = 0) -> float:
        """An intent that computes so many tokens of its trunk is late if it is with the engine for longer than this.
        Without overload it waits for those that are with the engine already, and for one player's line.
        """
        m = measured
        line_ns = TURN_PREFILL * m.prefill_ns if m.talks else 0.0
        usual_ns = m.alone_ns + self._places(m) * m.intent_ns + line_ns + trunk_len * m.prefill_ns
        usual_ns *= max(1.0, m.slow_x)
        return max(self.settings.late_ms * MS, LATE_X * usual_ns)

    def first_text_ns(self, measured: Measured, tokens: int, promised_ns: int) -> float:
        """A first text that takes longer than this, after so many tokens to prefill, is late here."""
        m = measured
        return max(float(promised_ns), FIRST_X * (tokens * m.prefill_ns + m.token_ns) * max(1.0, m.slow_x))

    # -- deciding ----------------------------------------------------------------------------------------------

    def decide(self, measured: Measured, wanted: Wanted, now_ns: int) -> Carried:
        """Decides what is carried from now on. Call it every 250 ms or so."""
        passed_s = min(1.0, (now_ns - self._at_ns) / S) if self._at_ns is not None else 0.0
        self._at_ns = now_ns
        if self._began_ns is None:
            self._began_ns = now_ns
        self._average(measured, passed_s)
        struck = self._correct(measured, wanted, passed_s, now_ns)
        self._move(measured, struck, passed_s, now_ns)
        self._last = self._share_out(measured, wanted)
        return self._last

    def _average(self, m: Measured, passed_s: float) -> None:
        # At once up, and slowly down: what runs in a second tells little on an engine that is slow.
        self._slow_held = max(m.slow_x, 1.0, 1.0 + (self._slow_held - 1.0) * math.exp(-passed_s / 10.0))
        self._gold += (m.gold_share - self._gold) * _weight(passed_s, TALK_S)
        self._talk += (m.silver_share - self._talk) * _weight(passed_s, TALK_S)
        self._held = max(self._talk, self._held * math.exp(-passed_s / 60.0))
        self._now += (m.gold_share + m.silver_share - self._now) * _weight(passed_s, 1.0)
        self._trunks += (m.trunks_share - self._trunks) * _weight(passed_s, 5.0)
        self._busy += (m.gold_share + m.silver_share - self._busy) * _weight(passed_s, 2.0)

    def _correct(self, m: Measured, wanted: Wanted, passed_s: float, now_ns: int) -> bool:
        """Corrects what the costs say by what was measured; returns True if that is a reason to fall now."""
        self._answered += m.answered
        self._late += m.late
        late = self._answered >= FEW and self._late > self.settings.late_share * self._answered
        if self._answered >= FEW:
            self._answered = self._late = 0
        # One late text may have any reason.
        self._late_texts = 0 if m.texts > m.late_texts else self._late_texts + m.late_texts
        starved = self._late_texts > 1 and m.late_texts > 0 and self._gold > self._talk
        full = self._busy > FULL and m.gold_share > 0.0
        least, most = CORRECTION
        if self._trunks > TRUNKS:
            return False  # all is late while many trunks are computed for the first time; that passes
        if (late or starved or full) and self._is_busy(m):
            if self._fell_ns is None or now_ns - self._fell_ns >= FALL_EVERY_NS:
                # The present rate is too much, also while it is still on its way up to what the costs allow.
                target = self._target(m)
                reached = min(1.0, self.rate / target) if self.rate is not None else 1.0
                self._correction = max(least, self._correction * FALL * reached)
                self._struck_ns = now_ns
                return True
            return False
        if self._fell_ns is not None and now_ns - max(self._fell_ns, self._struck_ns or 0) < BACK_S * S:
            return False  # until then it rises to what the costs say, and tries no more than that
        capped = self.rate is not None and self._full_rate(wanted) > self.rate
        spare = self._busy < self.settings.busy_share - BAND or self._correction < 1.0
        if capped and spare and self._is_calm(now_ns):
            self._correction = min(most, self._correction * RISE ** (passed_s / RISE_S))
        return False

    def _target(self, m: Measured) -> float:
        """The intents per second that fit into the engine's time."""
        if m.intent_ns <= 0.0:
            everybody = self._full_rate(Wanted(*self._most))
            return max(self._warm_least_hz, UNKNOWN_START * everybody * self._correction)
        s = self.settings
        talk = min(s.talk_share, max(self._held, m.talks * _turn_share(m)))
        room = max(s.busy_share - talk, 0.1)
        return max(self._warm_least_hz, room * self._correction * S / (m.intent_ns * self._slow_x))

    def _move(self, m: Measured, struck: bool, passed_s: float, now_ns: int) -> None:
        target = self._target(m)
        if self.rate is None or self._learning(now_ns):
            self.rate = target
            return
        if target < self.rate * (1.0 if struck else 1.0 - BAND) and self._is_busy(m):
            self.turns += self._way > 0
            self.rate, self._way, self._fell_ns, self._rising = target, -1, now_ns, False
            self.falls += 1
            self._above_ns = None
        elif target <= self.rate * (1.0 if self._rising else 1.0 + RISE_BAND):
            self._rising, self._above_ns = False, None
        elif self._above_ns is None:
            self._above_ns = now_ns
        elif now_ns - self._above_ns >= self.settings.calm_s * S or self._rising:
            self.turns += self._way < 0
            self.rate = min(target, self.rate * RISE ** (passed_s / RISE_S))
            self._way, self._rising = 1, True

    def _is_busy(self, m: Measured) -> bool:
        """False while the engine has time left: then less work would help nobody. Without costs that is not known."""
        return m.token_ns <= 0.0 or self._now >= self.settings.busy_share - ROOM

    def _is_calm(self, now_ns: int) -> bool:
        return self._fell_ns is None or now_ns - self._fell_ns >= self.settings.calm_s * S

    def _learning(self, now_ns: int) -> bool:
        """True in the first second: the costs are what the warm-up measured."""
        assert self._began_ns is not None
        return now_ns - self._began_ns < S and self._fell_ns is None

    def _full_rate(self, wanted: Wanted) -> float:
        return wanted.active * self._cadence.active_hz + wanted.warm * self._cadence.warm_hz

    # -- what follows from the rate ----------------------------------------------------------------------------

    def _share_out(self, m: Measured, wanted: Wanted) -> Carried:
        assert self.rate is not None
        s, rate, last = self.settings, self.rate, self._last
        (active_most, warm_most), active_least_hz, warm_least_hz = (
            self._most,
            self._active_least_hz,
            self._warm_least_hz,
        )
        active_hz, warm_hz = self._cadence.active_hz, self._cadence.warm_hz
        # Those that cannot be active even at the lowest rate become warm.
        over = max(0, wanted.active - math.floor(rate / active_least_hz))
        full_active, full_warm = wanted.active * active_hz, (wanted.warm + over) * warm_hz
        # The rest of the warm NPCs' rate gives way first.
        kept = min(full_warm, (wanted.warm + over) * warm_least_hz, s.warm_share * rate)
        for_warm = min(full_warm, max(kept, rate - full_active))
        for_active = rate - for_warm

        def enough(field: str, share: float, need: float) -> bool:
            """True if the rate is this many times what is needed; more is wanted before something comes back."""
            back = last is not None and not getattr(last, field)
            return rate >= share * need * (1.0 + BAND if back else 1.0)

        need_all, need_active = full_active + full_warm, full_active + kept
        active_max = max(1, min(active_most, math.floor(for_active / active_least_hz + 1e-6)))
        all_active = wanted.active <= active_max
        active_full = all_active and enough("active_full", 1.0, need_active)
        barks = active_full and enough("barks", 1.1, need_active)
        loads_ahead = barks and enough("loads_ahead", 1.15, need_active)
        warm_barks = loads_ahead and enough("warm_barks", 1.15, need_all)
        warm_full = warm_barks and enough("warm_full", 1.15, need_all)
        bronze = warm_full and enough("bronze", 1.3, need_all)
        look_ahead = bronze and enough("look_ahead", 1.5, need_all)
        # While nobody is warm there is room for those that come before the next decision.
        warm_room = for_warm if wanted.warm + over else max(rate - full_active, s.warm_share * rate)
        warm_max = min(warm_most, math.floor(warm_room / warm_least_hz + 1e-6))
        # Even the last one that stays is asked less often then.
        least_hz = active_least_hz if active_max > 1 else warm_least_hz
        asked_hz = _on_grid(for_active / max(1, min(wanted.active, active_max)), active_hz, least_hz)
        warm_hz = _on_grid(for_warm / max(1, min(wanted.warm + over, warm_max)), warm_hz, warm_least_hz)
        return Carried(
            rate, active_max, warm_max, active_hz if active_full else asked_hz, min(warm_hz, asked_hz),
            self._places(m), look_ahead, bronze, warm_full, warm_barks, loads_ahead, barks, active_full, all_active,
            self._conversations(m),
        )  # fmt: skip

    def _places(self, m: Measured) -> int:
        """How many questions may be with the engine at the same time."""
        cost_ns = m.intent_ns * max(1.0, m.slow_x)
        return min(PLACES_MAX, max(2, math.ceil(GROUP_WITHIN_NS / cost_ns))) if cost_ns > 0.0 else PLACES_MAX

    def _conversations(self, m: Measured) -> int:
        """How many conversations are carried: all at reading speed at once, and their turns one after the other."""
        share = self.settings.talk_share
        each = max(_turn_share(m), READ_TOKENS_PER_S * m.token_ns / S)
        least = self.settings.conversations_min
        most = max(least, math.floor(share / each)) if each > share / PLENTY else PLENTY
        return min(most, max(least, m.talks)) if self._talk >= share else most


def _turn_share(m: Measured) -> float:
    """The share of the engine that one conversation takes."""
    return (TURN_PREFILL * m.prefill_ns + TURN_TOKENS * m.token_ns) / (TURN_S * S)


def _weight(passed_s: float, within_s: float) -> float:
    return 1.0 - math.exp(-passed_s / within_s)


def _on_grid(hz: float, most_hz: float, least_hz: float) -> float:
    """The next rate below on the grid, within these bounds."""
    if hz >= most_hz:
        return most_hz
    steps = math.ceil(math.log(most_hz / max(hz, least_hz)) / math.log(GRID) - 1e-9)
    return max(least_hz, most_hz / GRID**steps)
