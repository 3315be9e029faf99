"""The journal keeps its accepted records through kills, torn writes, flipped bits and full disks."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from core.errors import StoreFailed
from memory import frames
from memory.journal import Journal
from memory.journal_settings import JournalSettings
from memory.journal_writer import BATCH_RECORDS_MAX
from memory.records import START, Kind, Position, Record, to_bytes
from memory.segments import write_all
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
HOUR_MS = 3_600_000


class Wall:
    """A wall clock that stands still until it is set."""

    def __init__(self, ms: int = 1_763_712_345_678) -> None:
        self.ms = ms

    def __call__(self) -> int:
        return self.ms


@contextmanager
def journal_in(
    folder: Path, wall: Callable[[], int] | None = None, readers: Sequence[str] = (), **settings: int
) -> Iterator[Journal]:
    """A running journal that is closed at the end."""
    settings = {"accept_ms": round(PATIENCE_S * 1000), **settings}
    journal = Journal(folder, JournalSettings(**settings), wall or Wall(), readers)
    journal.start()
    try:
        yield journal
    finally:
        journal.close()


def turn(n: int, line: str = "Good morning.", player: str = "player-1", **more: Any) -> Record:
    """A turn whose id has its number."""
    return Record(Kind.TURN, n, "tenant", "world", "npc", player, "t", {"line": line, **more}, f"{n:032x}")


async def accept_all(journal: Journal, records: Sequence[Record]) -> bool:
    """Appends records at the same time. Returns True when all were accepted."""
    return all(await asyncio.gather(*map(journal.accept, records)))


def write(folder: Path, records: Sequence[Record]) -> list[Position]:
    """Writes records in one life of a journal. Returns the start of each, and the end of the last one."""
    with journal_in(folder) as journal:
        before = journal.end
        assert asyncio.run(accept_all(journal, records))
        places = [journal.standing(before)]
        while places[-1] != journal.end:
            places.append(journal.read(places[-1], 1)[1])
        return places


def read_all(journal: Journal, position: Position = START) -> list[Record]:
    """All records from a position on."""
    records: list[Record] = []
    while True:
        more, position = journal.read(position)
        if not more:
            return records
        records += more


def segment_files(folder: Path) -> list[Path]:
    """The segments, oldest first."""
    return sorted(folder.glob("*.journal"))


def until(true: Callable[[], object]) -> None:
    """Waits for an effect of another thread."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


TEXT = st.text(max_size=40)
RECORDS = st.lists(
    st.builds(
        Record,
        st.sampled_from([kind for kind in Kind if kind is not Kind.REDACTED]),
        st.integers(0, 1 << 45),
        *[TEXT] * 5,
        st.dictionaries(TEXT, st.one_of(TEXT, st.integers(), st.lists(TEXT, max_size=3)), max_size=3),
    ),
    max_size=30,
)


@hypothesis_settings(max_examples=30)
@given(lives=st.lists(RECORDS, max_size=3), count_max=st.integers(1, 9), bytes_max=st.integers(1, 2_000))
def test_written_records_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, lives: list[list[Record]], count_max: int, bytes_max: int
) -> None:
    """Records are read in order, each with an id of its own, across restarts and in pieces of any size."""
    folder = tmp_path_factory.mktemp("journal")
    for records in lives:
        with journal_in(folder) as journal:
            assert asyncio.run(accept_all(journal, records))
    with journal_in(folder) as journal:
        position, found = START, []
        while position != journal.end:
            records, position = journal.read(position, count_max, bytes_max)
            assert 0 < len(records) <= count_max
            found += records
    written = [record for records in lives for record in records]
    assert len({record.id for record in found}) == len(written)
    assert [to_bytes(Record(r.kind, r.at_ms, *r.key, r.player, r.timeline, r.body)) for r in found] == [
        to_bytes(r) for r in written
    ]


