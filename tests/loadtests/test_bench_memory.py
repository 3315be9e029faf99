"""The memory area: its comparisons are right, and it times the work that it names."""

import asyncio
import gc
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import pytest

from core.words import NpcKey
from loadtests.bench import __main__ as command_line
from loadtests.bench import figures, memory, memory_faults, memory_flat, memory_recall, memory_stores, memory_timed
from loadtests.bench.memory_facts import Told, told
from loadtests.bench.memory_game import Played, Turn, played
from loadtests.bench.memory_hot import FACTS, bond_of
from loadtests.bench.memory_served import Seen, read
from loadtests.bench.memory_timed import Steps, Stops, timed
from loadtests.scene import load_scene
from memory import saves
from memory.archive import ArchiveSettings, ArchiveWriter
from memory.bond import Bond, Fact
from memory.journal import Journal
from memory.journal_settings import JournalSettings
from memory.records import Kind, Position, Record, make_id
from npcd_client import Client, TalkEvent, TalkEventKind, Timings
from tests.memory.postgres_fixture import Database, archive_database, postgres

__all__ = ["archive_database", "postgres"]

HERE = Path(memory.__file__).parent
NPC = NpcKey("", "w", "mira")


def turn(turn_id: str, line: str = "Hello.", **more: object) -> Record:
    """A turn as the daemon writes it."""
    at_ms = int(time.time() * 1000)
    body = {"session": "s", "turn_id": turn_id, "line": line, "reply": "Well met.", **more}
    return Record(Kind.TURN, at_ms, "", "w", "mira", "player-1", "first", body, make_id(at_ms))


# -- the area ----------------------------------------------------------------------------------------------------------


def test_the_area_is_known_with_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    """`make bench AREA=memory` finds it, and the error for a wrong part lists the parts."""
    assert "memory" in command_line.AREAS
    assert command_line.main(["memory", "--only", "sleep"]) == 1
    assert "memory has no part sleep; it has hot, recall, postgres, redis, kill9, flat" in capsys.readouterr().err


def test_every_figure_has_words() -> None:
    """Each figure of the area's files is in the table, and each figure of the table is measured."""
    written = "".join(path.read_text() for path in HERE.glob("memory*.py"))
    added = set(re.findall(r'figures\.add\(\s*"(memory\.\w+)"', written))
    added |= {f"memory.postgres_{how}_{tier}_p95_ms" for how in ("fault", "well") for tier in ("silver", "gold")}
    assert added == {key for key in figures.KNOWN if key.startswith("memory.")}


def test_promised_figures_have_goals() -> None:
    """The bounds stand where the figures are printed."""
    goals = {key.removeprefix("memory."): k.goal for key, k in figures.KNOWN.items() if key.startswith("memory.")}
    assert goals["hot_read_p99_us"] == "< 50"
    assert goals["recall_p95_ms"] == "< 2"
    assert goals["prefetch_p95_ms"] == "< 10"
    assert goals["postgres_fault_p95_ratio"] == "<= 1.2"
    assert goals["loop_block_max_ms"] == "< 2"
    assert goals["events_missing"] == goals["events_twice"] == goals["kill9_lost"] == "<= 0"
    assert goals["kill9_quoted_share"] == ">= 0.8"
    assert goals["no_store_quoted_share"] == "<= 0.1"


# -- what is timed -----------------------------------------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    """Steps on this thread, with a clock that goes on by 1 s at every look."""
    clock = iter(range(0, 10**15, 10**9))
    monkeypatch.setattr(memory_timed, "now_ns", lambda: next(clock))
    found = Steps()
    found.start()
    yield found
    found.stop()


def test_a_call_from_outside_is_a_step_and_a_call_inside_is_a_part_of_it(steps: Steps) -> None:
    """It is one step, also when it fails. A call on another thread is none."""
    inner = timed(steps, "inner", lambda: 7)
    assert timed(steps, "outer", lambda: inner() + inner())() == 14
    assert steps.count == 1

    def fails() -> None:
        inner()
        raise KeyError("x")

    with pytest.raises(KeyError):
        timed(steps, "fails", fails)()
    assert steps.count == 2
    other = threading.Thread(target=inner)
    other.start()
    other.join()
    assert steps.count == 2
    assert {name for *_, name in steps.longest} == {"outer", "fails"}
    steps.clear()
    timed(steps, "collects", gc.collect)()
    own_ns, took_ns, _, name = steps.longest[0]
    assert (took_ns, name) == (10**9, "collects")
    assert 0 < own_ns < took_ns, "a garbage collection is nobody's"


async def test_a_coroutine_has_a_step_between_two_waits(steps: Steps) -> None:
    """That holds for a coroutine that is called, awaited, or run as a task. Its caller's work is not in it, and values
    and errors come through."""

    async def waits(times: int) -> int:
        for _ in range(times):
            await asyncio.sleep(0)
        return times

    async def fails() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            cleaned.append(True)

    cleaned: list[bool] = []
    begin: Callable[..., object] = timed(steps, "waits", waits)
    assert await begin(2) == 2  # type: ignore[misc]
    assert steps.count == 3
    assert await asyncio.create_task(begin(0)) == 0  # type: ignore[arg-type]
    assert steps.count == 4
    task = asyncio.create_task(timed(steps, "fails", fails)())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps.count == 6
    assert cleaned == [True]


