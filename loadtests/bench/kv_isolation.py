"""No NPC answers with another's memory: every NPC knows a secret, and thousands of replies are searched for other NPCs'
secrets.

The shipped model answers on trunks as the daemon lays them out, asked in random order on so few sequences that trunks
move between sequences, RAM and Redis all the time. First the search is shown to find leaks: a hundred homes are swapped
with the checks off. A leak is an answer with another NPC's secret and without the NPC's own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from core.choice import Tokens
from core.clock import MS, S, now_ns
from core.script import player_line
from core.words import NpcKey, Tier, TrunkKey
from core.work import Chunk, Work
from engines.base import tokens_of
from engines.llama import LlamaSettings, send_native_log_to
from kvcache.homes import Trunk
from kvcache.verify import Sealed, Verifier
from loadtests.bench.figures import Figures
from loadtests.bench.kv_homes import with_store
from loadtests.bench.rig import Rig
from loadtests.scene import load_scene
from models.corpus.names import person_name
from prompts.choices import ActionWord
from prompts.layout import Layout

NPCS = 400
REPLIES = 10_000
LIMIT_S = 240.0
SWAPPED = 100
AT_ONCE = 16
REPLY_LEN = 24
SEQUENCES = 96  # 36 of them are prefixes and lanes
RAM_MIB = 16


@dataclass(frozen=True, slots=True)
class Holder:
    """An NPC and its secret: the name of a sister, which a player told it."""

    number: int
    secret: str
    trunk: Tokens
    shared: int
    question: Tokens

    @property
    def key(self) -> TrunkKey:
        """The key of its trunk."""
        return TrunkKey(NpcKey("", "bench", f"holder{self.number}"), "player")


class Trusting(Verifier):
    """A check that never finds a fault, for the control."""

    def fault(self, sealed: Sealed, tokens: Tokens, adapter: str = "") -> str:
        return ""


def holders(layout: Layout, count: int) -> list[Holder]:
    """NPCs of the demo village, each with a name that no other one was told."""
    scene = load_scene()
    world, rng = scene.world, random.Random(11)
    actions = [ActionWord(a.word, a.needs_target, a.speaks) for a in world.actions]
    shared = layout.world(world.lore, actions, world.emotions)
    kinds = {a.archetype_id: layout.archetype(a.archetype_id, a.description) for a in world.archetypes}
    people = {p.persona_id: p for p in world.personas}
    names: list[str] = []
    while len(names) < count:
        name = person_name(rng, True)
        if len(name) > 4 and not any(name in other or other in name for other in names):
            names.append(name)
    out = []
    for number, (resident, name) in enumerate(zip(scene.residents(count), names, strict=True)):
        person = people[resident.persona_id]
        before = shared + kinds[resident.archetype_id]
        line = f"My sister is called {name}."
        told = layout.player_turn(line).tokens + layout.npc_turn("I will remember that.")
        trunk = tokens_of(before + layout.persona(person.name, person.text) + told)
        question = layout.talk_tail(player_line("Who is my sister?")).tokens
        # Half of them share no prefix: only then is so short a trunk worth a fetch from Redis.
        out.append(Holder(number, name, trunk, len(before) * (number % 2), tokens_of(question)))
    return out


class Search:
    """Asks NPCs and searches their answers."""

    def __init__(self, rig: Rig, layout: Layout, everybody: Sequence[Holder]) -> None:
        self.own = 0
        self.leaks = 0
        self.asked = 0
        self._rig = rig
        self._layout = layout
        self._everybody = everybody

    async def ask(self, holder: Holder) -> str:
        """One NPC's answer, searched."""
        made: list[int] = []
        over = asyncio.Event()

        def on_chunk(chunk: Chunk) -> None:
            made.extend(chunk.tokens)

        now = now_ns()
        work = Work(
            Tier.SILVER, holder.key, holder.trunk, holder.question, REPLY_LEN, holder.shared,
            stop_ids=frozenset(self._layout.stop_ids), due_ns=now, deadline_ns=now + 250 * MS,
        )  # fmt: skip
        self._rig.door.submit(work, lambda _: over.set(), on_chunk)
        await over.wait()
        text = b"".join(self._rig.engine.vocab.piece(t) for t in made).decode("utf-8", "replace")
        self.asked += 1
        if holder.secret in text:
            self.own += 1
        elif any(other.secret in text for other in self._everybody):
            self.leaks += 1
        return text

    async def ask_all(self, whom: Sequence[Holder], ends_ns: int) -> None:
        """Asks these NPCs in order, some at once, until the time is over."""
        left = iter(whom)

        async def asker() -> None:
            for holder in left:
                if now_ns() > ends_ns:
                    return
                await self.ask(holder)

        await asyncio.gather(*(asker() for _ in range(AT_ONCE)))


