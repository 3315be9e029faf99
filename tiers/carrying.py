"""The number of NPCs that the engine carries at their cadence: the caps of activation, found by trying.

While intents come in time the caps grow. When intents come late the caps shrink at once. They stay between the floor of
active NPCs and the maxima of the settings. The caps also bound the NPCs that fill up `warm_min`.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.clock import S
from core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class CarrySettings:
    """How the numbers of active and warm NPCs follow the engine: both caps shrink when intents come late, and grow when
    intents come in time.
    """

    start: float = 0.5
    """Share of the maxima that the caps begin at. From 0.05 to 1."""
    late_ms: float = 80.0
    """An intent that takes longer than this from due to answered is late. From 1 to 60000."""
    late_share: float = 0.05
    """The caps shrink when more than this share of a round's intents is late; more than 0, less than 1."""
    less: float = 0.1
    """The caps shrink by this share; 0 (never) to less than 1."""
    calm_s: float = 2.0
    """The caps grow after this time without shrinking. From 0 to 3600."""
    more_per_s: float = 0.03
    """The caps grow by this share of their maxima per second; more than 0, at most 10."""


def check_carry(settings: CarrySettings, section: str = "intents.carry") -> None:
    """Checks bounds. Raises ConfigError naming the setting, which is in `section`."""

    def check(right: bool, name: str, must: str) -> None:
        if not right:
            raise ConfigError(f"{section}.{name}: {getattr(settings, name):g}, must be {must}")

    s = settings
    check(LEAST <= s.start <= 1, "start", f"{LEAST:g} to 1")
    check(1 <= s.late_ms <= 60_000, "late_ms", "1 to 60000 milliseconds")
    check(0 < s.late_share < 1, "late_share", "more than 0, less than 1")
    check(0 <= s.less < 1, "less", "0 (caps never shrink) to less than 1")
    check(0 <= s.calm_s <= 3600, "calm_s", "0 to 3600 seconds")
    check(0 < s.more_per_s <= 10, "more_per_s", "more than 0, at most 10")


LEAST = 0.05
FEW = 8  # with fewer intents in a round the share of late ones means nothing
TOLD_EVERY_NS = S // 2  # the effect of a shrinking shows after this time


class Carrying:
    """`share` of the maxima is what the engine carries now. Law: LEAST <= share <= 1."""

    def __init__(self, settings: CarrySettings = CarrySettings()) -> None:
        self.share = settings.start
        self.settings = settings
        self._late_ns = round(settings.late_ms * 1e6)
        self._calm_ns = round(settings.calm_s * S)
        self._answered = 0
        self._late = 0
        self._shrunk_ns: int | None = None
        self._decided_ns: int | None = None
        self._began_ns: int | None = None

    def answered(self, took_ns: int) -> None:
        """An intent was answered so long after it was due."""
        self._answered += 1
        self._late += took_ns > self._late_ns

    def decide(self, overdue: int, now_ns: int) -> float:
        """The share from now on; `overdue` NPCs have waited too long and still do."""
        answered, late = self._answered + overdue, self._late + overdue
        self._answered = self._late = 0
        passed_ns = now_ns - self._decided_ns if self._decided_ns is not None else 0
        self._decided_ns = now_ns
        if self._began_ns is None:
            self._began_ns = now_ns
        shrunk_ns = self._shrunk_ns
        if answered >= FEW and late > self.settings.late_share * answered:
            if shrunk_ns is None or now_ns - shrunk_ns >= TOLD_EVERY_NS:
                self.share = max(LEAST, self.share * (1.0 - self.settings.less))
                self._shrunk_ns = now_ns
        elif shrunk_ns is None or now_ns - shrunk_ns >= self._calm_ns:
            self.share = min(1.0, self.share + self.settings.more_per_s * min(passed_ns, S) / S)
        return self.share

    def calm(self, now_ns: int) -> bool:
        """True if no intents have come late for `calm_s`, and intents were watched for as long."""
        return self._began_ns is not None and now_ns - max(self._began_ns, self._shrunk_ns or 0) >= self._calm_ns

    def caps(self, active_min: int, active_max: int, warm_max: int) -> tuple[int, int]:
        """(active, warm) that the engine carries; active never below its floor."""
        return max(active_min, round(self.share * active_max)), round(self.share * warm_max)
