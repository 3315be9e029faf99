"""Operations on the archive by hand, as the database's owner: migrate, show, forget, compact.

Each function opens a connection of its own and closes it. All raise ConfigError when a value is wrong, and StoreFailed,
in one line and without the password, when the server is away or refuses. The daemon never uses this file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow, class_row

from core.errors import ConfigError, StoreFailed
from memory.archive import check_url, reason
from memory.records import make_id

MIGRATIONS = Path(__file__).with_name("migrations")
SERVING_ROLE = "npcd_serving"
MONTHS_AHEAD, MONTHS_AHEAD_MAX = 24, 240
MONTHS_KEPT_MAX = 12_000  # a thousand years
EVENTS_SHOWN_MAX = 1_000_000
SHOWN_LEN_MAX = 80  # of a typed value, in an error
CONNECT_S = 10
LOCK_S = 30  # the daemon's batches are over sooner
_PARTITION = re.compile(r"events_(\d{4})_(\d{2})")
_ADVISORY_LOCK = 0x6E706364  # "npcd": one migration at a time in a database

_FORGET_FUNCTION = "public.npcd_forget(timestamptz, uuid, text, text, text, text, text)"
_OURS = """
    SELECT oid, relname FROM pg_class WHERE oid IN ('public.events'::regclass, 'public.npcd_migrations'::regclass)
    UNION SELECT oid, relname FROM pg_class JOIN pg_inherits ON inhrelid = oid AND inhparent = 'public.events'::regclass
"""
# Everything that a role may do to our tables, however it came to it.
_MAY = f"""
    WITH ours AS ({_OURS})
    SELECT relname::text, verb FROM ours, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) AS verb
        WHERE has_any_column_privilege(%(role)s::name, oid, verb)
    UNION SELECT relname::text, verb FROM ours, unnest(ARRAY['DELETE', 'TRUNCATE', 'TRIGGER']) AS verb
        WHERE has_table_privilege(%(role)s::name, oid, verb)
    UNION SELECT 'npcd_forget', 'EXECUTE'
        WHERE has_function_privilege(%(role)s::name, '{_FORGET_FUNCTION}', 'EXECUTE')
    UNION SELECT 'schema public', verb FROM unnest(ARRAY['USAGE', 'CREATE']) AS verb
        WHERE has_schema_privilege(%(role)s::name, 'public', verb)
    UNION SELECT 'all that the owner may', 'MEMBERSHIP' FROM pg_class
        WHERE oid = 'public.events'::regclass AND pg_has_role(%(role)s::name, relowner, 'MEMBER')
"""
_SHOULD = {("events", "INSERT"), ("npcd_forget", "EXECUTE"), ("schema public", "USAGE")}
_PSEUDONYM = re.compile(r"[0-9a-fA-F]{16}")
# A forget that deleted nothing does not make a world known.
_WORLD_KNOWN = """
    SELECT 1 FROM public.events
    WHERE tenant = %s AND world = %s AND (kind <> 9 OR body->>'deleted' <> '0') LIMIT 1
"""
_SHOW = """
    SELECT * FROM (
        SELECT event_time, event_id, kind, tenant, world, npc, player, timeline, body FROM public.events
        WHERE npc = %(npc)s AND (%(world)s::text IS NULL OR world = %(world)s)
            AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
        ORDER BY event_time DESC, event_id DESC LIMIT %(limit)s
    ) AS newest ORDER BY event_time, event_id
"""


class Event(NamedTuple):
    """A row of the archive. `kind` is a Kind's number; `player` is a pseudonym."""

    event_time: datetime
    event_id: UUID
    kind: int
    tenant: str
    world: str
    npc: str
    player: str
    timeline: str
    body: dict[str, Any]


class Month(NamedTuple):
    """A month of UTC, and the partition that holds it."""

    year: int
    month: int

    @property
    def partition(self) -> str:
        """Its table's name."""
        return f"events_{self.year:04}_{self.month:02}"

    @property
    def begin(self) -> str:
        """Its first moment, as PostgreSQL takes it."""
        return f"{self.year:04}-{self.month:02}-01 00:00:00+00"

    def later(self, months: int) -> Month:
        """The month so many later, or earlier."""
        year, month = divmod(self.year * 12 + self.month - 1 + months, 12)
        return Month(year, month + 1)

    def __str__(self) -> str:
        return f"{self.year:04}-{self.month:02}"


