"""The largest town that a machine carries: NPCs in view with which all promises hold, while a few more break one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from loadtests.capacity.costs import Column, Daemon
from loadtests.capacity.simulate import PATIENT, Promised, Report, Simulation
from loadtests.capacity.town import TownSettings

FIRST, LAST = 25, 4_000  # NPCs in view at the least, and at the most
FOLLOWS = ("the model's share",)
FINE_SHARE, FINE = 0.05, 5  # the search ends when its two ends are so near


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """A run lasts `npc_seconds` NPC-seconds, within its bounds in seconds, after `warm_s` seconds that do not count."""

    npc_seconds: float = 6_000.0
    seconds: tuple[float, float] = (6.0, 15.0)
    warm_s: float = 3.0
    seed: int = 1
    last: int = LAST


@dataclass(slots=True)
class Found:
    """The largest town that holds (0: none), its figures, and the promise that a slightly larger one breaks.

    `patient` is the largest town in which Gold may take PATIENT times as long; -1: not searched.
    """

    column: str
    npcs: int
    held: Report | None
    beyond: Report | None
    breaks: str
    why_not: str = ""
    patient: int = -1


def carried(
    column: Column,
    daemon: Daemon,
    town: TownSettings = TownSettings(),
    settings: SearchSettings = SearchSettings(),
    note: Callable[[str], None] = lambda _: None,
) -> Found:
    """Searches one column. Takes from seconds to minutes."""
    if column.why_not:
        return Found(column.key, 0, None, None, "", column.why_not)
    found = _search(column, daemon, town, settings, Promised(), note)
    if not found.npcs:
        usual = Promised()
        longer = replace(
            usual, gold_token_ms=PATIENT * usual.gold_token_ms, intent_latency_ms=PATIENT * usual.intent_latency_ms
        )
        column = replace(column, gold_step_ms=PATIENT * column.gold_step_ms)
        found.patient = _search(column, daemon, town, settings, longer, note, patient=True).npcs
    return found


def _search(
    column: Column,
    daemon: Daemon,
    town: TownSettings,
    settings: SearchSettings,
    promised: Promised,
    note: Callable[[str], None],
    patient: bool = False,
) -> Found:
    def look(npcs: int) -> tuple[Report, dict[str, float]]:
        least, most = settings.seconds
        seconds = min(most, max(least, settings.npc_seconds / npcs))
        report = Simulation(column, daemon, npcs, town, seconds, settings.warm_s, settings.seed, patient=patient).run()
        broken = report.broken(promised)
        said = ", ".join(f"{name} {over:.2f}" for name, over in broken.items())
        note(f"{column.key}: {npcs} NPCs, {report.intents_per_s:.0f} intents/s: {said or 'holds'}")
        return report, broken

    held: Report | None = None
    beyond: Report | None = None
    breaks = ""
    low, high = 0, FIRST
    while True:
        report, broken = look(high)
        if broken:
            beyond, breaks = report, _worst(broken)
            break
        low, held = high, report
        if high >= settings.last:
            return Found(column.key, low, held, None, "")
        high = min(settings.last, 2 * high)
    while low and high - low > max(FINE, FINE_SHARE * low):
        middle = (low + high) // 2 // FINE * FINE
        report, broken = look(middle)
        if broken:
            high, beyond, breaks = middle, report, _worst(broken)
        else:
            low, held = middle, report
    return Found(column.key, low, held, beyond, breaks)


def _worst(broken: dict[str, float]) -> str:
    """The broken promise to name. A promise comes before its consequence: the policy answers when the model is late."""
    return max(broken, key=lambda name: (name not in FOLLOWS, broken[name]))