def test_all_of_memory_is_timed_and_works_as_before() -> None:
    """This runs in a process of its own, since the change is permanent: later imports of the daemon get the timed
    functions."""
    code = """
import asyncio
from loadtests.bench.memory_served import note_reads, seen, steps
from loadtests.bench.memory_timed import time_all
note_reads()
assert time_all(steps) > 150
from daemon.build import hot_only
from daemon.config import Config
from daemon.talk.sessions import facts_of
from core.clock import now_ns
from core.words import NpcKey
from memory.records import Kind
async def main():
    steps.start()
    memory, npc = hot_only(Config(), now_ns), NpcKey("", "w", "n")
    body = {"session": "s", "turn_id": "t", "line": "x", "reply": "y", "facts": [["{player} is here.", 0.5]]}
    assert not await memory.keep(Kind.TURN, npc, "p", body)
    assert (await memory.recall(npc, "p")).bond.facts[0].text == "{player} is here."
    assert seen.recalls[0][1:] == (("hot",), False)
    before = steps.count
    assert facts_of("I come from Ashford.", "Mira")
    assert steps.count == before + 1
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], cwd=figures.ROOT, check=True)


def test_a_thread_that_keeps_the_interpreter_is_seen() -> None:
    """A thread with a name of memory/ counts. Any other thread does not, and neither does an idle one."""

    def compute(until_s: float) -> None:
        while time.monotonic() < until_s:
            sum(range(100))
        over.wait()

    found = {}
    for name, seconds in (("feeder-recent", 1.0), ("feeder-archive", 0.0), ("somebody", 0.4)):
        over, stops = threading.Event(), Stops()
        thread = threading.Thread(target=compute, args=(time.monotonic() + seconds,), name=name)
        thread.start()
        stops.start()
        time.sleep(max(0.2, seconds))
        stops.stop()
        over.set()
        thread.join()
        found[name] = stops.longest_ns
    assert found["feeder-recent"] > memory_timed.LOOK_EVERY_NS
    assert found["feeder-archive"] < memory_timed.LOOK_EVERY_NS
    assert found["somebody"] == 0


def test_a_daemons_counts_come_back_from_its_answer() -> None:
    """The JSON answer has every count."""
    seen = Seen([(5, ("hot", "recent"), False)], [7], [8], [9], 3, 4, [(1, 2, 1, "memory.memory.Memory.keep")], 5)
    back = read(json.dumps(asdict(seen)).encode())
    assert asdict(back) == json.loads(json.dumps(asdict(seen)))


# -- what is compared --------------------------------------------------------------------------------------------------


async def test_the_journal_is_read_beside_its_owner(tmp_path: Path) -> None:
    """All accepted records are read in order, while the journal is open. A turn that was not accepted is reported as
    missing."""
    journal = Journal(tmp_path / "journal", JournalSettings(accept_ms=60_000), lambda: 1_760_000_000_000)
    journal.start()
    try:
        for n in range(5):
            assert await journal.accept(turn(f"t{n}", "I come from Ashford.", facts=[["{player} comes from it.", 0.6]]))
        assert await journal.accept(turn("t4"))
        records = memory_stores.journal(tmp_path)
    finally:
        journal.close()
    said = memory_stores.turn_ids(records)
    assert [record.body["turn_id"] for record in records] == ["t0", "t1", "t2", "t3", "t4", "t4"]
    assert said["t0"] == 1 and said["t4"] == 2 and said["t9"] == 0
    bonds = memory_stores.folded_bonds(records, "w")
    assert [fact.text for fact in bonds["mira", "player-1"].facts] == ["{player} comes from it."]
    assert memory_stores.folded_bonds(records, "other") == {}


async def test_compared_stores_are_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A summary may end after the journal was read, and be in the store that is read next. Then journal and store are
    read again until nothing came between.
    """

    async def caught_up(client: Client, timeout_s: float) -> None:
        """Here the store is the journal itself."""

    monkeypatch.setattr(memory_stores, "caught_up", caught_up)
    journal = Journal(tmp_path / "journal", JournalSettings(accept_ms=60_000), lambda: 1_760_000_000_000)
    journal.start()
    late = [turn("late")]

    async def read() -> set[str]:
        if late:
            assert await journal.accept(late.pop())
        return {record.id for record in memory_stores.journal(tmp_path)}

    try:
        assert await journal.accept(turn("t0"))
        records, found = await memory_stores.at_rest(tmp_path, Client("unix:/nowhere"), read, 60.0)
    finally:
        journal.close()
    assert {record.id for record in records} == found
    assert [record.body["turn_id"] for record in records] == ["t0", "late"]


