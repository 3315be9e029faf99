"""The service Admin: how the daemon does, once or again and again, and Drain, which takes it out of service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

import structlog

from core.errors import CallerError, NotAllowed
from daemon.rpc.callers import Caller
from daemon.rpc.status import StatusBoard
from npcd.v1 import admin_pb2
from scheduler.ticket import Door

GRACE_MS = 5_000  # for a Drain that says none
GRACE_MAX_MS = 600_000

log = structlog.get_logger("npcd")


class Admin:
    """These calls are about the whole daemon, so they get the caller and not only its tenant."""

    def __init__(self, board: StatusBoard, door: Door, drain: Callable[[float], Awaitable[None]]) -> None:
        self._board = board
        self._door = door
        self._drain = drain
        self._draining: asyncio.Task[None] | None = None

    @property
    def draining(self) -> bool:
        """True once somebody who may asked for Drain."""
        return self._draining is not None

    async def status(self, caller: Caller, request: admin_pb2.StatusRequest) -> admin_pb2.StatusResponse:
        """How the daemon does. Worlds, NPCs, streams and turns are counted as far as the caller may know of them."""
        return self._board.message(None if caller.sees_all else caller.tenant)

    async def watch_status(
        self, caller: Caller, request: admin_pb2.WatchStatusRequest
    ) -> AsyncGenerator[admin_pb2.StatusResponse, None]:
        """The same, again and again."""
        interval_ms = request.interval_ms or 1000
        if not 100 <= interval_ms <= 60_000:
            raise CallerError("interval_ms", f"is {interval_ms}, must be 100 to 60000")
        while True:
            yield await self.status(caller, admin_pb2.StatusRequest())
            await asyncio.sleep(interval_ms / 1000)

    async def drain(self, caller: Caller, request: admin_pb2.DrainRequest) -> admin_pb2.DrainResponse:
        """Takes the daemon out of service, for everybody; the answer comes before it ends. Raises NotAllowed."""
        if not caller.may_drain:
            raise NotAllowed(
                "Drain ends the daemon for everybody: call it from this machine (loopback or the Unix socket) or with "
                'a token that has role = "operator" in serve.tokens_file'
            )
        if request.grace_ms > GRACE_MAX_MS:
            raise CallerError("grace_ms", f"is {request.grace_ms}, the limit is {GRACE_MAX_MS}")
        works = self._door.open
        if self._draining is None:
            log.info(
                "drain asked for",
                by="this machine" if caller.is_near else "an operator",
                tenant=caller.tenant,
                grace_ms=request.grace_ms or GRACE_MS,
                works=works,
            )
            self._draining = asyncio.create_task(self._drain_soon((request.grace_ms or GRACE_MS) / 1000))
        return admin_pb2.DrainResponse(works_running=works)

    async def _drain_soon(self, grace_s: float) -> None:
        await asyncio.sleep(0.05)  # the answer to Drain leaves first
        await self._drain(grace_s)
