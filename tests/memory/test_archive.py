"""The archive's writer against a real PostgreSQL: exactly once, in order, bounded, and without further rights."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import ConfigError, StoreFailed
from core.pseudonym import pseudonym
from memory.archive import ArchiveSettings, ArchiveWriter, look, row_of
from memory.archive_admin import migrate
from memory.records import START, Body, Kind, Record, make_id
from tests.memory.postgres_fixture import OWNER, SECRET, SECRET_ROLE, SERVING, Database, Server

KEY = bytes(range(32))
NOW_MS = int(datetime.now(UTC).timestamp() * 1000)
PATIENT = ArchiveSettings(op_s=60.0)


def record(
    kind: Kind = Kind.TURN, at_ms: int = NOW_MS, body: Body | None = None, npc: str = "greta", player: str = "p-77"
) -> Record:
    """A record with an id."""
    said = {"session": "s1", "turn_id": "t", "line": "Hello.", "reply": "Well met."} if body is None else body
    return Record(kind, at_ms, "studio", "vale", npc, player, "first", said, make_id(at_ms))


def a_writer(url: str, settings: ArchiveSettings = PATIENT) -> ArchiveWriter:
    """A writer that is not connected yet."""
    return ArchiveWriter(ArchiveSettings(url, settings.connect_s, settings.op_s, settings.forget_s), KEY)


@pytest.fixture
def writer(archive_database: Database) -> Iterator[ArchiveWriter]:
    """A connected writer with the daemon's settings."""
    writer = a_writer(archive_database.serving_url)
    writer.connect()
    yield writer
    writer.close()


def ids(database: Database, where: str = "true") -> list[str]:
    """The events' ids as in their records, in order of time."""
    rows = database.execute(f"SELECT event_id FROM events WHERE {where} ORDER BY event_time, event_id")
    return [row[0].hex for row in rows]


def bodies(database: Database) -> list[Any]:
    """The events' bodies, in order of time."""
    return [row[0] for row in database.execute("SELECT body FROM events ORDER BY event_time, event_id")]


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_a_turn_as_a_row(writer: ArchiveWriter, archive_database: Database) -> None:
    """Time and id are the record's own. The player is a pseudonym in its column and wherever games put its id."""
    body = {
        "session": "s1",
        "turn_id": "p-77/4",
        "line": "I am Kael.",
        "reply": "Hm.",
        "name": "p-77",
        "emotion": "calm",
    }
    said = record(body=body)
    writer.write([said], START)
    (row,) = archive_database.execute(
        "SELECT event_time, event_id, kind, tenant, world, npc, player, timeline, body FROM events"
    )
    who = pseudonym(KEY, "studio", "p-77")
    assert row[:8] == (
        datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=NOW_MS),
        *(UUID(said.id), 4, "studio", "vale", "greta", who, "first"),
    )
    assert row[8] == {**body, "turn_id": f"{who}/4", "name": who}


@pytest.mark.parametrize(
    ("kind", "body", "kept"),
    [
        (Kind.WORLD, {"definition": "AAAA", "version": 3, "lease_last": 9}, {"version": 3}),
        (Kind.NPCS, {"npcs": [["greta", "AAAA", 1], ["olaf", "BBBB", 2]]}, {"npcs": ["greta", "olaf"]}),
        (Kind.REMOVED, {"npcs": ["greta"]}, {"npcs": ["greta"]}),
        (Kind.ENDED, {"session": "s1"}, {"session": "s1"}),
        (Kind.SUMMARY, {"text": "They met.", "by": "rule"}, {"text": "They met.", "by": "rule"}),
        (Kind.CARD, {"quest": {"active": ["Find it."]}}, {"quest": {"active": ["Find it."]}}),
        (Kind.INTENT, {"action": "flee", "target": "wolf"}, {"action": "flee", "target": "wolf"}),
        (Kind.CHECKPOINT, {"checkpoint": "c", "file": "f"}, {"checkpoint": "c", "file": "f"}),
        (Kind.RESTORED, {"checkpoint": "c", "from": "first"}, {"checkpoint": "c", "from": "first"}),
        (Kind.DELETED, {"version": 3}, {"version": 3}),
    ],
)
def test_the_kept_fields_of_each_kind(kind: Kind, body: Body, kept: Body) -> None:
    """A row keeps everything except the fields that only a restarted daemon needs."""
    row = row_of(record(kind, body=body, player=""), KEY)
    assert row is not None and row.kind == str(int(kind))
    assert json.loads(row.body) == kept


