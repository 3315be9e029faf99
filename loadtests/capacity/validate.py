"""The simulation beside measurements on this CPU: the same work, and the figures of docs/BENCHMARKS.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from loadtests.bench.figures import ROOT
from loadtests.capacity.costs import Column, Daemon
from loadtests.capacity.simulate import Report, Simulation
from loadtests.capacity.town import TownSettings

BENCHMARKS = ROOT / "docs" / "BENCHMARKS.md"
NO_DAEMON = Daemon(0.0, 0.0)
# `make bench AREA=scheduler`, part flood: 200 NPCs that are asked twice a second each, without the daemon.
FLOOD = TownSettings(
    npcs_per_player=0, active_share=1.0, warm_share=0.0, change_s=(0.5, 0.5), event_share=0.0, tail_len=(24, 24),
    targets=(5, 5), barks=False, stories=0, sway_m=0.0,
)  # fmt: skip
BRONZE = 16
# `make bench AREA=peer`: every observation is asked about, a turn of 24 tokens for every 20 intents; the whole daemon.
PEER = replace(
    FLOOD, npcs_per_player=2, tail_len=(18, 22), targets=(1, 5), turns=4, reply_len=(24, 24), line_every_s=(4.0, 6.0)
)
# `make load SCENE=village`: 100 NPCs, ten players, game and locust on the same two cores.
VILLAGE = replace(
    FLOOD,
    npcs_per_player=10,
    tail_len=(16, 28),
    targets=(1, 5),
    barks=True,
    reply_len=(12, 36),
    line_every_s=(2.0, 6.0),
)
VILLAGE_NPCS = 100
STARTLED = replace(VILLAGE, startle_every_s=2.0)  # events for all NPCs, so often that the latency agrees
MEASURED_VILLAGE = {"village.latency": 90.0, "village.age": 435.0, "village.token": 4.8, "village.first": 16.0}


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure, simulated and measured."""

    what: str
    unit: str
    simulated: float
    measured: float
    source: str

    @property
    def off(self) -> float:
        """The simulated figure's relative difference from the measured one."""
        return self.simulated / self.measured - 1.0


def measured(path: Path = BENCHMARKS) -> dict[str, float]:
    """The figures of the table of benchmarks, by name."""
    rows = re.findall(r"^\| `([\w.]+)` \| ([-\d.,]+)", path.read_text("utf-8"), re.MULTILINE)
    return {name: float(value.replace(",", "")) for name, value in rows}


def compare(column: Column, daemon: Daemon, seconds: float = 10.0) -> list[Compared]:
    """Compares all figures that were measured, and leaves the others out."""
    known = measured()
    flood_column = replace(column, sequences=250)
    alone = Simulation(flood_column, NO_DAEMON, 200, FLOOD, seconds, frame_ms=0).run()
    beside = Simulation(flood_column, NO_DAEMON, 200, replace(FLOOD, stories=BRONZE), seconds, frame_ms=0).run()
    village = Simulation(column, daemon, VILLAGE_NPCS, VILLAGE, 2 * seconds).run()
    startled = Simulation(column, daemon, VILLAGE_NPCS, STARTLED, 2 * seconds).run()
    shared = f"the same, with an event for everybody every {STARTLED.startle_every_s:g} s"
    rows: list[tuple[str, str, float, str, Mapping[str, float]]] = [
        ("400 intents/s alone: the engine's busy share", "", alone.engine_share, "flood.gold_busy_share", known),
        ("the same: due to answered, p95", "ms", alone.intent_latency_ms, "flood.gold_alone_p95_ms", known),
        ("beside 16 Bronze works: due to answered, p95", "ms", beside.intent_latency_ms, "flood.gold_p95_ms", known),
        ("the same: Bronze tokens/s", "", beside.bronze_per_s, "flood.bronze_tokens_per_s", known),
        ("most intents/s, a turn for every 20", "", _most(column, daemon), "peer.npcd.intents_per_s", known),
        ("village: intent age, p95", "ms", village.intent_age_ms, "village.age", MEASURED_VILLAGE),
        ("village: intent latency, p95", "ms", village.intent_latency_ms, "village.latency", MEASURED_VILLAGE),
        (shared, "ms", startled.intent_latency_ms, "village.latency", MEASURED_VILLAGE),
        ("village: Gold per token, p95", "ms", village.gold_token_ms, "village.token", MEASURED_VILLAGE),
        (shared, "ms", startled.gold_token_ms, "village.token", MEASURED_VILLAGE),
        ("village: Silver's first text, p95", "ms", village.silver_first_ms, "village.first", MEASURED_VILLAGE),
    ]
    return [
        Compared(
            what, unit, simulated, float(among[key]), f"`{key}`" if among is known else "`make load SCENE=village`"
        )
        for what, unit, simulated, key, among in rows
        if key in among
    ]


def _most(column: Column, daemon: Daemon) -> float:
    """Intents per second when the engine is full: more NPCs give no more answers."""
    return max(_at(column, daemon, npcs).intents_per_s for npcs in (300, 330, 360))


def _at(column: Column, daemon: Daemon, npcs: int) -> Report:
    return Simulation(replace(column, sequences=900), daemon, npcs, PEER, 6.0).run()
