"""The serving process is killed (SIGKILL) in conversations, at random moments. No accepted turn is lost, and the NPC
still knows the facts afterwards.

`npcd serve` runs unchanged, in two processes. Before each kill players tell NPCs a fact each; half of those
conversations have ended by then, half are under way. After the kill each fact is asked for. Other players talk all the
time, retry through failures, and note which turns were accepted. Where the parent gives up (six deaths without a minute
of life) it is started again, as an orchestrator would do. No client defines the world again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median

from loadtests.bench import memory_children as children
from loadtests.bench import memory_stores as stores
from loadtests.bench.children import Child
from loadtests.bench.figures import Figures
from loadtests.bench.memory_facts import Told, told
from loadtests.patter import Patter
from loadtests.scene import load_scene
from memory.bond import Bond
from npcd_client import Client, NpcdError, Said, TalkFinish, new_turn_id

KILLS = 5
TELLERS = 4  # facts told before each kill
TALKERS = 6
NPCS = 24
KILL_WITHIN_S = (0.3, 2.5)
MAX_TOKENS = 48
TURN_S = 20.0
BACK_S = 60.0
CAUGHT_UP_S = 60.0
SEED = 11


@dataclass(frozen=True, slots=True)
class _Teller:
    """A player whose fact was accepted."""

    npc: str
    player: str
    fact: Told
    turn_id: str
    ended: bool


@dataclass(slots=True)
class _Ledger:
    """The clients' knowledge: accepted turns, told facts, and the results of asking."""

    accepted: list[str] = field(default_factory=list)
    tellers: list[_Teller] = field(default_factory=list)
    quoted: int = 0
    asked: int = 0
    quoted_under_way: int = 0
    unknown: list[str] = field(default_factory=list)  # facts that Npcs.Recall does not return, turns said twice
    broken_off: int = 0
    back_s: list[float] = field(default_factory=list)
    misses: list[str] = field(default_factory=list)


async def run(figures: Figures, model: Path, kills: int) -> None:
    """Kills so many times, compares, then asks the same of a daemon with an empty data folder."""
    figures.note(f"-- the serving process is killed {kills} times in {TELLERS + TALKERS} conversations")
    ledger = _Ledger()
    chance = Random(SEED)
    scene = load_scene()
    with stores.data_folder() as data:
        async with _Daemon(data, model) as daemon, daemon.client() as client:
            await client.define_world(scene.world)
            await client.register([resident.spec for resident in scene.residents(NPCS)])
            over = asyncio.Event()
            talkers = [asyncio.create_task(_talk(client, ledger, n, over)) for n in range(TALKERS)]
            try:
                for number in range(kills):
                    await _kill(client, daemon, ledger, chance, number)
            finally:
                over.set()
                done = await asyncio.gather(*talkers, return_exceptions=True)
            if broken := [error for error in done if isinstance(error, BaseException)]:
                raise broken[0]
            lost = await _lost(figures, client, data, ledger)
            parents = daemon.parents
    figures.note(
        f"   {len(ledger.accepted)} turns accepted, {ledger.broken_off} broken off; serving again after "
        f"{median(ledger.back_s):.1f} s ({max(ledger.back_s):.1f} at most), {parents} parents; of facts told in the "
        f"conversation under way {ledger.quoted_under_way} of {sum(not t.ended for t in ledger.tellers)} were quoted"
    )
    for miss in ledger.misses[:5]:
        figures.note(f"   not quoted: {miss}")
    figures.add("memory.kill9_kills", kills, 0)
    figures.add("memory.kill9_lost", lost, 0)
    figures.add("memory.kill9_asked", ledger.asked, 0)
    figures.add("memory.kill9_quoted_share", ledger.quoted / max(1, ledger.asked))
    figures.add("memory.kill9_back_s", median(ledger.back_s), 1)
    with stores.data_folder() as data:
        async with _Daemon(data, model) as daemon, daemon.client() as client:
            await client.define_world(scene.world)
            await client.register([resident.spec for resident in scene.residents(NPCS)])
            answers = [await _ask(client, teller) for teller in ledger.tellers]
    by_chance = sum(t.fact.quoted_in(answer) for t, answer in zip(ledger.tellers, answers, strict=True))
    figures.add("memory.no_store_quoted_share", by_chance / max(1, len(answers)))