def test_bonds_that_differ_are_found() -> None:
    """A pair is reported when it is missing on either side or differs."""
    one = {("mira", "a"): Bond("Anna"), ("mira", "b"): Bond("Bruno"), ("otto", "a"): Bond("Anna")}
    other = {("mira", "a"): Bond("Anna", facts=[Fact("x", 0.5, 1)]), ("otto", "a"): Bond("Anna"), ("vera", "a"): Bond()}
    assert set(memory_stores.different(one, other)) == {("mira", "a"), ("mira", "b"), ("vera", "a")}
    assert memory_stores.different(one, one) == []


def test_the_archive_is_counted_by_the_records_ids(archive_database: Database) -> None:
    """Each event of the named NPCs and of the world itself counts; other events do not."""
    writer = ArchiveWriter(ArchiveSettings(archive_database.serving_url), b"k" * 32)
    world = Record(Kind.WORLD, 5, "", "w", body={"version": 1}, id=make_id(5))
    elsewhere = replace(world, world="v", id=make_id(6))
    records = [turn("t0"), turn("t1"), world, elsewhere]
    writer.connect()
    writer.write(records, Position(1, 1))
    writer.write(records[:1], Position(1, 2))  # the same records again add nothing
    writer.close()
    found = memory_stores.archive_ids(archive_database.url, "w", ["mira", "otto"])
    assert found == {record.id: 1 for record in records[:3]}


def run_of(fault: bool, silver_ms: float, gold_ms: float, step_ns: int, stop_ns: int) -> memory_faults._Run:
    """A run in which every turn and every intent took the same time."""
    seen = Seen(silver=[int(silver_ms * 1e6)] * 9, gold=[int(gold_ms * 1e6)] * 9, steps=10, steps_total=10_000)
    seen.steps_longest, seen.stop_longest = [(step_ns, step_ns, step_ns, "x")], stop_ns
    return memory_faults._Run(fault, seen, Played(seconds=20.0), 0)


def test_the_worse_tier_counts_and_a_little_more_is_none() -> None:
    """The medians of the runs' p95s are compared. Two milliseconds more count as equal, whatever the ratio."""
    found = figures.Figures(lambda _: None)
    runs = [run_of(False, ms, 4.0, 100_000, 0) for ms in (10.0, 11.0, 90.0)]
    runs += [run_of(True, ms, 5.9, 900_000, 1_500_000) for ms in (13.0, 15.0, 14.3)]
    memory_faults._judge(found, runs)
    assert found.found["memory.postgres_fault_p95_ratio"] == pytest.approx(1.3)
    assert found.found["memory.loop_step_max_ms"] == pytest.approx(0.9)
    assert found.found["memory.loop_block_max_ms"] == pytest.approx(1.5)
    assert found.missed == ["memory.postgres_fault_p95_ratio"]


def test_a_village_s_report_is_read_back() -> None:
    """The report has the turns with their Timings, and the errors."""
    timings = Timings(0, 0, 250, 0, 0, 0, 0, 3, ("hot", "recent"), False, 0)
    end = TalkEvent(TalkEventKind.END, "t1", "s", "", 2, timings=timings, accepted=True)
    report = Played(seconds=20.0, turns=[Turn.of(end, 12.3456, True)])
    report.failed("Talk UNAVAILABLE: gone")
    back = played(json.loads(json.dumps(asdict(report))))
    assert back == report
    assert back.turns[0] == Turn("t1", 12.346, 250, False, ["hot", "recent"], True, True)


def test_the_imported_memories_are_a_thousand_of_twenty_facts() -> None:
    """The save is one that the daemon reads, with an NPC and a bond for each."""
    specs = [resident.spec for resident in load_scene().residents(memory_recall.NPCS)]
    save = saves.unpack(memory_recall._save(load_scene().world, specs))
    assert len(save.npcs) == len(save.bonds) == 1_000
    assert {len(bond.facts) for bond in save.bonds.values()} == {FACTS} == {20}
    assert save.bonds[specs[7].npc_id, memory_recall.friend(7)] == bond_of(7, save.at_ms)


# -- what is asked -----------------------------------------------------------------------------------------------------


def test_an_answer_is_right_when_every_word_that_matters_is_in_it() -> None:
    """Case and other words do not matter; a part of the words is not enough."""
    fact = Told("Anna", "I lost my silver ring at the mill.", "What did I lose?", frozenset({"silver", "ring", "mill"}))
    assert fact.quoted_in("As you said, it was your Silver ring, by the mill. I do listen.")
    assert not fact.quoted_in("You lost your silver ring.")
    assert not fact.quoted_in("You never told me.")
    assert not fact.quoted_in("")


def test_facts_differ_and_their_lines_have_what_is_asked_for() -> None:
    """A hundred facts are of every kind that players tell."""
    chance = Random(3)
    facts = [told(chance) for _ in range(100)]
    assert len({fact.line for fact in facts}) > 90
    assert len({fact.question for fact in facts}) > 10
    for fact in facts:
        assert fact.wanted
        assert fact.quoted_in(fact.line)
        assert not fact.quoted_in(fact.question)


def test_resident_memory_is_read() -> None:
    """The memory of this process is more than zero, in MiB."""
    assert 1 < memory_flat.resident_mib(threading.get_native_id()) < 100_000
