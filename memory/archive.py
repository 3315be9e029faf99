"""The archive: every event of a game's lifetime, in PostgreSQL. Written and never read.

Owns one connection, on the feeder's thread. Records come at least once and are stored exactly once: each has its time
and id from the journal, and a record that is there already changes nothing. After any failure the connection is closed,
so that the server rolls back; the same records come again.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg
from psycopg.abc import RV, PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from core.errors import ConfigError, StoreFailed
from core.pseudonym import pseudonym
from memory.records import Body, Kind, Position, Record

REASON_LEN_MAX = 300
URL_HELP = "must be like postgresql://user@host:5432/database, with special characters in it as %XX"
MIGRATE_HELP = "run npcd migrate with the URL of the database's owner"

_TO_JSON = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_DUBIOUS = re.compile(r"\\u(?:0000|d[89a-f])")  # a zero, or one of a surrogate pair, in JSON

# The feeder sets such a record aside, and brings the others.
_OF_A_RECORD = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded)
_FORGETS = str(int(Kind.FORGET))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_AT_MS_MAX = 253_402_300_799_999  # the end of the year 9999, and of datetime

_LIMITS = """
    SELECT set_config('statement_timeout', %(ms)s, true),
           set_config('idle_in_transaction_session_timeout', %(ms)s, true),
           CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
"""
_INSERT = """
    INSERT INTO public.events (event_time, event_id, kind, tenant, world, npc, player, timeline, body)
    SELECT * FROM unnest(
        %s::timestamptz[], %s::uuid[], %s::smallint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[],
        %s::jsonb[]
    )
    ON CONFLICT DO NOTHING
"""
_FORGET = "SELECT public.npcd_forget(%s, %s, %s, %s, %s, %s, %s)"
_MAY_WRITE = """
    SELECT to_regclass('public.events') IS NOT NULL, coalesce(
        has_table_privilege(to_regclass('public.events'), 'INSERT') AND has_function_privilege(
            to_regprocedure('public.npcd_forget(timestamptz, uuid, text, text, text, text, text)'), 'EXECUTE'
        ), false), current_user
