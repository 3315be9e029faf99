"""A feeder brings every record to its store, in order, through all failures of the store or of a record."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from core.errors import StoreFailed
from memory.feeder import Feeder, FeederSettings
from memory.journal import Journal
from memory.journal_settings import JournalSettings
from memory.records import START, Kind, Position, Record
from tests.patience import PATIENCE_S

QUICK = FeederSettings(gather_ms=1, pause_ms=1, pause_max_ms=4)


class Kept:
    """A store in this process that keeps its records. With `knows` it keeps its position with them, all or none."""

    def __init__(self, name: str = "archive", knows: bool = False) -> None:
        self.name = name
        self.knows = knows
        self.position: Position | None = START if knows else None
        self.records: list[Record] = []
        self.batches: list[int] = []
        self.away = ""
        self.poison: set[int] = set()
        self.connects = 0
        self.tries = 0
        self.heals_after = 1 << 30  # after so many tries no record is poison any more
        self.lose_answers = 0  # so many writes succeed while the feeder gets no answer
        self.closed = threading.Event()

    def connect(self) -> Position | None:
        self.connects += 1
        self._fail_if_away()
        return self.position

    def write(self, records: Sequence[Record], upto: Position) -> None:
        self.tries += 1
        self._fail_if_away()
        assert records, "nothing to write"
        if self.tries <= self.heals_after and self.poison & {r.at_ms for r in records}:
            raise TypeError("secret words of a player")
        known = {r.id for r in self.records}
        self.records += [r for r in records if r.id not in known or self.knows]
        self.batches.append(len(records))
        if self.knows:
            self.position = upto
        if self.lose_answers:
            self.lose_answers -= 1
            raise StoreFailed("the answer was lost")

    def close(self) -> None:
        self.closed.set()

    @property
    def numbers(self) -> list[int]:
        """The numbers of its records."""
        return [r.at_ms for r in list(self.records)]

    def _fail_if_away(self) -> None:
        if self.away:
            raise StoreFailed(self.away)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A running journal."""
    journal = open_journal(tmp_path)
    yield journal
    journal.close()


