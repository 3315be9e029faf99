"""Stores hang and are killed while a village is served: the effect on players, and the stores' contents afterwards.

The servers are the daemon's own, which restarts them by itself.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from core.clock import MS
from loadtests.bench import memory_children as children
from loadtests.bench import memory_stores as stores
from loadtests.bench.children import Child, target
from loadtests.bench.figures import Figures
from loadtests.bench.memory_game import NPCS, Played, Turn, played
from loadtests.bench.memory_served import Seen
from loadtests.scene import load_scene
from npcd_client import Client, NpcdError, TalkEventKind
from scheduler.meter import percentile

PAIRS, RUN_S = 5, 20.0
WARM_S = 8.0
CAUGHT_UP_S = 60.0
ADDED_MS = 2.0  # a p95 that grows by no more counts as unchanged
REDIS_S, REDIS_STOP_S, REDIS_KILL_S = 24.0, 6.0, 12.0
GREETINGS_HZ = 5.0
MARGIN_S = 0.2


@dataclass(frozen=True, slots=True)
class _Run:
    """One run, with the fault in its middle or without."""

    fault: bool
    seen: Seen
    load: Played
    behind_bytes: int  # bytes of the journal that the archive lacked before PostgreSQL was killed

    @property
    def silver_ms(self) -> float:
        return percentile(self.seen.silver, 0.95) / MS

    @property
    def gold_ms(self) -> float:
        return percentile(self.seen.gold, 0.95) / MS


async def postgres(figures: Figures, model: Path, quick: bool) -> None:
    """Makes runs in pairs, with and without the fault, then looks for every event."""
    pairs, seconds = (1, 8.0) if quick else (PAIRS, RUN_S)
    figures.note(f"-- {pairs} pairs of runs of {seconds:g} s, in one of each PostgreSQL is stopped, then killed")
    runs: list[_Run] = []
    turns: list[Turn] = []
    with stores.data_folder() as data:
        async with children.served(data, model) as daemon, children.village(daemon) as village:
            await village.ask("", children.READY_S)
            async with Client(target(daemon)) as client:
                await children.idle(client)
                await village.ask("load")
                await asyncio.sleep(WARM_S)
                turns += _without_errors(figures, await village.ask("rest")).turns
                for n in range(2 * pairs):
                    # The order is without, with; with, without, so that slow changes affect both equally.
                    fault = n % 4 in (1, 2)
                    await stores.caught_up(client, CAUGHT_UP_S)
                    run = await _run(figures, client, data, daemon, village, seconds, fault)
                    runs.append(run)
                    turns += run.load.turns
                    figures.note(
                        f"   {'with' if fault else 'without':<8} Silver {run.silver_ms:6.1f} ms of "
                        f"{len(run.seen.silver)}, Gold {run.gold_ms:5.1f} ms of {len(run.seen.gold)}; "
                        f"archive {run.behind_bytes >> 10} KiB behind; {_stops(run.seen)}"
                    )
                began_s = time.monotonic()
                await stores.caught_up(client, CAUGHT_UP_S)
                figures.note(f"   the archive had caught up {time.monotonic() - began_s:.1f} s after the last run")
                await _compare(figures, client, data, turns)
    _judge(figures, runs)


async def _run(
    figures: Figures, client: Client, data: Path, daemon: Child, village: Child, seconds: float, fault: bool
) -> _Run:
    """With the fault the server is stopped after a quarter of the time, and killed after half of it."""
    await children.take(daemon)
    await village.ask("load")
    behind = 0
    for number in (signal.SIGSTOP, signal.SIGKILL):
        await asyncio.sleep(seconds / 4)
        if fault:
            behind = await stores.behind_bytes(client, "archive")
            if not stores.signal_server(data, "postgres", number):
                raise NpcdError("PostgreSQL does not run")
    await asyncio.sleep(seconds / 2)
    load = _without_errors(figures, await village.ask("rest"))
    return _Run(fault, await children.take(daemon), load, behind)


def _judge(figures: Figures, runs: list[_Run]) -> None:
    worst = 1.0
    for tier in ("silver", "gold"):
        without = median(getattr(run, f"{tier}_ms") for run in runs if not run.fault)
        beside = median(getattr(run, f"{tier}_ms") for run in runs if run.fault)
        figures.add(f"memory.postgres_fault_{tier}_p95_ms", beside, 1)
        figures.add(f"memory.postgres_well_{tier}_p95_ms", without, 1)
        if beside - without > ADDED_MS:
            worst = max(worst, beside / without)
    figures.add("memory.postgres_fault_p95_ratio", worst)
    longest = max(run.seen.steps_longest[0][0] if run.seen.steps_longest else 0 for run in runs)
    stopped = max(run.seen.stop_longest for run in runs)
    figures.add("memory.loop_block_max_ms", max(longest, stopped) / MS)
    figures.add("memory.loop_step_max_ms", longest / MS)
    figures.add("memory.postgres_fault_errors", sum(run.load.errors for run in runs), 0)
    seconds = sum(run.load.seconds for run in runs)
    figures.add("memory.loop_share", sum(run.seen.steps_total for run in runs) / 1e9 / seconds, 4)
    figures.note(f"   {sum(run.seen.steps for run in runs) / seconds:.0f} steps of memory/ a second on the event loop")


async def _compare(figures: Figures, client: Client, data: Path, turns: list[Turn]) -> None:
    """Compares the journal with the clients' accepted turns, and the archive with the journal."""
    scene = load_scene()
    npcs = [resident.npc_id for resident in scene.residents(NPCS)]
    asked = (stores.owner_url(data), scene.world.world_id, npcs)
    records, found = await stores.at_rest(
        data, client, lambda: asyncio.to_thread(stores.archive_ids, *asked), CAUGHT_UP_S
    )
    said = stores.turn_ids(records)
    missing = sum(not found[record.id] for record in records)
    unwritten = sum(turn.accepted and not said[turn.turn_id] for turn in turns)
    twice = sum(count > 1 for count in found.values()) + sum(count > 1 for turn, count in said.items() if turn)
    strangers = len(found.keys() - {record.id for record in records})
    kinds = Counter(record.kind.name for record in records)
    figures.note(
        f"   {len(records)} records in the journal ({', '.join(f'{n} {k}' for k, n in kinds.most_common())}), "
        f"{len(found)} events in the archive, {sum(turn.accepted for turn in turns)} turns accepted"
    )
    if strangers:
        figures.note(f"   {strangers} events are in the archive that the journal does not have")
    figures.add("memory.events_missing", missing + unwritten, 0)
    figures.add("memory.events_twice", twice + strangers, 0)


