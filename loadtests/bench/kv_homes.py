"""The time until a trunk is ready from RAM or Redis, against computing it, and the savings of a ladder of homes.

Loads are those of the daemon: planned, verified, from npcd's own Redis on a Unix socket. Sides take turns on one
engine. "Ready" is a work that only brings its trunk into place, from submitting to its end.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median

from core.clock import MS, S, now_ns
from core.errors import NpcdError
from core.words import NpcKey, Tier, TrunkKey
from core.work import Chunk, Ended, Work
from daemon.process.datafolder import DataFolder
from daemon.process.embedded import Embedded
from engines.base import tokens_of
from kvcache.verify import SIGNATURE_BYTES, signer
from loadtests.bench.figures import Figures
from loadtests.bench.rig import Rig, Village, tuned
from memory.parked import Parked, ParkedSettings
from memory.redis_connection import RecentSettings
from scheduler.meter import percentile

TRUNK_LEN = 1000
TIMES = 25
NPCS = 1000
TRUNK_LENS = (400, 1000)
ZIPF = 1.0
LADDER_S = 80.0  # filling included
VISITORS = 8
REPLY_LEN = 12
RAM_MIB = 384  # so small that a part of the trunks goes on to Redis
SETTLED_S = 10.0


@asynccontextmanager
async def with_store(rig: Rig) -> AsyncIterator[Parked]:
    """The rig with a Redis of npcd's own behind its RAM."""
    with tempfile.TemporaryDirectory(prefix="npcd-bench-") as name:
        folder = DataFolder(Path(name))
        embedded = Embedded(folder, redis=True, postgres=False)
        urls = await asyncio.to_thread(embedded.start)
        if not urls.redis_url:
            raise NpcdError(f"no Redis: {'; '.join(embedded.reasons)}")
        parked = Parked(
            ParkedSettings(), RecentSettings(url=urls.redis_url), folder.journal_id, signer(os.urandom(SIGNATURE_BYTES))
        )
        rig.backend.park_in(parked)
        parked.start(rig.backend.fetched)
        try:
            await asyncio.to_thread(parked.settled, SETTLED_S)
            yield parked
        finally:
            await rig.idle()
            rig.scheduler.placer.moves.parking.store = None
            parked.stop(SETTLED_S)
            await asyncio.to_thread(embedded.stop)
            folder.close()


async def loads(figures: Figures, rig: Rig, village: Village, quick: bool) -> None:
    """The time until a trunk of 1,000 tokens is ready, from each home and computed, in turns."""
    times = 8 if quick else TIMES
    figures.note(f"-- a trunk of {TRUNK_LEN} tokens, {times} times from each home")
    ready: dict[str, list[float]] = {home: [] for home in ("none", "ram", "redis")}
    first: dict[str, list[float]] = {home: [] for home in ("none", "ram", "redis")}
    homes = rig.scheduler.placer.homes
    ram = homes.ram_bytes_max
    placer = rig.scheduler.placer
    rig.stages.time(placer, "move_out", "move_out")
    moves: dict[str, list[int]] = {"stored": [], "clean": []}
    npc = NpcKey("", "bench", "far")
    key = TrunkKey(npc, "player")
    async with with_store(rig) as parked:
        for turn in range(times):
            trunk = village.text(TRUNK_LEN)
            for home in ready:
                for into, tail_len in ((ready, 0), (first, 16)):
                    if home == "none":
                        rig.door.forget(key)
                    else:
                        homes.ram_bytes_max = 0 if home == "redis" else ram
                        clean = placer.moves.moved_clean
                        rig.stages.clear()
                        rig.backend.obeyed(partial(rig.scheduler.move_out, npc))
                        await rig.door.obeyed()
                        if home == "ram":
                            how = "clean" if placer.moves.moved_clean > clean else "stored"
                            moves[how] += rig.stages.ns["move_out"]
                    await rig.door.obeyed()
                    await asyncio.to_thread(parked.settled, SETTLED_S)
                    homes.ram_bytes_max = ram
                    if home != "none":
                        found = homes.get(key).home
                        assert found == home, f"the trunk is in {found}, not in {home}"
                    tail = village.text(tail_len) if tail_len else tokens_of([])
                    work = Work(Tier.SILVER, key, trunk, tail, 1 if tail_len else 0, due_ns=now_ns())
                    into[home].append(await _soon(rig, work))
            if not turn:
                for taken in (*ready.values(), *first.values()):
                    taken.clear()  # the first round pages memory in
                moves = {how: [] for how in moves}
    for what, by_home in (("load", ready), ("ttft", first)):
        anew = median(by_home["none"])
        for home in ("ram", "redis"):
            figures.add(f"kv.{home}_{what}_x", anew / median(by_home[home]))
            figures.add(f"kv.{home}_{what}_ms", median(by_home[home]) / MS)
        figures.add(f"kv.recompute_{what}_ms", anew / MS)
    for how, took in moves.items():
        figures.add(f"kv.move_out_{how}_ms", median(took) / MS if took else 0.0)
    figures.note(f"   {placer.counters()['moves']}; refused {placer.moves.loads_refused}")


