"""The cost of a bond that is in process: Memory.recall and Memory.at_hand, as a turn and a tail call them."""

from __future__ import annotations

import gc
from time import time_ns

from core.clock import MS, now_ns
from core.words import NpcKey
from loadtests.bench.figures import Figures
from memory.bond import Bond, Fact, Mood, Summary
from memory.bonds import Bonds
from memory.memory import Memory
from memory.recall import Recall
from scheduler.meter import percentile

NPCS = 1_000
READS = 20_000
FACTS = 20


class _NotAsked:
    """A recent store that exists and must not be read."""

    async def recall(self, npc: NpcKey, player: str, now_ms: int) -> Bond | None:
        raise AssertionError("a bond in process needs no read")


def bond_of(number: int, at_ms: int) -> Bond:
    """An NPC's bond after a few conversations: FACTS facts, two summaries, eight moods."""
    lost, talked = "{player} lost the silver ring number", "{player} talked with the smith. {player} seeks the bell"
    facts = [Fact(f"{lost} {number}-{n} at the mill.", 0.7, at_ms) for n in range(FACTS)]
    summaries = [Summary(f"{talked} number {n}.", at_ms) for n in (1, 2)]
    moods = [Mood("calm" if n % 2 else "curious", at_ms) for n in range(8)]
    return Bond(f"Anna{number}", facts=facts, summaries=summaries, moods=moods)


async def run(figures: Figures, quick: bool) -> None:
    """Times one read after the other."""
    reads = 2_000 if quick else READS
    figures.note(f"-- {reads} bonds of {FACTS} facts, of {NPCS} NPCs, that are in process")
    bonds = Bonds(2 * NPCS)
    pairs = [(NpcKey("", "bench", f"npc-{n}"), f"player-{n}") for n in range(NPCS)]

    def wall_ms() -> int:
        return time_ns() // MS

    for n, (npc, player) in enumerate(pairs):
        bonds.put(npc, player, bond_of(n, wall_ms()), complete=True)
    memory = Memory(bonds, Recall(bonds, _NotAsked(), 20.0, 64, now_ns, wall_ms), None, None, None, wall_ms)
    recalled: list[int] = []
    at_hand: list[int] = []
    gc.collect()
    gc.freeze()  # as the daemon does
    for n in range(reads):
        npc, player = pairs[n * 37 % NPCS]
        began_ns = now_ns()
        found = await memory.recall(npc, player)
        recalled.append(now_ns() - began_ns)
        began_ns = now_ns()
        memory.at_hand(npc, player)
        at_hand.append(now_ns() - began_ns)
        assert len(found.bond.facts) == FACTS and found.stores == ("hot",)
    gc.unfreeze()
    figures.add("memory.hot_read_p99_us", percentile(recalled, 0.99) / 1000, 1)
    figures.add("memory.hot_read_p50_us", percentile(recalled, 0.5) / 1000, 1)
    figures.add("memory.at_hand_p99_us", percentile(at_hand, 0.99) / 1000, 1)
