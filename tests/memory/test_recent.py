"""The recent store on a real Redis."""

import asyncio
import contextlib
import random
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import ConfigError, StoreFailed
from core.words import NpcKey
from memory.bond import DAY_MS, RECENT_MS, Bond, Fact, within
from memory.cards import Relationship
from memory.feeder import Feeder, FeederSettings
from memory.journal import Journal
from memory.journal_settings import JournalSettings
from memory.recent import WAITING_MAX, KeptWorld, Recent
from memory.recent_keys import Command
from memory.recent_writer import SLICE, SWEEP_EVERY, RecentWriter
from memory.records import START, Kind, Position, Record
from memory.redis_connection import RecentSettings
from memory.state import State
from tests.memory.redis_fixture import RedisServer, serving
from tests.patience import PATIENCE_S

NOW_MS = time.time_ns() // 1_000_000  # Redis expires by its own clock
JOURNAL = "9f2c"
ODD = [
    "",
    ":",
    "a:b",
    "a",
    "%3A",
    "%",
    "%25",
    "a%3Ab",
    "*?[]{}",
    "\x00\n\r\t ",
    "ü€😀" * 7,
    "x" * 64,
    "-",
    "+",
    "(",
    "[",
]

Saves = Mapping[str, Mapping[tuple[str, str], Bond]]


def no_saves(file: str) -> Mapping[tuple[str, str], Bond]:
    raise AssertionError(f"{file} is not asked for")


def writer_to(url: str, saves: Saves | None = None, op_s: float = PATIENCE_S) -> RecentWriter:
    load = no_saves if saves is None else lambda file: deepcopy(saves[file])
    return RecentWriter(RecentSettings(url, connect_s=PATIENCE_S, op_s=op_s), JOURNAL, load)


@contextlib.asynccontextmanager
async def reading(url: str, op_s: float = PATIENCE_S) -> AsyncIterator[Recent]:
    recent = Recent(RecentSettings(url, connect_s=PATIENCE_S, op_s=op_s))
    try:
        assert await recent.wait(PATIENCE_S), recent.away
        yield recent
    finally:
        await recent.close()


def turn(
    npc: str, player: str, line: str = "hello", at_ms: int = NOW_MS, world: str = "moor", **body: object
) -> Record:
    said = {"session": "s1", "turn_id": line, "line": line, "reply": f"{line}?", **body}
    return Record(Kind.TURN, at_ms, "studio", world, npc, player, body=said)


def forget(player: str, npc: str = "", world: str = "moor") -> Record:
    return Record(Kind.FORGET, NOW_MS, "studio", world, npc, player)


def restored(file: str, world: str = "moor", timeline: str = "second") -> Record:
    return Record(Kind.RESTORED, NOW_MS, "studio", world, timeline=timeline, body={"file": file})


def at(i: int) -> Position:
    """The position after the first i records."""
    return Position(1, i)