def open_journal(folder: Path) -> Journal:
    journal = Journal(folder, JournalSettings(), lambda: time.time_ns() // 1_000_000, ("archive",))
    journal.start()
    return journal


@contextmanager
def feeding(store: Kept, journal: Journal, settings: FeederSettings = QUICK) -> Iterator[Feeder]:
    """A running feeder."""
    feeder = Feeder(store, journal, settings)
    feeder.start()
    try:
        yield feeder
    finally:
        assert feeder.stop(PATIENCE_S)
        assert store.closed.is_set()


def append(journal: Journal, *numbers: int) -> None:
    """Appends records and waits until they are written."""
    written = journal.counts.records + len(numbers)
    for n in numbers:
        journal.add(Record(Kind.TURN, n, "tenant", "world", "npc", "player", body={"line": f"line {n}"}))
    until(lambda: journal.counts.records == written)


def until(true: Callable[[], object]) -> None:
    """Waits for an effect of another thread."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


@pytest.mark.parametrize("knows", [True, False])
async def test_everything_arrives_in_order(journal: Journal, knows: bool) -> None:
    """Earlier records and new ones arrive, in batches of at most batch_max."""
    store = Kept(knows=knows)
    append(journal, *range(250))
    with feeding(store, journal) as feeder:
        assert await feeder.passed(journal.end, PATIENCE_S)
        append(journal, *range(250, 500))
        assert await feeder.passed(journal.end, PATIENCE_S)
        assert feeder.state == (journal.end, 0, "", 500, 0)
    assert store.numbers == list(range(500))
    assert max(store.batches) <= QUICK.batch_max
    assert store.batches[:2] == [100, 100]


async def test_few_records_are_gathered(journal: Journal) -> None:
    """A part of a batch is written when its time is over, or when a caller waits for it."""
    store = Kept()
    with feeding(store, journal, FeederSettings(gather_ms=3_600_000)) as feeder:
        append(journal, 1)
        append(journal, 2)
        assert await feeder.passed(journal.end, PATIENCE_S)
        append(journal, *range(3, 103))
        until(lambda: store.numbers == list(range(1, 103)))
    store = Kept()
    with feeding(store, journal, FeederSettings(gather_ms=1)):
        append(journal, 103)
        until(lambda: store.numbers == [103])


async def test_a_store_that_is_away_for_long_gets_all_exactly_once(journal: Journal) -> None:
    """Nothing is lost or doubled. The log says once that the store is down, and once that it is back."""
    store = Kept(knows=True)
    store.away = "connection refused"
    with capture_logs() as logs, feeding(store, journal) as feeder:
        append(journal, *range(1_000))
        until(lambda: store.connects > 5)
        assert feeder.away == "connection refused"
        assert feeder.state.behind_bytes == journal.behind(START)
        assert not await feeder.passed(journal.end, 0.01)
        store.away = ""
        assert await feeder.passed(journal.end, PATIENCE_S)
        until(lambda: not feeder.away)
        store.away = "gone again"
        append(journal, *range(1_000, 1_100))
        until(lambda: feeder.away == "gone again")
        store.away = ""
        assert await feeder.passed(journal.end, PATIENCE_S)
        until(lambda: not feeder.away)
    assert store.numbers == list(range(1_100))
    assert [e["event"] for e in logs if e["event"] in ("store away", "store back")] == ["store away", "store back"] * 2


async def test_pauses_double_up_to_a_bound(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between tries to reach a store that is down grow to a bound."""
    store = Kept()
    store.away = "connection refused"
    feeder = Feeder(store, journal, FeederSettings(pause_ms=100, pause_max_ms=5_000))
    pauses: list[float] = []

    def wait(timeout_s: float) -> bool:
        pauses.append(timeout_s)
        if len(pauses) == 9:
            feeder._stopping.set()
        return True

    monkeypatch.setattr(feeder._stopping, "wait", wait)
    feeder.start()
    until(store.closed.is_set)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert feeder.stop(PATIENCE_S)


@pytest.mark.parametrize("knows", [True, False])
async def test_a_lost_answer_repeats_nothing(journal: Journal, knows: bool) -> None:
    """When the write succeeded and its answer was lost, the store's own position, or its refusal of doubles, shows
    that."""
    store = Kept(knows=knows)
    store.lose_answers = 3
    append(journal, *range(450))
    with feeding(store, journal) as feeder:
        assert await feeder.passed(journal.end, PATIENCE_S)
    assert store.numbers == list(range(450))


async def test_poison_is_set_aside(journal: Journal) -> None:
    """Records that can never be written do not block the others. Each is counted and named in the log, without the
    error's text, because it may contain a player's words.
    """
    store = Kept(knows=True)
    store.poison = {7, 8, 99, 150, 299}
    append(journal, *range(300))
    with capture_logs() as logs, feeding(store, journal) as feeder:
        assert await feeder.passed(journal.end, PATIENCE_S)
        assert feeder.state == (journal.end, 0, "", 295, 5)
        append(journal, 300)
        assert await feeder.passed(journal.end, PATIENCE_S)
    assert store.numbers == [n for n in range(301) if n not in store.poison]
    ids = {r.id for r in journal.read(START, 300)[0] if r.at_ms in store.poison}
    aside = [e["record"] for e in logs if e["event"] == "record set aside"]
    assert set(aside) == ids and len(aside) == 5
    assert "secret" not in repr(logs)
    assert all("TypeError at test_feeder.py:" in e["reason"] for e in logs if e["log_level"] == "error")


async def test_a_single_poisoned_record_is_not_given_up_quickly(journal: Journal) -> None:
    """If no other record shows that the store works, the record is tried more often before it is set aside."""
    store = Kept(knows=True)
    store.poison = {1}
    append(journal, 1)
    with feeding(store, journal) as feeder:
        assert await feeder.passed(journal.end, PATIENCE_S)
        assert feeder.aside == 1
        assert store.tries >= 12
        append(journal, 2)
        assert await feeder.passed(journal.end, PATIENCE_S)
    assert store.numbers == [2]


async def test_a_store_that_fails_on_everything_loses_nothing(journal: Journal) -> None:
    """When no record gets through, the store is at fault: no record is set aside, and the tries have pauses."""
    store = Kept()
    store.poison = set(range(50))
    append(journal, *range(50))
    with capture_logs() as logs, feeding(store, journal) as feeder:
        until(lambda: store.tries > 200)
        assert "TypeError" in feeder.away
        assert feeder.aside == 0
        store.poison = set()
        assert await feeder.passed(journal.end, PATIENCE_S)
        until(lambda: not feeder.away)
    assert sorted(store.numbers) == list(range(50))
    assert sum(e["event"] == "store failed on records" for e in logs) == 1


@pytest.mark.parametrize(("knows", "after"), [(True, n) for n in (2, 3, 4, 6, 8)] + [(False, n) for n in range(2, 10)])
async def test_a_store_that_gets_well_in_the_middle_loses_nothing(journal: Journal, knows: bool, after: int) -> None:
    """Records that failed while the store was at fault do not count as bad because a later one gets through.

    The tries: all, all, all, 0, 0-1, 1, 0-2, 2, 0-3, 3. A store that keeps its position can lose some records when it
    recovers between two tries that follow each other at once, as 0-1 and 1 do.
    """
    store = Kept(knows=knows)
    store.poison, store.heals_after = set(range(5)), after
    append(journal, *range(5))
    with feeding(store, journal) as feeder:
        assert await feeder.passed(journal.end, PATIENCE_S)
        assert (feeder.written, feeder.aside) == (5, 0)
    assert sorted(store.numbers) == list(range(5))


async def test_a_feeder_goes_on_where_it_was(tmp_path: Path) -> None:
    """After a stop at any time, with the journal closed and opened, the store gets all records, in order, once."""
    seed = random.Random(3)
    archive, recent = Kept(), Kept("recent", knows=True)
    total = 0
    for _ in range(8):
        journal = open_journal(tmp_path)
        with feeding(archive, journal), feeding(recent, journal):
            append(journal, *range(total, total + 300))
            total += 300
            stop_at = seed.randrange(total)
            until(lambda at=stop_at: len(recent.records) >= at or len(archive.records) >= at)  # type: ignore[misc]
        journal.close()
        archive.closed.clear()
        recent.closed.clear()
    journal = open_journal(tmp_path)
    with feeding(archive, journal) as one, feeding(recent, journal) as two:
        assert await one.passed(journal.end, PATIENCE_S) and await two.passed(journal.end, PATIENCE_S)
    journal.close()
    assert archive.numbers == list(range(total))
    assert recent.numbers == list(range(total))


async def test_stop_wakes_callers_that_wait(journal: Journal) -> None:
    """stop() wakes the callers that wait, with the answer that not every record was written."""
    store = Kept()
    store.away = "connection refused"
    append(journal, 1)
    with feeding(store, journal) as feeder:
        waits = asyncio.create_task(feeder.passed(journal.end, 100 * PATIENCE_S))
        await asyncio.sleep(0)
        assert await asyncio.to_thread(feeder.stop, PATIENCE_S)
        assert not await asyncio.wait_for(waits, PATIENCE_S)
        assert not await feeder.passed(journal.end, PATIENCE_S)


async def test_a_store_at_a_place_of_another_journal_gets_all_there_is(journal: Journal) -> None:
    """Records are rather written twice than never, and the journal does not use that place as the store's position."""
    store = Kept(knows=True)
    store.position = Position(1 << 50, 5)
    append(journal, *range(5))
    with feeding(store, journal) as feeder:
        assert await feeder.passed(journal.end, PATIENCE_S)
        assert journal.seen_by("archive") == journal.end
    assert store.numbers == list(range(5))
    assert journal.counts.gaps == 1


async def test_the_journal_keeps_what_a_store_has_not_got(journal: Journal) -> None:
    """A feeder whose store was never reached keeps the journal from its start."""
    store = Kept("recent")
    store.away = "connection refused"
    append(journal, 1)
    with feeding(store, journal):
        assert journal.seen_by("recent") == journal.first