def migrate(
    url: str,
    months: int = MONTHS_AHEAD,
    serving_role: str = SERVING_ROLE,
    password: str | None = None,
    *,
    now: datetime | None = None,
    folder: Path = MIGRATIONS,
) -> list[str]:
    """Brings the database to the schema that this npcd needs. Returns its steps, a line each. Running it again changes
    nothing.

    The months from the last one to `months` ahead get partitions, so run it again from time to time. The serving role
    is made if it is not there. Without a password it can connect by a socket's peer or a certificate only.
    """
    if not 1 <= months <= MONTHS_AHEAD_MAX:
        raise ConfigError(f"months: {months}, must be 1 to {MONTHS_AHEAD_MAX}")
    if not serving_role or "\0" in serving_role or len(serving_role.encode()) > 63:
        raise ConfigError("the serving role's name: 1 to 63 bytes")
    done: list[str] = []
    with _owner(url) as connection:
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":  # else it would refuse some records with text of players
            raise StoreFailed(f"PostgreSQL: the database's encoding is {encoding}; make one with ENCODING 'UTF8'")
        connection.execute("SELECT pg_advisory_lock(%s)", [_ADVISORY_LOCK])
        done += _apply(connection, folder)
        done += _add_embedding(connection)
        done += _add_partitions(connection, _month(now), months)
        done += _let_serve(connection, serving_role, password)
    return done


def show(url: str, npc: str, world: str | None = None, tenant: str | None = None, limit: int = 100) -> list[Event]:
    """The newest `limit` events of an NPC, in the order of time. No world, no tenant: of all that have such an NPC."""
    if not 1 <= limit <= EVENTS_SHOWN_MAX:
        raise ConfigError(f"limit: {limit}, must be 1 to {EVENTS_SHOWN_MAX}")
    with _owner(url) as connection:
        connection.execute("SET default_transaction_read_only = on")
        wanted = {"npc": npc, "world": world, "tenant": tenant, "limit": limit}
        return connection.cursor(row_factory=class_row(Event)).execute(_SHOW, wanted).fetchall()


def forget(url: str, tenant: str, world: str, player: str, npc: str = "") -> int:
    """Deletes a player's events with one NPC, or with all of a world, and leaves a row that says so. Returns their
    number.

    `player` is the pseudonym that show() gives. Other stores keep the player: the daemon's Forget reaches all stores.
    Raises ConfigError for what is no pseudonym, and StoreFailed when the archive knows no such world.
    """
    if not _PSEUDONYM.fullmatch(player):
        raise ConfigError(
            f"which player? {player[:SHOWN_LEN_MAX]!r} is no pseudonym: give its 16 hex digits, which npcd archive "
            "show NPC prints with each player's events (a player's own id does not stand in the archive)"
        )
    player = player.lower()
    now = datetime.now(UTC)
    event_id = UUID(hex=make_id(int(now.timestamp() * 1000)))
    with _owner(url) as connection:
        if connection.execute(_WORLD_KNOWN, [tenant, world]).fetchone() is None:
            of = f" of the tenant {tenant!r}" if tenant else ""
            raise StoreFailed(
                f"--world: the archive has no events of a world {world[:SHOWN_LEN_MAX]!r}{of}; npcd archive show NPC "
                "prints the world and the tenant of each event"
            )
        said = (now, event_id, tenant, world, npc, player, "")
        row = connection.execute("SELECT public.npcd_forget(%s, %s, %s, %s, %s, %s, %s)", said).fetchone()
    assert row is not None
    return int(row[0])


def compact(url: str, keep_months: int, *, now: datetime | None = None) -> list[str]:
    """Deletes the months before the last `keep_months` for good, with all that happened in them; a line each."""
    if not 1 <= keep_months <= MONTHS_KEPT_MAX:
        raise ConfigError(f"months to keep: {keep_months}, must be 1 to {MONTHS_KEPT_MAX}")
    first = _month(now).later(-keep_months)
    done = []
    with _owner(url) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [_ADVISORY_LOCK])
        for month in sorted(_partitions(connection)):
            if month < first:
                with connection.transaction():
                    events = _count(connection, month.partition)
                    connection.execute(sql.SQL("DROP TABLE {}").format(_table(month.partition)))
                done.append(f"{month} is gone, with {events} events")
        gone = connection.execute("DELETE FROM ONLY public.events_default WHERE event_time < %s", [first.begin])
        if gone.rowcount:
            done.append(f"{gone.rowcount} events from before {first}, which were in no month's partition, are gone")
    return done