async def test_waiting_callers_are_woken_once_per_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For any number of accepted records, the event loop is called once per write."""
    writes = calls = 0
    loop = asyncio.get_running_loop()
    call = loop.call_soon_threadsafe

    def counted_write(fd: int, data: bytes, at: int) -> None:
        nonlocal writes
        writes += 1
        write_all(fd, data, at)

    def counted_call(*args: Any) -> asyncio.Handle:
        nonlocal calls
        calls += 1
        return call(*args)

    monkeypatch.setattr("memory.journal_writer.write_all", counted_write)
    with journal_in(tmp_path) as journal:
        monkeypatch.setattr(loop, "call_soon_threadsafe", counted_call)
        assert await accept_all(journal, [turn(n) for n in range(1_000)])
        monkeypatch.undo()
    assert calls == writes <= 1 + 1_000 // BATCH_RECORDS_MAX + BATCH_RECORDS_MAX
    assert journal.counts.records == 1_000


def test_close_writes_all_that_waits(tmp_path: Path) -> None:
    """Records that were added before close() are written. Later ones are refused."""
    with journal_in(tmp_path) as journal:
        for n in range(5_000):
            journal.add(turn(n))
    assert not asyncio.run(journal.accept(turn(5_000)))
    journal.add(turn(5_001))
    assert (journal.counts.refused, journal.counts.lost) == (1, 1)
    journal.close()
    with journal_in(tmp_path) as journal:
        assert [r.at_ms for r in read_all(journal)] == list(range(5_000))


def test_writes_that_are_cut_short_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short writes of any length are completed."""
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data[:7]), at))
    with journal_in(tmp_path, fsync_ms=0) as journal:
        assert asyncio.run(accept_all(journal, [turn(n) for n in range(50)]))
        assert [r.at_ms for r in read_all(journal)] == list(range(50))


