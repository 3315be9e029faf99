"""How far a start is: its stages, the share that is done, the seconds that are left, and whether it still moves.

The stages are known beforehand, each with the seconds that it is expected to take. A stage that takes longer goes on to
more and more of its share and never beyond it, so the share never falls. The start moves while a stage begins, or while
the process works: time in which it does not counts for nothing. Decides only; the loading thread and the event loop
both call it, and every change is one assignment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from core.clock import S

READING, TUNING, LOADING, WARMING = "reading the model", "tuning", "loading the model", "warming up"
STORES, WORLDS = "opening stores", "restoring worlds"
OF_AN_ENGINE = (READING, TUNING, LOADING, WARMING)
# A process that uses less of a core than this does not get on with its start.
WORKS_SHARE = 0.02
GROWS_BYTES = 1 << 20
ON_TIME = 0.8  # the share of a stage at which it may still be as long as expected


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage; `engine` is empty for those of the whole daemon."""

    name: str
    engine: str
    expected_s: float

    @property
    def key(self) -> str:
        """Names it among all stages."""
        return f"{self.name} ({self.engine})" if self.engine else self.name


@dataclass(frozen=True, slots=True)
class Progress:
    """One look at a start. `share` and `left_s` are of the whole start; `still_s` has passed since it last moved."""

    stage: str
    engine: str
    share: float
    left_s: float
    still_s: float

    def __str__(self) -> str:
        of = f" of engine '{self.engine}'" if self.engine else ""
        still = f", no progress for {self.still_s:.0f} s" if self.still_s >= 10 else ""
        return f"{self.stage}{of}, {self.share:.0%} done, about {max(1.0, self.left_s):.0f} s left{still}"


class Start:
    """The stages of one start, in their order."""

    def __init__(self, stages: Sequence[Stage], now_ns: int) -> None:
        self.stages = tuple(stages)
        self.took_s: dict[str, float] = {}  # of the stages that are over, by their keys
        self._at = 0
        self._begun_ns = self._moved_ns = self._looked_ns = now_ns
        self._worked_ns = 0  # time of the present stage in which the process worked
        self._told = 0.0  # the share of the stage that it told itself
        self._used_ns = self._held_bytes = -1

    def expect(self, before_s: Mapping[str, float]) -> None:
        """Expects stages to take so many seconds, by their keys: those of an earlier start. Call it before the first
        stage is over.
        """
        self.stages = tuple(replace(s, expected_s=max(0.01, before_s.get(s.key, s.expected_s))) for s in self.stages)

    def begin(self, name: str, engine: str, now_ns: int) -> None:
        """Begins a stage; those before it are over. A stage that is not to come changes nothing."""
        at = next((i for i, s in enumerate(self.stages) if (s.name, s.engine) == (name, engine)), -1)
        if at < self._at:
            return
        if at > self._at:
            self._close(now_ns)
        self._at, self._begun_ns, self._moved_ns = at, now_ns, now_ns
        self._worked_ns, self._told = 0, 0.0

    def moved(self, share: float, now_ns: int) -> None:
        """The stage knows that this share of it is done."""
        self._told = max(self._told, min(1.0, share))
        self._moved_ns = now_ns

    def look(self, now_ns: int, used_ns: int, held_bytes: int) -> None:
        """Notes what the process did since the last look: its processor time and its memory, both since it began."""
        gap_ns, self._looked_ns = now_ns - self._looked_ns, now_ns
        works = used_ns - self._used_ns >= WORKS_SHARE * gap_ns or held_bytes - self._held_bytes >= GROWS_BYTES
        if self._used_ns < 0 or works:
            self._worked_ns += min(gap_ns, now_ns - self._begun_ns)
            self._moved_ns = now_ns
        self._used_ns, self._held_bytes = used_ns, held_bytes

    def end(self, now_ns: int) -> None:
        """The start is over."""
        self._close(now_ns)

    def progress(self, now_ns: int) -> Progress:
        """How far it is."""
        stage = self.stages[self._at]
        worked_s = self._worked_ns / S
        share = max(self._told, _share(worked_s, stage.expected_s))
        all_s = sum(s.expected_s for s in self.stages)
        done_s = sum(s.expected_s for s in self.stages[: self._at]) + share * stage.expected_s
        later_s = sum(s.expected_s for s in self.stages[self._at + 1 :])
        left_s = (1 - share) * max(stage.expected_s, worked_s)
        still_s = max(0, now_ns - self._moved_ns) / S
        return Progress(stage.name, stage.engine, done_s / all_s if all_s else 0.0, left_s + later_s, still_s)

    def _close(self, now_ns: int) -> None:
        took_s = round((now_ns - self._begun_ns) / S, 2)
        key = self.stages[self._at].key
        self.took_s = {**self.took_s, key: round(self.took_s.get(key, 0.0) + took_s, 2)}


def _share(worked_s: float, expected_s: float) -> float:
    """The share of a stage that is done: its time, until that is nearly over; from then on it grows without end."""
    if expected_s <= 0:
        return 1.0
    if worked_s <= ON_TIME * expected_s:
        return worked_s / expected_s
    return 1 - (1 - ON_TIME) * ON_TIME * expected_s / worked_s


def plan(engines: Sequence[tuple[str, float, int]], stores: bool) -> list[Stage]:
    """The stages of a start. `engines` are names, seconds of tuning and bytes of the model."""
    stages = []
    for name, tune_s, size in engines:
        gb = size / 1e9
        usual = {READING: 0.1 + 2 * gb, TUNING: tune_s, LOADING: 2 + 10 * gb, WARMING: 3.0}
        stages += [Stage(stage, name, usual[stage]) for stage in OF_AN_ENGINE]
    if stores:
        stages += [Stage(STORES, "", 1.0), Stage(WORLDS, "", 1.0)]
    return stages
