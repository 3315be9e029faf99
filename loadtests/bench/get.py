"""The cost of a question to the daemon while its engine is busy: Intents.Get against an empty method, in turns.

Daemon, game and asker are three processes. The asker calls both methods alternately on one channel, 5,000 times each.
It does so first without load, then saturated (16 Bronze works, so the engine never rests), then with a game's 400
intents/s and 8 dialogues as well: one process more, for which two cores have no room.
"""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass

import grpc

from core.clock import now_ns
from loadtests.bench import children
from loadtests.bench.figures import Figures
from loadtests.bench.traffic import npc_ids
from loadtests.scene import load_scene
from npcd.v1 import intents_pb2
from scheduler.meter import percentile

PAIRS = 5_000
BRONZE = 16
SETTLE_S = 2.0
WARM = 200
CALL_S = 10.0


@dataclass(frozen=True, slots=True)
class _Asked:
    """Nanoseconds of every call."""

    get: list[int]
    empty: list[int]


async def run(figures: Figures, model: str, quick: bool) -> None:
    """Measures idle, then saturated."""
    pairs = 1_000 if quick else PAIRS
    figures.note(f"-- {pairs} pairs of Intents.Get and an empty method, idle and saturated")
    # The village, the dialogues' trunks, lanes and prefixes all fit.
    sets = (f"engine.model={model}", "engine.sequences=250")
    async with children.daemon(*sets) as daemon, children.traffic(children.target(daemon)) as game:
        await game.ask("")
        loop = asyncio.get_running_loop()
        with grpc.insecure_channel(children.target(daemon)) as channel:
            idle = await loop.run_in_executor(None, _ask, channel, pairs)
            bronze: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/npcd.bench/Bronze")
            bronze(BRONZE.to_bytes(4, "little"), timeout=CALL_S)
            await asyncio.sleep(SETTLE_S)
            busy = await loop.run_in_executor(None, _ask, channel, pairs)
            await game.ask("load")
            await asyncio.sleep(SETTLE_S)
            game_too = await loop.run_in_executor(None, _ask, channel, pairs)
            figures.note(f"   the game meanwhile: {await game.ask('rest')}")
            bronze((0).to_bytes(4, "little"), timeout=CALL_S)
    for name, asked in (("idle", idle), ("saturated", busy), ("saturated, and a game", game_too)):
        figures.note(f"   {name}: Get p50/p95/p99 {_three(asked.get)} us, empty method {_three(asked.empty)} us")
    get, empty = percentile(idle.get, 0.99), percentile(idle.empty, 0.99)
    for asked, suffix in ((busy, "saturated"), (game_too, "with_game")):
        get_p99, empty_p99 = percentile(asked.get, 0.99), percentile(asked.empty, 0.99)
        figures.add("get.p99_ratio" if asked is busy else "get.p99_ratio_with_game", get_p99 / empty_p99)
        figures.add(f"get.p99_{suffix}_x", get_p99 / get)
        figures.add(f"get.empty_p99_{suffix}_x", empty_p99 / empty)
        figures.add(f"get.p50_us_{suffix}", percentile(asked.get, 0.5) / 1000, 0)
        figures.add(f"get.p99_us_{suffix}", get_p99 / 1000, 0)
        figures.add(f"get.empty_p99_us_{suffix}", empty_p99 / 1000, 0)
    figures.add("get.p50_us", percentile(idle.get, 0.5) / 1000, 0)
    figures.add("get.p99_us", get / 1000, 0)
    figures.add("get.empty_p99_us", empty / 1000, 0)


def _ask(channel: grpc.Channel, pairs: int) -> _Asked:
    """Calls both methods in turns; the first of each pair alternates."""
    scene = load_scene()
    request = intents_pb2.GetIntentsRequest(world_id=scene.world.world_id, npc_ids=npc_ids(scene)[:1])
    get = channel.unary_unary(
        "/npcd.v1.Intents/Get",
        request_serializer=intents_pb2.GetIntentsRequest.SerializeToString,
        response_deserializer=intents_pb2.GetIntentsResponse.FromString,
    )
    empty: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/npcd.bench/Empty")
    asked = _Asked([], [])
    gc.collect()
    gc.freeze()
    for n in range(-WARM, pairs):
        for which in (n % 2, 1 - n % 2):
            began = now_ns()
            if which:
                answer = get(request, timeout=CALL_S)
                took = now_ns() - began
                assert len(answer.intents) == 1, "the NPC has an intent"
            else:
                empty(b"", timeout=CALL_S)
                took = now_ns() - began
            if n >= 0:
                (asked.get if which else asked.empty).append(took)
    gc.unfreeze()
    return asked


def _three(values: list[int]) -> str:
    return "/".join(f"{percentile(values, share) / 1000:.0f}" for share in (0.5, 0.95, 0.99))
