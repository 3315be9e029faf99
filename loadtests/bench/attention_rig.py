"""The processes of the attention area: daemons that tell what they cost, and a crowd that loads each of them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from loadtests.bench.attention_game import Played
from loadtests.bench.attention_served import Spent
from loadtests.bench.children import Child, target
from loadtests.bench.memory_children import idle
from npcd_client import Client

CALL_S = 20.0
MADE_S = 180.0  # that a recording takes at most
REGISTERED_S = 180.0


@dataclass(frozen=True, slots=True)
class Crowded:
    """What a game plays: `npcs` NPCs that are observed, for `seconds` at most, among `players` who walk."""

    npcs: int
    seconds: float
    players: int = 5
    spread: float = 4.0


@dataclass(slots=True)
class Side:
    """A daemon and its game."""

    daemon: Child
    game: Child

    async def register(self, npcs: int) -> None:
        """Registers so many NPCs, and waits until their trunks are in place."""
        await self.game.ask(json.dumps({"register": npcs}), REGISTERED_S)
        async with Client(target(self.daemon)) as client:
            await idle(client)

    async def play(self, seconds: float) -> Played:
        """Plays for so long."""
        return Played(**await self.game.ask(json.dumps({"play": seconds}), seconds + CALL_S))

    async def spent(self) -> Spent:
        """What the daemon has spent so far."""
        return Spent(**await self._call("Spent"))

    async def late_ms(self) -> list[float]:
        """How late the model's intents were since it was asked last."""
        return [late_ns / 1e6 for late_ns in await self._call("Late")]

    async def stop_engine(self, ms: int) -> None:
        """Stops the daemon's engine in its next step for so long."""
        await self._raw("Stop", ms.to_bytes(4, "little"))

    async def _call(self, method: str) -> Any:
        return json.loads(await self._raw(method, b""))

    async def _raw(self, method: str, request: bytes) -> bytes:
        async with grpc.aio.insecure_channel(target(self.daemon)) as channel:
            ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/npcd.bench/{method}")
            return await ask(request, timeout=CALL_S)


@asynccontextmanager
async def sides(model: Path, crowded: Crowded, settings: Sequence[Sequence[str]]) -> AsyncGenerator[list[Side]]:
    """A daemon per row of settings, each with a game of its own that has its recording."""
    async with AsyncExitStack() as stack:
        made = []
        for sets in settings:
            daemon = await stack.enter_async_context(_daemon(model, sets))
            made.append(Side(daemon, await stack.enter_async_context(_game(daemon, crowded))))
        await asyncio.gather(*(side.game.ask("", MADE_S) for side in made))
        yield made


def _daemon(model: Path, sets: Sequence[str]) -> Child:
    return Child(
        [
            *(sys.executable, "-m", "loadtests.bench.attention_served"),
            *("--listen", "unix:{folder}/npcd.sock", "--http", "", "--data", "{folder}/data", "--model", str(model)),
            *(part for one in sets for part in ("--set", one)),
        ]
    )


def _game(daemon: Child, crowded: Crowded) -> Child:
    words = (target(daemon), crowded.npcs, crowded.seconds, crowded.players, crowded.spread)
    return Child([sys.executable, "-m", "loadtests.bench.attention_game", *map(str, words)], talks=True)


def p95(values: Sequence[float]) -> float:
    """By nearest rank; 0 of nothing."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))] if ranked else 0.0
