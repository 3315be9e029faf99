"""The errors of this package as types, and the one table that makes them from gRPC statuses."""

from __future__ import annotations

import grpc

# Trailing metadata of RESOURCE_EXHAUSTED and UNAVAILABLE, and of NOT_FOUND.
RETRY_KEY = "retry-after-ms"
EPOCH_KEY = "daemon-epoch"


class NpcdError(Exception):
    """Base of all errors that this package raises on purpose. `code` is the gRPC status name, or empty when there is
    none."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class CallerError(NpcdError):
    """The daemon refused the call: a wrong field, an unknown name, an old version, a missing right."""


class Overloaded(NpcdError):
    """The daemon is too busy for this call now. Try again after `retry_ms`."""

    def __init__(self, message: str, code: str = "", retry_ms: int = 0) -> None:
        super().__init__(message, code)
        self.retry_ms = retry_ms


class TooLate(NpcdError):
    """The answer did not arrive within the caller's time limit."""


class Unavailable(NpcdError):
    """No daemon serves at that address now: not started, still warming up, draining or gone. One that is starting says
    when to try again: after `retry_ms`.
    """

    def __init__(self, message: str, code: str = "", retry_ms: int = 0) -> None:
        super().__init__(message, code)
        self.retry_ms = retry_ms


class DaemonFailed(NpcdError):
    """A part below the daemon's contract failed."""


_BY_CODE: dict[grpc.StatusCode, type[NpcdError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: CallerError,
    grpc.StatusCode.NOT_FOUND: CallerError,
    grpc.StatusCode.FAILED_PRECONDITION: CallerError,
    grpc.StatusCode.ABORTED: CallerError,
    grpc.StatusCode.ALREADY_EXISTS: CallerError,
    grpc.StatusCode.OUT_OF_RANGE: CallerError,
    grpc.StatusCode.PERMISSION_DENIED: CallerError,
    grpc.StatusCode.UNAUTHENTICATED: CallerError,
    grpc.StatusCode.UNIMPLEMENTED: CallerError,
    grpc.StatusCode.DEADLINE_EXCEEDED: TooLate,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
}


def from_rpc(error: grpc.aio.AioRpcError) -> NpcdError:
    """The typed error of a failed call. `retry_ms` comes from the trailing metadata."""
    code = error.code()
    message = error.details() or code.name
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Overloaded(message, code.name, _number(error, RETRY_KEY))
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(message, code.name, _number(error, RETRY_KEY))
    return _BY_CODE.get(code, DaemonFailed)(message, code.name)


def daemon_epoch(error: grpc.aio.AioRpcError) -> int:
    """The epoch of the daemon that answered NOT_FOUND, or 0 when it gave none."""
    return _number(error, EPOCH_KEY)


def _number(error: grpc.aio.AioRpcError, wanted: str) -> int:
    for key, value in error.trailing_metadata() or ():
        if key == wanted:
            try:
                return max(0, int(value))
            except ValueError:
                return 0
    return 0
