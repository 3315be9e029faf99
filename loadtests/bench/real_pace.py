"""A chat model that does everything: what a conversation and NPCs get from it, and from a daemon that becomes slower.

Both sides of a figure are measured on one daemon, in turns: a conversation alone, then the same beside NPCs. A machine
of half the speed is one core for the whole daemon, one of a quarter is a daemon that is stopped three quarters of the
time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from core.errors import NpcdError
from engines.llama import LlamaSettings
from loadtests.bench.attention_rig import p95
from loadtests.bench.bare import Bare
from loadtests.bench.children import Child, target
from loadtests.bench.figures import Figures
from loadtests.bench.sights import sight
from loadtests.scene import load_scene
from npcd_client import Client, Intent, IntentSource, Live
from npcd_client.talking import TalkEventKind
from npcd_client.v1 import admin_pb2

READY_S = 180.0
LINE_EVERY_S = 6.0
OBSERVED_HZ = 10
CHANGES_EVERY = 10  # observations: an NPC sees something else every second
REPLY_TOKENS = 24
LINES = ("Good evening.", "Have you seen a wolf?", "Who rules this village?", "Do you sell bread?", "Is the road safe?")
PLAY_S, ALONE_S, SLOW_S = 36.0, 24.0, 20.0
DUTY_S = 0.04  # one turn of running and standing still
BARE_GROUP, BARE_TRUNK, BARE_TAIL, BARE_STEPS = 4, 320, 20, 3


@dataclass(slots=True)
class Played:
    """The results of a player and of NPCs in one stretch of time."""

    seconds: float = 0.0
    first_s: list[float] = field(default_factory=list)
    tokens_per_s: list[float] = field(default_factory=list)
    ages_s: list[float] = field(default_factory=list)
    model: int = 0
    errors: list[str] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)  # of the pace, every half second
    busy: list[float] = field(default_factory=list)
    last: admin_pb2.Pace = field(default_factory=admin_pb2.Pace)

    @property
    def turned(self) -> int:
        """How often the pace turned round."""
        ways = [b > a for a, b in pairwise(self.rates) if abs(b - a) > 1e-6 * a]
        return sum(a != b for a, b in pairwise(ways))

    def said(self) -> str:
        """One line for people."""
        firsts = ", ".join(f"{s * 1000:.0f}" for s in self.first_s)
        return (
            f"first text [{firsts}] ms, {median(self.tokens_per_s or [0.0]):.1f} tokens/s, {self.model} intents of the "
            f"model in {self.seconds:.0f} s, age p95 {p95(self.ages_s):.1f} s; pace {self.last.intents_per_s:.2f} "
            f"intents/s, {self.last.npcs_active_max} active, gives way: {len(self.last.gives_way)}, turned "
            f"{self.turned}; errors {self.errors[:2]}"
        )


class Village:
    """NPCs of the demo's scene on one daemon, and a player who talks to the first of them."""

    def __init__(self, client: Client, npcs: int) -> None:
        scene = load_scene()
        self._client = client
        self._world = scene.world
        self._residents = scene.residents(npcs)
        self._ids = [resident.npc_id for resident in self._residents]
        self._tick = 0
        self._line = 0

    async def settle(self) -> None:
        """Registers the NPCs, and waits until nothing is left to compute for them."""
        await self._client.define_world(self._world)
        await self._client.register([resident.spec for resident in self._residents])
        await idle(self._client)

    async def play(self, seconds: float, with_npcs: bool) -> Played:
        """One conversation for so long, alone or beside all NPCs."""
        played, npcs = Played(seconds), self._ids if with_npcs else self._ids[:0]
        end_s = time.monotonic() + seconds

        def stood(intent: Intent) -> None:
            played.model += intent.source is IntentSource.MODEL

        async with self._client.live(on_intent=stood) as live:
            await live.wait_connected(READY_S)
            await asyncio.gather(
                self._observe(live, npcs, end_s), self._sample(live, npcs, played, end_s), self._talk(played, end_s)
            )
        return played

    async def _observe(self, live: Live, npcs: list[str], end_s: float) -> None:
        while time.monotonic() < end_s:
            self._tick += 1
            for number, npc_id in enumerate(npcs):
                seen = sight(npc_id, number, (self._tick + number) // CHANGES_EVERY)
                live.observe(replace(seen, tick=self._tick))
            await asyncio.sleep(1 / OBSERVED_HZ)

    async def _sample(self, live: Live, npcs: list[str], played: Played, end_s: float) -> None:
        """Twice a second: the age of each NPC's latest answer of the model, and the pace."""
        began_s, agreed_s = time.monotonic(), dict.fromkeys(npcs, 0.0)
        while (now_s := time.monotonic()) < end_s:
            for npc_id in npcs:
                intent = live.latest(npc_id)
                if intent is not None and intent.source is IntentSource.MODEL:
                    agreed_s[npc_id] = intent.agreed_ns * 1e-9
                if now_s - began_s > played.seconds / 4:  # before that they get their first answers
                    played.ages_s.append(now_s - max(agreed_s[npc_id], began_s))
            played.last = (await self._client.status()).paces[0]
            played.rates.append(played.last.intents_per_s)
            played.busy.append(played.last.busy_share)
            await asyncio.sleep(0.5)

    async def _talk(self, played: Played, end_s: float) -> None:
        while (began_s := time.monotonic()) < end_s - LINE_EVERY_S / 2:
            try:
                await self._line_said(played, began_s)
            except NpcdError as error:
                played.errors.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(max(0.0, began_s + LINE_EVERY_S - time.monotonic()))

    async def _line_said(self, played: Played, began_s: float) -> None:
        self._line += 1
        line, first_s = LINES[self._line % len(LINES)], 0.0
        async for event in self._client.talk(
            self._ids[0], "p1", line, max_tokens=REPLY_TOKENS, seed=self._line, timeout_s=60.0
        ):
            if event.kind is TalkEventKind.TEXT and not first_s:
                first_s = time.monotonic()
                played.first_s.append(first_s - began_s)
            if event.kind is TalkEventKind.END and event.timings is not None and event.timings.output_tokens > 1:
                played.tokens_per_s.append((event.timings.output_tokens - 1) / max(1e-3, time.monotonic() - first_s))


async def idle(client: Client, within_s: float = 120.0) -> None:
    """Waits until no work runs or waits."""
    async with asyncio.timeout(within_s):
        while any(tier.running or tier.waiting for tier in (await client.status()).tiers):  # noqa: ASYNC110 - the daemon tells nobody
            await asyncio.sleep(0.2)


@asynccontextmanager
async def serving(model: Path) -> AsyncGenerator[tuple[Child, Client]]:
    """A daemon that serves the model, and a client of it."""
    child = Child(
        [
            *(sys.executable, "-m", "npcd", "serve", "--no-supervise", "--listen", "unix:{folder}/npcd.sock"),
            *("--http", "off", "--model", str(model), "--set", "memory.keep=false"),
        ]
    )
    async with child, Client(target(child)) as client:
        await client.wait_ready(READY_S)
        yield child, client


async def run(figures: Figures, chat: Path, quick: bool) -> None:
    """Measures all of it. Raises NpcdError when the daemon does not serve."""
    part = 0.5 if quick else 1.0
    bare_ns = _bare_intent_ns(chat)
    async with serving(chat) as (child, client):
        for name, npcs in (("one", 10), ("hundred", 100)):
            village = Village(client, npcs)
            await village.settle()
            alone = await village.play(ALONE_S * part, with_npcs=False)
            beside = await village.play(PLAY_S * part, with_npcs=True)
            figures.note(f"  {name}, alone: {alone.said()}")
            figures.note(f"  {name}, {npcs} NPCs: {beside.said()}")
            figures.add(f"real.{name}_first_x", p95(beside.first_s) / max(1e-3, p95(alone.first_s)), 2)
            if name == "one":
                figures.add("real.one_speech_tps", median(beside.tokens_per_s or [0.0]), 1)
                figures.add("real.one_speech_alone_tps", median(alone.tokens_per_s or [0.0]), 1)
                figures.add("real.one_model_age_p95_s", p95(beside.ages_s), 2)
                figures.add("real.one_errors", len(alone.errors) + len(beside.errors), 0)
            else:
                talk = sum(alone.busy) / max(1, len(alone.busy))
                could = (1.0 - min(0.9, talk)) * 1e9 / bare_ns
                figures.note(f"  the bare engine: {could:.2f} intents/s beside the same conversation")
                figures.add("real.hundred_model_intents_x", beside.model / beside.seconds / could, 2)
        before = beside.last.intents_per_s
        await _slowed(figures, child, village, alone, before, part)


async def _slowed(figures: Figures, child: Child, village: Village, alone: Played, before: float, part: float) -> None:
    """Half the machine, then a quarter of the time."""
    cores = os.sched_getaffinity(0)
    _pin(child.pid, {min(cores)})
    half = await village.play(SLOW_S * part, with_npcs=True)
    _pin(child.pid, cores)
    figures.note(f"  one core: {half.said()}")
    stopping = asyncio.create_task(_stop_and_go(child.pid, 0.25))
    try:
        quarter = await village.play(SLOW_S * part, with_npcs=True)
    finally:
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
    figures.note(f"  a quarter: {quarter.said()}")
    figures.add("real.slowed_first_x", p95(quarter.first_s) / max(1e-3, 4.0 * p95(alone.first_s)), 2)
    figures.add("real.slowed_carried_x", quarter.last.intents_per_s / max(1e-6, before), 2)
    figures.add("real.slowed_reversals", max(half.turned, quarter.turned), 0)
    figures.add("real.slowed_errors", len(half.errors) + len(quarter.errors), 0)


def _pin(pid: int, cores: set[int]) -> None:
    """Keeps all threads of a process of ours on these cores."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


async def _stop_and_go(pid: int, share: float) -> None:
    """Lets a process of ours run for this share of the time only."""
    try:
        while True:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(DUTY_S * (1.0 - share))
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(DUTY_S * share)
    finally:
        os.kill(pid, signal.SIGCONT)


def _bare_intent_ns(model: Path) -> float:
    """Nanoseconds of the engine for one intent of a group, without any code around it."""
    bare = Bare(LlamaSettings(model, sequences=16, context_len=1024), BARE_GROUP)
    try:
        rng = np.random.default_rng(7)
        bare.prepare([rng.integers(100, 4000, BARE_TRUNK).astype(np.int32) for _ in range(BARE_GROUP)])
        tails = [rng.integers(100, 4000, BARE_TAIL).astype(np.int32) for _ in range(BARE_GROUP)]
        bare.run(BARE_TRUNK, tails, BARE_STEPS)
        return median(bare.run(BARE_TRUNK, tails, BARE_STEPS) for _ in range(5)) / BARE_GROUP
    finally:
        bare.close()