def test_a_record_that_cannot_be_encoded_harms_no_other(tmp_path: Path) -> None:
    """It is a bug elsewhere: the record is refused and named in the log, and the thread goes on."""
    with journal_in(tmp_path) as journal, capture_logs() as logs:
        bad = turn(1, set=set())
        assert not asyncio.run(accept_all(journal, [bad]))
        journal.add(bad)
        assert asyncio.run(accept_all(journal, [turn(2)]))
        assert [r.at_ms for r in read_all(journal)] == [2]
    assert [entry["kind"] for entry in logs if entry["event"] == "record not encoded"] == [Kind.TURN] * 2
    assert (journal.counts.refused, journal.counts.lost) == (1, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Torn tails and flipped bits


def test_a_torn_tail_is_cut_at_every_byte(tmp_path: Path) -> None:
    """If a write is interrupted at any byte of the last record, the other records stay and the next one is read."""
    places = write(tmp_path / "whole", [turn(n) for n in range(3)])
    whole = segment_files(tmp_path / "whole")[0]
    data = whole.read_bytes()
    assert len(data) == places[-1].at
    for left in range(places[-2].at + 1, len(data)):
        folder = tmp_path / str(left)
        folder.mkdir()
        (folder / whole.name).write_bytes(data[:left])
        with journal_in(folder) as journal, capture_logs() as logs:
            assert journal.counts.torn_bytes == left - places[-2].at
            assert journal.end == places[-2]
            assert asyncio.run(accept_all(journal, [turn(7)]))
            assert [r.at_ms for r in read_all(journal)] == [0, 1, 7]
            # A reader that has read the lost record must not miss the new one.
            assert [r.at_ms for r in read_all(journal, places[-1])] == [7]
        assert not logs
        assert (folder / whole.name).stat().st_size == places[-2].at


@pytest.mark.parametrize("left", [0, 1, frames.HEADER_LEN - 1, frames.HEADER_LEN])
def test_a_segment_that_only_just_began_is_no_obstacle(tmp_path: Path, left: int) -> None:
    """A kill between the making of a file and its first record does no harm."""
    write(tmp_path, [turn(1)])
    name = frames.name_of(Wall().ms + 1)
    (tmp_path / name).write_bytes(frames.header(Wall().ms + 1)[:left])
    with journal_in(tmp_path) as journal:
        assert [r.at_ms for r in read_all(journal)] == [1]
        assert asyncio.run(accept_all(journal, [turn(2)]))
        assert [r.at_ms for r in read_all(journal)] == [1, 2]
        assert journal.counts.flipped == 0


def test_a_flipped_bit_costs_one_record(tmp_path: Path) -> None:
    """For a flip in marker, length, checksum or payload, all other records are read. The damage is counted and
    named."""
    seed = random.Random(5)
    folder = tmp_path / "journal"
    places = write(folder, [turn(n, "x" * seed.randrange(300)) for n in range(40)])
    write(folder, [turn(40)])  # a second segment, so that the first has no tail
    path = segment_files(folder)[0]
    data = path.read_bytes()
    heads = [place.at + byte for place in places[:3] for byte in range(frames.HEAD_LEN)]
    for at in [*range(frames.HEADER_LEN), *heads, *(seed.randrange(len(data)) for _ in range(60))]:
        bad = bytearray(data)
        bad[at] ^= 1 << seed.randrange(8)
        path.write_bytes(bad)
        hit = sum(place.at <= at for place in places) - 1
        with capture_logs() as logs, journal_in(folder) as journal:
            assert [r.at_ms for r in read_all(journal)] == [n for n in range(41) if n != hit]
            read_all(journal)
            assert (journal.counts.flipped, journal.counts.torn_bytes) == (1, 0)
        named = [(e["segment"], e["at"]) for e in logs if e["event"] == "journal damaged"]
        assert named == [(places[0].segment, places[hit].at if hit >= 0 else 0)]


def test_larger_damage_is_passed_over_too(tmp_path: Path) -> None:
    """Zeros over many records, records that moved, and a length that points far away are skipped."""
    places = write(tmp_path, [turn(n, "x" * 1_000) for n in range(300)])
    write(tmp_path, [turn(300)])
    path = segment_files(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[places[10].at : places[100].at] = bytes(places[100].at - places[10].at)
    # A whole record at another's place is refused: it may be an old write that went astray.
    data[places[150].at : places[151].at] = data[places[151].at : places[152].at]
    data[places[200].at + 4 : places[200].at + 8] = (100_000).to_bytes(4, "little")
    path.write_bytes(data)
    with journal_in(tmp_path) as journal:
        lost = {*range(10, 100), 150, 200}
        assert [r.at_ms for r in read_all(journal)] == [n for n in range(301) if n not in lost]
        assert journal.counts.flipped == 3


@pytest.mark.parametrize("over", range(-6, 3))
def test_the_next_record_is_found_across_a_chunk(tmp_path: Path, over: int) -> None:
    """Files are read in chunks, and a marker may lie across two of them."""
    number, length = 7, frames.CHUNK_BYTES + over
    damaged = bytes(length)
    whole = frames.framed(number, frames.HEADER_LEN + length, to_bytes(turn(1)))
    (tmp_path / frames.name_of(number)).write_bytes(frames.header(number) + damaged + whole)
    with journal_in(tmp_path) as journal:
        assert [r.at_ms for r in read_all(journal)] == [1]


def test_other_versions(tmp_path: Path) -> None:
    """A format of the future is refused with a reason; an unknown kind of record is skipped."""
    write(tmp_path, [turn(1)])
    path = segment_files(tmp_path)[0]
    number, at = int(path.stem), path.stat().st_size
    with path.open("ab") as file:
        file.write(frames.framed(number, at, b"\xc8[]"))
    with journal_in(tmp_path) as journal:
        assert [r.at_ms for r in read_all(journal)] == [1]
        assert (journal.counts.unknown, journal.counts.flipped, journal.counts.torn_bytes) == (1, 0, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "VERSION", 2)
        data = frames.header(number)
    path.write_bytes(data + path.read_bytes()[len(data) :])
    with pytest.raises(StoreFailed, match="has format 2, this npcd reads 1"):
        Journal(tmp_path, JournalSettings(), Wall()).start()


def test_a_kill_loses_nothing_accepted(tmp_path: Path) -> None:
    """After kill -9 at random moments every printed id is in the journal, once."""
    seed = random.Random(9)
    printed: set[str] = set()
    for life in range(6):
        with subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("crash.py")), str(tmp_path), str(life)],
            stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        ) as process:  # fmt: skip
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(seed.randrange(1, 800))]
            process.kill()
            lines += process.stdout.readlines()
        assert lines[0], "it did not begin"
        printed |= {line.strip() for line in lines if line.endswith("\n")}
    with journal_in(tmp_path) as journal:
        found = [r.id for r in read_all(journal) if r.kind is Kind.TURN]
        assert len(found) == len(set(found))
        assert printed <= set(found)
        assert journal.counts.flipped == 0


# ---------------------------------------------------------------------------------------------------------------------
# Full and slow disks


def fill(path: Path) -> None:
    """Fills the remaining room."""
    try:
        with path.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4_096))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


