"""npcd's scheduler behind the few lines of HTTP that llama-server also serves, so that both get the same requests.

Run as a program, `python -m loadtests.bench.kv_served PORT RAM_MIB MODEL`, it serves the ladder's rig, with npcd's own
Redis behind its RAM, until SIGTERM. POST /completion takes a prompt as token ids, its NPC and the length of its trunk,
and streams greedy tokens as server-sent events. Owns the rig.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import uvloop

from core.clock import MS, now_ns
from core.words import NpcKey, Tier, TrunkKey
from core.work import Chunk, Ended, Work
from daemon.process.tidy import Tidy
from engines.base import tokens_of
from loadtests.bench.kv_homes import with_store
from loadtests.bench.rig import Rig, tuned
from loadtests.peers.llama_server import HOST

WAITING_MAX = 8192  # no request is refused, as on the peer


class Served:
    """The requests of one rig's callers."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection's requests, one after another."""
        try:
            while line := await reader.readline():
                length = 0
                while (header := (await reader.readline()).strip().lower()) != b"":
                    if header.startswith(b"content-length:"):
                        length = int(header.split(b":")[1])
                body = await reader.readexactly(length)
                if line.startswith(b"POST"):
                    await self._complete(json.loads(body), writer)
                else:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the caller has left
        finally:
            writer.close()

    async def _complete(self, asked: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n")
        vocab, over = self._rig.engine.vocab, asyncio.Event()

        def on_chunk(chunk: Chunk) -> None:
            text = b"".join(map(vocab.piece, chunk.tokens)).decode("utf-8", "replace")
            _event(writer, {"content": text, "tokens": chunk.tokens, "stop": False})

        def on_end(ended: Ended) -> None:
            timings = {"prompt_n": ended.timings.prefilled_tokens}
            _event(writer, {"content": "", "tokens": [], "stop": True, "timings": timings})
            writer.write(b"0\r\n\r\n")
            over.set()

        now, tokens = now_ns(), tokens_of(asked["prompt"])
        key = TrunkKey(NpcKey("", "bench", f"ladder{asked['npc']}"), "player")
        trunk, tail = tokens[: asked["trunk_len"]], tokens[asked["trunk_len"] :]
        work = Work(Tier.SILVER, key, trunk, tail, asked["n_predict"], due_ns=now, deadline_ns=now + 250 * MS)
        self._rig.door.submit(work, on_end, on_chunk)
        await over.wait()


def _event(writer: asyncio.StreamWriter, what: dict[str, Any]) -> None:
    line = b"data: %b\n\n" % json.dumps(what, separators=(",", ":")).encode()
    writer.write(b"%x\r\n%b\r\n" % (len(line), line))


async def serve(port: int, ram_mib: int, model: Path) -> None:
    """Serves until SIGTERM. Raises ConfigError and NpcdError."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    settings = tuned(model, lambda line: print(line, file=sys.stderr))
    async with Rig(settings, WAITING_MAX) as rig:
        rig.lean = True
        rig.scheduler.placer.homes.ram_bytes_max = ram_mib << 20
        async with with_store(rig):
            Tidy(now_ns).start()  # as the daemon does
            server = await asyncio.start_server(Served(rig).connected, HOST, port, backlog=1024)
            await ended.wait()
            server.close()
            print(rig.scheduler.placer.counters(), file=sys.stderr)


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
