"""`npcd serve` that reports its threads' CPU time and its intents' lateness, and whose engine can be stopped, for
benchmarks: run as a child, `python -m loadtests.bench.attention_served ARGUMENTS`.

The calls below /npcd.bench answer JSON. Spent gives a Spent. Late gives the intents' lateness since its last call, from
due to handed to gRPC. Counts gives the daemon's counts of intents. Stop stops the engine in the middle of its next step
for as many milliseconds as its four bytes say, and answers at once.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, field, fields

import grpc

import daemon.model
import daemon.rpc.grpc_face
from daemon.main import main
from daemon.rpc.grpc_face import GrpcFace
from engines.base import StepPlan, StepResult
from engines.llama import LlamaEngine

KEPT = 100_000
ENGINE = "engine"  # the name of the engine's thread
SERVICE = "npcd.bench"


@dataclass(slots=True)
class Spent:
    """CPU time since the process began, in nanoseconds: in total, and by the threads that Python knows by name."""

    at_ns: int
    process_ns: int
    threads: dict[str, int] = field(default_factory=dict)

    def cores(self, before: Spent) -> dict[str, float]:
        """Cores used since then, by thread. "native" are threads that Python does not know, such as gRPC's."""
        wall_ns = self.at_ns - before.at_ns
        named = {name: (ns - before.threads.get(name, 0)) / wall_ns for name, ns in self.threads.items()}
        return {**named, "native": (self.process_ns - before.process_ns) / wall_ns - sum(named.values())}


def spent() -> Spent:
    """The CPU time of this process. Each thread has a clock of its own, which any other thread may read, to the
    nanosecond."""
    threads: dict[str, int] = {}
    for thread in threading.enumerate():
        if thread.ident is not None:
            clock = time.pthread_getcpuclockid(thread.ident)
            threads[thread.name] = threads.get(thread.name, 0) + time.clock_gettime_ns(clock)
    return Spent(time.monotonic_ns(), time.process_time_ns(), threads)


class StoppableEngine(LlamaEngine):
    """The real engine; stop() stops it in its next step."""

    stopped_until_s = 0.0

    def step(self, plan: StepPlan) -> StepResult:
        """Waits while the engine is stopped, as a hanging library call would: without the interpreter's lock."""
        while (left_s := StoppableEngine.stopped_until_s - time.monotonic()) > 0:
            time.sleep(left_s)
        return super().step(plan)


class Face(GrpcFace):
    """The daemon's face with the calls above."""

    def _add_services(self, server: grpc.aio.Server) -> None:
        super()._add_services(server)
        methods = {"Spent": self._spent, "Late": self._late, "Counts": self._counts, "Stop": self._stop}
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def _spent(self, _request: bytes, _context: object) -> bytes:
        return json.dumps(asdict(spent())).encode()

    async def _late(self, _request: bytes, _context: object) -> bytes:
        assert self.calls is not None
        counts = self.calls._table.counts
        answer = json.dumps([late_ns for _, late_ns in counts.latency_ns]).encode()
        counts.latency_ns = deque(maxlen=KEPT)
        return answer

    async def _counts(self, _request: bytes, _context: object) -> bytes:
        assert self.calls is not None
        counts = self.calls._table.counts
        said = {f.name: value for f in fields(counts) if isinstance(value := getattr(counts, f.name), int)}
        return json.dumps(said).encode()

    async def _stop(self, request: bytes, _context: object) -> bytes:
        StoppableEngine.stopped_until_s = time.monotonic() + int.from_bytes(request, "little") / 1000
        return b""


if __name__ == "__main__":
    # The daemon is built as usual, with these two instead of its own.
    setattr(daemon.rpc.grpc_face, "GrpcFace", Face)  # noqa: B010
    setattr(daemon.model, "LlamaEngine", StoppableEngine)  # noqa: B010
    sys.exit(main(["serve", "--no-supervise", *sys.argv[1:]]))
