"""Checks of the addresses to listen at, before the daemon listens: the problem with an address, and a fix."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from core.errors import ConfigError
from daemon.config import ServeSettings, unix_path

FLAGS = {"serve.listen": "--listen", "serve.http": "--http"}


class Problem(NamedTuple):
    """The problem with an address and a fix, both empty without a problem."""

    says: str = ""
    fix: str = ""


def check_addresses(serve: ServeSettings) -> None:
    """Raises ConfigError when another process listens at one of the addresses, or npcd cannot listen there."""
    every = [("serve.listen", where) for where in serve.listen] + [
        ("serve.http", where) for where in [serve.http] if where
    ]
    seen: dict[str, str] = {}
    for setting, where in every:
        same = unix_path(where) or where
        if same in seen and not same.endswith(":0"):
            raise ConfigError(f"{setting}: {where} is given twice (also as {seen[same]}); give each address once")
        seen[same] = setting
        found = look(where, FLAGS[setting])
        if found.says:
            raise ConfigError(f"{setting}: cannot listen on {where}: {found.says}; {found.fix}")


def look(where: str, flag: str = "--listen") -> Problem:
    """The problem with a "host:port" or "unix:/path". Changes nothing."""
    path = unix_path(where)
    if path:
        return _look_at_socket(Path(path), flag)
    host, _, port = where.rpartition(":")
    host = host.strip("[]")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        return Problem(f"the name {host} has no address here ({error.strerror})", "give an address, as 127.0.0.1")
    errors = [_error(family, kind, at) for family, kind, _, _, at in found]
    # A name such as localhost may have addresses that this machine does not have; one that is taken counts always.
    if errno.EADDRINUSE in errors:
        return _problem(errno.EADDRINUSE, host, int(port), flag)
    return Problem() if 0 in errors else _problem(errors[0], host, int(port), flag)


def _error(family: int, kind: int, at: Sequence[object]) -> int:
    """The error of listening there; 0 when it works."""
    try:
        with socket.socket(family, kind) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(tuple(at))
            one.listen(1)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _problem(number: int, host: str, port: int, flag: str) -> Problem:
    match number:
        case errno.EADDRINUSE:
            return Problem(
                "another process listens there already",
                f"is another npcd running? ss -lpn shows it; or choose another {flag}",
            )
        case errno.EADDRNOTAVAIL:
            return Problem(f"this machine does not have the address {host}", "ip address shows those that it has")
        case errno.EACCES | errno.EPERM if port < 1024:
            return Problem(
                f"port {port} is below 1024, and only root or a process with CAP_NET_BIND_SERVICE may listen there",
                f"choose a higher port with {flag}",
            )
        case errno.EAFNOSUPPORT:
            return Problem("this machine has no IPv6", f"use an IPv4 address with {flag}")
        case _:
            return Problem(os.strerror(number), f"choose another {flag}")


def _look_at_socket(path: Path, flag: str) -> Problem:
    if not os.access(path.parent, os.W_OK | os.X_OK):
        if os.statvfs(path.parent).f_flag & os.ST_RDONLY:
            return Problem(f"{path.parent} is on a read-only file system", f"choose another {flag}, as below /run")
        return Problem(
            f"the folder {path.parent} cannot be written to by npcd's user (number {os.geteuid()})",
            f"give the folder to it, or choose another {flag}",
        )
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return Problem(f"{path} is a file and no socket", f"move it away, or choose another {flag}")
    except FileNotFoundError:
        return Problem()
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(1)
        try:
            one.connect(str(path))
        except ConnectionRefusedError:
            return Problem()  # left behind by a process that is gone; it is replaced
        except PermissionError:
            return Problem(f"{path} belongs to another user", f"remove it, or choose another {flag}")
        except OSError:
            pass  # it has a listener that does not take us now
    return _problem(errno.EADDRINUSE, "", 0, flag)