async def redis(figures: Figures, model: Path, quick: bool) -> None:
    """Redis hangs for a while, then is killed. Conversations go on and begin all the time."""
    scale = 0.5 if quick else 1.0
    figures.note(f"-- Redis is stopped in conversations, after {(REDIS_KILL_S - REDIS_STOP_S) * scale:g} s killed")
    with stores.data_folder() as data:
        async with children.served(data, model) as daemon, children.village(daemon) as village:
            await village.ask("", children.READY_S)
            async with Client(target(daemon)) as client:
                await children.idle(client)
                await client.define_world(load_scene().world)
                await children.take(daemon)
                await village.ask("load")
                began_s = time.monotonic()
                greeter = asyncio.create_task(_greet(client, REDIS_S * scale))
                moments: list[float] = []
                for at_s, number in ((REDIS_STOP_S, signal.SIGSTOP), (REDIS_KILL_S, signal.SIGKILL)):
                    await asyncio.sleep(began_s + at_s * scale - time.monotonic())
                    moments.append(time.monotonic())
                    if not stores.signal_server(data, "redis", number):
                        raise NpcdError("Redis does not run")
                greeted = await greeter
                load = _without_errors(figures, await village.ask("rest"))
                seen = await children.take(daemon)
                back_s = time.monotonic()
                await stores.caught_up(client, CAUGHT_UP_S)
                figures.note(f"   Redis had caught up {time.monotonic() - back_s:.1f} s after the load")
                world = load_scene().world.world_id
                records, bonds = await stores.at_rest(
                    data, client, lambda: stores.recent_bonds(data, world), CAUGHT_UP_S
                )
                folded = stores.folded_bonds(records, world)
    turns = load.turns + greeted.turns
    began = [t for t in turns if t.first and moments[0] + MARGIN_S < t.sent_s < moments[1] - MARGIN_S]
    well = [t for t in turns if t.first and t.sent_s < moments[0] - MARGIN_S]
    told = [t for t in began if t.recall_late and "recent" not in t.stores]
    said = stores.turn_ids(records)
    figures.note(
        f"   {len(turns)} turns; {len(began)} conversations began meanwhile, with a recall of "
        f"{max((t.recall_us for t in began), default=0) / 1000:.1f} ms at most; before, {len(well)} of "
        f"{median([t.recall_us for t in well] or [0]) / 1000:.1f} ms; {len(folded)} bonds; {_stops(seen)}"
    )
    if greeted.messages:
        figures.note(f"   {greeted.errors} errors: {greeted.messages}")
    if wrong := stores.different(bonds, folded):
        figures.note(f"   bonds that differ: {wrong[:3]}")
    figures.add("memory.redis_fault_errors", load.errors + greeted.errors, 0)
    figures.add("memory.redis_fault_told_share", len(told) / max(1, len(began)))
    figures.add("memory.redis_fault_unaccepted", sum(not (t.accepted and said[t.turn_id]) for t in turns), 0)
    figures.add("memory.redis_fault_bonds_wrong", len(wrong), 0)
    figures.add("memory.redis_fault_recall_max_ms", max((t.recall_us for t in began), default=0) / 1000, 1)


async def _greet(client: Client, seconds: float) -> Played:
    """Players say one line to an NPC that they never met, at a steady pace."""
    greeted = Played()
    residents = load_scene().residents(NPCS)
    tasks = []
    began_s = time.monotonic()
    for n in range(int(seconds * GREETINGS_HZ)):
        await asyncio.sleep(began_s + n / GREETINGS_HZ - time.monotonic())
        tasks.append(asyncio.create_task(_greeting(client, residents[n * 7 % NPCS].npc_id, f"guest-{n}", greeted)))
    await asyncio.gather(*tasks)
    return greeted


async def _greeting(client: Client, npc: str, player: str, greeted: Played) -> None:
    sent_s = time.monotonic()
    try:
        async for event in client.talk(npc, player, "My name is Anna. Good evening.", max_tokens=8):
            if event.kind is TalkEventKind.END:
                greeted.turns.append(Turn.of(event, sent_s, True))
    except NpcdError as error:
        greeted.failed(f"Talk {error.code}: {error}")


def _without_errors(figures: Figures, answer: dict[str, object]) -> Played:
    load = played(answer)
    if load.errors:
        figures.note(f"   the village had {load.errors} errors: {load.messages}")
    return load


def _stops(seen: Seen) -> str:
    """The longest stops of the loop by memory/, in words."""
    own_ns, wall_ns, ran_ns, name = seen.steps_longest[0] if seen.steps_longest else (0, 0, 0, "nothing")
    return (
        f"longest step {own_ns / MS:.2f} ms ({wall_ns / MS:.2f} by the wall, {ran_ns / MS:.2f} computing, {name}), "
        f"stopped by its threads {seen.stop_longest / MS:.2f} ms at most"
    )
