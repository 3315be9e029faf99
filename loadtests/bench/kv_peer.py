"""A thousand NPCs' visits on npcd and on llama.cpp's llama-server, open loop, in turns: first-token times.

The visits are those of `kv`'s ladder: NPCs with trunks of 400 to 1,000 tokens, visited by Zipf's law, a new tail of 16
tokens, then 12 greedy tokens, streamed. Both servers get the same token ids in the same bytes of HTTP from the same
caller. Moments are random (Poisson) and the same for both. Time counts from the moment when a visit is due, also for
visits that wait for the caller. Neither side refuses a visit, and a visit without a first token when a round is cut off
counts with its age.

npcd: the ladder's rig, its scheduler on an engine with 250 sequences, behind the HTTP of loadtests/bench/kv_served.py.
Trunks without a sequence rest in RAM, which holds them all, as llama-server's cache does.

llama-server: as many slots as npcd has sequences, or fewer where that serves more, with the best of settings that are
printed, among them a cache in RAM that holds all NPCs. Pinned: NPCs have a slot each by how often they are visited,
which no caller could know. One KV buffer for all slots is not among the settings: it is several times slower with many
slots (see `peer`'s grid), and so is copying idle slots to the cache with every request, llama-server's default.

Servers and caller are three processes on the same cores; the server that is not measured is idle. The rates are 60 %
and 120 % of npcd's with callers who never pause.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from core.clock import MS, S, now_ns
from engines.llama import load_vocab, send_native_log_to
from loadtests.bench.children import Child
from loadtests.bench.figures import Figures
from loadtests.bench.kv_homes import NPCS, REPLY_LEN, TRUNK_LENS, ZIPF
from loadtests.bench.options import Options
from loadtests.bench.peer import free_port
from loadtests.bench.rig import SEQUENCES, Village, until
from loadtests.peers import llama_server
from loadtests.peers.http_calls import HttpCalls, HttpError
from loadtests.peers.llama_server import PeerSettings
from npcd_client import NpcdError
from scheduler.meter import percentile

PARTS = ("llama_server",)
TAIL_LEN = 16
CONTEXT_LEN = 1280  # length of a slot: trunk, tail and reply
CALLERS = 64
CONNECTIONS = 1000
FEW = 60  # NPCs of the first choice of settings; an NPC with several visits at once takes several slots
MANY = 350  # NPCs of the second choice: more than there are slots
CHOICE_S = 2.5
CHOICE_MAX_S = 40.0  # settings that take longer to fill and measure are skipped
CAPACITY_S = 4.0
ROUND_S = 6.0
ROUNDS = 3
DRAIN_S = 15.0
READY_S = 60.0
CACHE_MIB = 2048  # RAM beside sequences and slots, for both; it holds all trunks


@dataclass(slots=True)
class Tally:
    """The results of one round of one side, in nanoseconds. `replies` are by the number of the visit."""

    first_ns: list[int] = field(default_factory=list)
    whole_ns: list[int] = field(default_factory=list)
    replies: dict[int, tuple[int, ...]] = field(default_factory=dict)
    computed_tokens: int = 0
    failed: int = 0
    cut: int = 0
    late_ns: list[int] = field(default_factory=list)  # the caller's own lateness

    @property
    def first_p95_ms(self) -> float:
        """p95 of visit due to first token; a visit without a token counts with its age."""
        return percentile(self.first_ns, 0.95) / MS

    @property
    def words(self) -> str:
        """The round in a line."""
        first, whole = (
            "/".join(f"{percentile(taken, p) / MS:.1f}" for p in (0.5, 0.95, 0.99))
            for taken in (self.first_ns, self.whole_ns)
        )
        return (
            f"{len(self.whole_ns)} visits, first token p50/p95/p99 {first} ms, last {whole} ms, "
            f"{self.computed_tokens / max(1, len(self.whole_ns)):.0f} tokens computed for each, "
            f"{self.failed} failed, {self.cut} cut off, caller late p95 {percentile(self.late_ns, 0.95) / MS:.1f} ms"
        )


class People:
    """The NPCs' trunks, and the order of visits: the same for the same seed."""

    def __init__(self, model: Path, npcs: int) -> None:
        send_native_log_to(None)
        village = Village(load_vocab(model))
        chance = random.Random(3)
        self.trunks = [village.text(chance.randrange(*TRUNK_LENS)).tolist() for _ in range(npcs)]
        self.by_rank = chance.sample(range(npcs), npcs)
        self.ranks = {npc: rank for rank, npc in enumerate(self.by_rank)}
        self._weights = [1 / (rank + 1) ** ZIPF for rank in range(npcs)]
        self._tails = village

    def visited(self, chance: random.Random, among: int) -> int:
        """One of the most visited NPCs."""
        return self.by_rank[chance.choices(range(among), self._weights[:among])[0]]

    def tail(self) -> list[int]:
        """Random words."""
        return [int(token) for token in self._tails.text(TAIL_LEN)]


