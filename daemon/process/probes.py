"""Health and metrics over HTTP: /healthz (the process answers, and says what is not as it should be), /readyz (it
serves; until then, how far the start is), /metrics (Prometheus).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from core.clock import MS, Clock, S, now_ns
from core.errors import ConfigError
from core.slices import Slices
from daemon.config import unix_path
from daemon.rpc.addresses import look
from daemon.starting import Start

SLICE_NS = MS
LOG_AGAIN_NS = 600 * S  # a client that tries again and again costs a log line in ten minutes

log = structlog.get_logger("npcd")


class Probes:
    """A small HTTP server on the daemon's event loop."""

    def __init__(
        self,
        phase: Callable[[], str],
        collector: Collector,
        degraded: Callable[[], list[str]] = list,
        start: Start | None = None,
    ) -> None:
        self._phase = phase
        self._start = start
        self._degraded = degraded
        self._collector = collector
        self._runner: web.AppRunner | None = None
        self._path = ""  # of the Unix socket, from the moment that it is ours

    async def start(self, address: str) -> str:
        """Starts to listen at "host:port" or "unix:/path"; the address with its real port. Raises ConfigError when it
        cannot.
        """
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", self._health),
                web.get("/readyz", self._ready),
                web.get("/metrics", self._metrics),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, logger=_logger())
        await self._runner.setup()
        problem = look(address, "--http")
        if problem.says:
            await self._runner.cleanup()
            raise ConfigError(f"serve.http: cannot listen on {address}: {problem.says}; {problem.fix}")
        path = unix_path(address)
        host, _, port = address.rpartition(":")
        site: web.BaseSite = (
            web.UnixSite(self._runner, path) if path else web.TCPSite(self._runner, host.strip("[]"), int(port))
        )
        before = os.umask(0o177)  # a Unix socket is its owner's alone, from the moment it exists
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"serve.http: cannot listen on {address} ({error.strerror}); choose another --http"
            ) from error
        finally:
            os.umask(before)
        if path:
            self._path = path
            return f"unix:{path}"
        real = self._runner.addresses[0]
        return f"{real[0]}:{real[1]}"

    async def stop(self) -> None:
        """Stops listening."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    async def _health(self, _: web.Request) -> web.Response:
        # Degraded is healthy: a restart by a probe would not help.
        degraded = self._degraded()
        return web.Response(text="\n".join(["degraded", *degraded, ""] if degraded else ["ok", ""]))

    async def _ready(self, _: web.Request) -> web.Response:
        phase = self._phase()
        said = f"{phase}\n"
        if phase == "starting" and self._start is not None:
            said += f"{self._start.progress(now_ns())}\n"
        return web.Response(text=said, status=200 if phase == "serving" else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        slices = Slices(SLICE_NS, now_ns)
        lines = []
        for family in self._collector.collect():
            lines.append(generate_latest(_Alone(family)))
            await slices.rest()
        return web.Response(body=b"".join(lines), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _logger() -> logging.Logger:
    """A logger for aiohttp that nobody else has, so that its lines are written as all others are."""
    logger = logging.Logger("npcd.probes")
    logger.addHandler(_Lines())
    return logger


class _Lines(logging.Handler):
    """aiohttp's log. Bytes that are no HTTP/1 (a gRPC client, a port scanner) are no fault of ours: they cost one short
    line now and then, and no traceback.
    """

    def __init__(self, clock: Clock = now_ns) -> None:
        super().__init__()
        self._clock = clock
        self._logged_ns: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record as a line of the daemon's, or leaves it out."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            now = self._clock()
            if self._logged_ns is None or now - self._logged_ns >= LOG_AGAIN_NS:
                self._logged_ns = now
                peer = record.args[0] if isinstance(record.args, tuple) and record.args else None
                log.warning(
                    "probe request not understood",
                    peer=str(peer or "unix"),
                    why=type(error).__name__,
                    hint="this port speaks HTTP/1 for probes and metrics; gRPC is at serve.listen",
                )
        elif record.levelno >= logging.WARNING:
            log.error("probes failed", why=record.getMessage(), exc_info=record.exc_info or None)


class _Alone(Collector):
    """One family, to be written by itself: all of them together would keep the event loop for some milliseconds."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        """The family."""
        return [self._family]
