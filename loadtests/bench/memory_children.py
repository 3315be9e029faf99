"""The processes of the memory area: daemons on a given data folder, and the village that loads them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import grpc

from loadtests.bench.children import Child, target
from loadtests.bench.memory_served import Seen, read
from npcd_client import Client, NpcdError

READY_S = 120.0
IDLE_S = 60.0
LOOK_S = 0.1
CALL_S = 20.0


def served(data: Path, model: Path) -> Child:
    """A daemon that reports its memory's work: see take()."""
    return _daemon(["loadtests.bench.memory_served"], data, model)


def plain(data: Path, model: Path) -> Child:
    """`npcd serve` in one process, unchanged."""
    return _daemon(["npcd", "serve", "--no-supervise"], data, model)


def supervised(data: Path, model: Path, socket: str) -> Child:
    """`npcd serve` in two processes: the child is the parent of the serving process, at a path of ours."""
    return _daemon(["npcd", "serve"], data, model, socket)


def village(daemon: Child) -> Child:
    """The village that loads a daemon (memory_game)."""
    return Child([sys.executable, "-m", "loadtests.bench.memory_game", target(daemon)], talks=True)


def demo(daemon: Child, seconds: float) -> Child:
    """`npcd demo`, unchanged, against a daemon of ours: 20 NPCs, a player, 300 frames a second."""
    words = ["--connect", target(daemon), "--seconds", str(seconds), "--no-live"]
    return Child([sys.executable, "-m", "loadtests.demo", *words])


async def take(daemon: Child) -> Seen:
    """The report of a served() daemon since the last call."""
    async with grpc.aio.insecure_channel(target(daemon)) as channel:
        ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/npcd.bench/Memory")
        return read(await ask(b"", timeout=CALL_S))


async def idle(client: Client) -> None:
    """Waits until no work is under way: the trunks of a new world are in place. Raises NpcdError."""
    until_s = time.monotonic() + IDLE_S
    while any(tier.waiting or tier.running for tier in (await client.status()).tiers):
        if time.monotonic() > until_s:
            raise NpcdError(f"the daemon is still at work after {IDLE_S:g} s")
        await asyncio.sleep(LOOK_S)


def _daemon(module: Sequence[str], data: Path, model: Path, socket: str = "{folder}/npcd.sock") -> Child:
    return Child(
        [
            *(sys.executable, "-m", *module, "--listen", f"unix:{socket}", "--http", ""),
            *("--data", str(data), "--model", str(model)),
        ]
    )