class Side:
    """One server as the caller sees it."""

    def __init__(self, name: str, http: HttpCalls, people: People, peer: PeerSettings | None) -> None:
        self.name = name
        self._http = http
        self._people = people
        self._peer = peer

    async def visit(self, npc: int, tail: list[int], tokens: int, due_ns: int, tally: Tally) -> tuple[int, ...]:
        """Makes one visit and adds its times to the tally, also when it is cancelled."""
        said: list[int] = []
        try:
            async for event in self._http.stream("/completion", self._body(npc, tail, tokens)):
                if event["tokens"] and not said:
                    tally.first_ns.append(now_ns() - due_ns)
                said += event["tokens"]
                if event["stop"]:
                    tally.computed_tokens += int(event["timings"]["prompt_n"])
        except HttpError:
            tally.failed += 1
            return ()
        except asyncio.CancelledError:
            tally.cut += 1
            if not said:
                tally.first_ns.append(now_ns() - due_ns)
            raise
        tally.whole_ns.append(now_ns() - due_ns)
        return tuple(said)

    async def fill(self, among: int) -> None:
        """Visits every NPC once, the most visited last."""
        tally = Tally()
        for at in range(among, 0, -16):
            group = self._people.by_rank[max(0, at - 16) : at]
            await asyncio.gather(*(self.visit(npc, self._people.tail(), 1, now_ns(), tally) for npc in group))
        if tally.failed:
            raise NpcdError(f"{self.name} refused {tally.failed} of {among} visits")

    async def busy(self, seconds: float, among: int, seed: int) -> float:
        """Visits by callers who never pause. Returns visits per second."""
        tally, chance = Tally(), random.Random(seed)
        began_ns = now_ns()
        ends_ns = began_ns + round(seconds * S)

        async def call() -> None:
            while now_ns() < ends_ns:
                npc = self._people.visited(chance, among)
                await self.visit(npc, self._people.tail(), REPLY_LEN, now_ns(), tally)

        await asyncio.gather(*(call() for _ in range(CALLERS)))
        if tally.failed > len(tally.whole_ns):
            raise NpcdError(f"{self.name} refused {tally.failed} visits")
        return len(tally.whole_ns) / ((now_ns() - began_ns) / S)

    async def play(self, visits: Sequence[tuple[int, int, list[int]]]) -> Tally:
        """Plays (moment after the beginning, NPC, tail), open loop. Visits that are not over DRAIN_S after the end are
        cut off."""
        tally = Tally()
        tasks: list[asyncio.Task[None]] = []

        async def one(number: int, due_ns: int, npc: int, tail: list[int]) -> None:
            tally.replies[number] = await self.visit(npc, tail, REPLY_LEN, due_ns, tally)

        began_ns = now_ns() + 20 * MS
        for number, (after_ns, npc, tail) in enumerate(visits):
            await until(began_ns + after_ns)
            tally.late_ns.append(now_ns() - began_ns - after_ns)
            tasks.append(asyncio.create_task(one(number, began_ns + after_ns, npc, tail)))
        _, late = await asyncio.wait(tasks, timeout=DRAIN_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        return tally

    def _body(self, npc: int, tail: list[int], tokens: int) -> dict[str, Any]:
        trunk = self._people.trunks[npc]
        if self._peer is None:
            return {"prompt": trunk + tail, "n_predict": tokens, "npc": npc, "trunk_len": len(trunk)}
        slot = self._people.ranks[npc] % self._peer.slots if self._peer.pin else -1
        # Only its length ends a reply, as in npcd's rig.
        return llama_server.turn_body(trunk + tail, tokens, slot) | {"ignore_eos": True}


@asynccontextmanager
async def npcd_side(model: Path, people: People) -> AsyncIterator[Side]:
    """npcd's rig in a process of its own. Raises NpcdError when it does not start."""
    port = free_port()
    command = [sys.executable, "-m", "loadtests.bench.kv_served", str(port), str(CACHE_MIB), str(model)]
    async with Child(command) as child, _calls(port, child, "npcd") as http:
        yield Side("npcd", http, people, None)


@asynccontextmanager
async def peer_side(settings: PeerSettings, options: Options, people: People) -> AsyncIterator[Side]:
    """A llama-server of our own. Raises NpcdError when it does not start."""
    command = llama_server.command(settings, options.peer_python, options.peer_binary)
    async with (
        Child(command, talks=not options.peer_binary) as child,
        _calls(settings.port, child, f"llama-server ({settings.words})") as http,
    ):
        yield Side("llama-server", http, people, settings)


@asynccontextmanager
async def _calls(port: int, child: Child, name: str) -> AsyncIterator[HttpCalls]:
    http = HttpCalls(llama_server.HOST, port, CONNECTIONS)
    ends_ns = now_ns() + round(READY_S * S)
    while not await http.get("/health"):
        if child.ended or now_ns() > ends_ns:
            raise NpcdError(f"{name} does not come up:\n{child.log}")
        await asyncio.sleep(0.05)
    try:
        yield http
    finally:
        await http.close()


async def run(figures: Figures, options: Options) -> None:
    """Runs the choice of settings, both capacities, and the rounds. Without a llama-server it prints that and measures
    nothing."""
    missing = await absent(options)
    if missing:
        figures.note(f"skipped, nothing was measured: {missing}")
        return
    quick = options.quick
    npcs = 300 if quick else NPCS
    people = People(options.model, npcs)
    figures.note(
        f"llama-server: {options.peer_binary or f'xllamacpp of {options.peer_python}'}; "
        f"{npcs} NPCs with {sum(map(len, people.trunks)):,} trunk tokens"
    )
    best = await _best(figures, options, people, min(npcs, MANY))
    async with npcd_side(options.model, people) as ours, peer_side(best, options, people) as theirs:
        most: dict[str, list[float]] = {ours.name: [], theirs.name: []}
        for side in (ours, theirs):
            await side.fill(npcs)
        for turn in range(2):
            for side in (ours, theirs):
                await side.busy(1.0, npcs, 2 * turn)
                most[side.name].append(await side.busy(CAPACITY_S / (4 if quick else 2), npcs, 2 * turn + 1))
        npcd_most, peer_most = (median(most[side.name]) for side in (ours, theirs))
        figures.add("kv.npcd_visits_per_s", npcd_most)
        figures.add("kv.peer_visits_per_s", peer_most)
        ratios = []
        for share in (60, 120):
            ratios.append(await _rounds(figures, people, ours, theirs, share, npcd_most * share / 100, quick))
        figures.add("kv.ttft_p95_peer_x", min(ratios))


async def absent(options: Options) -> str:
    """The missing part of a llama-server; empty when it can run."""
    if options.peer_binary:
        return "" if shutil.which(options.peer_binary) else f"there is no program {options.peer_binary}"
    process = await asyncio.create_subprocess_exec(
        options.peer_python, "-c", "import xllamacpp", stderr=asyncio.subprocess.DEVNULL
    )
    return llama_server.missing(options.peer_python, "kv_peer") if await process.wait() else ""


async def _best(figures: Figures, options: Options, people: People, many: int) -> PeerSettings:
    """The settings that serve most visits: first those for computing, then the number of slots and the cache beside
    them."""
    seconds = 1.0 if options.quick else CHOICE_S
    figures.note(f"-- llama-server's settings, {CALLERS} callers for {seconds:g} s each: visits/s")

    async def measure(settings: PeerSettings, among: int) -> float:
        try:
            async with asyncio.timeout(CHOICE_MAX_S), peer_side(settings, options, people) as side:
                await side.fill(among)
                await side.busy(seconds / 3, among, 1)
                rate = await side.busy(seconds, among, 2)
        except (HttpError, NpcdError, TimeoutError) as error:
            figures.note(f"   {among} NPCs, {settings.words}: {str(error) or f'not done after {CHOICE_MAX_S:g} s'}")
            return 0.0
        figures.note(f"   {among} NPCs, {settings.words}: {rate:.0f}")
        return rate

    base = PeerSettings(
        str(options.model), free_port(), SEQUENCES, 1, context_len=CONTEXT_LEN, threads_http=CONNECTIONS + 20
    )
    first = [replace(base, threads=threads, flash_attention=fa) for threads in (1, 2) for fa in (False, True)]
    tried = [(await measure(settings, FEW), settings) for settings in first[: 2 if options.quick else None]]
    best = max(tried, key=lambda one: one[0])[1]
    cached = replace(best, cache_ram_mib=CACHE_MIB, cache_idle=False)
    more = [replace(cached, slots=n) for n in (SEQUENCES, 64, 32, 16, 8)]
    more += [replace(one, slots=SEQUENCES, pin=True) for one in (best, cached)]
    tried = [(await measure(settings, many), settings) for settings in more]
    best = max(tried, key=lambda one: one[0])[1]
    figures.note(f"   best: {best.words}")
    return best


async def _rounds(
    figures: Figures, people: People, ours: Side, theirs: Side, share: int, rate: float, quick: bool
) -> float:
    """Rounds at one rate, in turns, and their figures. Returns llama-server's first-token p95 over npcd's."""
    seconds, rounds = (2.0, 1) if quick else (ROUND_S, ROUNDS)
    figures.note(f"-- {share} %: {rate:.0f} visits/s; {rounds} rounds of {seconds:g} s")
    pairs: list[tuple[Tally, Tally]] = []
    for turn in range(rounds):
        chance, visits, at_ns = random.Random(100 * share + turn), [], 0
        while at_ns < seconds * S:
            visits.append((at_ns, people.visited(chance, len(people.trunks)), people.tail()))
            at_ns += round(chance.expovariate(rate) * S)
        tallies = {}
        for side in (ours, theirs)[:: -1 if turn % 2 else 1]:
            tallies[side.name] = await side.play(visits)
            figures.note(f"   round {turn + 1}, {side.name}: {tallies[side.name].words}")
        pairs.append((tallies[ours.name], tallies[theirs.name]))
    alike = [o.replies[n] == t.replies[n] for o, t in pairs for n in o.replies.keys() & t.replies.keys()]
    figures.note(f"   the same reply to the same visit: {sum(alike) / max(1, len(alike)):.1%} of {len(alike)}")
    figures.add(f"kv.npcd_ttft_p95_{share}_ms", median(o.first_p95_ms for o, _ in pairs))
    figures.add(f"kv.peer_ttft_p95_{share}_ms", median(t.first_p95_ms for _, t in pairs))
    ratio = median(t.first_p95_ms / o.first_p95_ms for o, t in pairs)
    figures.add(f"kv.ttft_p95_peer_{share}_x", ratio)
    return ratio
