"""`npcd serve` that reports how long it blocked its event loop: run as a child, `python -m loadtests.bench.stretches
ARGS`.

A stretch is a run of the loop without a pause: one callback, or one step of a coroutine. Its time is the CPU time of
the loop's thread, so a busy machine does not count; the wall time beside it includes other threads that held the
interpreter. Garbage collections within a stretch are part of it. The loop is asyncio's own, because uvloop's callbacks
cannot be timed; the code that runs in it is the same.

/npcd.bench/Longest answers, as JSON, the longest stretch since its last call. /npcd.bench/Tidy does the housekeeping of
every minute.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Coroutine
from typing import Any

import grpc

NOTED_NS = 1_000_000  # shorter stretches are not recorded in detail
INNERMOST = 4  # innermost calls that are reported of a waiting coroutine


class Stretches:
    """The longest stretch on the loop since take()."""

    def __init__(self) -> None:
        self.cpu_ns = 0
        self.wall_ns = 0
        self.what = ""

    def start(self) -> None:
        """From now on every callback of asyncio's loops is timed."""
        run, cpu, wall = asyncio.Handle._run, time.thread_time_ns, time.monotonic_ns

        def timed(handle: Any) -> None:
            began_cpu_ns, began_ns = cpu(), wall()
            try:
                run(handle)
            finally:
                took_ns = cpu() - began_cpu_ns
                self.wall_ns = max(self.wall_ns, wall() - began_ns)
                if took_ns > self.cpu_ns:
                    self.cpu_ns = took_ns
                    self.what = _what(handle) if took_ns > NOTED_NS else ""

        setattr(asyncio.Handle, "_run", timed)  # noqa: B010  # mypy knows it as a method

    def take(self) -> dict[str, Any]:
        """The longest stretch since the last take()."""
        said = {"cpu_ns": self.cpu_ns, "wall_ns": self.wall_ns, "what": self.what}
        self.cpu_ns = self.wall_ns = 0
        self.what = ""
        return said


def _what(handle: Any) -> str:
    """The callback, or the innermost lines at which the stepped coroutine waits now."""
    task = getattr(handle._callback, "__self__", None)
    if not isinstance(task, asyncio.Task):
        return repr(handle._callback)[:200]
    lines = []
    inner: Any = task.get_coro()
    while (frame := getattr(inner, "cr_frame", None)) is not None:
        lines.append(f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}")
        inner = getattr(inner, "cr_await", None)
    coroutine = task.get_coro()
    at = " > ".join(lines[-INNERMOST:]) or "(over)"
    return f"{getattr(coroutine, '__qualname__', repr(coroutine))[:200]} {at}"


stretches = Stretches()


def serve(arguments: list[str]) -> int:
    """Serves as usual, on a timed loop, with the calls above."""
    import daemon.process.serve
    import daemon.process.tidy
    import daemon.rpc.grpc_face
    from daemon.main import main

    class Face(daemon.rpc.grpc_face.GrpcFace):
        """The daemon's face with the calls above."""

        def _add_services(self, server: grpc.aio.Server) -> None:
            super()._add_services(server)
            handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
                name: grpc.unary_unary_rpc_method_handler(method)
                for name, method in (("Longest", self._longest), ("Tidy", self._tidy))
            }
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("npcd.bench", handlers),))

        async def _longest(self, _request: bytes, _context: object) -> bytes:
            return json.dumps(stretches.take()).encode()

        async def _tidy(self, _request: bytes, _context: object) -> bytes:
            every_s = daemon.process.tidy.EVERY_S
            daemon.process.tidy.EVERY_S = 1
            await asyncio.sleep(3)
            daemon.process.tidy.EVERY_S = every_s
            return b""

    class Loops:
        """Stands in for uvloop."""

        @staticmethod
        def run(main: Coroutine[Any, Any, int]) -> int:
            """Runs as asyncio's does."""
            return asyncio.run(main)

    revive = getattr(daemon.process.serve, "revive")  # noqa: B009  # mypy wants it to be exported

    async def noted_revive(*args: Any) -> None:
        await asyncio.sleep(0)
        stretches.take()  # loading and warming up a model is no call
        await revive(*args)

    for name, ours in (("GrpcFace", Face), ("uvloop", Loops), ("revive", noted_revive)):
        setattr(daemon.process.serve, name, ours)
    stretches.start()
    return main(["serve", "--no-supervise", *arguments])


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1:]))
