"""`npcd serve` that reports its memory's work: run as a child, `python -m loadtests.bench.memory_served ARGUMENTS`.

/npcd.bench/Memory answers the counts since its last call, as JSON: see Seen. Times are in nanoseconds; Silver's are
kept from the first call on.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc

from core.clock import now_ns
from core.spread import Spread
from core.words import NpcKey
from loadtests.bench.memory_timed import Steps, Stops, time_all

KEPT = 100_000

steps = Steps()
stops = Stops()


@dataclass(slots=True)
class Seen:
    """The measured work of a daemon's memory.

    `recalls` are Recall's own times as Timings have them, with the stores that answered. `prefetches` run from the
    sight of a player to the bond in process. `silver` is TalkRequest received to first text, `gold` due to frame, both
    handed to gRPC. `steps` and `stops` are of memory/ on the event loop, see memory_timed.
    """

    recalls: list[tuple[int, tuple[str, ...], bool]] = field(default_factory=list)
    prefetches: list[int] = field(default_factory=list)
    silver: list[int] = field(default_factory=list)
    gold: list[int] = field(default_factory=list)
    steps: int = 0
    steps_total: int = 0
    steps_longest: list[tuple[int, int, int, str]] = field(default_factory=list)
    stop_longest: int = 0


class Kept(Spread):
    """A Spread that also keeps every time, up to KEPT of them."""

    def __init__(self) -> None:
        super().__init__()
        self.took: list[int] = []

    def add(self, now_ns: int, took_ns: int, amount: int = 0) -> None:
        """Counts a time and keeps it."""
        super().add(now_ns, took_ns, amount)
        if len(self.took) < KEPT:
            self.took.append(took_ns)


seen = Seen()
_asked_ns: dict[tuple[NpcKey, str], int] = {}


def note_reads() -> None:
    """Has recalls and prefetches noted. Call it before memory/ is timed."""
    from memory.bond import Bond
    from memory.bonds import Bonds, Held
    from memory.recall import Recall, Recalled

    recall, prefetch, put = Recall.recall, Recall.prefetch, Bonds.put

    async def noting_recall(self: Recall, npc: NpcKey, player: str) -> Recalled:
        recalled = await recall(self, npc, player)
        if len(seen.recalls) < KEPT:
            seen.recalls.append((recalled.took_ns, recalled.stores, recalled.late))
        return recalled

    def noting_prefetch(self: Recall, npc: NpcKey, player: str) -> None:
        before, began_ns = self.counts.prefetched, now_ns()
        prefetch(self, npc, player)
        if self.counts.prefetched != before and len(_asked_ns) < KEPT:
            _asked_ns[npc, player] = began_ns

    def noting_put(self: Bonds, npc: NpcKey, player: str, bond: Bond, complete: bool) -> Held:
        began_ns = _asked_ns.pop((npc, player), 0)
        held = put(self, npc, player, bond, complete)
        if began_ns:
            seen.prefetches.append(now_ns() - began_ns)
        return held

    for owner, method, inner, ours in (
        (Recall, "recall", recall, noting_recall),
        (Recall, "prefetch", prefetch, noting_prefetch),
        (Bonds, "put", put, noting_put),
    ):
        ours.__module__, ours.__qualname__ = inner.__module__, inner.__qualname__
        setattr(owner, method, ours)


def serve(arguments: list[str]) -> int:
    """Serves as usual, with the one call more."""
    note_reads()
    time_all(steps)
    # Only now: these import functions of memory/ by name.
    import daemon.rpc.grpc_face
    from daemon.main import main

    class Face(daemon.rpc.grpc_face.GrpcFace):
        """The daemon's face with the call above."""

        def _add_services(self, server: grpc.aio.Server) -> None:
            super()._add_services(server)
            steps.start()
            stops.start()
            handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(self._take)
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("npcd.bench", {"Memory": handler}),))

        async def _take(self, _request: bytes, _context: object) -> bytes:
            assert self.calls is not None
            dialogue, intents = self.calls._dialogue.counts, self.calls._table.counts
            seen.silver = dialogue.ttft.took if isinstance(dialogue.ttft, Kept) else []
            seen.gold = [took for _, took in intents.latency_ns]
            seen.steps, seen.steps_total, seen.steps_longest = steps.count, steps.total_ns, steps.longest
            seen.stop_longest = stops.longest_ns
            answer = json.dumps(asdict(seen)).encode()
            dialogue.ttft, intents.latency_ns = Kept(), deque(maxlen=KEPT)
            seen.recalls, seen.prefetches = [], []
            steps.clear()
            stops.clear()
            return answer

    setattr(daemon.rpc.grpc_face, "GrpcFace", Face)  # noqa: B010  # mypy knows it as a class
    return main(["serve", "--no-supervise", *arguments])


def read(answer: bytes) -> Seen:
    """Reads an answer of /npcd.bench/Memory."""
    said: dict[str, Any] = json.loads(answer)
    return Seen(**said)


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1:]))
