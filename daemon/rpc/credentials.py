"""Certificates, client CAs and tokens as they stand in their files, read again when these change and on SIGHUP.

A pair that does not fit together, or a file that cannot be read, changes nothing: the last good one stays in use, and
`trouble` says so. Open connections go on with the certificates they began with; calls look at the tokens each time.
Owns the files' last content; a thread reads, the event loop swaps.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import structlog

from core.errors import ConfigError
from core.files import from_home, read_text
from daemon.config import ServeSettings
from daemon.rpc.callers import Token, tokens_of

LOOK_EVERY_S = 1.0
PEM_BYTES_MAX = 1 << 20
CERTIFICATE, KEY, CLIENT_CA, TOKENS = "tls_certificate", "tls_key", "tls_client_ca", "tokens_file"

log = structlog.get_logger("npcd")

T = TypeVar("T")
Mark = tuple[tuple[int, ...], ...]  # a change of it means that a file has changed


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM bytes: a chain and its key, and the CAs of client certificates; None: clients need none."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


class Credentials:
    """The credentials in use now. Raises ConfigError when the files are wrong at the start."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._seen = (self._mark(CERTIFICATE, KEY, CLIENT_CA), self._mark(TOKENS))
        self.tls = read_tls(settings)
        self.tokens = read_tokens(settings)
        self._trouble = ["", ""]

    @property
    def trouble(self) -> list[str]:
        """Problems of the last reading, a line each; empty when all is well."""
        return [line for line in self._trouble if line]

    async def keep_up(self) -> None:
        """Reads files again when they change, until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.read_again(only_changed=True)

    async def read_again(self, only_changed: bool = False) -> None:
        """Reads the files again. A wrong file is logged and changes nothing."""
        seen = await asyncio.to_thread(lambda: (self._mark(CERTIFICATE, KEY, CLIENT_CA), self._mark(TOKENS)))
        before, self._seen = self._seen, seen
        if not only_changed or seen[0] != before[0]:
            self.tls = await self._read(0, "certificates", read_tls, self.tls)
        if not only_changed or seen[1] != before[1]:
            self.tokens = await self._read(1, "tokens", read_tokens, self.tokens)
        if not only_changed:
            log.info("credentials checked", trouble=self.trouble)

    async def _read(self, number: int, what: str, read: Callable[[ServeSettings], T], present: T) -> T:
        try:
            new = await asyncio.to_thread(read, self._settings)
        except ConfigError as error:
            self._trouble[number] = f"{error}; those read before stay in use"
            log.error("credentials not read", what=what, reason=str(error), in_use="those read before")
            return present
        self._trouble[number] = ""
        if new != present:
            log.info("credentials read again", what=what)
        return new

    def _mark(self, *settings: str) -> Mark:
        """Sizes, times and numbers of files; of a link its file's: a Kubernetes secret is a link that changes."""
        marks: list[tuple[int, ...]] = []
        for name in settings:
            try:
                stat = os.stat(os.path.expanduser(getattr(self._settings, name)))
                marks.append((stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino, stat.st_dev))
            except OSError:
                marks.append(())
        return tuple(marks)


def read_tls(settings: ServeSettings) -> Tls | None:
    """The files that the settings name, checked as a whole; None without TLS. Raises ConfigError."""
    s = settings
    if not s.tls_certificate:
        return None
    certificate, key = _bytes_of(CERTIFICATE, s.tls_certificate), _bytes_of(KEY, s.tls_key)
    ca = _bytes_of(CLIENT_CA, s.tls_client_ca) if s.tls_client_ca else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # The check uses the very bytes that will be served: the files may change at any moment.
    with _in_memory(certificate) as chain, _in_memory(key) as private:
        try:
            context.load_cert_chain(chain, private, password=_refuse)
        except ssl.SSLError as error:
            raise ConfigError(
                f"serve.tls_certificate and serve.tls_key: {s.tls_certificate} and {s.tls_key} are no pair of a PEM "
                f"certificate and its key ({error.reason or 'not PEM'}); give two that belong together"
            ) from error
        except _Encrypted:
            raise ConfigError(f"serve.tls_key: {s.tls_key} is encrypted; give a key without a password") from None
    if ca is not None:
        try:
            context.load_verify_locations(cadata=ca.decode("ascii", "replace"))
        except (ssl.SSLError, ValueError):
            raise ConfigError(f"serve.tls_client_ca: {s.tls_client_ca} has no PEM certificate of a CA") from None
    return Tls(certificate, key, ca)


def read_tokens(settings: ServeSettings) -> Mapping[str, Token] | None:
    """The tokens of the tokens file; None without one. Raises ConfigError."""
    path = settings.tokens_file
    if not path:
        return None
    try:
        return tokens_of(read_text(from_home(path, "serve.tokens_file"), f"serve.tokens_file: {path}"))
    except ValueError as error:
        raise ConfigError(f"serve.tokens_file: {path}: {error}") from error


class _Encrypted(Exception):
    """A key needs a password, and there is nobody to ask."""


def _refuse() -> str:
    raise _Encrypted


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """The path of a file with this content that is on no disk."""
    fd = os.memfd_create("npcd-tls", os.MFD_CLOEXEC)
    try:
        os.write(fd, content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _bytes_of(setting: str, path: str) -> bytes:
    try:
        with open(from_home(path, f"serve.{setting}"), "rb") as file:
            content = file.read(PEM_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"serve.{setting}: cannot read {path} ({error.strerror})") from error
    if not 0 < len(content) <= PEM_BYTES_MAX:
        raise ConfigError(f"serve.{setting}: {path} has {len(content)} bytes, must be 1 to {PEM_BYTES_MAX} of PEM")
    return content
