"""Health and metrics over HTTP: /healthz (the process answers, and says what is not as it should be), /readyz (it
serves), /metrics (Prometheus).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from aiohttp import web
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from core.clock import MS, now_ns
from core.errors import ConfigError
from core.slices import Slices
from daemon.addresses import look

SLICE_NS = MS


class Probes:
    """A small HTTP server on the daemon's event loop."""

    def __init__(
        self, phase: Callable[[], str], collector: Collector, degraded: Callable[[], list[str]] = list
    ) -> None:
        self._phase = phase
        self._degraded = degraded
        self._collector = collector
        self._runner: web.AppRunner | None = None

    async def start(self, address: str) -> str:
        """Starts to listen; the address with its real port. Raises ConfigError when it cannot."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", self._health),
                web.get("/readyz", self._ready),
                web.get("/metrics", self._metrics),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        problem = look(address, "--http")
        if problem.says:
            await self._runner.cleanup()
            raise ConfigError(f"serve.http: cannot listen on {address}: {problem.says}; {problem.fix}")
        host, _, port = address.rpartition(":")
        site = web.TCPSite(self._runner, host.strip("[]"), int(port))
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"serve.http: cannot listen on {address} ({error.strerror}); choose another --http"
            ) from error
        real = self._runner.addresses[0]
        return f"{real[0]}:{real[1]}"

    async def stop(self) -> None:
        """Stops listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        # Degraded is healthy: a probe that had it started anew would help nobody.
        degraded = self._degraded()
        return web.Response(text="\n".join(["degraded", *degraded, ""] if degraded else ["ok", ""]))

    async def _ready(self, _: web.Request) -> web.Response:
        phase = self._phase()
        return web.Response(text=f"{phase}\n", status=200 if phase == "serving" else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        slices = Slices(SLICE_NS, now_ns)
        lines = []
        for family in self._collector.collect():
            lines.append(generate_latest(_Alone(family)))
            await slices.rest()
        return web.Response(body=b"".join(lines), headers={"Content-Type": CONTENT_TYPE_LATEST})


class _Alone(Collector):
    """One family, to be written by itself: all of them together would keep the event loop for some milliseconds."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        """The family."""
        return [self._family]