@pytest.mark.parametrize("quiet", [True, False])
async def test_a_full_disk_is_said_and_got_over(small_disk: Path, quiet: bool) -> None:
    """accept() returns False, `degraded` gives the reason, and no accepted record is lost. With room again the journal
    goes on by itself."""
    with journal_in(small_disk / "journal") as journal:
        assert await accept_all(journal, [turn(n) for n in range(20)])
        filler = small_disk / "filler"
        fill(filler)
        accepted = list(range(20))
        n = 20
        while not journal.degraded:  # the rest of the last page gets used up
            if await journal.accept(turn(n)):
                accepted.append(n)
            n += 1
        assert not await accept_all(journal, [turn(n) for n in range(n, n + 1_000)])
        journal.add(turn(0))
        await asyncio.to_thread(until, lambda: journal.counts.lost == 1)
        assert journal.degraded.startswith("journal: No space left on device (accepted nothing for ")
        assert [r.at_ms for r in await asyncio.to_thread(read_all, journal)] == accepted
        filler.unlink()
        if quiet:
            await asyncio.to_thread(until, lambda: not journal.degraded)
        assert await journal.accept(turn(9_999))
        assert not journal.degraded
        assert journal.counts.refused >= 1_000
    with journal_in(small_disk / "journal") as journal:
        assert [r.at_ms for r in read_all(journal)] == [*accepted, 9_999]
        assert (journal.counts.torn_bytes, journal.counts.flipped) == (0, 0)


async def test_a_part_of_a_write_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partial record is cut off, also when that fails at first. A segment that could not be begun leaves no file."""
    pwrite, ftruncate = os.pwrite, os.ftruncate
    broken = True

    def half(fd: int, data: bytes, at: int) -> int:
        if not broken:
            return pwrite(fd, data, at)
        pwrite(fd, data[:-3], at)
        raise OSError(errno.EIO, "Input/output error")

    def cut(fd: int, length: int) -> None:
        if broken:
            raise OSError(errno.EIO, "Input/output error")
        ftruncate(fd, length)

    monkeypatch.setattr(os, "pwrite", half)
    monkeypatch.setattr(os, "ftruncate", cut)
    with journal_in(tmp_path) as journal:
        assert not await accept_all(journal, [turn(1)])
        assert not segment_files(tmp_path)
        broken = False
        assert await accept_all(journal, [turn(2)])
        broken = True
        assert not await accept_all(journal, [turn(3, "x" * 500), turn(4)])
        broken = False
        assert await accept_all(journal, [turn(5)])
        assert segment_files(tmp_path)[0].stat().st_size == journal.end.at
        assert [r.at_ms for r in read_all(journal)] == [2, 5]


async def test_a_bound_of_bytes_is_a_full_disk(tmp_path: Path) -> None:
    """Beyond the bound no record is accepted until the readers have passed a segment. Then that segment goes, however
    young it is."""
    with journal_in(tmp_path, readers=("archive",), segment_mib=1, bytes_max_mib=3) as journal:
        n = 0
        while await journal.accept(turn(n, "x" * 50_000)):
            n += 1
        assert sum(file.stat().st_size for file in segment_files(tmp_path)) <= 3 << 20
        assert journal.degraded.startswith("journal: its limit of 3 MiB is reached (accepted nothing for ")
        assert len(read_all(journal)) == n
        oldest, _ = journal.read(START, 1)
        journal.seen("archive", journal.end)
        for _ in range(3):
            assert await journal.accept(turn(n, "x" * 50_000))
        assert not journal.degraded
        left = read_all(journal)
        assert left[0].at_ms > oldest[0].at_ms == 0 and left[-1].at_ms == n
        assert journal.counts.gaps == 0


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that answers only while the event is set."""
    gate = threading.Event()

    def waits(fd: int, data: bytes, at: int) -> None:
        assert gate.wait(PATIENCE_S)
        write_all(fd, data, at)

    monkeypatch.setattr("memory.journal_writer.write_all", waits)
    yield gate
    gate.set()


async def test_a_slow_disk_is_not_waited_for(tmp_path: Path, gate: threading.Event) -> None:
    """A full queue answers at once, a long wait has an end, and `degraded` gives the reason. add() never waits."""
    with journal_in(tmp_path, waiting_max=100, accept_ms=1_000) as journal:
        assert not await journal.accept(turn(0))
        await asyncio.to_thread(until, lambda: "the disk has not answered for" in journal.degraded)
        for n in range(1, 151):
            journal.add(turn(n))
        assert not await journal.accept(turn(151))
        assert journal.counts.lost == 50
        gate.set()
        await asyncio.to_thread(until, lambda: journal.counts.records == 101)
        assert not journal.degraded
        assert await journal.accept(turn(152))
        # The first one was written after all, as its docstring warns.
        assert [r.at_ms for r in read_all(journal)] == [*range(101), 152]