def test_a_redacted_record_is_not_kept() -> None:
    """The archive has no row for a record that was overwritten."""
    assert row_of(record(Kind.REDACTED, body={}), KEY) is None


def test_the_target_of_an_intent() -> None:
    """A player who is an intent's target is a pseudonym, and the event belongs to that player. Other targets keep their
    ids."""
    at_player = row_of(record(Kind.INTENT, body={"target": "p-9", "target_kind": "player"}, player=""), KEY)
    at_wolf = row_of(record(Kind.INTENT, body={"target": "p-9", "target_kind": "monster"}, player=""), KEY)
    assert at_player is not None and at_wolf is not None
    who = pseudonym(KEY, "studio", "p-9")
    assert (at_player.player, json.loads(at_player.body)["target"]) == (who, who)
    assert (at_wolf.player, json.loads(at_wolf.body)["target"]) == ("", "p-9")


def test_pseudonyms() -> None:
    """A pseudonym is sixteen hex digits. It is the same every time, and differs by key, tenant and player."""
    said = [pseudonym(KEY, "a", "p"), pseudonym(KEY, "b", "p"), pseudonym(KEY, "a", "q"), pseudonym(b"other", "a", "p")]
    said += [pseudonym(KEY, "ap", ""), pseudonym(KEY, "", "ap"), pseudonym(KEY, 'a", "p', "")]
    assert said[0] == pseudonym(KEY, "a", "p")
    assert [len(s) for s in said] == [16, 16, 16, 16, 0, 16, 0]
    assert len({s for s in said if s}) == 5
    assert all(int(s, 16) >= 0 for s in said if s)


# -- text that PostgreSQL does not take --------------------------------------------------------------------------------


def test_zeros_and_half_characters(writer: ArchiveWriter, archive_database: Database) -> None:
    """A zero character and half a surrogate pair are replaced everywhere. Two halves of a pair become their
    character."""
    body = {"line": "a\0b", "reply": "\ud83d", "\0": ["\udc00", "\ud83d\ude00", float("nan"), 1.5]}
    said = Record(Kind.TURN, NOW_MS, "s\0", "v\ud800", "g\0", "p\0\ud800", "\0", body, make_id(NOW_MS))
    writer.write([said], START)
    (row,) = archive_database.execute("SELECT tenant, world, npc, timeline, body FROM events")
    assert row == ("s�", "v�", "g�", "�", {"line": "a�b", "reply": "�", "�": ["�", "😀", None, 1.5]})


def test_any_body_is_taken(writer: ArchiveWriter, archive_database: Database) -> None:
    """The database accepts every body that the journal can hold, so no record blocks the ones after it."""
    text = st.text(st.characters(), max_size=20)
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
        max_leaves=8,
    )

    @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.dictionaries(text, values, max_size=3), max_size=5), text, st.integers(-(1 << 60), 1 << 60))
    def check(said: list[Body], name: str, at_ms: int) -> None:
        batch = [
            Record(Kind.CARD, at_ms, name, name, name, name, name, json.loads(json.dumps(body)), make_id(i))
            for i, body in enumerate(said)
        ]
        writer.write(batch, START)
        assert {r.id for r in batch} <= set(ids(archive_database))

    check()


# -- exactly once ------------------------------------------------------------------------------------------------------


def deliver(writer: ArchiveWriter, records: list[Record], chance: random.Random) -> int:
    """Writes records as a feeder that often starts again from an earlier offset. Returns the number of failures."""
    at = failures = 0
    while at < len(records):
        assert failures < 2000
        at = max(0, at - chance.choice((0, 0, 3, 20)))
        batch = records[at : at + chance.randint(1, 40)]
        try:
            writer.write(batch, START)
        except StoreFailed:
            failures += 1
        else:
            at += len(batch)
    return failures