"""
_LOOK = """
    SELECT split_part(current_setting('server_version'), ' ', 1), current_user::text, EXISTS (
        SELECT 1 FROM unnest(ARRAY['SELECT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS verb
        WHERE has_table_privilege('public.events', verb)
    )
"""


@dataclass(frozen=True, slots=True)
class ArchiveSettings:
    """The connection to PostgreSQL, which holds the archive. The URL is given as `memory.postgres`."""

    url: str = field(default="", repr=False)  # a password may stand in it
    """Internal: give the URL as `memory.postgres`."""
    connect_s: float = 5.0
    """A connection must be made within this time; less than 2 counts as 2."""
    op_s: float = 5.0
    """A batch must be written within this time; else it failed and is tried again."""
    forget_s: float = 60.0
    """A batch in which a player is forgotten must be written within this time; else it failed and is tried again."""


class Row(NamedTuple):
    """A record as the table has it, all as text: `body` is JSON."""

    event_time: str
    event_id: str
    kind: str
    tenant: str
    world: str
    npc: str
    player: str
    timeline: str
    body: str


def row_of(record: Record, key: bytes) -> Row | None:
    """The archive's row of a record; None when it keeps none. Players' ids are pseudonyms in it."""
    if record.kind is Kind.REDACTED:
        return None
    body: Body = record.body
    player = pseudonym(key, record.tenant, record.player)
    if record.kind is Kind.WORLD:
        body = {"version": body.get("version")}
    elif record.kind is Kind.NPCS:
        body = {"npcs": [npc[0] for npc in body.get("npcs", ())]}
    elif body.get("target_kind") == "player":
        target = pseudonym(key, record.tenant, body.get("target", ""))
        body = {**body, "target": target}
        player = player or target  # so that forgetting the player reaches it
    if record.player:
        body = _renamed(body, record.player, player)
    return Row(
        (_EPOCH + timedelta(milliseconds=min(max(record.at_ms, 0), _AT_MS_MAX))).isoformat(),
        record.id,
        str(int(record.kind)),
        _whole(record.tenant),
        _whole(record.world),
        _whole(record.npc),
        player,
        _whole(record.timeline),
        _json(body),
    )


class ArchiveWriter:
    """The Store (memory/feeder.py) that is PostgreSQL. Its role may add events and forget players, nothing else."""

    def __init__(self, settings: ArchiveSettings, pseudonym_key: bytes) -> None:
        """Does not connect yet. Raises ConfigError when the URL is wrong."""
        check_url("archive.url", settings.url)
        self._settings = settings
        self._key = pseudonym_key
        self._connection: _Bounded | None = None

    @property
    def name(self) -> str:
        """The store's name."""
        return "archive"

    def connect(self) -> Position | None:
        """Connects again. Returns None: the journal keeps this store's position. Raises StoreFailed."""
        self.close()
        with self._failing():
            self._connect()
        return None

    def write(self, records: Sequence[Record], upto: Position) -> None:
        """Adds records that are not there yet and forgets players, in order, all or none. Raises StoreFailed, or
        psycopg's error when a record is at fault and another try would fail as well.
        """
        with self._failing():
            connection = self._connection or self._connect()
            forgets = any(record.kind is Kind.FORGET for record in records)
            limit_s = self._settings.forget_s if forgets else self._settings.op_s
            connection.until_s = time.monotonic() + limit_s
            # The server keeps the limit too: what it does for a connection that is gone must not stand in our way. And
            # a commit is one: the journal does not bring these records again.
            connection.execute(_LIMITS, {"ms": str(max(1, int(limit_s * 1000)))})
            rows: list[Row] = []
            for row in filter(None, (row_of(record, self._key) for record in records)):
                if row.kind != _FORGETS:
                    rows.append(row)
                elif row.player:
                    _insert(connection, rows)
                    rows = []
                    # The server takes away, and adds the row that says so, as the table's owner.
                    connection.execute(_FORGET, (*row[:2], *row[3:8]))
            _insert(connection, rows)
            connection.commit()

    def close(self) -> None:
        """Ends the connection, if there is one, and rolls back."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> _Bounded:
        settings = self._settings
        connection = self._connection = _Bounded.connect(
            settings.url,
            connect_timeout=max(2, math.ceil(settings.connect_s)),
            application_name="npcd",
            client_encoding="utf8",
            prepare_threshold=None,  # poolers between us and the server may not know prepared statements
        )
        connection.until_s = time.monotonic() + settings.op_s
        there, may_write, role = connection.execute(_MAY_WRITE).fetchone() or (False, False, "")
        connection.commit()
        if not there:
            raise StoreFailed(f"PostgreSQL: there is no table events; {MIGRATE_HELP}")
        if not may_write:
            raise StoreFailed(f"PostgreSQL: {role} may not add events; {MIGRATE_HELP} and --serving-role {role}")
        return connection

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Closes the connection when anything fails, and turns PostgreSQL's errors into StoreFailed with a reason."""
        try:
            yield
        except _OF_A_RECORD:
            self.close()
            raise
        except psycopg.Error as error:
            self.close()
            raise StoreFailed(f"PostgreSQL: {reason(error, self._settings.url)}") from None
        except BaseException:
            self.close()
            raise


def look(settings: ArchiveSettings) -> tuple[str, str, bool]:
    """The server's version, our role there, and True if that role may read or change events, which it should not.
    Raises ConfigError, and StoreFailed when npcd could not write.
    """
    writer = ArchiveWriter(settings, b"")
    try:
        with writer._failing():
            version, role, reads = writer._connect().execute(_LOOK).fetchone() or ("", "", False)
        return version, role, reads
    finally:
        writer.close()


def check_url(name: str, url: str) -> None:
    """Raises ConfigError, which does not repeat it, when libpq would not understand the URL."""
    try:
        conninfo_to_dict(url)
    except psycopg.Error:
        raise ConfigError(f"{name}: {URL_HELP}") from None


def reason(error: psycopg.Error, url: str) -> str:
    """The reason of a failure, in one line, without the password of the URL."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, psycopg.errors.InsufficientPrivilege | psycopg.errors.UndefinedTable):
        text = f"{text}; {MIGRATE_HELP}"
    for name in ("password", "sslpassword"):
        secret = str(conninfo_to_dict(url).get(name) or "")
        text = text.replace(secret, "***") if secret else text
    return text if len(text) <= REASON_LEN_MAX else f"{text[: REASON_LEN_MAX - 1]}…"


class _Bounded(psycopg.Connection[TupleRow]):
    """A connection that waits until `until_s` (time.monotonic()) and no longer.

    A server that is stopped, or behind a network that is gone, keeps its sockets open and says nothing. The server's
    own timeouts do not help against that.
    """

    until_s: float = math.inf

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        try:
            return super().wait(gen, interval, max(0.0, self.until_s - time.monotonic()))
        except psycopg.OperationalError as error:
            if time.monotonic() < self.until_s:
                raise
            raise psycopg.OperationalError("no answer in time") from error


def _insert(connection: _Bounded, rows: Sequence[Row]) -> None:
    if rows:
        connection.execute(_INSERT, [_array(column) for column in zip(*rows, strict=True)])


def _array(texts: Iterable[str]) -> str:
    """An array as PostgreSQL reads it. psycopg would look at the type of every element, which costs ten times this."""
    quoted = ('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts)
    return "{" + ",".join(quoted) + "}"


def _renamed(body: Body, player: str, to: str) -> Body:
    """A body without the player's id in the fields where games put it."""
    changed = {n: body[n].replace(player, to) for n in ("turn_id", "session") if isinstance(body.get(n), str)}
    if body.get("name") == player:
        changed["name"] = to
    return {**body, **changed}


def _json(body: Body) -> str:
    """A body as PostgreSQL takes it: with valid text only, and without NaN and infinity. Nearly all bodies are valid,
    and this runs beside the event loop, so only the others are cleaned.
    """
    try:
        said = _TO_JSON(body)
    except ValueError:
        said = ""
    return _TO_JSON(_clean(body)) if not said or _DUBIOUS.search(said) else said


def _clean(said: Any) -> Any:
    if isinstance(said, str):
        return _whole(said)
    if isinstance(said, dict):
        return {_whole(str(name)): _clean(value) for name, value in said.items()}
    if isinstance(said, list | tuple):
        return [_clean(value) for value in said]
    return None if isinstance(said, float) and not math.isfinite(said) else said


def _whole(text: str) -> str:
    """Text without zero characters and halves of surrogate pairs."""
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