async def _control(rig: Rig, layout: Layout, everybody: Sequence[Holder]) -> tuple[int, int]:
    """Swaps the bytes of pairs of equally long trunks, with the checks off. Returns (homes swapped, leaks found)."""
    placer = rig.scheduler.placer
    by_length: dict[int, list[Trunk]] = {}
    for holder in everybody:
        rig.backend.obeyed(partial(rig.scheduler.move_out, holder.key.npc))
    await rig.door.obeyed()
    for holder in everybody:
        trunk = placer.homes.find(holder.key)
        if trunk is not None and trunk.blob is not None:
            by_length.setdefault(trunk.held, []).append(trunk)
    pairs = [pair for same in by_length.values() for pair in zip(same[::2], same[1::2], strict=False)]
    swapped = set()
    for one, other in pairs[: SWAPPED // 2]:
        one.blob, other.blob = other.blob, one.blob
        swapped |= {one.key, other.key}
    checked, placer.moves.verifier = placer.moves.verifier, Trusting(rig.engine.kv_kind)
    search = Search(rig, layout, everybody)
    await search.ask_all([h for h in everybody if h.key in swapped], now_ns() + 60 * S)
    placer.moves.verifier = checked
    for holder in everybody:
        rig.door.forget(holder.key)
    await rig.door.obeyed()
    return len(swapped), search.leaks


async def run(
    figures: Figures, model: Path, quick: bool, replies: int = REPLIES, limit_s: float = LIMIT_S, npcs: int = NPCS
) -> None:
    """Runs the control, then so many replies or so long. Raises ConfigError and NpcdError."""
    if quick:
        replies, limit_s, npcs = 400, 15.0, 240
    send_native_log_to(None)
    settings = LlamaSettings(model, sequences=SEQUENCES, context_len=1024, threads=0, flash_attention="off")
    async with Rig(settings) as rig:
        layout = Layout(rig.engine.vocab)
        everybody = holders(layout, npcs)
        placer = rig.scheduler.placer
        figures.note(f"-- {npcs} NPCs with a secret each, {placer.homes.count} resident sequences")
        first = Search(rig, layout, everybody)
        await first.ask_all(everybody, now_ns() + 120 * S)
        swapped, found = await _control(rig, layout, everybody)
        figures.note(f"   control: {swapped} homes swapped with the checks off, {found} leaks found")
        figures.add("kv.control_leaks_found", found * SWAPPED / max(1, swapped))
        placer.homes.ram_bytes_max = RAM_MIB << 20
        async with with_store(rig):
            rng = random.Random(12)
            search = Search(rig, layout, everybody)
            await search.ask_all([rng.choice(everybody) for _ in range(replies)], now_ns() + round(limit_s * S))
            moves = placer.counters()["moves"]
        figures.add("kv.leaks", search.leaks + first.leaks)
        figures.add("kv.isolation_replies", search.asked + first.asked)
        figures.add("kv.own_secret_share", (search.own + first.own) / (search.asked + first.asked))
        figures.note(f"   {moves}; refused {placer.moves.loads_refused}")