class _Daemon:
    """`npcd serve` on a data folder; its parent is started again when it has given up."""

    def __init__(self, data: Path, model: Path) -> None:
        self._data = data
        self._model = model
        self._child: Child | None = None
        self._target = ""
        self.parents = 0

    async def __aenter__(self) -> _Daemon:
        await self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._child is not None:
            await self._child.__aexit__()

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A client, as soon as the daemon serves."""
        async with Client(self._target) as client:
            await client.wait_ready(children.READY_S)
            yield client

    def kill(self) -> None:
        """Kills the serving process."""
        os.kill(stores.serving_pid(self._data), signal.SIGKILL)

    async def back(self, client: Client) -> None:
        """Waits until it serves again. Raises TooLate."""
        until_s = time.monotonic() + BACK_S
        while True:
            assert self._child is not None
            if self._child.ended:
                await self._start()
            try:
                await client.wait_ready(1.0)
                return
            except NpcdError:
                if time.monotonic() > until_s:
                    raise

    async def _start(self) -> None:
        self.parents += 1
        child = children.supervised(self._data, self._model, f"{self._data}/npcd.sock")
        if self._child is not None:
            await self._child.__aexit__()
        self._child = await child.__aenter__()
        self._target = f"unix:{self._data}/npcd.sock"


async def _kill(client: Client, daemon: _Daemon, ledger: _Ledger, chance: Random, number: int) -> None:
    """One kill: facts are told, the process is killed at a random moment, and the facts are asked for."""
    npcs = chance.sample([resident.npc_id for resident in load_scene().residents(NPCS)], TELLERS)
    telling = [_tell(client, npc, f"teller-{number}-{n}", told(chance), n % 2 == 0) for n, npc in enumerate(npcs)]
    tellers = await asyncio.gather(*telling)
    ledger.tellers += tellers
    ledger.accepted += [teller.turn_id for teller in tellers]
    await asyncio.sleep(chance.uniform(*KILL_WITHIN_S))
    daemon.kill()
    began_s = time.monotonic()
    await daemon.back(client)
    ledger.back_s.append(time.monotonic() - began_s)
    for teller in tellers:
        recalled = await client.recall(teller.npc, teller.player)
        facts = " ".join(fact.text for fact in recalled.facts)
        if not teller.fact.quoted_in(facts):
            ledger.unknown.append(f"'{teller.fact.line}' is not in what {teller.npc} remembers: '{facts}'")
        if not teller.ended:
            # This retries an accepted turn: it gets the same text, and the turn is not said twice.
            again = await _say(client, teller.npc, teller.player, teller.fact.line, turn_id=teller.turn_id)
            if again.end is None or again.end.finish is not TalkFinish.REPEATED:
                ledger.unknown.append(f"turn {teller.turn_id} was said twice")
        answer = await _ask(client, teller)
        quoted = teller.fact.quoted_in(answer)
        ledger.asked += 1
        ledger.quoted += quoted
        ledger.quoted_under_way += quoted and not teller.ended
        if not quoted:
            where = "ended" if teller.ended else "under way"
            ledger.misses.append(f"'{teller.fact.line}' '{teller.fact.question}' '{answer}' ({teller.npc}, {where})")


async def _tell(client: Client, npc: str, player: str, fact: Told, ends: bool) -> _Teller:
    """Tells a fact, and then a little else. Raises NpcdError when it is not accepted."""
    turn_id = new_turn_id()
    said = await _say(client, npc, player, fact.line, turn_id, fact.player_name)
    if said.end is None or not said.end.accepted:
        raise NpcdError(f"a turn was not accepted: {said.end}")
    await _say(client, npc, player, "Nice weather today.", player_name=fact.player_name)
    if ends:
        await client.end_session(npc, player)
    return _Teller(npc, player, fact, turn_id, ends)


async def _ask(client: Client, teller: _Teller) -> str:
    said = await _say(client, teller.npc, teller.player, teller.fact.question, player_name=teller.fact.player_name)
    return said.text


async def _talk(client: Client, ledger: _Ledger, number: int, over: asyncio.Event) -> None:
    """A player who talks with one NPC after the other, and begins again after a broken conversation."""
    chance = Random(f"{SEED}/{number}")
    npcs = [resident.npc_id for resident in load_scene().residents(NPCS)]
    patter = Patter(load_scene().player, chance)
    while not over.is_set():
        npc = chance.choice(npcs)
        patter.begin()
        served = True
        while not patter.over and not over.is_set():
            turn_id = new_turn_id()
            try:
                said = await _say(client, npc, f"talker-{number}", patter.next()[0], turn_id)
                if said.end is not None and said.end.accepted:
                    ledger.accepted.append(turn_id)
                served = True
                await asyncio.sleep(chance.uniform(0.1, 0.6))
            except NpcdError:
                ledger.broken_off += served  # count it once, and not every try until the daemon serves again
                served = False
                await asyncio.sleep(0.1)


async def _say(
    client: Client, npc: str, player: str, line: str, turn_id: str | None = None, player_name: str = ""
) -> Said:
    """Runs one turn to its end. Raises NpcdError."""
    said = Said()
    async for event in client.talk(
        npc, player, line, turn_id, player_name=player_name, max_tokens=MAX_TOKENS, timeout_s=TURN_S
    ):
        said.add(event)
    return said


async def _lost(figures: Figures, client: Client, data: Path, ledger: _Ledger) -> int:
    """The accepted data that is not everywhere exactly once: turns in the journal, records in the archive, bonds in
    Redis."""
    scene = load_scene()
    world = scene.world.world_id
    npcs = [resident.npc_id for resident in scene.residents(NPCS)]

    async def read() -> tuple[Counter[str], dict[tuple[str, str], Bond]]:
        archived = await asyncio.to_thread(stores.archive_ids, stores.owner_url(data), world, npcs)
        return archived, await stores.recent_bonds(data, world)

    records, (archived, recent) = await stores.at_rest(data, client, read, CAUGHT_UP_S)
    said = stores.turn_ids(records)
    unwritten = [turn for turn in ledger.accepted if said[turn] != 1]
    unarchived = [record for record in records if archived[record.id] != 1]
    bonds = stores.different(recent, stores.folded_bonds(records, world))
    figures.note(
        f"   of {len(ledger.accepted)} accepted turns {len(unwritten)} are not in the journal once; of {len(records)} "
        f"records {len(unarchived)} are not in the archive once; {len(bonds)} bonds differ in Redis"
    )
    for what in ledger.unknown:
        figures.note(f"   {what}")
    return len(unwritten) + len(unarchived) + len(bonds) + len(ledger.unknown)
