"""Each turn of a conversation is computed once, and the twentieth is as fast as the second.

One `npcd serve` per model, and one player who talks with one NPC after the other, twenty turns each. The player waits
until the daemon has nothing left to do before the next line. The NPC's situation changes with every second line. Turn 2
and turn 20 have the same line and a new situation.

The cost of a conversation with either place for the situation is counted in the model's own tokens, without a daemon.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

from core.errors import NpcdError
from core.observation import Observation as Seen
from core.script import npc_line, player_line
from daemon.model import Model, choose_layout
from engines.base import GREEDY_PICK, Slice, StepPlan, tokens_of
from engines.llama import LlamaEngine, LlamaSettings
from loadtests.bench.children import Child, target
from loadtests.bench.figures import Figures
from loadtests.scene import load_scene
from npcd_client import Client, Observation, Percept, TalkEventKind
from npcd_client.talking import Timings
from prompts.caps import Caps
from prompts.layout import Layout

TURNS = 20
CONVERSATIONS = 5
REPLY_TOKENS = 12
READY_S = 120.0
TURN_S = 60.0
IDLE_S = 0.02
GREETING = "Good evening. Have you seen anything strange on the road?"
LINES = (
    "What is your name?",
    "Who rules this village?",
    "I am looking for work.",
    "Do you sell honey here?",
    "What do people say about the castle?",
    "Is it safe after dusk?",
    "I lost my lantern near the swamp.",
    "Where can I sleep tonight?",
)
PLACES = ("road", "tavern")


@dataclass(slots=True)
class Told:
    """The measured values: the time to first text by turn (from 1), and the turns' timings."""

    first_ms: dict[int, list[float]] = field(default_factory=dict)
    timings: list[Timings] = field(default_factory=list)
    settled_ms: list[float] = field(default_factory=list)


async def run(figures: Figures, shipped: Path, chat: Path, quick: bool) -> None:
    """Measures both models. Raises NpcdError when a daemon does not serve."""
    for name, model in (("", chat), ("shipped_", shipped)):
        _count(figures, name, model)
        told = await _talk(model, 1 if quick else CONVERSATIONS)
        turns = [t for n, t in enumerate(told.timings) if n % TURNS]
        figures.add(f"real.{name}recomputed_tokens_per_turn", mean(t.recomputed_tokens for t in turns), 2)
        figures.add(f"real.{name}rebuild_tokens", mean(t.rebuild_tokens for t in turns), 2)
        figures.add(f"real.{name}guard_tokens", mean(t.guard_tokens for t in turns), 2)
        second, last = median(told.first_ms[2]), median(told.first_ms[TURNS])
        figures.add(f"real.{name}turn2_first_ms", second, 1)
        figures.add(f"real.{name}turn20_first_ms", last, 1)
        figures.add(f"real.{name}turn20_first_x", last / second, 2)
        figures.add(f"real.{name}turn_settled_ms_max", max(told.settled_ms), 1)
        figures.note(f"  {name or 'chat '}first text by turn, ms: {_by_turn(told)}")


async def _talk(model: Path, conversations: int) -> Told:
    child = Child(
        [
            *(sys.executable, "-m", "npcd", "serve", "--no-supervise", "--listen", "unix:{folder}/npcd.sock"),
            *("--http", "off", "--data", "{folder}/data", "--model", str(model), "--set", "memory.keep=false"),
            *("--set", "engine.sequences=64"),
        ]
    )
    scene = load_scene()
    told = Told()
    async with child, Client(target(child)) as client:
        try:
            await client.wait_ready(READY_S)
        except NpcdError as error:
            raise NpcdError(f"{error}: {child.log}") from error
        await client.define_world(scene.world)
        residents = scene.residents(conversations)
        await client.register([resident.spec for resident in residents])
        for number, resident in enumerate(residents):
            await _converse(client, resident.npc_id, f"player{number}", told)
    return told


async def _converse(client: Client, npc: str, player: str, told: Told) -> None:
    for turn in range(1, TURNS + 1):
        if not turn % 2:
            wolf = Percept("w1", "wolf", "hostile", 6.0)
            place = PLACES[turn // 2 % 2]
            seen = Observation(npc, turn, time_of_day="night", place=place, percepts=(wolf,) if turn % 4 else ())
            await client.observe([seen])
        await _idle(client)
        line = GREETING if turn in (2, TURNS) else LINES[turn % len(LINES)]
        sent, first = time.monotonic(), 0.0
        async for event in client.talk(npc, player, line, max_tokens=REPLY_TOKENS, seed=turn, timeout_s=TURN_S):
            if event.kind is TalkEventKind.TEXT and not first:
                first = time.monotonic()
            if event.kind is TalkEventKind.END:
                assert event.timings is not None, "END has Timings"
                told.timings.append(event.timings)
        if first:
            told.first_ms.setdefault(turn, []).append((first - sent) * 1000)
        ended = time.monotonic()
        await _idle(client)
        told.settled_ms.append((time.monotonic() - ended) * 1000)


async def _idle(client: Client) -> None:
    """Waits until no work waits or runs."""
    while True:
        status = await client.status()
        if not any(tier.waiting or tier.running for tier in status.tiers) and not status.intents_put_off:
            return
        await asyncio.sleep(IDLE_S)


def _by_turn(told: Told) -> str:
    return ", ".join(f"{turn}: {median(values):.0f}" for turn, values in sorted(told.first_ms.items()))


# -- tokens --------------------------------------------------------------------------------------------------------


def _count(figures: Figures, name: str, path: Path) -> None:
    """The KV that a turn adds, and the tokens that it computes, with the situation kept and with it cut off."""
    engine = LlamaEngine(LlamaSettings(path, sequences=2, context_len=256, threads=1, weights="file"))
    try:
        layout, _ = choose_layout(Model(engine, "", "", engine.card.chat_template), Caps())
        sample = tokens_of(engine.vocab.encode(" ".join(LINES)))[:64]
        engine.step(StepPlan([Slice(0, 0, sample, GREEDY_PICK)]))
        each = len(engine.store(0)) / len(sample)
        for variant, stays in (("stays", True), ("cut", False)):
            layout.situation_stays = stays
            held, computed = _turns(layout)
            figures.add(f"real.{name}kv_per_turn_bytes_{variant}", held * each, 0)
            figures.add(f"real.{name}computed_per_turn_tokens_{variant}", computed, 1)
    finally:
        engine.close()


def _turns(layout: Layout) -> tuple[float, float]:
    """Tokens that a turn adds to the trunk, and tokens that are computed for it, of a conversation without rebuild."""
    held = computed = 0
    standing: tuple[object, ...] = ()
    for turn in range(1, 11):
        seen = layout.perceive(Seen(turn, time_of_day="night", place=PLACES[turn // 2 % 2]))
        tail = layout.talk_tail(player_line(LINES[turn % len(LINES)]), seen, "", standing)  # type: ignore[arg-type]
        reply = npc_line("I have seen nothing, stranger. Stay inside tonight.")
        drawn = layout.spoken(reply.text)
        layout.keep_drawn(reply, drawn)
        stays = layout.stays(tail)
        added = len(layout.lines((*stays, reply)))
        held += added
        once = stays == tail.sections[:-1]
        # The lane computes the tail and the reply; without adoption the finished turn is computed once more.
        computed += len(tail.tokens) + len(drawn) + (layout.closing_len if once else added)
        standing = (*standing, *stays)[-3:]
    return held / 10, computed / 10