def test_once_over_repeated_batches(writer: ArchiveWriter, archive_database: Database) -> None:
    """A record that is repeated, in a whole batch, a part of one or twice in one, is in the archive once."""
    records = [record(at_ms=NOW_MS + i // 3) for i in range(300)]
    deliver(writer, records, random.Random(1))
    writer.write([*records[:50], *records[25:75]], START)
    assert sorted(ids(archive_database)) == sorted(r.id for r in records)


def test_once_while_connections_are_killed(writer: ArchiveWriter, archive_database: Database) -> None:
    """Connections that end at random moments cost retries, and no event is lost or doubled."""
    records = [record(at_ms=NOW_MS + i) for i in range(400)]
    chance, over = random.Random(2), threading.Event()
    killed = 0

    def kill() -> None:
        nonlocal killed
        find = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s AND usename = %s"
        with psycopg.connect(archive_database.server.url(), autocommit=True) as connection:
            while not over.wait(chance.random() * 0.02):
                row = connection.execute(find, [archive_database.name, SERVING]).fetchone()
                killed += row[0] if row else 0

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        failures = deliver(writer, records, random.Random(3))
        while killed == 0:  # on a quick machine it may end before the first kill
            failures += deliver(writer, records, random.Random(3))
    finally:
        over.set()
        killer.join()
    assert sorted(ids(archive_database)) == sorted(r.id for r in records)
    assert failures <= killed


def test_once_over_a_crash_of_the_server(writer: ArchiveWriter, archive_database: Database, postgres: Server) -> None:
    """While the server is down, writes fail. When it is back, everything is there once. Earlier writes are there too,
    even on a server that is configured to commit asynchronously.
    """
    assert archive_database.execute("SHOW synchronous_commit") == [("off",)]
    records = [record(at_ms=NOW_MS + i) for i in range(60)]
    writer.write(records[:30], START)
    postgres.kill()
    try:
        with pytest.raises(StoreFailed):
            writer.write(records[20:], START)
        with pytest.raises(StoreFailed):
            writer.connect()
    finally:
        postgres.start()
    writer.write(records[20:], START)
    assert ids(archive_database) == [r.id for r in records]


def test_once_over_a_server_that_stands_still(archive_database: Database, postgres: Server) -> None:
    """A stopped server with open sockets fails the write and the next connection, within their limits. When it runs
    again, everything is there once.
    """
    records = [record(at_ms=NOW_MS + i) for i in range(60)]
    hasty = a_writer(archive_database.serving_url, ArchiveSettings(connect_s=1, op_s=0.5))
    for last in range(20):  # half a second is short on a loaded machine
        try:
            hasty.connect()
            break
        except StoreFailed:
            assert last < 19
    with postgres.stopped():
        with pytest.raises(StoreFailed, match="no answer in time"):
            hasty.write(records[:40], START)
        with pytest.raises(StoreFailed, match="timeout"):
            hasty.connect()
    hasty.close()
    patient = a_writer(archive_database.serving_url)
    patient.write(records, START)
    patient.close()
    assert ids(archive_database) == [r.id for r in records]


def test_a_table_that_is_locked(archive_database: Database) -> None:
    """A write waits for a lock no longer than a batch may take. After that the same batch is written."""
    hasty = a_writer(archive_database.serving_url, ArchiveSettings(op_s=0.5))
    said = [record()]
    with psycopg.connect(archive_database.url) as connection:
        connection.execute("LOCK TABLE events")
        with pytest.raises(StoreFailed):
            hasty.write(said, START)
    hasty.close()
    patient = a_writer(archive_database.serving_url)
    patient.write(said, START)
    patient.close()
    assert ids(archive_database) == [said[0].id]


def test_all_or_none(writer: ArchiveWriter, archive_database: Database) -> None:
    """A batch that fails in its middle leaves nothing. A record that can never be written raises an error of its own
    kind, so that it does not block the others for ever.
    """
    first = record(at_ms=NOW_MS)
    same_place = Record(Kind.FORGET, NOW_MS, "studio", "vale", "", "p-77", "first", {}, first.id)
    other = record(at_ms=NOW_MS + 1, player="p-78")
    writer.write([Record(Kind.CARD, NOW_MS, "studio", "vale", "greta", "p-78", "first", {}, first.id)], START)
    chance = random.Random(4)  # random, so that it does not compress
    long = record(npc="".join(chr(chance.randrange(0x4E00, 0x9FFF)) for _ in range(4000)))
    for wrong, error in ((same_place, psycopg.errors.UniqueViolation), (long, psycopg.errors.ProgramLimitExceeded)):
        with pytest.raises(error):
            writer.write([other, wrong], START)
        assert ids(archive_database) == [first.id]
    writer.write([other], START)


# -- forgetting --------------------------------------------------------------------------------------------------------


def forgetting(at_ms: int, player: str = "p-77", npc: str = "") -> Record:
    """A record that forgets a player by an NPC, or by all."""
    return record(Kind.FORGET, at_ms, {}, npc, player)


def test_forgetting_keeps_the_order(writer: ArchiveWriter, archive_database: Database) -> None:
    """Earlier records of the journal are gone, also from the same batch; later ones stay. A row says how many were
    deleted."""
    before = [record(at_ms=NOW_MS + i) for i in range(3)]
    aimed = record(Kind.INTENT, NOW_MS + 3, {"target": "p-77", "target_kind": "player"}, player="")
    others = [record(at_ms=NOW_MS + 4, player="p-78"), record(Kind.INTENT, NOW_MS + 5, {"action": "idle"}, player="")]
    forget, after = forgetting(NOW_MS + 6), record(at_ms=NOW_MS + 7)
    writer.write(before[:2], START)
    batch = [before[2], aimed, *others, forget, after]
    for _ in range(2):  # the second time nothing changes
        writer.write(batch, START)
        assert ids(archive_database) == [r.id for r in (*others, forget, after)]
        (row,) = archive_database.execute("SELECT player, npc, body FROM events WHERE kind = 9")
        assert row == (pseudonym(KEY, "studio", "p-77"), "", {"deleted": 4})


def test_the_reach_of_forgetting(writer: ArchiveWriter, archive_database: Database) -> None:
    """It deletes one NPC's memory of one player in one world, and nothing of another NPC, player, world or tenant."""
    told = {
        (tenant, world, npc, player): Record(
            Kind.TURN, NOW_MS, tenant, world, npc, player, "", {"session": "s", "line": "a", "reply": "b"}, make_id(0)
        )
        for tenant in ("studio", "other")
        for world in ("vale", "moor")
        for npc in ("greta", "olaf")
        for player in ("p-77", "p-78")
    }
    writer.write(list(told.values()), START)
    writer.write([forgetting(NOW_MS + 1, npc="greta")], START)
    del told["studio", "vale", "greta", "p-77"]
    assert sorted(ids(archive_database, "kind <> 9")) == sorted(r.id for r in told.values())
    writer.write([forgetting(NOW_MS + 2)], START)
    del told["studio", "vale", "olaf", "p-77"]
    assert sorted(ids(archive_database, "kind <> 9")) == sorted(r.id for r in told.values())


def test_forgetting_nobody(writer: ArchiveWriter, archive_database: Database) -> None:
    """Without a player nothing is deleted, neither by a record nor by the database's function."""
    writer.write([record(player=""), forgetting(NOW_MS, player="")], START)
    assert len(ids(archive_database)) == 1
    with (
        psycopg.connect(archive_database.serving_url) as connection,
        pytest.raises(psycopg.errors.InvalidParameterValue),
    ):
        connection.execute("SELECT npcd_forget(now(), gen_random_uuid(), 'studio', 'vale', '', '', '')")


# -- where events go ---------------------------------------------------------------------------------------------------


def test_partitions(writer: ArchiveWriter, archive_database: Database) -> None:
    """An event of this month and one of the next are in their months' partitions. One from three years ahead is kept as
    well."""
    now = datetime.now(UTC)
    next_month = (now.replace(day=1) + timedelta(days=32)).replace(day=1)
    times = [now, next_month, now + timedelta(days=3 * 365)]
    writer.write([record(at_ms=int(t.timestamp() * 1000)) for t in times], START)
    rows = archive_database.execute("SELECT tableoid::regclass::text FROM events ORDER BY event_time")
    assert [row[0] for row in rows] == [f"events_{now:%Y_%m}", f"events_{next_month:%Y_%m}", "events_default"]


# -- what the role may -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM events",
        "SELECT count(*) FROM events",
        "SELECT * FROM events_default",
        "INSERT INTO events_default SELECT",
        "INSERT INTO events SELECT now(), gen_random_uuid(), 4, '', '', '', '', '', '{}' RETURNING event_id",
        "UPDATE events SET npc = ''",
        "DELETE FROM events",
        "TRUNCATE events",
        "DROP TABLE events",
        "ALTER TABLE events ADD COLUMN mine int",
        "LOCK TABLE events IN ACCESS EXCLUSIVE MODE",
        "CREATE TABLE public.mine (a int)",
        "CREATE SCHEMA mine",
        "SELECT * FROM npcd_migrations",
        "INSERT INTO npcd_migrations VALUES (9, '', '')",
        "CREATE OR REPLACE FUNCTION npcd_forget(timestamptz, uuid, text, text, text, text, text) RETURNS bigint "
        "LANGUAGE sql AS 'SELECT 1::bigint'",
    ],
)
def test_statements_that_the_serving_role_may_not_run(archive_database: Database, statement: str) -> None:
    """The database refuses all reads, updates and deletes of the serving role."""
    with (
        psycopg.connect(archive_database.serving_url) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement.encode())


