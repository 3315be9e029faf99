"""`npcd serve` with three calls more, for benchmarks: run as a child, `python -m loadtests.bench.served ARGUMENTS`.

/npcd.bench/Empty answers nothing: its time is the cost of any call. /npcd.bench/Bronze keeps as many Bronze works
running as its four bytes say, since no Story rpc exists yet. /npcd.bench/Lanes reports when lanes were leased and given
back, on the machine's monotonic clock, so that another process can compare the times with its own.
"""

from __future__ import annotations

import struct
import sys
from collections import deque
from typing import Any

import grpc
import numpy as np

import daemon.rpc.grpc_face
import engines.llama.engine
import scheduler.scheduler
from core.clock import S
from core.clock import now_ns as monotonic_ns
from core.words import Tier, TrunkKey
from core.work import Ended, Work
from daemon.main import main
from daemon.rpc.grpc_face import GrpcFace
from engines.llama import LlamaVocab
from scheduler.place import Place
from scheduler.placing import Placer

SERVICE = "npcd.bench"
BRONZE_TAIL_LEN = 24
BRONZE_TOKENS = 150
# A lane leased (LEASED) or given back: when, how many tokens of the tail and after it were in it, the tail's length,
# and its NPC.
LANE = struct.Struct("<qii32s")
LEASED = -1

_lanes: deque[bytes] = deque(maxlen=4096)


class Face(GrpcFace):
    """The daemon's face with the calls above."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._wanted = 0
        self._running = 0

    def _add_services(self, server: grpc.aio.Server) -> None:
        super()._add_services(server)
        methods = {"Empty": self._empty, "Bronze": self._bronze, "Lanes": self._take_lanes}
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def _empty(self, _request: bytes, _context: object) -> bytes:
        return b""

    async def _bronze(self, request: bytes, _context: object) -> bytes:
        self._wanted = int.from_bytes(request, "little")
        while self._running < self._wanted:
            self._running += 1
            self._submit(self._running)
        return b""

    async def _take_lanes(self, _request: bytes, _context: object) -> bytes:
        answer = b"".join(_lanes)
        _lanes.clear()
        return answer

    def _submit(self, number: int) -> None:
        """Submits one Bronze work on the trunk of some NPC; when it ends the next takes its place."""
        assert self.calls is not None
        npcs = [npc for world in self.calls._worlds for npc in world.npcs.values()]
        npc = npcs[number * 12 % len(npcs)]
        now = monotonic_ns()
        trunk = self.calls._worlds.layouts[0].trunk(npc.script)
        work = Work(
            tier=Tier.BRONZE,
            key=TrunkKey(npc.key, ""),
            trunk=trunk.tokens,
            shared=trunk.shared,
            # The words do not matter; another number gives other words.
            tail=np.asarray([300 + (number * 37 + i) % 1000 for i in range(BRONZE_TAIL_LEN)], np.int32),
            max_tokens=BRONZE_TOKENS + number * 37 % BRONZE_TOKENS,  # they do not all end at once
            due_ns=now,
            deadline_ns=now + 5 * S,
        )

        def on_end(_: Ended) -> None:
            if self._running > self._wanted:
                self._running -= 1
            else:
                self._submit(number + 1)

        self.calls.admin._door.submit(work, on_end)


class EndlessVocab(LlamaVocab):
    """No token ends a text by itself, so a Bronze work has all of its tokens. Dialogues have stop ids of their own."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.eog_ids = frozenset()


class NotingPlacer(Placer):
    """A placer that notes when lanes were leased and given back."""

    def place(self, work: Work, now_ns: int) -> Place | None:
        place = super().place(work, now_ns)
        if place is not None:
            _note(place, LEASED)
        return place

    def release(self, place: Place, now_ns: int) -> None:
        super().release(place, now_ns)
        _note(place, place.branch_len)


def _note(place: Place, branch_len: int) -> None:
    if place.lane >= 0:
        whose = place.work.key.partner.encode()[:32]
        _lanes.append(LANE.pack(monotonic_ns(), branch_len, len(place.work.tail), whose))


if __name__ == "__main__":
    # The daemon is built as usual, with these two instead of its own.
    for module, name, ours in (
        (daemon.rpc.grpc_face, "GrpcFace", Face),
        (scheduler.scheduler, "Placer", NotingPlacer),
        (engines.llama.engine, "LlamaVocab", EndlessVocab),
    ):
        setattr(module, name, ours)
    sys.exit(main(["serve", "--no-supervise", *sys.argv[1:]]))
