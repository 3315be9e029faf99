"""One gRPC channel to a daemon, and its health check. Owns nothing but the channel."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address

import grpc

from npcd_client.errors import CallerError, NpcdError, TooLate, Unavailable, from_rpc
from npcd_client.v1 import admin_pb2, admin_pb2_grpc
from npcd_client.waiting import Waiting

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
HEALTH_POLL_S = 0.05
HEALTH_CALL_S = 2.0
STATUS_POLL_S = 0.5
HEALTH_METHOD = "/grpc.health.v1.Health/Check"
HEALTH_SERVING = 1
PORT_MAX = 65535

# An IPv6 address stands in brackets: its colons are not the port's.
_HOST_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.]+(?:%[^\]\s]+)?\]|[^\s:/\[\]]+):(?P<port>[0-9]{1,5})")

Metadata = tuple[tuple[str, str], ...]

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # A daemon on the same machine is back within a second or two, so look soon and often.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


def open_channel(
    target: str, root_certificates: bytes | None, certificate_chain: bytes | None, private_key: bytes | None
) -> grpc.aio.Channel:
    """A channel to "host:port" or "unix:///path": TLS when any certificate is given (mutual with a chain and a key)."""
    options = _OPTIONS + direct(target)
    if root_certificates is None and certificate_chain is None:
        return grpc.aio.insecure_channel(target, options=options)
    credentials = grpc.ssl_channel_credentials(root_certificates, private_key, certificate_chain)
    return grpc.aio.secure_channel(target, credentials, options=options)


def check_target(target: str) -> None:
    """Raises CallerError for an address that gRPC would misread: without a port it connects to port 443, and of a port
    above 65535 it keeps the lower 16 bits.
    """
    if not (isinstance(target, str) and _is_address(target)):
        raise CallerError(
            f"target: is {target!r}, must be host:port with a port of 1 to 65535, or unix:/path", "INVALID_ARGUMENT"
        )


def check_token(token: str) -> None:
    """Raises CallerError for a token that no gRPC metadata can carry. Never shows the token."""
    if not isinstance(token, str):
        raise CallerError(f"token: is of type {type(token).__name__}, must be a text", "INVALID_ARGUMENT")
    if token != token.strip(" ") or not all(" " <= letter <= "~" for letter in token):
        raise CallerError(
            "token: has a letter outside of ASCII, a control character such as a line break, or a space at an end; "
            "must be printable ASCII",
            "INVALID_ARGUMENT",
        )


def _is_address(target: str) -> bool:
    scheme, colon, rest = target.partition(":")
    scheme = scheme.lower() if colon else ""
    if "\0" in target or not target.isprintable():
        return False  # half a surrogate pair is not printable either
    if scheme == "unix":
        return bool(rest) and (not rest.startswith("//") or (len(rest) > 3 and rest[2] == "/"))
    if scheme in ("unix-abstract", "vsock", "xds"):
        return bool(rest)
    if scheme == "dns":
        return _has_port(rest.rpartition("/")[2] if rest.startswith("/") else rest)
    if scheme in ("ipv4", "ipv6"):
        return all(_has_port(each) for each in rest.removeprefix("///").removeprefix("/").split(","))
    return _has_port(target)


def _has_port(target: str) -> bool:
    found = _HOST_PORT.fullmatch(target)
    return found is not None and 1 <= int(found["port"]) <= PORT_MAX


def direct(target: str) -> tuple[tuple[str, int], ...]:
    """The channel option that keeps gRPC from using a proxy (http_proxy and similar variables) for this machine; empty
    for other machines.
    """
    return (("grpc.enable_http_proxy", 0),) if is_here(target) else ()


def is_here(target: str) -> bool:
    """True when a gRPC target is this machine: a Unix socket, localhost, or a loopback address."""
    scheme, colon, rest = target.partition(":")
    if colon and scheme.lower() in ("unix", "unix-abstract"):
        return True
    if colon and scheme.lower() in ("dns", "ipv4", "ipv6"):
        target = rest.rpartition("/")[2]
    host = target.rpartition(":")[0] if target.count(":") == 1 or "]:" in target else target
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    plain = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (plain or address).is_loopback


async def wait_serving(
    channel: grpc.aio.Channel, services: Sequence[str], timeout_s: float | None, metadata: Metadata
) -> None:
    """Returns when each service answers SERVING; raises TooLate with the last reason after `timeout_s`. Without one it
    waits as long as the daemon's start moves.
    """
    began_s = time.monotonic()
    waiting = list(services)
    patience = Waiting(began_s)
    reason, asked_s = "not asked yet", began_s - STATUS_POLL_S
    while waiting:
        now_s = time.monotonic()
        left_s = began_s + timeout_s - now_s if timeout_s is not None else HEALTH_CALL_S
        gives_up = patience.gives_up(now_s) if timeout_s is None else ""
        if left_s <= 0 or gives_up:
            stage = f" ({patience.stage})" if patience.stage else ""
            raise TooLate(f"not ready after {now_s - began_s:.3g} s: {gives_up or reason + stage}")
        try:
            if await _serving(channel, waiting[0], min(left_s, HEALTH_CALL_S), metadata):
                waiting.pop(0)
                continue
            reason = f"{waiting[0]} is not serving yet"
            if now_s - asked_s >= STATUS_POLL_S:
                asked_s = now_s
                patience.hears(await _status(channel, metadata), time.monotonic())
        except NpcdError as error:
            if error.code in ("UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"):
                raise
            reason = f"{waiting[0]}: {error}"
        await asyncio.sleep(min(HEALTH_POLL_S, left_s))


async def _status(channel: grpc.aio.Channel, metadata: Metadata) -> admin_pb2.StatusResponse | None:
    """The status that a starting daemon gives of itself; None when it gives none."""
    try:
        request = admin_pb2.StatusRequest()
        return await admin_pb2_grpc.AdminStub(channel).Status(request, timeout=HEALTH_CALL_S, metadata=metadata)
    except grpc.aio.AioRpcError:
        return None


async def _serving(channel: grpc.aio.Channel, service: str, timeout_s: float, metadata: Metadata) -> bool:
    # grpc.health.v1 in two lines, so that games need no second package: a string in field 1, an enum in field 1.
    name = service.encode()
    assert len(name) < 128, "a longer name needs a longer length prefix"
    check = channel.unary_unary(HEALTH_METHOD, request_serializer=bytes, response_deserializer=bytes)
    question = b"\x0a" + bytes([len(name)]) + name if name else b""
    try:
        answer: bytes = await check(question, timeout=timeout_s, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from None
    return answer == bytes([0x08, HEALTH_SERVING])


def closed() -> NpcdError:
    """The error of calls on a closed client."""
    return Unavailable("this client is not open; use it in `async with`")
