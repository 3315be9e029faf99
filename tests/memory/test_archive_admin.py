"""The owner's commands for the archive: migrations that run once and unchanged, partitions, roles, and reading it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from core.errors import ConfigError, StoreFailed
from core.pseudonym import pseudonym
from memory.archive import ArchiveSettings, ArchiveWriter
from memory.archive_admin import MIGRATIONS, compact, forget, migrate, show
from memory.records import START, Body, Kind, Record, make_id
from tests.memory.postgres_fixture import OWNER, SERVING, Database, Server

KEY = b"key"
MAY_2026 = datetime(2026, 5, 17, 12, tzinfo=UTC)
FILES = [file.name for file in sorted(MIGRATIONS.glob("*.sql"))]
SERVES = f"{SERVING} may add events and forget players, and nothing else"


def ms(moment: datetime) -> int:
    """Unix time."""
    return int(moment.timestamp() * 1000)


def turn(at: datetime, npc: str = "greta", world: str = "vale", tenant: str = "", player: str = "p") -> Record:
    """A turn at a moment."""
    body: Body = {"session": "s", "turn_id": "t", "line": "Hello.", "reply": "Hm."}
    return Record(Kind.TURN, ms(at), tenant, world, npc, player, "first", body, make_id(ms(at)))


def write(database: Database, *records: Record) -> None:
    """Writes records as the daemon does."""
    writer = ArchiveWriter(ArchiveSettings(database.serving_url, op_s=60), KEY)
    writer.write(records, START)
    writer.close()


def partitions(database: Database) -> list[str]:
    """The names of the months' tables."""
    rows = database.execute(
        "SELECT relname FROM pg_class JOIN pg_inherits ON inhrelid = oid "
        "WHERE inhparent = 'events'::regclass AND relname <> 'events_default' ORDER BY relname"
    )
    return [row[0] for row in rows]