@contextmanager
def _owner(url: str) -> Iterator[psycopg.Connection[TupleRow]]:
    """A connection in autocommit mode."""
    check_url("--postgres", url)
    try:
        with psycopg.connect(
            url,
            autocommit=True,
            connect_timeout=CONNECT_S,
            application_name="npcd",
            client_encoding="utf8",
            prepare_threshold=None,
        ) as connection:
            connection.execute(
                "SELECT set_config('lock_timeout', %s, false), set_config('TimeZone', 'UTC', false)", [f"{LOCK_S}s"]
            )
            yield connection
    except psycopg.Error as error:
        raise StoreFailed(f"PostgreSQL: {reason(error, url)}") from None


def _apply(connection: psycopg.Connection[TupleRow], folder: Path) -> Iterator[str]:
    """Each migration once, in order, in a transaction of its own. One that is not as it was is refused by name."""
    connection.execute(
        "CREATE TABLE IF NOT EXISTS public.npcd_migrations (number int PRIMARY KEY, name text NOT NULL, "
        "checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    rows = connection.execute("SELECT number, name, checksum FROM public.npcd_migrations ORDER BY number").fetchall()
    applied = {number: (name, checksum) for number, name, checksum in rows}
    ours = {int(file.name.partition("_")[0]): file for file in sorted(folder.glob("[0-9]*_*.sql"))}
    for number, (name, checksum) in applied.items():
        if number not in ours:
            raise StoreFailed(f"PostgreSQL: {name} was applied by a newer npcd; migrate with that one")
        if (ours[number].name, _checksum(ours[number])) != (name, checksum):
            raise StoreFailed(
                f"PostgreSQL: migration {name} was applied, and {ours[number].name} is another now; "
                "restore it, and put the changes into a new migration"
            )
    for number, file in ours.items():
        if number not in applied:
            with connection.transaction():
                connection.execute(file.read_bytes())
                connection.execute(
                    "INSERT INTO public.npcd_migrations (number, name, checksum) VALUES (%s, %s, %s)",
                    [number, file.name, _checksum(file)],
                )
            yield f"{file.name} is applied"


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def _add_embedding(connection: psycopg.Connection[TupleRow]) -> Iterator[str]:
    """The column for a later embedder, when the server has pgvector; said, and no more, when it has not."""
    found = connection.execute(
        "SELECT 1 FROM pg_attribute WHERE attrelid = 'public.events'::regclass AND attname = 'embedding'"
    ).fetchone()
    if found:
        return
    if not connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'").fetchone():
        yield "no column embedding: the server has no pgvector; nothing needs it yet"
        return
    try:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
    except psycopg.errors.InsufficientPrivilege:
        yield "no column embedding: CREATE EXTENSION vector takes a superuser; nothing needs it yet"
        return
    except psycopg.errors.UndefinedFile:
        yield "no column embedding: the server's pgvector is not whole; nothing needs it yet"
        return
    schema, version = connection.execute(
        "SELECT nspname, extversion FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace "
        "WHERE extname = 'vector'"
    ).fetchone() or ("public", "")
    column = sql.SQL("ALTER TABLE public.events ADD COLUMN embedding {}").format(sql.Identifier(schema, "vector"))
    connection.execute(column)
    yield f"column embedding is there (pgvector {version})"


def _add_partitions(connection: psycopg.Connection[TupleRow], now: Month, months: int) -> Iterator[str]:
    """The months that are not there: from the last one on, and those before of which the default partition has
    events. Events that are in the default partition go where they belong.
    """
    last = now.later(months)
    stray = connection.execute(
        "SELECT DISTINCT extract(year FROM m)::int, extract(month FROM m)::int FROM ("
        "SELECT date_trunc('month', event_time AT TIME ZONE 'UTC') AS m FROM ONLY public.events_default) AS strays"
    ).fetchall()
    wanted = {now.later(i) for i in range(-1, months + 1)} | {m for m in (Month(*row) for row in stray) if m <= last}
    made = sorted(wanted - _partitions(connection))
    for month in made:
        with connection.transaction():
            _add_partition(connection, month)
    if made:
        yield f"{len(made)} months have partitions now: {', '.join(_spans(made))}"


def _add_partition(connection: psycopg.Connection[TupleRow], month: Month) -> None:
    names = {
        "new": _table(month.partition),
        "begin": sql.Literal(month.begin),
        "end": sql.Literal(month.later(1).begin),
    }
    for statement in (
        "LOCK TABLE public.events IN ACCESS EXCLUSIVE MODE",  # or an event could come between
        "CREATE TABLE {new} (LIKE public.events INCLUDING ALL)",
        "WITH moved AS (DELETE FROM ONLY public.events_default WHERE event_time >= {begin} AND event_time < {end} "
        "RETURNING *) INSERT INTO {new} SELECT * FROM moved",
        "ALTER TABLE public.events ATTACH PARTITION {new} FOR VALUES FROM ({begin}) TO ({end})",
    ):
        connection.execute(sql.SQL(statement).format(**names))


def _let_serve(connection: psycopg.Connection[TupleRow], role: str, password: str | None) -> Iterator[str]:
    """Makes the serving role if there is none, and lets it do what it is for and nothing else."""
    name = sql.Identifier(role)
    if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
        try:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
        except psycopg.errors.InsufficientPrivilege:
            statement = sql.SQL("CREATE ROLE {} LOGIN").format(name).as_string(connection)
            raise StoreFailed(
                f"PostgreSQL: there is no role {role}, and this one may make none; "
                f"have a superuser do {statement}, then migrate again"
            ) from None
        yield f"role {role} is made, {'with a' if password else 'without'} password"
    elif password:
        yield f"role {role} has a new password"
    if password:
        # As a verifier: the password itself must not stand in the server's log.
        verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(verifier)))
    if _may(connection, role) == _SHOULD:
        return
    tables = sql.SQL(", ").join(_table(row[1]) for row in connection.execute(_OURS).fetchall())
    with connection.transaction():
        for statement in (
            "REVOKE ALL ON {tables} FROM PUBLIC, {role}",
            "REVOKE CREATE ON SCHEMA public FROM {role}",
            "GRANT USAGE ON SCHEMA public TO {role}",
            "GRANT INSERT ON public.events TO {role}",
            f"GRANT EXECUTE ON FUNCTION {_FORGET_FUNCTION} TO {{role}}",
        ):
            connection.execute(sql.SQL(statement).format(tables=tables, role=name))
        may = _may(connection, role)
        if may != _SHOULD:
            extra = ", ".join(f"{verb} on {what}" for what, verb in sorted(may - _SHOULD))
            less = ", ".join(f"{verb} on {what}" for what, verb in sorted(_SHOULD - may))
            raise StoreFailed(
                f"PostgreSQL: {role} {f'has {extra}' if extra else f'has no {less}'}; the serving role must be one of "
                "its own, not a superuser, an owner or a member of other roles: name another with --serving-role"
            )
    yield f"{role} may add events and forget players, and nothing else"


def _may(connection: psycopg.Connection[TupleRow], role: str) -> set[tuple[str, str]]:
    return {(what, verb) for what, verb in connection.execute(_MAY, {"role": role}).fetchall()}


def _partitions(connection: psycopg.Connection[TupleRow]) -> set[Month]:
    """The months that have a partition."""
    found = (_PARTITION.fullmatch(row[1]) for row in connection.execute(_OURS).fetchall())
    return {Month(int(name[1]), int(name[2])) for name in found if name}


def _count(connection: psycopg.Connection[TupleRow], table: str) -> int:
    row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(_table(table))).fetchone()
    assert row is not None
    return int(row[0])


def _table(name: str) -> sql.Identifier:
    return sql.Identifier("public", name)


def _month(now: datetime | None) -> Month:
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    return Month(moment.year, moment.month)


def _spans(months: Sequence[Month]) -> Iterator[str]:
    """Sorted months as "2026-01 to 2026-05", one for each stretch without a gap."""
    first = months[0]
    for month, following in zip(months, [*months[1:], None], strict=True):
        if following != month.later(1):
            yield f"{first} to {month}" if first != month else str(month)
            first = following or month