async def _soon(rig: Rig, work: Work) -> float:
    """Nanoseconds from submitting to the first token, or to the end of a work without any."""
    began = now_ns()
    first: list[int] = []

    def on_chunk(chunk: Chunk) -> None:
        first.append(chunk.at_ns)

    ended: list[int] = []

    def on_end(_: Ended) -> None:
        ended.append(now_ns())

    rig.door.submit(work, on_end, on_chunk)
    await rig.idle()
    return (first or ended)[0] - began


async def ladder(figures: Figures, rig: Rig, village: Village, quick: bool) -> None:
    """A thousand NPCs on some hundred sequences, RAM and Redis: the trunk tokens that were not computed again."""
    npcs, seconds, ram_mib = (400, 45.0, 64) if quick else (NPCS, LADDER_S, RAM_MIB)
    rng = random.Random(3)
    placer = rig.scheduler.placer
    before_max, placer.homes.ram_bytes_max = placer.homes.ram_bytes_max, ram_mib << 20
    trunks = [village.text(rng.randrange(*TRUNK_LENS)) for _ in range(npcs)]
    ends_ns = now_ns() + round(seconds * S)
    async with with_store(rig):
        for at in range(0, npcs, 16):
            await rig.run([_visit(n, trunks[n], village, 0) for n in range(at, min(npcs, at + 16))])
        filled_ns = now_ns()
        figures.note(f"-- {npcs} NPCs, {sum(map(len, trunks)):,} trunk tokens, visits by {VISITORS} players")
        held = {home: sum(t.home == home for t in placer.homes) for home in ("sequence", "ram", "redis", "none")}
        figures.note(f"   filled; homes: {held}")
        order = rng.sample(range(npcs), npcs)
        weights = [1 / (rank + 1) ** ZIPF for rank in range(npcs)]
        was = placer.counters()["trunk_tokens"]
        taken: list[int] = []

        async def visitor() -> None:
            while now_ns() < ends_ns:
                n = order[rng.choices(range(npcs), weights)[0]]
                taken.append(round(await _reply(rig, _visit(n, trunks[n], village, REPLY_LEN))))

        await asyncio.gather(*(visitor() for _ in range(VISITORS)))
        now = placer.counters()["trunk_tokens"]
    placer.homes.ram_bytes_max = before_max
    of = {name: now[name] - was[name] for name in now}
    found = of["resident"] + of["loaded"] + of["copied"]
    figures.add("kv.ladder_token_share", found / max(1.0, found + of["computed"]))
    figures.add("kv.ladder_loaded_share", of["loaded"] / max(1.0, found + of["computed"]))
    figures.add("kv.ladder_ttft_p50_ms", percentile(taken, 0.5) / MS)
    figures.add("kv.ladder_ttft_p95_ms", percentile(taken, 0.95) / MS)
    figures.add("kv.ladder_visits_per_s", len(taken) / ((ends_ns - filled_ns) / S))
    figures.note(f"   trunk tokens: {of}; {placer.counters()['moves']}")


def _visit(number: int, trunk: object, village: Village, tokens: int) -> Work:
    now = now_ns()
    tail = village.text(16) if tokens else tokens_of([])
    key = TrunkKey(NpcKey("", "bench", f"ladder{number}"), "player")
    return Work(Tier.SILVER, key, trunk, tail, tokens, due_ns=now, deadline_ns=now + 250 * MS)  # type: ignore[arg-type]


async def _reply(rig: Rig, work: Work) -> float:
    """Nanoseconds from submitting to the first token; returns when the work has ended."""
    began = now_ns()
    over = asyncio.Event()
    first: list[int] = []

    def on_chunk(chunk: Chunk) -> None:
        first.append(chunk.at_ns)

    rig.door.submit(work, lambda _: over.set(), on_chunk)
    await over.wait()
    return (first[0] if first else now_ns()) - began


async def run(figures: Figures, model: Path, quick: bool, parts: frozenset[str]) -> None:
    """The parts "loads" and "ladder". Raises ConfigError and NpcdError."""
    async with Rig(tuned(model, figures.note)) as rig:
        village = Village(rig.engine.vocab)
        if "loads" in parts:
            await loads(figures, rig, village, quick)
        if "ladder" in parts:
            await ladder(figures, rig, village, quick)