# -- saying what is wrong ----------------------------------------------------------------------------------------------


def test_a_database_that_is_not_migrated(empty_database: Database) -> None:
    """The error says so, and names the command that helps."""
    with pytest.raises(StoreFailed, match="no table events; run npcd migrate"):
        a_writer(empty_database.serving_url).connect()


def test_a_role_that_may_not_write(archive_database: Database) -> None:
    """The error comes at once and names the command that helps, also when the right is lost later."""
    with pytest.raises(StoreFailed, match=f"{SECRET_ROLE} may not add events; .*--serving-role {SECRET_ROLE}"):
        a_writer(archive_database.server.url(archive_database.name, SECRET_ROLE, SECRET)).connect()
    writer = a_writer(archive_database.serving_url)
    writer.connect()
    archive_database.execute(f"REVOKE INSERT ON events FROM {SERVING}")
    with pytest.raises(StoreFailed, match=r"permission denied.*npcd migrate"):
        writer.write([record()], START)
    archive_database.execute("DROP FUNCTION npcd_forget")
    with pytest.raises(StoreFailed, match="may not add events"):
        writer.connect()


@pytest.mark.parametrize("where", ["here", "nowhere"])
def test_no_error_has_the_password(archive_database: Database, where: str) -> None:
    """No error has it, neither of a refused login nor of a server that is down."""
    url = archive_database.server.url(archive_database.name, SECRET_ROLE, "s3cret/%word")
    writer = a_writer(url if where == "here" else url.replace("npcd-pg-", "npcd-none-"))
    with pytest.raises(StoreFailed, match="PostgreSQL: ") as caught:
        writer.connect()
    assert "s3cret" not in str(caught.value) and "\n" not in str(caught.value)
    assert "s3cret" not in repr(ArchiveSettings(url))


