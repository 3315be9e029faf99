"""Callers and their rights: the tokens file, and the address of a peer. Decides only.

The tokens file is TOML. A token is a key; its value is a tenant, or a table with a tenant and a role:

    "4f1c..." = "studio-a"                                     # a game server of studio-a
    "9be0..." = { tenant = "studio-a", role = "operator" }     # may also drain the daemon and see all counts

Roles are only ever added. A role that this npcd does not know is refused, so that nobody gets more rights by a slip.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv6Address, ip_address
from urllib.parse import unquote

from core.texts import line_fault

TOKEN_LEN_MIN = 16
TENANT_BYTES_MAX = 64
TOKEN_KEYS = frozenset({"tenant", "role"})
# Metadata that proxies add to a call which they pass on.
FORWARDED = frozenset({"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"})


class Role(StrEnum):
    """The role of a token's holder."""

    GAME = "game"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Token:
    """The tenant and role of one token."""

    tenant: str
    role: Role = Role.GAME


@dataclass(frozen=True, slots=True)
class Caller:
    """One call's caller. `sees_all`: counts are of all tenants, not only its own. `may_drain`: ends the daemon.
    `is_near`: it calls from this machine.
    """

    tenant: str
    sees_all: bool = False
    may_drain: bool = False
    is_near: bool = field(default=False, compare=False)  # for the log: it gives no rights beyond these


def caller_of(token: Token | None, is_near: bool) -> Caller:
    """The caller with a token; None: the daemon has no tokens file, and all callers are one tenant."""
    if token is None:
        return Caller("", sees_all=True, may_drain=is_near, is_near=is_near)
    operator = token.role is Role.OPERATOR
    return Caller(token.tenant, sees_all=operator, may_drain=operator or is_near, is_near=is_near)


def is_near(peer: str, metadata: Iterable[str] = ()) -> bool:
    """True if a peer is on this machine: "ipv4:127.0.0.1:4711", "ipv6:[::1]:4711", "unix:...", as gRPC names it.

    `metadata` are the keys that came with the call. They give no rights; a call that a proxy on this machine
    has passed on is not near, because its caller may be anywhere.
    """
    if any(key.lower() in FORWARDED for key in metadata):
        return False
    scheme, _, rest = unquote(peer).partition(":")
    if scheme == "unix":
        return True
    if scheme not in ("ipv4", "ipv6"):
        return False
    try:
        address = ip_address(rest.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback


def tokens_of(text: str) -> Mapping[str, Token]:
    """The tokens of a tokens file's text. Raises ValueError saying what is wrong; no token stands in the message."""
    table = tomllib.loads(text)
    if not table:
        raise ValueError('it has no tokens; write lines of token = "tenant"')
    return {token: _token(number, token, said) for number, (token, said) in enumerate(table.items(), 1)}


def _token(number: int, token: str, said: object) -> Token:
    where = f"token number {number}"
    if len(token) < TOKEN_LEN_MIN:
        raise ValueError(f'{where} is too short: write lines of token = "tenant", tokens of 16 characters or more')
    if isinstance(said, str):
        return Token(_tenant(where, said))
    if not isinstance(said, Mapping):
        raise ValueError(f'{where} must be a tenant, or a table as in {{ tenant = "studio", role = "operator" }}')
    if unknown := sorted(set(said) - TOKEN_KEYS):
        raise ValueError(f"{where} has the unknown key '{unknown[0]}'; there are: {', '.join(sorted(TOKEN_KEYS))}")
    role = said.get("role", Role.GAME.value)
    if role not in [known.value for known in Role]:
        raise ValueError(f"{where} has the role {role!r}, must be {' or '.join(known.value for known in Role)}")
    return Token(_tenant(where, said.get("tenant")), Role(role))


def _tenant(where: str, said: object) -> str:
    if not isinstance(said, str):
        raise ValueError(f"{where} has no tenant; a tenant is a text")
    if len(said.encode("utf-8", "replace")) > TENANT_BYTES_MAX:
        raise ValueError(f"{where}: a tenant has at most {TENANT_BYTES_MAX} bytes")
    if fault := line_fault(said):
        raise ValueError(f"{where}: the tenant {fault}")
    return said
