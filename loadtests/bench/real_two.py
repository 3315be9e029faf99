"""Two models in one daemon: the one that ships for intents and barks, a chat model for talk and summaries.

One daemon, in turns: 100 NPCs without talk, three conversations without NPCs, and both together. So both sides of a
figure have the same machine, threads and memory.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from pathlib import Path
from statistics import median

from loadtests.bench.attention_rig import p95
from loadtests.bench.children import Child, target
from loadtests.bench.figures import Figures
from loadtests.bench.real_pace import idle
from loadtests.bench.sights import sight
from loadtests.scene import load_scene
from npcd_client import Client, Intent, IntentSource, NpcdError
from npcd_client.talking import TalkEventKind

NPCS, PLAYERS = 100, 3
READY_S = 120.0
OBSERVED_HZ = 10
CHANGES_EVERY = 10  # observations: an NPC sees something else every second
LINE_EVERY_S = 6.0
REPLY_TOKENS = 24
GOLD_S, TALK_S, BOTH_S = 12.0, 18.0, 30.0
SAMPLE_S = 0.5
LINES = ("Good evening.", "Have you seen a wolf?", "Who rules this village?", "Do you sell bread?", "Is the road safe?")


@dataclass(slots=True)
class Stretch:
    """One stretch of time: Gold's tokens (p95 over the last seconds, sampled), intents, first texts."""

    seconds: float
    gold_ms: list[float] = field(default_factory=list)
    steps_ms: dict[str, float] = field(default_factory=dict)
    model: int = 0
    first_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def gold(self) -> float:
        """Time between tokens of Gold, p95, in ms."""
        return median(self.gold_ms or [0.0])

    def said(self) -> str:
        """One line for people."""
        steps = ", ".join(f"{name} {ms:.1f}" for name, ms in self.steps_ms.items())
        firsts = f"{median(self.first_s) * 1000:.0f}/{p95(self.first_s) * 1000:.0f}" if self.first_s else "-"
        return (
            f"Gold's tokens p95 {self.gold:.1f} ms, {self.model / self.seconds:.1f} intents/s, first text p50, p95 "
            f"{firsts} ms ({len(self.first_s)}), steps p95 ms: {steps}; errors {self.errors[:2]}"
        )


class Town:
    """NPCs of the demo's scene on one daemon, and players who each talk with one of them."""

    def __init__(self, client: Client) -> None:
        scene = load_scene()
        self._client = client
        self._world = scene.world
        self._residents = scene.residents(NPCS)
        self._ids = [resident.npc_id for resident in self._residents]
        self._tick = 0
        self._line = 0

    async def settle(self) -> None:
        """Registers the NPCs, and waits until nothing is left to compute for them."""
        await self._client.define_world(self._world)
        await self._client.register([resident.spec for resident in self._residents])
        await idle(self._client, READY_S)

    async def play(self, seconds: float, npcs: bool, talk: bool) -> Stretch:
        """One stretch, with NPCs, conversations or both."""
        stretch, end_s = Stretch(seconds), time.monotonic() + seconds

        def stood(intent: Intent) -> None:
            stretch.model += intent.source is IntentSource.MODEL

        async with self._client.live(on_intent=stood) as live:
            await live.wait_connected(READY_S)
            parts = [self._sample(stretch, end_s)]
            if npcs:
                parts.append(self._observe(live.observe, end_s))
            if talk:
                parts += [self._talk(number, stretch, end_s) for number in range(PLAYERS)]
            await asyncio.gather(*parts)
        return stretch

    async def _observe(self, observe: object, end_s: float) -> None:
        assert callable(observe)
        while time.monotonic() < end_s:
            self._tick += 1
            for number, npc_id in enumerate(self._ids):
                observe(replace(sight(npc_id, number, (self._tick + number) // CHANGES_EVERY), tick=self._tick))
            await asyncio.sleep(1 / OBSERVED_HZ)

    async def _sample(self, stretch: Stretch, end_s: float) -> None:
        began_s = time.monotonic()
        while (now_s := time.monotonic()) < end_s:
            status = await self._client.status()
            if now_s - began_s > stretch.seconds / 2:  # earlier measurements have left the window by then
                stretch.gold_ms += [tier.token_p95_ms for tier in status.tiers if tier.tier == "gold"]
                stretch.steps_ms = {engine.name: engine.step_p95_ms for engine in status.engines}
            await asyncio.sleep(SAMPLE_S)

    async def _talk(self, number: int, stretch: Stretch, end_s: float) -> None:
        await asyncio.sleep(number * LINE_EVERY_S / PLAYERS)
        while (began_s := time.monotonic()) < end_s - LINE_EVERY_S / 2:
            try:
                await self._say(number, stretch, began_s)
            except NpcdError as error:
                stretch.errors.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(max(0.0, began_s + LINE_EVERY_S - time.monotonic()))

    async def _say(self, number: int, stretch: Stretch, began_s: float) -> None:
        self._line += 1
        first = True
        async for event in self._client.talk(
            self._ids[number * 7],
            f"p{number}",
            LINES[self._line % len(LINES)],
            max_tokens=REPLY_TOKENS,
            seed=self._line,
            timeout_s=60.0,
        ):
            if event.kind is TalkEventKind.TEXT and first:
                first = False
                stretch.first_s.append(time.monotonic() - began_s)


def command(shipped: Path, chat: Path, sets: Sequence[str] = ()) -> list[str]:
    """`npcd serve` with both models."""
    every = (f"engines.talk.model={chat}", "routes.reply.engine=talk", "memory.keep=false", *sets)
    return [
        *(sys.executable, "-m", "npcd", "serve", "--no-supervise", "--listen", "unix:{folder}/npcd.sock"),
        *("--http", "off", "--model", str(shipped), *chain.from_iterable(zip(repeat("--set"), every, strict=False))),
    ]


async def run(figures: Figures, shipped: Path, chat: Path, quick: bool) -> None:
    """Measures all of it. Raises NpcdError when the daemon does not serve."""
    part = 0.5 if quick else 1.0
    async with Child(command(shipped, chat)) as child, Client(target(child), timeout_s=READY_S) as client:
        await client.wait_ready(READY_S)
        town = Town(client)
        await town.settle()
        gold = await town.play(GOLD_S * part, npcs=True, talk=False)
        talk = await town.play(TALK_S * part, npcs=False, talk=True)
        both = await town.play(BOTH_S * part, npcs=True, talk=True)
    for name, stretch in (("NPCs alone", gold), ("talk alone", talk), ("both", both)):
        figures.note(f"  two models, {name}: {stretch.said()}")
    figures.add("real.two_gold_alone_p95_ms", gold.gold, 2)
    figures.add("real.two_gold_p95_ms", both.gold, 2)
    figures.add("real.two_gold_x", both.gold / max(1e-3, gold.gold), 2)
    figures.add("real.two_first_p95_ms", p95(both.first_s) * 1000, 0)
    figures.add("real.two_first_x", p95(both.first_s) / max(1e-3, p95(talk.first_s)), 2)
    figures.add("real.two_errors", len(gold.errors) + len(talk.errors) + len(both.errors), 0)
