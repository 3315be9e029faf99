"""Three kinds of failure: the caller asked wrongly, we are too busy, something below failed.

A bug is none of these: it is an assert, and nobody catches it to go on quietly.
"""

from __future__ import annotations

MESSAGE_LEN_MAX = 300


class NpcdError(Exception):
    """Base of every error that npcd raises on purpose."""


class CallerError(NpcdError):
    """The caller asked for something that is wrong; the message names the field and the limit.

    The message may quote the caller's text, so it is cut: a status travels in a header, and headers have a limit.
    """

    def __init__(self, field: str, message: str) -> None:
        text = f"{field}: {message}" if field else message
        super().__init__(text if len(text) <= MESSAGE_LEN_MAX else f"{text[: MESSAGE_LEN_MAX - 1]}…")
        self.field = field[:MESSAGE_LEN_MAX]


class NotFound(CallerError):
    """The caller named something that does not exist."""


class Stale(CallerError):
    """The caller holds an older lease or version than the present one."""


class Unauthenticated(NpcdError):
    """The caller has no credentials, or unknown ones."""


class NotAllowed(NpcdError):
    """The caller is known but has no right to do this; the message names the role that has."""


class NotBuilt(NpcdError):
    """The contract has this call, but this daemon does not answer it yet."""


class Overloaded(NpcdError):
    """Too busy. Normal, cheap, counted; retry after `retry_ms`."""

    def __init__(self, message: str, retry_ms: int) -> None:
        super().__init__(message)
        self.retry_ms = retry_ms


class Draining(NpcdError):
    """This daemon is shutting down and takes no new work."""


class NotReady(NpcdError):
    """This daemon is starting; it serves after about `retry_ms`."""

    def __init__(self, message: str, retry_ms: int) -> None:
        super().__init__(message)
        self.retry_ms = retry_ms


class EngineFailed(NpcdError):
    """The engine below returned an error."""


class StoreFailed(NpcdError):
    """A store (the journal's disk, Redis, PostgreSQL) is away, slow or refuses."""


class ConfigError(NpcdError):
    """A setting is wrong; the message says how to fix it."""