def shape(database: Database) -> list[tuple[object, ...]]:
    """All definitions in the database: tables, columns, functions, and rights."""
    return [
        *database.execute(
            "SELECT relname, relkind, relacl::text, attname, format_type(atttypid, atttypmod) FROM pg_class c "
            "JOIN pg_attribute ON attrelid = c.oid WHERE relnamespace = 'public'::regnamespace ORDER BY 1, attnum"
        ),
        *database.execute("SELECT proname, prosrc, proacl::text FROM pg_proc WHERE proname LIKE 'npcd%'"),
        *database.execute("SELECT number, name, checksum, applied_at FROM npcd_migrations ORDER BY 1"),
        *database.execute("SELECT nspacl::text FROM pg_namespace WHERE nspname = 'public'"),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of our migrations that a test may change."""
    return Path(shutil.copytree(MIGRATIONS, tmp_path / "migrations"))


# -- migrations --------------------------------------------------------------------------------------------------------


def test_migrating_twice(empty_database: Database) -> None:
    """The first run makes and reports everything. The second run finds nothing to do and changes nothing."""
    url = empty_database.url
    done = migrate(url, now=MAY_2026)
    assert done[:2] == [f"{name} is applied" for name in FILES[:2]]
    assert "26 months have partitions now: 2026-04 to 2028-05" in done and SERVES in done
    before = shape(empty_database)
    assert [line for line in migrate(url, now=MAY_2026) if "embedding" not in line] == []
    assert shape(empty_database) == before


def test_two_at_once(empty_database: Database) -> None:
    """Of two migrations at the same time one waits for the other. Both succeed, and everything is made once."""
    done: list[list[str]] = []
    threads = [threading.Thread(target=lambda: done.append(migrate(empty_database.url))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 2
    assert sorted(line for lines in done for line in lines if "applied" in line) == [f"{n} is applied" for n in FILES]


def test_a_migration_that_was_changed(archive_database: Database, folder: Path) -> None:
    """It is refused by its name, and nothing changes."""
    with (folder / FILES[0]).open("a") as file:
        file.write("-- one more line\n")
    (folder / "0003_more.sql").write_text("CREATE TABLE more (a int);")
    before = shape(archive_database)
    with pytest.raises(StoreFailed, match=f"migration {FILES[0]} was applied"):
        migrate(archive_database.url, folder=folder)
    assert shape(archive_database) == before


def test_line_ends_are_no_change(archive_database: Database, folder: Path) -> None:
    """A checkout with other line ends has the same migrations."""
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    migrate(archive_database.url, folder=folder)


def test_a_newer_npcd_was_here(archive_database: Database, folder: Path) -> None:
    """A migration that this npcd does not know is refused by its name."""
    (folder / "0003_more.sql").write_text("CREATE TABLE more (a int);")
    assert "0003_more.sql is applied" in migrate(archive_database.url, folder=folder)
    with pytest.raises(StoreFailed, match=r"0003_more\.sql was applied by a newer npcd"):
        migrate(archive_database.url)


def test_a_migration_that_fails(archive_database: Database, folder: Path) -> None:
    """It leaves nothing, earlier migrations stay, and it can be tried again."""
    (folder / "0003_more.sql").write_text("CREATE TABLE more (a int);")
    (folder / "0004_wrong.sql").write_text("CREATE TABLE half (a int); SELECT 1/0;")
    with pytest.raises(StoreFailed, match="division by zero"):
        migrate(archive_database.url, folder=folder)
    assert archive_database.execute("SELECT to_regclass('more') IS NOT NULL, to_regclass('half')") == [(True, None)]
    (folder / "0004_wrong.sql").write_text("CREATE TABLE half (a int);")
    assert "0004_wrong.sql is applied" in migrate(archive_database.url, folder=folder)


def test_somebody_elses_table(empty_database: Database) -> None:
    """A database that has a foreign table of that name is left as it is."""
    with psycopg.connect(empty_database.url) as connection:
        connection.execute("CREATE TABLE events (mine int)")
    with pytest.raises(StoreFailed, match='relation "events" already exists'):
        migrate(empty_database.url)
    assert show_columns(empty_database) == ["mine"]


def test_a_database_of_another_encoding(postgres: Server) -> None:
    """It is refused, because it cannot store every text."""
    postgres.execute(f"CREATE DATABASE latin OWNER {OWNER} ENCODING 'LATIN1' TEMPLATE template0")
    try:
        with pytest.raises(StoreFailed, match="encoding is LATIN1; make one with ENCODING 'UTF8'"):
            migrate(postgres.url("latin", OWNER))
    finally:
        postgres.execute("DROP DATABASE latin")


def show_columns(database: Database) -> list[str]:
    """The columns of the table events."""
    rows = database.execute("SELECT attname FROM pg_attribute WHERE attrelid = 'events'::regclass AND attnum > 0")
    return [row[0] for row in rows]


# -- the column for embeddings -----------------------------------------------------------------------------------------


def test_the_column_for_embeddings(empty_database: Database) -> None:
    """The column exists, and may be empty, when the server has pgvector and the owner may use it. Otherwise that is
    reported and everything else is done. A later migration adds the column when pgvector has arrived.
    """
    done = migrate(empty_database.url)
    assert [line for line in done if line.startswith("no column embedding")]
    assert "embedding" not in show_columns(empty_database)
    write(empty_database, turn(datetime.now(UTC)))
    there = empty_database.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'")
    (said,) = migrate(empty_database.server.url(empty_database.name))
    assert said.startswith("column embedding is there (pgvector" if there else "no column embedding: the server has no")
    if there:
        write(empty_database, turn(datetime.now(UTC)))
        assert empty_database.execute("SELECT embedding FROM events") == [(None,), (None,)]
        assert migrate(empty_database.url) == []


# -- partitions --------------------------------------------------------------------------------------------------------


def test_a_month_later(empty_database: Database) -> None:
    """A second run makes the partitions of the months that have come near."""
    migrate(empty_database.url, 2, now=MAY_2026)
    assert partitions(empty_database) == ["events_2026_04", "events_2026_05", "events_2026_06", "events_2026_07"]
    done = migrate(empty_database.url, 2, now=MAY_2026 + timedelta(days=62))
    assert "2 months have partitions now: 2026-08 to 2026-09" in done
    assert partitions(empty_database)[-1] == "events_2026_09"


def test_the_default_partition_is_tidied(empty_database: Database) -> None:
    """Events without a month's partition move to it when it is made, also very old ones; those that are still far ahead
    wait. None is lost, and new ones are written meanwhile and afterwards.
    """
    migrate(empty_database.url, 1, now=MAY_2026)
    days = (-400, -1, 0, 40, 70, 1100)
    records = [turn(MAY_2026 + timedelta(days=n)) for n in days]
    write(empty_database, *records)
    assert empty_database.execute("SELECT count(*) FROM events_default") == [(3,)]
    done = migrate(empty_database.url, 2, now=MAY_2026)
    assert "2 months have partitions now: 2025-04, 2026-07" in done
    assert empty_database.execute("SELECT count(*) FROM events_default") == [(1,)]
    write(empty_database, *records, turn(MAY_2026 + timedelta(days=71)))
    assert empty_database.execute("SELECT count(*) FROM events") == [(7,)]
    assert empty_database.execute("SELECT count(*) FROM events_2026_07") == [(2,)]


def test_months_that_make_no_sense() -> None:
    """They are refused before any connection."""
    for months in (0, -1, 241):
        with pytest.raises(ConfigError, match="months"):
            migrate("postgresql:///none", months)
    with pytest.raises(ConfigError, match="months to keep"):
        compact("postgresql:///none", 0)
    with pytest.raises(ConfigError, match="months to keep: 99999999999, must be 1 to 12000"):
        compact("postgresql:///none", 99_999_999_999)
    with pytest.raises(ConfigError, match=r"limit: .*, must be 1 to 1000000"):
        show("postgresql:///none", "greta", limit=10**24)


# -- the serving role --------------------------------------------------------------------------------------------------


@pytest.fixture
def new_role(archive_database: Database) -> Iterator[str]:
    """The name of a role that does not exist; it is dropped afterwards."""
    name = f'npcd "{archive_database.name}"'
    yield name
    quoted = name.replace('"', '""')
    archive_database.execute(f'DROP OWNED BY "{quoted}"')
    archive_database.server.execute(f'DROP ROLE "{quoted}"')


def test_a_role_is_made(archive_database: Database, new_role: str) -> None:
    """The role has a password, of which the server stores only a verifier. A second migration with a password sets the
    new one."""
    done = migrate(archive_database.url, serving_role=new_role, password="s3cret")
    assert f"role {new_role} is made, with a password" in done
    assert f"{new_role} may add events and forget players, and nothing else" in done
    ask = "SELECT rolpassword, rolcanlogin, rolsuper FROM pg_authid WHERE rolname = %s"
    ((first, *rest),) = archive_database.execute(ask, new_role)
    assert first.startswith("SCRAM-SHA-256$") and rest == [True, False]
    done = migrate(archive_database.url, serving_role=new_role, password="another")
    assert f"role {new_role} has a new password" in done
    assert archive_database.execute(ask, new_role)[0][0] != first


def test_a_role_without_a_password(archive_database: Database, new_role: str) -> None:
    """The role is made, and logs in by other means than a password."""
    done = migrate(archive_database.url, serving_role=new_role)
    assert f"role {new_role} is made, without password" in done
    assert archive_database.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", new_role) == [(None,)]


def test_rights_that_were_lost_or_gained(archive_database: Database) -> None:
    """A migration restores the serving role's rights and revokes all others."""
    archive_database.execute(f"REVOKE INSERT ON events FROM {SERVING}; GRANT SELECT ON events_default TO PUBLIC")
    archive_database.execute(f"GRANT SELECT (npc), DELETE ON events TO {SERVING}; GRANT ALL ON SCHEMA public TO PUBLIC")
    with pytest.raises(StoreFailed, match="CREATE on schema public"):
        migrate(archive_database.url)
    archive_database.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    assert SERVES in migrate(archive_database.url)
    assert SERVES not in migrate(archive_database.url)
    write(archive_database, turn(datetime.now(UTC)))
    with psycopg.connect(archive_database.serving_url) as c, pytest.raises(psycopg.errors.InsufficientPrivilege):
        c.execute("SELECT npc FROM events")


@pytest.mark.parametrize("role", ["postgres", OWNER, "reader"])
def test_roles_that_may_more(archive_database: Database, role: str) -> None:
    """A superuser, the owner, and a role that may read everything are refused as serving roles. The owner keeps its
    rights."""
    if role == "reader":
        role = f"reader_{archive_database.name}"
        archive_database.execute(f"CREATE ROLE {role}; GRANT pg_read_all_data TO {role}")
    with pytest.raises(StoreFailed, match=r" has .*(SELECT on events|the owner may).*--serving-role"):
        migrate(archive_database.url, serving_role=role)
    if role.startswith("reader"):
        archive_database.execute(f"DROP ROLE {role}")
    migrate(archive_database.url)
    assert show(archive_database.url, "nobody") == []


def test_an_owner_that_may_make_no_roles(archive_database: Database) -> None:
    """The error gives the statements that a superuser has to run."""
    archive_database.execute(f"ALTER ROLE {OWNER} NOCREATEROLE")
    try:
        with pytest.raises(StoreFailed, match='have a superuser do CREATE ROLE "new" LOGIN, then migrate again'):
            migrate(archive_database.url, serving_role="new")
        migrate(archive_database.url)
    finally:
        archive_database.execute(f"ALTER ROLE {OWNER} CREATEROLE")


def test_a_role_of_no_name() -> None:
    """It is refused before any connection."""
    for name in ("", "x" * 64):
        with pytest.raises(ConfigError, match="serving role"):
            migrate("postgresql:///none", serving_role=name)


# -- looking, forgetting, compacting -----------------------------------------------------------------------------------


def test_show(archive_database: Database) -> None:
    """It prints the newest events of the NPC in order of time, on request of one world or tenant."""
    now = datetime.now(UTC)
    minutes = [turn(now + timedelta(minutes=n)) for n in range(5)]
    elsewhere = [turn(now, world="moor"), turn(now, tenant="studio"), turn(now, npc="olaf")]
    write(archive_database, *reversed(minutes), *elsewhere)
    url = archive_database.url

    def shown(**how: object) -> list[str]:
        return [event.event_id.hex for event in show(url, "greta", **how)]  # type: ignore[arg-type]

    assert shown(world="vale", tenant="") == [r.id for r in minutes]
    assert shown(world="vale", tenant="", limit=2) == [r.id for r in minutes[3:]]
    assert set(shown()) == {r.id for r in (*minutes, *elsewhere[:2])}
    assert shown(world="moor") == [elsewhere[0].id] and shown(tenant="studio") == [elsewhere[1].id]
    assert show(url, "nobody") == []
    event = show(url, "greta", "moor")[0]
    assert (event.kind, event.tenant, event.world, event.npc, event.timeline) == (4, "", "moor", "greta", "first")
    assert (event.player, event.body["line"]) == (pseudonym(KEY, "", "p"), "Hello.")
    assert event.event_time == datetime.fromtimestamp(elsewhere[0].at_ms / 1000, UTC)
    with pytest.raises(ConfigError, match="limit"):
        show(url, "greta", limit=0)


def test_show_before_migrating(empty_database: Database) -> None:
    """The error says that there are no tables, and names the command that helps."""
    with pytest.raises(StoreFailed, match="run npcd migrate"):
        show(empty_database.url, "greta")


def test_show_as_the_serving_role(archive_database: Database) -> None:
    """The serving role cannot read, and the error asks for the owner's URL."""
    with pytest.raises(StoreFailed, match=r"permission denied.*URL of the database's owner"):
        show(archive_database.serving_url, "greta")


def test_forget(archive_database: Database) -> None:
    """It deletes by the pseudonym that show() prints, reports the number, and leaves a row about it."""
    now = datetime.now(UTC)
    write(archive_database, turn(now), turn(now, npc="olaf"), turn(now, player="q"))
    who = pseudonym(KEY, "", "p")
    assert forget(archive_database.url, "", "vale", who, "olaf") == 1
    assert forget(archive_database.url, "", "vale", who) == 1
    assert forget(archive_database.url, "", "vale", who) == 0
    kinds = archive_database.execute("SELECT kind, npc, body->>'deleted' FROM events ORDER BY event_time, kind")
    assert kinds == [(4, "greta", None), (9, "olaf", "1"), (9, "", "1"), (9, "", "0")]
    with pytest.raises(ConfigError, match="which player"):
        forget(archive_database.url, "", "vale", "")


def test_compact(empty_database: Database) -> None:
    """Months before those to keep are dropped with their events, and so are old events of no month. The rest stays."""
    migrate(empty_database.url, 1, now=MAY_2026)
    write(empty_database, *(turn(MAY_2026 + timedelta(days=n)) for n in (-500, -31, -30, 0, 30, 1100)))
    assert compact(empty_database.url, 1, now=MAY_2026) == [
        "1 events from before 2026-04, which were in no month's partition, are gone"
    ]
    assert compact(empty_database.url, 1, now=MAY_2026 + timedelta(days=31)) == ["2026-04 is gone, with 2 events"]
    assert empty_database.execute("SELECT count(*) FROM events") == [(3,)]
    assert compact(empty_database.url, 1, now=MAY_2026) == []


def test_a_server_that_is_not_there(archive_database: Database) -> None:
    """The error is one line without the password."""
    url = archive_database.server.url("none", OWNER, "s3cret").replace("npcd-pg-", "npcd-none-")
    with pytest.raises(StoreFailed, match="PostgreSQL: ") as caught:
        migrate(url)
    assert "s3cret" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="--postgres: must be like"):
        migrate("postgresql://a:s3cret%x@/")
