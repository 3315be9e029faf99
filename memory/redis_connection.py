"""A connection to Redis (6.2 or newer) or Valkey: settings, options, a blocking connection, and errors.

The server may fail over, but must not be a cluster: one MULTI has keys of several slots. A server that evicts keys
without expiry would lose the journal's position, so its maxmemory-policy must be noeviction or volatile-*. An ACL user
needs ~npcd:* +@read +@write +@transaction +ping +select; with rewrite_aof also +bgrewriteaof +info.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import connection as blocking
from redis.asyncio import connection as awaited
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from core.errors import ConfigError, StoreFailed
from memory.recent_keys import Command
from memory.redis_reasons import refusal

REASON_LEN_MAX = 160
URL_PARTS = frozenset("host port path db username password".split())
TLS_OPTIONS = frozenset("ssl_certfile ssl_keyfile ssl_password ssl_ca_certs ssl_check_hostname ssl_cert_reqs".split())
BLOCKING = {
    "redis": blocking.Connection,
    "rediss": blocking.SSLConnection,
    "unix": blocking.UnixDomainSocketConnection,
}
AWAITED: Mapping[str, Callable[..., awaited.AbstractConnection]] = {
    "redis": awaited.Connection,
    "rediss": awaited.SSLConnection,
    "unix": awaited.UnixDomainSocketConnection,
}


@dataclass(frozen=True, slots=True)
class RecentSettings:
    """The connection to Redis, which holds recent memory. The URL is given as `memory.redis`."""

    url: str = field(default="", repr=False)  # a password may stand in it
    """Internal: give the URL as `memory.redis`."""
    user: str = ""
    """Redis user (ACL), if the URL names none."""
    password_file: str = ""
    """File with the user's password on one line."""
    ca_file: str = ""
    """PEM file with a CA that is trusted beside the system's, for `rediss://`."""
    rewrite_aof: bool = False
    """Asks a Redis given by URL to write its append-only file anew after a player was forgotten; until then the deleted
    text stands in that file. npcd always asks its own Redis.
    """
    recall_ms: float = 20.0
    """A turn waits this long for Redis; then it goes on without (`recall_late`), and the next turn asks again."""
    connect_s: float = 1.0
    """A connection must be made within this time."""
    op_s: float = 1.0
    """Any other request to Redis must be answered within this time."""


class Asking:
    """A blocking connection. Used by one thread at a time."""

    def __init__(self, settings: RecentSettings) -> None:
        """Does not connect. Raises ConfigError when the settings do not say how to."""
        scheme, self._options = connection_options(settings)
        self._options["socket_timeout"] = settings.op_s
        self._class: Any = BLOCKING[scheme]
        self._connection: Any = None  # untyped there
        self._password: str = self._options.get("password", "")

    def open(self) -> None:
        """Connects anew. Raises StoreFailed."""
        self.close()
        self._connection = self._class(**self._options)
        try:
            self._connection.connect()
        except (RedisError, OSError) as error:
            raise self.failed(error) from error

    def close(self) -> None:
        """Ends the connection, if there is one."""
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to commands that are sent together. After an error the connection is a new one. Raises
        StoreFailed.
        """
        connection = self._connection
        if connection is None:
            raise StoreFailed("is not connected")
        try:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            return [connection.read_response() for _ in commands]
        except (RedisError, OSError) as error:
            connection.disconnect()
            raise self.failed(error) from error

    def failed(self, error: Exception) -> StoreFailed:
        """The error in a line that may be logged."""
        return StoreFailed(reason_of(error, self._password))


def connection_options(settings: RecentSettings) -> tuple[str, dict[str, Any]]:
    """The URL's scheme, and what a connection is made with. Raises ConfigError."""
    scheme = settings.url.partition(":")[0].lower()
    try:
        if "://" not in settings.url:
            raise ValueError("redis-py reads redis:HOST as a URL without a host")
        options: dict[str, Any] = {**awaited.parse_url(settings.url)}
    except ValueError:
        must = "redis://host:port, rediss://host:port or unix:///path, with %40 for @ and %2F for / in a password"
        raise ConfigError(f"Redis's URL must be {must}") from None  # the error may have a part of the password
    options.pop("connection_class", None)
    unknown = set(options) - URL_PARTS - (TLS_OPTIONS if scheme == "rediss" else frozenset())
    if unknown:
        raise ConfigError(f"Redis's URL has unknown options: {', '.join(sorted(unknown))}")
    if settings.user:
        options["username"] = settings.user
    if settings.password_file:
        try:
            options["password"] = Path(settings.password_file).read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            raise ConfigError(f"Redis's password_file cannot be read: {error}") from error
    if settings.ca_file and scheme == "rediss":
        if not Path(settings.ca_file).is_file():
            raise ConfigError(f"Redis's ca_file is not a file: {settings.ca_file}")
        options["ssl_ca_certs"] = settings.ca_file
    own = {"socket_connect_timeout": settings.connect_s, "socket_timeout": None, "protocol": 2, "driver_info": None}
    return scheme, options | own


def reason_of(error: BaseException, password: str) -> str:
    """Why something failed, in a line that may be logged: without the password, without keys."""
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return "did not answer in time"
    text = " ".join(str(error).split()).partition(", with args")[0] or type(error).__name__
    known = refusal(type(error).__name__, text)
    if known:
        return known
    return (text.replace(password, "***") if password else text)[:REASON_LEN_MAX]