class Feeding:
    """Works as a feeder: brings records to the store in batches, from the store's own position."""

    def __init__(self, records: Sequence[Record], writer: RecentWriter) -> None:
        self.records, self.writer = records, writer
        self.failures = 0
        self.begin()

    def begin(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.done = self.writer.connect().at
                return
            except StoreFailed:
                assert time.monotonic() < until, "the server does not come back"

    def feed(self, count: int) -> None:
        """Feeds the next records, at least one; after a failure it starts from the store's position."""
        batch = self.records[self.done : self.done + count]
        try:
            self.writer.write(batch, at(self.done + len(batch)))
            self.done += len(batch)
        except StoreFailed:
            self.failures += 1
            self.begin()

    def feed_all(self, count: Callable[[], int] = lambda: 4) -> None:
        while self.done < len(self.records):
            self.feed(count())


def feed(writer: RecentWriter, records: Sequence[Record]) -> None:
    Feeding(records, writer).feed_all()


def as_state_says(records: Sequence[Record], saves: Saves) -> State:
    state = State(lambda file: deepcopy(saves[file]))
    for record in records:
        state.apply(record)
    return state


async def check(url: str, state: State) -> None:
    """The store holds exactly the fold over all records."""
    worlds = {(npc.tenant, npc.world) for npc, _ in state.bonds} | set(state.worlds)
    async with reading(url) as recent:
        for tenant, world in worlds:
            kept = {
                (npc.npc, p): b for (npc, p), b in state.bonds.items() if npc[:2] == (tenant, world) and not b.empty
            }
            assert await recent.bonds(tenant, world) == kept
            for (npc, player), bond in kept.items():
                assert await recent.recall(NpcKey(tenant, world, npc), player, NOW_MS) == within(bond, NOW_MS)
            registered = state.worlds[tenant, world].npcs if (tenant, world) in state.worlds else {}
            assert await recent.npcs(tenant, world) == sorted((n, *of) for n, of in registered.items())
        defined = [(*key, w.definition, w.version, w.lease_last, w.timeline) for key, w in state.worlds.items()]
        assert await recent.worlds() == [KeptWorld(*w) for w in sorted(defined) if w[2]]
    assert url


def random_records(rng: random.Random, count: int) -> tuple[list[Record], Saves]:
    """Records of every kind about few NPCs and players in two worlds, each world defined first."""
    worlds, npcs, players = ["moor", "a:b"], ["mira", "m:", "%"], ["p1", "p:1", "p%3A1"]
    saves: dict[str, dict[tuple[str, str], Bond]] = {}
    records = [
        Record(Kind.WORLD, NOW_MS, "studio", w, body={"definition": "Zg==", "version": 1, "lease_last": 0})
        for w in worlds
    ]
    session = 0
    for i in range(count):
        world, npc, player = rng.choice(worlds), rng.choice(npcs), rng.choice(players)
        kind = rng.choices(list(Kind), [2, 4, 2, 40, 6, 8, 8, 3, 6, 1, 2, 1, 2])[0]
        at_ms = NOW_MS - (count - i) * 60_000
        record = Record(kind, at_ms, "studio", world, npc, player, id=f"{i:032x}")
        facts = [[f"fact {rng.randrange(40)}", rng.random()] for _ in range(rng.randrange(3))]
        session += rng.random() < 0.2
        body: dict[str, object] = {}
        if kind is Kind.WORLD:
            body = {"definition": f"{i:04}", "version": i, "lease_last": rng.randrange(5)}
        elif kind in (Kind.NPCS, Kind.REMOVED):
            some = rng.sample(npcs, rng.randrange(1, 3))
            body = {"npcs": [[n, f"{i:04}", rng.randrange(99)] for n in some] if kind is Kind.NPCS else some}
        elif kind is Kind.TURN:
            body = {"session": f"s{session}", "turn_id": f"t{i}", "line": f"line {i}", "reply": f"reply {i}"}
            body |= {"facts": facts, "emotion": rng.choice(["", "joy"]), "name": rng.choice(["", "Ann\ud800 ü"])}
        elif kind is Kind.ENDED:
            body = {"session": f"s{session}"}
        elif kind is Kind.SUMMARY:
            body = {"session": f"s{session}", "text": f"summary {i}", "facts": facts, "by": "rule"}
        elif kind is Kind.CARD:
            body = {
                "relationship": {"trust": rng.uniform(-1, 1), "affinity": 0.25, "promises": [f"{i}"], "betrayals": []}
            }
            body |= {"quest": {"active": [f"{i}"], "milestones": []}} if rng.random() < 0.5 else {}
        elif kind is Kind.FORGET and rng.random() < 0.5:
            record = replace(record, npc="")
        elif kind is Kind.RESTORED:
            saved = {
                (rng.choice(npcs), rng.choice(players)): Bond(facts=[Fact(f"saved {i}", 0.5, at_ms)]) for _ in range(4)
            }
            saves[f"save {i}"] = saved
            record, body = replace(record, npc="", player="", timeline=f"t{i}"), {"file": f"save {i}"}
        records.append(replace(record, body=body))
    return records, saves


# ---------------------------------------------------------------------------------------------------------------------
# Exactly once.


@pytest.mark.parametrize("seed", range(12))
async def test_any_batches_give_the_fold_over_all_records(redis_server: RedisServer, seed: int) -> None:
    """However records are cut into batches, repeated, and fed by new connections, each counts once, in its order."""
    rng = random.Random(seed)
    records, saves = random_records(rng, 120)
    writer = writer_to(redis_server.url(), saves)
    feeding = Feeding(records, writer)
    while feeding.done < len(records):
        before = feeding.done
        feeding.feed(rng.randrange(1, 8))
        if rng.random() < 0.3:
            writer.write(records[before : feeding.done], at(feeding.done))
        if rng.random() < 0.2:
            feeding.begin()
            assert feeding.done > before
    writer.close()
    assert feeding.failures == 0
    await check(redis_server.url(), as_state_says(records, saves))


def test_order_counts_within_one_batch(redis_server: RedisServer) -> None:
    """Records before a player is forgotten are gone and later ones stay, also within one batch."""
    writer = writer_to(redis_server.url())
    feed(writer, [turn("mira", "ann", "old"), turn("bram", "ann", "old"), turn("mira", "bob", "old")])
    batch = [turn("mira", "ann", "older"), forget("ann"), turn("mira", "ann", "new"), turn("mira", "bob", "new")]
    assert writer.connect() == at(3)
    writer.write(batch, at(7))
    writer.close()

    async def lines() -> dict[tuple[str, str], list[str]]:
        async with reading(redis_server.url()) as recent:
            bonds = await recent.bonds("studio", "moor")
        return {pair: [e.line for e in b.session.exchanges] for pair, b in bonds.items() if b.session}

    assert asyncio.run(lines()) == {("mira", "ann"): ["new"], ("mira", "bob"): ["old", "new"]}


def test_a_position_that_moved_is_not_written_over(redis_server: RedisServer) -> None:
    """A writer whose batch does not follow the store's position, or no longer does, writes nothing."""
    url = redis_server.url()
    other = writer_to(url)
    assert other.connect() == START

    def meanwhile(file: str) -> Mapping[tuple[str, str], Bond]:
        other.write([turn("mira", "ann", "first")], at(1))
        return {("mira", "ann"): Bond(name="nobody")}

    writer = RecentWriter(RecentSettings(url), JOURNAL, meanwhile)
    assert writer.connect() == START
    with pytest.raises(StoreFailed, match="another process"):
        writer.write([turn("mira", "ann", "first"), restored("x")], at(2))
    with pytest.raises(StoreFailed, match="connected anew"):
        writer.write([turn("mira", "ann", "third")], at(3))
    assert writer.connect() == at(1)
    writer.write([turn("mira", "ann", "second")], at(2))
    redis_server.execute("FLUSHALL")
    with pytest.raises(StoreFailed, match="connected anew"):
        writer.write([turn("mira", "ann", "third")], at(3))
    assert writer.connect() == START
    writer.close()
    other.close()


def test_a_slice_that_comes_late_is_not_written(redis_server: RedisServer) -> None:
    """A slice of a restore from an abandoned connection is not written once the next connection has written any."""
    saved = {(f"npc {i}", "ann"): Bond(facts=[Fact(f"saved {i}", 0.5, NOW_MS)]) for i in range(2 * SLICE)}
    following = writer_to(redis_server.url(), {"file": saved})
    commit = following._commit
    slices = 0

    def one_slice(commands: Sequence[Command], at: Position) -> None:
        nonlocal slices
        slices += 1
        if slices == 2:
            raise StoreFailed("not now")
        commit(commands, at)

    def meanwhile(file: str) -> Mapping[tuple[str, str], Bond]:
        following.connect()
        following._commit = one_slice  # type: ignore[method-assign]
        with pytest.raises(StoreFailed, match="not now"):
            following.write([restored(file)], at(1))
        return deepcopy(saved)

    given_up = RecentWriter(RecentSettings(redis_server.url()), JOURNAL, meanwhile)
    given_up.connect()
    with pytest.raises(StoreFailed, match="another process"):
        given_up.write([restored("file")], at(1))
    assert slices == 2
    given_up.close()
    following.close()


def test_a_writer_knows_its_own_journal_alone(redis_server: RedisServer) -> None:
    """The positions of two data folders in one Redis do not touch each other."""
    writer = writer_to(redis_server.url())
    feed(writer, [turn("mira", "ann")])
    writer.close()
    other = RecentWriter(RecentSettings(redis_server.url()), "another", no_saves)
    assert other.connect() == START
    other.close()


@pytest.mark.parametrize("seed", range(3))
async def test_a_server_that_is_killed_in_between(own_redis: RedisServer, seed: int) -> None:
    """A killed server costs StoreFailed. When it is back, each record counts once."""
    rng = random.Random(seed)
    records, saves = random_records(rng, 80)
    writer = writer_to(own_redis.url(), saves)
    feeding = Feeding(records, writer)
    for _ in range(3):
        for _ in range(5):
            feeding.feed(rng.randrange(1, 6))
        own_redis.kill()
        with pytest.raises(StoreFailed):
            writer.write([turn("mira", "ann", "lost")], at(10_000))
        with pytest.raises(StoreFailed):
            writer.connect()
        own_redis.start()
        feeding.begin()
    feeding.feed_all()
    writer.close()
    await check(own_redis.url(), as_state_says(records, saves))


@pytest.mark.parametrize("seed", range(3))
async def test_a_server_that_stands_still(own_redis: RedisServer, seed: int) -> None:
    """A write without an answer may have happened or may happen later. Each record still counts once."""
    rng = random.Random(seed)
    records, saves = random_records(rng, 60)
    writer = writer_to(own_redis.url(), saves, op_s=0.1)
    feeding = Feeding(records, writer)
    commit = writer._commit

    def commit_unanswered(commands: Sequence[Command], at: Position) -> None:
        with own_redis.stopped():  # when it runs again, it reads both this and the next connection's command
            commit(commands, at)

    for i in range(16):
        if i % 4 == 3:
            writer._commit = commit_unanswered  # type: ignore[method-assign]
        feeding.feed(rng.randrange(1, 5))
        writer._commit = commit  # type: ignore[method-assign]
    assert feeding.failures >= 4
    feeding.feed_all()
    writer.close()
    await check(own_redis.url(), as_state_says(records, saves))


async def test_a_lost_store_is_filled_again(redis_server: RedisServer) -> None:
    """A server that lost everything gets it from the journal's first record on."""
    records, saves = random_records(random.Random(5), 60)
    writer = writer_to(redis_server.url(), saves)
    feeding = Feeding(records, writer)
    for _ in range(6):
        feeding.feed(5)
    redis_server.execute("FLUSHALL")
    feeding.feed_all()
    assert feeding.failures == 1
    writer.close()
    await check(redis_server.url(), as_state_says(records, saves))


async def test_a_feeder_fills_a_lost_store_from_the_journal(own_redis: RedisServer, tmp_path: Path) -> None:
    """Behind a real journal, too, killed, stopped and emptied in between, the store ends with every record once."""
    records, saves = random_records(random.Random(9), 200)
    journal = Journal(tmp_path, JournalSettings(), lambda: NOW_MS, ("recent",))
    journal.start()
    writer = writer_to(own_redis.url(), saves, op_s=0.5)
    feeder = Feeder(writer, journal, FeederSettings(batch_max=7, gather_ms=1, pause_ms=1, pause_max_ms=20))
    feeder.start()
    for i, record in enumerate(records):
        assert await journal.accept(record)
        if i == 50:
            assert await feeder.passed(journal.end, PATIENCE_S)
            own_redis.execute("FLUSHALL")
        elif i == 100:
            await asyncio.to_thread(own_redis.kill)
        elif i == 120:
            await asyncio.to_thread(own_redis.start)
    assert await feeder.passed(journal.end, PATIENCE_S)
    assert await asyncio.to_thread(feeder.stop, PATIENCE_S)
    await asyncio.to_thread(journal.close)
    assert feeder.state.aside == 0
    await check(own_redis.url(), as_state_says(records, saves))


# ---------------------------------------------------------------------------------------------------------------------
# What is kept.


async def test_odd_ids_are_kept_apart(redis_server: RedisServer) -> None:
    """NPCs, players and worlds whose ids have any characters are kept apart."""
    npcs = [[npc, f"spec of {npc}", i] for i, npc in enumerate(ODD)]
    records = [turn(npc, player, repr((npc, player))) for npc in ODD for player in ODD]
    records += [turn("a", "b", f"in {world!r}", world=world) for world in ODD]
    for world in ODD:
        body = {"definition": f"of {world!r}", "version": 3, "lease_last": 7}
        records.append(Record(Kind.WORLD, NOW_MS, "a:b", world, body=body))
        records.append(Record(Kind.NPCS, NOW_MS, "a:b", world, body={"npcs": npcs}))
    writer = writer_to(redis_server.url())
    feed(writer, records)
    writer.close()
    async with reading(redis_server.url()) as recent:
        for npc in ODD:
            for player in ODD:
                bond = await recent.recall(NpcKey("studio", "moor", npc), player, NOW_MS)
                assert bond is not None and bond.session is not None
                assert [e.line for e in bond.session.exchanges] == [repr((npc, player))]
        assert set(await recent.bonds("studio", "moor")) == {(npc, player) for npc in ODD for player in ODD}
        for world in ODD:
            bond = (await recent.bonds("studio", world))["a", "b"]
            assert bond.session is not None
            assert [e.line for e in bond.session.exchanges] == [f"in {world!r}"]
            assert await recent.npcs("a:b", world) == [(npc, spec, i) for npc, spec, i in sorted(npcs)]
        assert {w.world: w.definition for w in await recent.worlds()} == {w: f"of {w!r}" for w in ODD}


async def test_forget_takes_what_was_said(redis_server: RedisServer) -> None:
    """A forgotten player is gone from one NPC, or from all of the world, and from the server's keys."""
    people = [(npc, player) for npc in ("mira", "bram", "m:") for player in ("ann", "ann:", "an")]
    writer = writer_to(redis_server.url())
    feed(
        writer,
        [turn(npc, player) for npc, player in people] + [turn("mira", "ann", world="fen"), forget("ann", "mira")],
    )
    async with reading(redis_server.url()) as recent:
        assert set(await recent.bonds("studio", "moor")) == set(people) - {("mira", "ann")}
        writer.write([forget("ann")], at(12))
        writer.close()
        assert set(await recent.bonds("studio", "moor")) == {(n, p) for n, p in people if p != "ann"}
        assert await recent.recall(NpcKey("studio", "moor", "bram"), "ann", NOW_MS) is None
        assert await recent.recall(NpcKey("studio", "fen", "mira"), "ann", NOW_MS) is not None
    assert not [key for key in redis_server.execute("KEYS", "*:ann") if b":fen:" not in key]


async def test_a_restored_world_is_the_saved_one(redis_server: RedisServer) -> None:
    """A restored world has exactly the bonds of its file, on the new timeline. Other worlds stay as they are."""
    many = 3 * SLICE
    saved = {(f"npc {i}", "ann"): Bond(facts=[Fact(f"saved {i}", 0.5, NOW_MS)]) for i in range(many)}
    before = [turn(f"npc {i}", "bob") for i in range(many)] + [turn("npc 1", "ann"), turn("npc 1", "ann", world="fen")]
    body = {"definition": "Zg==", "version": 2, "lease_last": 1}
    records = [
        Record(Kind.WORLD, NOW_MS, "studio", "moor", body=body),
        *before,
        restored("file"),
        turn("npc 0", "bob", "new"),
    ]
    writer = writer_to(redis_server.url(), {"file": saved})
    feed(writer, records)
    writer.close()
    state = as_state_says(records, {"file": saved})
    assert len(state.bonds) == many + 2
    await check(redis_server.url(), state)


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
async def test_a_restore_that_breaks_off_is_done_again(redis_server: RedisServer, fails_at: int) -> None:
    """A long restore that breaks off between two slices has the same result after it is repeated."""
    saved = {(f"npc {i}", "ann"): Bond(facts=[Fact(f"saved {i}", 0.5, NOW_MS)]) for i in range(2 * SLICE)}
    records = [turn("npc 1", "ann"), turn("npc 2", "bob", "stays not"), restored("file"), turn("npc 1", "ann", "new")]
    records += [turn("npc 1", "ann", "world", world="fen"), turn("npc 3", "bob", "newer")]
    writer = writer_to(redis_server.url(), {"file": saved})
    feeding = Feeding(records, writer)
    feeding.feed(2)
    slices = 0
    commit = writer._commit

    def cut_off(commands: Sequence[Command], at: Position) -> None:
        nonlocal slices
        slices += 1
        if slices == fails_at:
            redis_server.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        commit(commands, at)

    writer._commit = cut_off  # type: ignore[method-assign]
    feeding.feed_all(lambda: 3)
    assert feeding.failures == 1 and slices > 4
    writer.close()
    await check(redis_server.url(), as_state_says(records, {"file": saved}))


def test_a_save_that_cannot_be_read_now_is_asked_for_again(redis_server: RedisServer) -> None:
    """An OSError of the file is a failure of the store: nothing is written, and it may succeed later."""

    def load(file: str) -> Mapping[tuple[str, str], Bond]:
        raise OSError(5, "Input/output error")

    writer = RecentWriter(RecentSettings(redis_server.url()), JOURNAL, load)
    writer.connect()
    with pytest.raises(StoreFailed, match="Input/output error"):
        writer.write([turn("mira", "ann"), restored("file")], at(2))
    assert writer.connect() == START
    writer.close()


async def test_removed_npcs_leave_their_bonds(redis_server: RedisServer) -> None:
    """A removed NPC is not registered any more, and its memories stay. Leases never go back."""
    npcs = [[f"npc {i}", "x" * 100, 5] for i in range(3 * SLICE)]
    define = Record(Kind.WORLD, NOW_MS, "studio", "moor", body={"definition": "Zg==", "version": 2, "lease_last": 3})
    records = [
        define,
        Record(Kind.NPCS, NOW_MS, "studio", "moor", body={"npcs": npcs}),
        turn("npc 1", "ann"),
        Record(Kind.REMOVED, NOW_MS, "studio", "moor", body={"npcs": ["npc 1", "npc 2"]}),
        define,
    ]
    writer = writer_to(redis_server.url())
    feed(writer, records)
    writer.close()
    async with reading(redis_server.url()) as recent:
        assert [npc for npc, _, _ in await recent.npcs("studio", "moor")] == sorted(
            npc
            for npc, _, _ in npcs
            if npc not in ("npc 1", "npc 2")  # type: ignore[type-var]
        )
        assert await recent.recall(NpcKey("studio", "moor", "npc 1"), "ann", NOW_MS) is not None
        assert [w.lease_last for w in await recent.worlds()] == [5]


# ---------------------------------------------------------------------------------------------------------------------
# Thirty days.


async def test_thirty_days(redis_server: RedisServer) -> None:
    """After seven days an NPC remembers, after thirty-one it does not: the server drops the key itself. Cards stay."""
    card = {"relationship": {"trust": 0.5, "affinity": 0.0, "promises": [], "betrayals": []}}
    summary = {"session": "s1", "text": "They met.", "facts": [["Ann is a smith", 0.9]], "by": "rule"}
    records = [
        Record(Kind.CARD, NOW_MS - DAY_MS, "studio", "moor", "mira", "ann", body=card),
        Record(Kind.SUMMARY, NOW_MS - 2 * DAY_MS, "studio", "moor", "mira", "ann", body=summary),
        Record(Kind.CARD, NOW_MS - 3 * DAY_MS, "studio", "moor", "mira", "bob", body=card),
        Record(Kind.SUMMARY, NOW_MS - 31 * DAY_MS, "studio", "moor", "mira", "eve", body=summary),
    ]
    writer = writer_to(redis_server.url())
    feed(writer, records)
    writer.close()
    mira = NpcKey("studio", "moor", "mira")
    async with reading(redis_server.url()) as recent:
        bond = await recent.recall(mira, "ann", NOW_MS + 7 * DAY_MS)
        assert bond is not None and bond.summaries and bond.facts and bond.relationship is not None
        bond = await recent.recall(mira, "ann", NOW_MS + 31 * DAY_MS)
        assert bond == Bond(relationship=Relationship(trust=0.5))
        assert await recent.recall(mira, "eve", NOW_MS - 31 * DAY_MS) is None
        assert set(await recent.bonds("studio", "moor")) == {("mira", "ann"), ("mira", "bob")}

    def leaves_in_ms(player: str) -> int:
        return int(redis_server.execute("PTTL", f"npcd:1:bond:studio:moor:mira:{player}"))

    passed_ms = time.time_ns() // 1_000_000 - NOW_MS
    due_ms = RECENT_MS - 2 * DAY_MS
    assert due_ms - passed_ms - 60_000 < leaves_in_ms("ann") <= due_ms
    for player in ("ann", "bob"):
        assert redis_server.execute("PTTL", f"npcd:1:cards:studio:moor:mira:{player}") == -1


async def test_cards_live_while_the_npc_is_registered(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They expire thirty days after the NPC was removed, not when its talk does. If it is registered again, they stay.
    A world without records is swept by the clock.
    """
    monkeypatch.setattr("memory.recent_writer.SWEEP_EVERY_S", 0.0)
    card = {"relationship": {"trust": 0.5, "affinity": 0.0, "promises": [], "betrayals": []}}
    about = ("studio", "moor", "mira", "ann")
    mira = Record(Kind.NPCS, NOW_MS, "studio", "moor", body={"npcs": [["mira", "", 1]]})
    writer = writer_to(redis_server.url())
    feed(writer, [
        Record(Kind.WORLD, NOW_MS, "studio", "moor", body={"definition": "", "version": 1, "lease_last": 0}),
        mira,
        Record(Kind.TURN, NOW_MS - 31 * DAY_MS, *about, body={"session": "s", "line": "x", "reply": "y"}),
        Record(Kind.CARD, NOW_MS - 31 * DAY_MS, *about, body=card),
    ])  # fmt: skip

    def leaves_in_ms() -> int:
        for _ in range(3):
            writer.sweep_by_clock()
        return int(redis_server.execute("PTTL", "npcd:1:cards:studio:moor:mira:ann"))

    assert leaves_in_ms() == -1
    writer.write([Record(Kind.REMOVED, NOW_MS, "studio", "moor", body={"npcs": ["mira"]})], at(5))
    assert RECENT_MS - 600_000 < leaves_in_ms() <= RECENT_MS
    assert redis_server.execute("ZCARD", "npcd:1:bonds:studio:moor") == 1
    writer.write([mira], at(6))
    assert leaves_in_ms() == -1
    writer.write([Record(Kind.CARD, NOW_MS, *about, body={**card, "quest": None})], at(7))
    async with reading(redis_server.url()) as recent:
        assert await recent.bonds("studio", "moor") == {("mira", "ann"): Bond(relationship=Relationship(trust=0.5))}
    redis_server.execute("DEL", "npcd:1:cards:studio:moor:mira:ann")
    leaves_in_ms()
    assert redis_server.execute("ZCARD", "npcd:1:bonds:studio:moor") == 0
    writer.close()


def test_the_index_loses_expired_bonds(redis_server: RedisServer) -> None:
    """Entries of an index whose bond has expired go when others are written."""
    old = [turn(f"npc {i}", "ann", at_ms=NOW_MS - 31 * DAY_MS) for i in range(40)]
    writer = writer_to(redis_server.url())
    feed(writer, old)
    assert redis_server.execute("ZCARD", "npcd:1:bonds:studio:moor") == 40
    for i in range(2 * SWEEP_EVERY):
        writer.write([turn("mira", "bob")], at(40 + i + 1))
    writer.close()
    assert redis_server.execute("ZRANGE", "npcd:1:bonds:studio:moor", 0, -1) == [b"bob:mira"]


async def test_a_foreign_value_is_no_bond(redis_server: RedisServer) -> None:
    """Both sides count a foreign value and treat it as no bond."""
    redis_server.execute("SET", "npcd:1:bond:studio:moor:mira:ann", b"\xff{")
    async with reading(redis_server.url()) as recent:
        assert await recent.recall(NpcKey("studio", "moor", "mira"), "ann", NOW_MS) is None
        writer = writer_to(redis_server.url())
        feed(writer, [turn("mira", "ann", "again")])
        writer.close()
        bond = await recent.recall(NpcKey("studio", "moor", "mira"), "ann", NOW_MS)
        assert (recent.broken, writer.broken) == (1, 1)
    assert bond is not None and bond.session is not None and bond.session.count == 1


# ---------------------------------------------------------------------------------------------------------------------
# Reading while the server is away, slow or back.


async def test_a_cancelled_recall_gives_nobody_its_answer(own_redis: RedisServer) -> None:
    """Some of many recalls under way are cancelled. Each other one gets its own answer, on the same connection."""
    writer = writer_to(own_redis.url())
    feed(writer, [turn("mira", f"p{i}", f"line {i}") for i in range(60)])
    writer.close()
    mira = NpcKey("studio", "moor", "mira")

    def connections() -> int:
        return int(own_redis.execute("INFO", "stats")["total_connections_received"])

    async with reading(own_redis.url()) as recent:
        before = connections()
        for round_ in range(5):
            with own_redis.stopped():
                recalls = [asyncio.create_task(recent.recall(mira, f"p{i}", NOW_MS)) for i in range(60)]
                await asyncio.sleep(0)  # lets the tasks ask
                for i, recall in enumerate(recalls):
                    if i % 5 != round_:
                        recall.cancel()
                await asyncio.sleep(0)
            for i, recall in enumerate(recalls):
                if i % 5 == round_:
                    bond = await recall
                    assert bond is not None and bond.session is not None
                    assert bond.session.exchanges[0].line == f"line {i}"
                else:
                    with pytest.raises(asyncio.CancelledError):
                        await recall
        assert connections() == before + 1  # this test's own query


async def test_an_error_ends_one_read_only(redis_server: RedisServer) -> None:
    """An answer that is an error ends one read, and not the connection."""
    redis_server.execute("HSET", "npcd:1:bond:studio:moor:mira:ann", "x", "y")
    writer = writer_to(redis_server.url())
    feed(writer, [turn("mira", "bob")])
    writer.close()
    async with reading(redis_server.url()) as recent:
        with pytest.raises(StoreFailed, match="wrong kind"):
            await recent.recall(NpcKey("studio", "moor", "mira"), "ann", NOW_MS)
        assert await recent.recall(NpcKey("studio", "moor", "mira"), "bob", NOW_MS) is not None
        assert not recent.away


async def test_a_server_that_dies_fails_reads_at_once_and_is_found_again(own_redis: RedisServer) -> None:
    """While the server is down, a recall fails without a wait and gives the reason. When it is back, recalls work
    again."""
    writer = writer_to(own_redis.url())
    feed(writer, [turn("mira", "ann")])
    writer.close()
    mira = NpcKey("studio", "moor", "mira")
    async with reading(own_redis.url()) as recent:
        with own_redis.stopped():
            under_way = asyncio.create_task(recent.recall(mira, "ann", NOW_MS))
            await asyncio.sleep(0)
            own_redis.kill()
            with pytest.raises(StoreFailed):
                await under_way
        assert recent.away
        loop_turns = asyncio.create_task(asyncio.sleep(0))
        with pytest.raises(StoreFailed):
            await recent.recall(mira, "ann", NOW_MS)
        assert not loop_turns.done()  # the loop had no turn, so it did not wait
        await loop_turns
        with pytest.raises(StoreFailed):
            await recent.worlds()
        own_redis.start()
        assert await recent.wait(PATIENCE_S)
        assert await recent.recall(mira, "ann", NOW_MS) is not None


async def test_a_server_that_stands_still_is_away(own_redis: RedisServer) -> None:
    """A server that answers nothing for op_s counts as down until it answers again."""
    async with reading(own_redis.url(), op_s=0.05) as recent:
        with own_redis.stopped():
            with pytest.raises(StoreFailed, match="in time"):
                await recent.recall(NpcKey("studio", "moor", "mira"), "ann", NOW_MS)
            assert recent.away
        while True:
            assert await recent.wait(PATIENCE_S)
            with contextlib.suppress(StoreFailed):  # 50 ms may be short for a busy machine
                assert await recent.recall(NpcKey("studio", "moor", "mira"), "ann", NOW_MS) is None
                break


async def test_reads_that_wait_are_bounded(own_redis: RedisServer) -> None:
    """One read too many fails at once; the waiting ones are answered."""
    mira = NpcKey("studio", "moor", "mira")
    async with reading(own_redis.url()) as recent:
        with own_redis.stopped():
            recalls = [asyncio.create_task(recent.recall(mira, f"p{i}", NOW_MS)) for i in range(WAITING_MAX)]
            await asyncio.sleep(0)
            with pytest.raises(StoreFailed, match="waiting"):
                await recent.recall(mira, "ann", NOW_MS)
        assert await asyncio.gather(*recalls) == [None] * WAITING_MAX


async def test_a_closed_store_stays_closed(redis_server: RedisServer) -> None:
    """After close() no caller waits, no connection is made, and a read fails."""
    recent = Recent(RecentSettings(redis_server.url()))
    assert await recent.wait(PATIENCE_S)
    await recent.close()
    with pytest.raises(StoreFailed, match="closed"):
        await recent.recall(NpcKey("studio", "moor", "mira"), "ann", NOW_MS)
    assert not await recent.wait(0.01)
    await recent.close()


async def test_the_first_read_does_not_wait_for_a_connection(redis_server: RedisServer) -> None:
    """A read before the connection exists fails at once and makes the connection."""
    recent = Recent(RecentSettings(redis_server.url()))
    with pytest.raises(StoreFailed, match="not connected yet"):
        await recent.recall(NpcKey("studio", "moor", "mira"), "ann", NOW_MS)
    assert await recent.wait(PATIENCE_S)
    await recent.close()


# ---------------------------------------------------------------------------------------------------------------------
# Who may.

SECRET = "Ov3r/the:hills@"
RIGHTS = "~npcd:* +@read +@write +@transaction +ping +select"  # as memory/redis_connection.py says


async def test_an_acl_user(own_redis: RedisServer, tmp_path: Path) -> None:
    """A user with the documented rights can do everything, with its password in the URL or in a file."""
    own_redis.execute("ACL", "SETUSER", "npcd", "on", f">{SECRET}", *RIGHTS.split())
    own_redis.execute("ACL", "SETUSER", "default", "off")
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\n")
    by_file = RecentSettings(own_redis.url(), user="npcd", password_file=str(file))
    by_url = RecentSettings(own_redis.url("npcd", SECRET))
    records, saves = random_records(random.Random(1), 40)
    writer = RecentWriter(by_file, JOURNAL, lambda file: deepcopy(saves[file]))
    feed(writer, records)
    for i in range(SWEEP_EVERY):
        writer.write([turn("mira", "ann", f"{i}")], at(len(records) + i + 1))
    writer.close()
    for settings in (by_file, by_url):
        recent = Recent(settings)
        assert await recent.wait(PATIENCE_S), recent.away
        assert await recent.bonds("studio", "moor")
        assert await recent.worlds() and await recent.npcs("studio", "moor") is not None
        await recent.close()


async def refusal(recent: Recent) -> str:
    """The server's reason for refusing it."""
    recent.start()
    async with asyncio.timeout(PATIENCE_S):
        while recent.away == "is not connected yet":
            await recent.wait(0.01)
    reason = recent.away
    await recent.close()
    return reason


async def test_a_wrong_password_is_not_said(own_redis: RedisServer) -> None:
    """The error gives the reason of the refusal, and never the password."""
    own_redis.execute("ACL", "SETUSER", "npcd", "on", f">{SECRET}", "~other:*", "+@all")
    wrong = RecentSettings(own_redis.url("npcd", "wr0ng-word"))
    recent = Recent(wrong)
    reason = await refusal(recent)
    assert "password" in reason and "wr0ng-word" not in reason
    with pytest.raises(StoreFailed) as refused:
        RecentWriter(wrong, JOURNAL, no_saves).connect()
    assert "password" in str(refused.value) and "wr0ng-word" not in str(refused.value)
    with pytest.raises(StoreFailed, match=r"(?i)permission"):
        RecentWriter(RecentSettings(own_redis.url("npcd", SECRET)), JOURNAL, no_saves).connect()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "must be"),
        ("http://localhost", "must be"),
        ("redis://:sesame/open@host:1", "must be"),
        ("redis://host/?socket_timout=sesame", "socket_timout"),
        ("redis://host/?ssl_ca_certs=sesame", "ssl_ca_certs"),
    ],
)
def test_a_url_that_is_none(url: str, said: str) -> None:
    """An invalid URL is refused at once, without any of its secrets."""
    for make in (lambda s: Recent(s), lambda s: RecentWriter(s, JOURNAL, no_saves)):
        with pytest.raises(ConfigError) as refused:
            make(RecentSettings(url))
        assert said in str(refused.value) and "sesame" not in str(refused.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    """A password file or a CA file that cannot be read is refused at once."""
    gone = str(tmp_path / "gone")
    with pytest.raises(ConfigError, match="password_file"):
        Recent(RecentSettings("redis://host", password_file=gone))
    with pytest.raises(ConfigError, match="ca_file"):
        Recent(RecentSettings("rediss://host", ca_file=gone))


def certificates(folder: Path) -> None:
    """A CA (ca.pem) and a server's certificate for localhost (server.pem, server.key)."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("TLS to Redis was not tested: no openssl program here to make certificates with")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    ec = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    for command in (
        f"req -x509 {ec} -keyout ca.key -out ca.pem -subj /CN=authority",
        f"req {ec} -keyout server.key -out server.csr -subj /CN=localhost",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.pem",
    ):
        subprocess.run([openssl, *command.split()], cwd=folder, check=True, capture_output=True)


async def test_tls(tmp_path: Path) -> None:
    """With rediss:// both sides speak TLS with a server of the configured CA, and with no other."""
    certificates(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    tls = [
        f"--tls-port {port}",
        "--bind 127.0.0.1",
        "--tls-auth-clients no",
        f"--tls-ca-cert-file {tmp_path}/ca.pem",
    ]
    tls += [f"--tls-cert-file {tmp_path}/server.pem", f"--tls-key-file {tmp_path}/server.key"]
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(serving(*tls))
        except pytest.fail.Exception as failed:
            if "tls" in str(failed).lower():
                pytest.skip("TLS to Redis was not tested: this redis-server is built without TLS")
            raise
        url = f"rediss://localhost:{port}"
        settings = RecentSettings(url, ca_file=str(tmp_path / "ca.pem"), connect_s=PATIENCE_S)
        writer = RecentWriter(settings, JOURNAL, no_saves)
        feed(writer, [turn("mira", "ann")])
        writer.close()
        recent = Recent(settings)
        assert await recent.wait(PATIENCE_S), recent.away
        assert await recent.recall(NpcKey("studio", "moor", "mira"), "ann", NOW_MS) is not None
        await recent.close()
        with pytest.raises(StoreFailed, match=r"(?i)certificate"):
            RecentWriter(RecentSettings(url, connect_s=PATIENCE_S), JOURNAL, no_saves).connect()
        stranger = Recent(RecentSettings(url, connect_s=PATIENCE_S))
        assert "certificate" in (await refusal(stranger)).lower()