async def test_a_disk_that_does_not_sync_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serving goes on. The next sync that works clears `degraded`."""
    synced = threading.Event()
    fdatasync = os.fdatasync

    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def works(fd: int) -> None:
        fdatasync(fd)
        synced.set()

    monkeypatch.setattr(os, "fdatasync", fails)
    with journal_in(tmp_path, fsync_ms=1) as journal:
        assert await journal.accept(turn(1))
        await asyncio.to_thread(until, lambda: journal.degraded)
        assert journal.degraded == "journal: Input/output error (a power loss may take what was accepted last)"
        assert await journal.accept(turn(2))
        monkeypatch.setattr(os, "fdatasync", works)
        assert await asyncio.to_thread(synced.wait, PATIENCE_S)
        await asyncio.to_thread(until, lambda: not journal.degraded)
    with journal_in(tmp_path / "other", fsync_ms=0) as journal:
        assert await journal.accept(turn(1))
        monkeypatch.setattr(os, "fdatasync", fails)
        assert not await journal.accept(turn(2))
        monkeypatch.setattr(os, "fdatasync", works)
        assert await journal.accept(turn(3))
        assert [r.at_ms for r in read_all(journal)] == [1, 3]


# ---------------------------------------------------------------------------------------------------------------------
# Readers, retention


def test_a_reader_is_woken(tmp_path: Path) -> None:
    """wait() returns when there is a record, and after its time when there is none."""
    with journal_in(tmp_path) as journal:
        assert not journal.wait(START, 0.0)
        woken: list[bool] = []
        thread = threading.Thread(target=lambda: woken.append(journal.wait(START, PATIENCE_S)))
        thread.start()
        assert asyncio.run(journal.accept(turn(1)))
        thread.join(PATIENCE_S)
        assert woken == [True]
        assert not journal.wait(journal.end, 0.001)
        assert journal.behind(START) == journal.end.at - frames.HEADER_LEN == journal.behind(journal.first)
        assert journal.behind(journal.end) == 0


def test_readers_places_are_kept(tmp_path: Path) -> None:
    """Places survive a restart. A torn file gives no place instead of a wrong one."""
    with journal_in(tmp_path) as journal:
        assert journal.seen_by("archive") is None
        for at in range(100):
            journal.seen("archive", Position(7, at))
        assert journal.seen_by("archive") == Position(7, 99)
    with journal_in(tmp_path, readers=("archive",)) as journal:
        assert journal.seen_by("archive") == Position(7, 99)
    whole = (tmp_path / "archive.seen").read_bytes()
    for left in range(len(whole) - 1):
        (tmp_path / "archive.seen").write_bytes(whole[:left])
        with journal_in(tmp_path, readers=("archive",)) as journal:
            assert journal.seen_by("archive") is None


def test_retention_keeps_what_a_reader_has_not_passed(tmp_path: Path) -> None:
    """A segment goes when it is old and every reader has passed it, and only then."""
    wall = Wall()
    readers = ("recent", "archive")
    with journal_in(tmp_path, wall, readers, segment_mib=1, keep_hours=48, fsync_ms=1) as journal:

        def segment(n: int) -> Position:
            """Fills a segment, an hour later."""
            wall.ms += HOUR_MS
            assert asyncio.run(accept_all(journal, [turn(1_000 * n + i, "x" * 40_000) for i in range(30)]))
            return journal.end

        def kept() -> list[int]:
            """The segments that are left after retention, which runs with the sync of a new segment."""
            segment(99)
            until(lambda: segment_files(tmp_path)[0] != oldest)
            journal.close()
            return sorted({r.at_ms // 1_000 for r in read_all(journal)})

        ends = [segment(n) for n in range(4)]
        oldest = segment_files(tmp_path)[0]
        wall.ms += 47 * HOUR_MS
        journal.seen("recent", journal.end)
        journal.seen("archive", ends[1])
        # Segment 0 ended 50 hours ago, segment 1, where the archive still stands, 49.
        assert kept() == [1, 2, 3, 99]
    with journal_in(tmp_path, wall, readers, keep_hours=51) as journal:
        journal.seen("archive", journal.end)
        assert asyncio.run(journal.accept(turn(100_000)))
        journal.close()
        assert sorted({r.at_ms // 1_000 for r in read_all(journal)}) == [1, 2, 3, 99, 100]
    wall.ms += 1_000 * HOUR_MS
    with journal_in(tmp_path, wall, (*readers, "new"), keep_hours=1) as journal:
        assert asyncio.run(journal.accept(turn(101_000)))
        journal.close()
        assert len(read_all(journal)) > 90, "a reader that never said anything needs all"


def test_retention_runs_on_the_clock(tmp_path: Path) -> None:
    """Segments older than keep_hours go even without new writes: those of this life and those of the one before."""
    wall = Wall()

    with journal_in(tmp_path, wall, ("recent",), keep_hours=48) as journal:
        assert asyncio.run(journal.accept(turn(1)))
        wall.ms += HOUR_MS
        assert asyncio.run(journal.accept(turn(2)))
        wall.ms += 49 * HOUR_MS
        until(lambda: journal.end.segment >= wall.ms)  # the open segment is closed, so that it can go
        assert len(read_all(journal)) == 2, "a reader needs them still"
        journal.seen("recent", journal.end)
        until(lambda: len(segment_files(tmp_path)) == 1)
        assert asyncio.run(journal.accept(turn(3)))
        assert [r.at_ms for r in read_all(journal)] == [3]
    with journal_in(tmp_path, wall, ("recent",), keep_hours=48) as journal:
        wall.ms += 49 * HOUR_MS
        until(lambda: journal.end.segment >= wall.ms)
        journal.seen("recent", journal.end)
        wall.ms += 49 * HOUR_MS
        until(lambda: not read_all(journal))
        assert asyncio.run(journal.accept(turn(4)))
        assert [r.at_ms for r in read_all(journal)] == [4]


def test_a_place_that_is_gone_is_a_gap(tmp_path: Path) -> None:
    """Reading goes on with the oldest kept record, and the gap is counted once. The very beginning is no gap."""
    places = [write(tmp_path, [turn(n)])[0] for n in range(3)]
    segment_files(tmp_path)[0].unlink()
    with journal_in(tmp_path) as journal:
        assert [r.at_ms for r in read_all(journal)] == [1, 2]
        assert journal.counts.gaps == 0
        for _ in range(3):
            assert [r.at_ms for r in read_all(journal, places[0])] == [1, 2]
        assert journal.counts.gaps == 1
        # A place of another journal, which a store may have kept: read again rather than never.
        assert [r.at_ms for r in read_all(journal, Position(1 << 50, 99))] == [1, 2]
        assert journal.counts.gaps == 2
        segment_files(tmp_path)[0].unlink()
        assert [r.at_ms for r in read_all(journal)] == [2]
        assert journal.counts.gaps == 3


# ---------------------------------------------------------------------------------------------------------------------
# Redaction


def raw(folder: Path) -> bytes:
    """Every byte of every segment."""
    return b"".join(file.read_bytes() for file in segment_files(folder))


@pytest.mark.parametrize("containing", ["", 'Zoë "Zed" O\'Neill'])
def test_redaction_leaves_nothing_of_the_content(tmp_path: Path, containing: str) -> None:
    """The raw bytes have neither text nor player. All other records and all positions are as before."""
    who, secret = 'Zoë "Zed" O\'Neill', "my grandmother is a vampire"
    records = [turn(n, secret if n % 3 == 0 else "Good day.", who if n % 3 == 0 else "player-2") for n in range(200)]
    places = write(tmp_path, records[:100]) + write(tmp_path, records[100:])[1:]
    size = len(raw(tmp_path))
    assert secret.encode() in raw(tmp_path) and b"Zed" in raw(tmp_path)
    with journal_in(tmp_path) as journal:
        assert journal.redact(lambda record: record.player == who, containing) == 67
        assert journal.redact(lambda record: record.player == who, containing) == 0
        assert secret.encode() not in raw(tmp_path) and b"Zed" not in raw(tmp_path)
        assert len(raw(tmp_path)) == size
        for n in (0, 50, 99):
            assert [r.at_ms for r in read_all(journal, places[n])] == [i for i in range(n, 200) if i % 3]
    with journal_in(tmp_path) as journal:
        assert [to_bytes(r) for r in read_all(journal)] == [to_bytes(r) for n, r in enumerate(records) if n % 3]
        assert (journal.counts.flipped, journal.counts.torn_bytes) == (0, 0)


def test_redaction_reaches_what_is_unreadable(tmp_path: Path) -> None:
    """A damaged record is overwritten, too, because its player is unknown."""
    places = write(tmp_path, [turn(1), turn(2, "a secret"), turn(3)])
    write(tmp_path, [turn(4)])
    path = segment_files(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[places[1].at + 5] ^= 1
    path.write_bytes(data)
    with journal_in(tmp_path) as journal:
        assert journal.redact(lambda record: False) == 0
        assert b"a secret" not in raw(tmp_path)
        assert [r.at_ms for r in read_all(journal)] == [1, 3, 4]


def test_redaction_beside_a_writer_and_a_reader(tmp_path: Path) -> None:
    """While others append and read, no record is lost, none is read in half, and none counts as damaged."""

    def by(player: str) -> Callable[[Record], bool]:
        return lambda record: record.player == player

    stop = threading.Event()
    total = 0
    with journal_in(tmp_path, segment_mib=1, wall=lambda: time.time_ns() // 1_000_000) as journal:

        async def appends() -> None:
            nonlocal total
            while total < 3_000 or not (stop.is_set() or total >= 12_000):
                part = [turn(n, "x" * (n % 5_000), f"player-{n % 4}") for n in range(total, total + 25)]
                assert await accept_all(journal, part)
                total += 25

        writer = threading.Thread(target=lambda: asyncio.run(appends()))
        writer.start()
        read_on: list[int] = []

        def reads() -> None:
            position = START
            while writer.is_alive() or position != journal.end:
                records, position = journal.read(position)
                read_on.extend(r.at_ms for r in records)
                if writer.is_alive():
                    read_all(journal, journal.first)

        reader = threading.Thread(target=reads)
        reader.start()
        until(lambda: total > 500)
        redacted = [journal.redact(by(f"player-{n}")) for n in (1, 2, 1, 2)]
        stop.set()
        writer.join(PATIENCE_S)
        reader.join(PATIENCE_S)
        assert not writer.is_alive() and not reader.is_alive()
        journal.redact(lambda r: r.player in ("player-1", "player-2"))
        assert min(redacted[:2]) > 100
        assert [r.at_ms for r in read_all(journal)] == [n for n in range(total) if n % 4 in (0, 3)]
        assert [n for n in read_on if n % 4 in (0, 3)] == [n for n in range(total) if n % 4 in (0, 3)]
        assert read_on == sorted(set(read_on))
        assert b"player-1" not in raw(tmp_path) and b"player-2" not in raw(tmp_path)
        assert journal.counts.flipped == 0


def test_a_record_that_is_being_overwritten_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that meets it waits until the overwriting is done."""
    places = write(tmp_path, [turn(n) for n in range(3)])
    finished = threading.Event()
    found: list[int] = []
    with journal_in(tmp_path) as journal:

        def reads() -> None:
            found.extend(r.at_ms for r in read_all(journal))
            finished.set()

        reader = threading.Thread(target=reads)

        def halves(fd: int, data: bytes, at: int) -> None:
            write_all(fd, data[:40], at)
            reader.start()
            assert not finished.wait(0.1), "it did not wait"
            write_all(fd, data[40:], at + 40)

        monkeypatch.setattr("memory.segments.write_all", halves)
        assert journal.redact(lambda record: record.at_ms == 1) == 1
        reader.join(PATIENCE_S)
        assert found == [0, 2]
        assert journal.counts.flipped == 0
        assert journal.standing(places[1]) == places[1]


def test_the_newest_records_are_found_by_their_bytes(tmp_path: Path) -> None:
    """Whole segments of at most so many bytes are searched, and always the last one."""
    firsts = [write(tmp_path, [turn(life)])[0].segment for life in range(3)]
    with journal_in(tmp_path) as journal:
        size = journal.behind(journal.first) // 3
        assert journal.newest(1 << 30).segment == firsts[0]
        assert journal.newest(0).segment == firsts[2]
        assert journal.newest(2 * size + 100).segment == firsts[1]