def test_a_url_that_is_none() -> None:
    """The constructor refuses it with the form of a URL, and does not repeat the text."""
    for url in ("postgresql://u:s3cret%word@h/d", "s3cret", "postgresql://u@h/d?s3cret=1"):
        with pytest.raises(ConfigError, match="postgresql://user@host") as caught:
            a_writer(url)
        assert "s3cret" not in str(caught.value)


def test_a_password_that_is_right(archive_database: Database) -> None:
    """A role with a password writes with it."""
    server = archive_database.server
    migrate(server.url(archive_database.name), serving_role=SECRET_ROLE)
    writer = a_writer(server.url(archive_database.name, SECRET_ROLE, SECRET))
    writer.write([record()], START)
    writer.close()
    assert len(ids(archive_database)) == 1


def test_look(archive_database: Database, empty_database: Database) -> None:
    """Doctor's look gives the server's version, our role, and any right that it should not have."""
    version, role, reads = look(ArchiveSettings(archive_database.serving_url, op_s=60))
    assert version in archive_database.execute("SELECT version()")[0][0] and " " not in version
    assert (role, reads) == (SERVING, False)
    assert look(ArchiveSettings(archive_database.url, op_s=60)) == (version, OWNER, True)
    with pytest.raises(StoreFailed, match="npcd migrate"):
        look(ArchiveSettings(empty_database.serving_url))


def test_close_is_always_possible(archive_database: Database) -> None:
    """close() works before the first connection and twice, and the writer works again afterwards."""
    writer = a_writer(archive_database.serving_url)
    steps: list[Callable[[], object]] = [writer.close, writer.connect, writer.close, writer.close]
    for step in steps:
        step()
    writer.write([record()], START)
    writer.close()
    assert len(ids(archive_database)) == 1
    assert writer.name == "archive"
