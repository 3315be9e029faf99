"""The processes of the attention area: daemons that report their costs, and a crowd that loads each of them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from loadtests.bench.attention_game import Log, Played, Stage
from loadtests.bench.attention_served import Spent
from loadtests.bench.children import Child, target
from loadtests.bench.memory_children import idle
from npcd_client import Client
from npcd_client.connection import open_channel
from npcd_client.v1 import admin_pb2

CALL_S = 60.0
MADE_S = 180.0  # the longest time for making a recording
REGISTERED_S = 180.0


@dataclass(slots=True)
class Side:
    """A daemon and its game."""

    daemon: Child
    game: Child
    client: Client
    channel: grpc.aio.Channel

    async def register(self, npcs: int) -> None:
        """Registers so many NPCs, and waits until their trunks are in place."""
        await self.game.ask(json.dumps({"register": npcs}), REGISTERED_S)
        await idle(self.client)

    async def play(self, seconds: float) -> Played:
        """Plays for so long."""
        return Played(**await self.game.ask(json.dumps({"play": seconds}), seconds + CALL_S))

    async def play_logged(self, seconds: float) -> tuple[Played, Log]:
        """Plays for so long, and returns the log as well."""
        path = self.game.folder / "log.json"
        played = await self.game.ask(json.dumps({"play": seconds, "log": str(path)}), seconds + CALL_S)
        return Played(**played), Log.read(path)

    async def spent(self) -> Spent:
        """The CPU time that the daemon has spent so far."""
        return Spent(**await self._call("Spent"))

    async def late_ms(self) -> list[float]:
        """The lateness of the model's intents since the last call."""
        return [late_ns / 1e6 for late_ns in await self._call("Late")]

    async def counts(self) -> dict[str, int]:
        """The daemon's counts of intents."""
        return dict(await self._call("Counts"))

    async def status(self) -> admin_pb2.StatusResponse:
        """The daemon's status."""
        return await self.client.status()

    async def stop_engine(self, ms: int) -> None:
        """Stops the daemon's engine in its next step for so long."""
        await self._raw("Stop", ms.to_bytes(4, "little"))

    async def _call(self, method: str) -> Any:
        return json.loads(await self._raw(method, b""))

    async def _raw(self, method: str, request: bytes) -> bytes:
        ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(f"/npcd.bench/{method}")
        return await ask(request, timeout=CALL_S)


@asynccontextmanager
async def sides(model: Path, stage: Stage, settings: Sequence[Sequence[str]]) -> AsyncGenerator[list[Side]]:
    """A daemon per row of settings, each with a game and a recording of its own."""
    async with AsyncExitStack() as stack:
        pairs = []
        for sets in settings:
            daemon = await stack.enter_async_context(_daemon(model, sets))
            pairs.append((daemon, await stack.enter_async_context(_game(daemon, stage))))
        await asyncio.gather(*(game.ask("", MADE_S) for _, game in pairs))
        made = []
        # Only now: a process that uses gRPC already does not fork well.
        for daemon, game in pairs:
            client = await stack.enter_async_context(Client(target(daemon)))
            channel = await stack.enter_async_context(open_channel(target(daemon), None, None, None))
            made.append(Side(daemon, game, client, channel))
        yield made


def _daemon(model: Path, sets: Sequence[str]) -> Child:
    return Child(
        [
            *(sys.executable, "-m", "loadtests.bench.attention_served"),
            *("--listen", "unix:{folder}/npcd.sock", "--http", "", "--data", "{folder}/data", "--model", str(model)),
            *(part for one in sets for part in ("--set", one)),
        ]
    )


def _game(daemon: Child, stage: Stage) -> Child:
    said = json.dumps(asdict(stage))
    return Child([sys.executable, "-m", "loadtests.bench.attention_game", target(daemon), said], talks=True)


def p95(values: Sequence[float]) -> float:
    """The p95 by nearest rank; 0 for no values."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))] if ranked else 0.0
