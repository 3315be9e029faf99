"""The longest stretch for which each call blocks the event loop, on a daemon with 10,000 NPCs.

A daemon with all its stores runs as a child that reports its stretches (loadtests/bench/stretches.py). One call runs at
a time, each as large as the limits allow, and its work in the background counts as its own. Gives `pauses.call_NAME_ms`
(the processor's time of the loop's thread), `pauses.call_NAME_wall_ms`, and the longest of all.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from loadtests.bench.call_names import CALLS
from loadtests.bench.children import Child
from loadtests.bench.figures import Figures
from loadtests.bench.options import Options
from npcd.v1 import admin_pb2, dialogue_pb2, intents_pb2, npcs_pb2
from npcd_client import connection

NPCS = 10_000
BONDS = 10_000  # bonds of an NPC with a player, in process
AT_ONCE = 20
TALKED = 40
FRAME_NPCS = 1_000
SETTLE_S = 0.4  # time for a call's work in the background
READY_S = 120.0
SERVICES = ("npcd.v1.Npcs", "npcd.v1.Intents")
TEXT = "Bakes bread at the mill and sells it by the old road; fears wolves, and the night, and owes the mayor money."
KINDS = ("wolf", "player", "rat", "corpse", "merchant")


def daemon(folder: Path, *sets: str) -> Child:
    """A daemon that reports its stretches, with its data in a folder that outlives it."""
    listen = ("--listen", "unix:{folder}/npcd.sock", "--http", "127.0.0.1:0", "--data", str(folder))
    return Child(
        [sys.executable, "-m", "loadtests.bench.stretches", *listen, *(p for one in sets for p in ("--set", one))]
    )


class _Game:
    """One connection to the daemon, and the NPCs' leases and ticks."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.channel = connection.open_channel(f"unix:{child.folder}/npcd.sock", None, None, None)
        self.leases: dict[str, int] = {}
        self.seen = 0

    async def ready(self) -> None:
        """Waits until the daemon serves."""
        await connection.wait_serving(self.channel, SERVICES, READY_S, ())

    async def ask(self, method: str, request: Any, answer: Any) -> Any:
        """Makes one unary call."""
        return await self.channel.unary_unary(
            f"/npcd.v1.{method}", request_serializer=_bytes, response_deserializer=answer.FromString
        )(request, timeout=60)

    def stream(self, method: str, request: Any, answer: Any) -> Any:
        """A stream of answers."""
        return self.channel.unary_stream(
            f"/npcd.v1.{method}", request_serializer=_bytes, response_deserializer=answer.FromString
        )(request, timeout=60)

    def both(self, method: str, requests: AsyncIterator[Any], answer: Any) -> Any:
        """A stream both ways."""
        return self.channel.stream_stream(
            f"/npcd.v1.{method}", request_serializer=_bytes, response_deserializer=answer.FromString
        )(requests, timeout=60)

    async def send(self, method: str, requests: AsyncIterator[Any], answer: Any) -> Any:
        """A stream of requests."""
        return await self.channel.stream_unary(
            f"/npcd.v1.{method}", request_serializer=_bytes, response_deserializer=answer.FromString
        )(requests, timeout=60)

    async def raw(self, method: str, request: bytes = b"") -> bytes:
        """Makes one unary call of bytes."""
        call: Any = self.channel.unary_unary(f"/{method}")
        return bytes(await call(request, timeout=60))

    async def longest(self) -> tuple[float, float, str]:
        """The longest stretch since the last call: the processor's and the wall's milliseconds, and its place."""
        said = json.loads(await self.raw("npcd.bench/Longest"))
        return said["cpu_ns"] / 1e6, said["wall_ns"] / 1e6, said["what"]

    async def register(self, **more: Any) -> None:
        """Registers all NPCs."""
        request = npcs_pb2.RegisterRequest(world_id="w", npcs=_specs(), **more)
        answer = await self.ask("Npcs/Register", request, npcs_pb2.RegisterResponse)
        self.leases = {lease.npc_id: lease.lease_epoch for lease in answer.leases}

    def frame(self, first: int, count: int = FRAME_NPCS) -> intents_pb2.ObservationFrame:
        """A frame in which some NPCs' sights have changed."""
        self.seen += 1
        return intents_pb2.ObservationFrame(
            world_id="w",
            game_time_ms=self.seen * 100,
            observations=[
                intents_pb2.Observation(
                    npc_id=f"n{i}",
                    lease_epoch=self.leases[f"n{i}"],
                    tick=self.seen,
                    place="road",
                    percepts=[
                        intents_pb2.Percept(
                            entity_id=f"e{j}", kind=KINDS[(self.seen + j + i) % 5], stance="hostile",
                            distance_m=3.0 * j + i % 90, in_sight=True,
                        )
                        for j in range(4)
                    ],
                )
                for i in range(first, first + count)
            ],
        )  # fmt: skip

    async def http(self, path: str) -> None:
        """One HTTP request as a probe makes it."""
        found = [p for p in self.child.log.split() if p.startswith("http=")]
        address = found[-1].removeprefix("http=").strip("'\"")

        def get() -> None:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as answer:
                answer.read()

        await asyncio.to_thread(get)


async def measure(found: Figures, options: Options) -> None:
    """Measures all calls; the longest of all comes last."""
    folder = Path(tempfile.mkdtemp(prefix="npcd-bench-"))
    longest: dict[str, float] = {}

    async def call(game: _Game, name: str, act: Callable[[], Awaitable[object]]) -> None:
        await asyncio.sleep(SETTLE_S)
        await game.longest()
        began_s = time.monotonic()
        await act()
        took_s = time.monotonic() - began_s
        await asyncio.sleep(SETTLE_S)
        cpu_ms, wall_ms, what = await game.longest()
        longest[name] = cpu_ms
        assert name in CALLS, f"no words for {name}"
        found.add(f"pauses.call_{name}_ms", cpu_ms)
        found.add(f"pauses.call_{name}_wall_ms", wall_ms)
        if cpu_ms > 3:
            found.note(f"   {took_s:.2f} s in all; the longest in {what}")

    sets = (f"engine.model={options.model}", "intents.activation.warm_max=400", "dialogue.max_tokens=16")
    try:
        async with daemon(folder / "one", *sets) as child:
            game = _Game(child)
            await game.ready()
            exported = await _life(game, call)
            await game.channel.close()
        async with daemon(folder / "one", *sets) as child:
            game = _Game(child)
            await game.ready()
            cpu_ms, wall_ms, what = await game.longest()
            longest["restart"] = cpu_ms
            found.add("pauses.call_restart_ms", cpu_ms)
            found.add("pauses.call_restart_wall_ms", wall_ms)
            if cpu_ms > 3:
                found.note(f"   the longest in {what}")
            names = [f"n{i}" for i in range(NPCS)]
            gone = npcs_pb2.RemoveRequest(world_id="w", npc_ids=names)
            await call(game, "remove", lambda: game.ask("Npcs/Remove", gone, npcs_pb2.RemoveResponse))
            await game.channel.close()
        async with daemon(folder / "two", *sets) as child:
            game = _Game(child)
            await game.ready()
            await call(game, "import_new", lambda: _import(game, exported))
            deleted = npcs_pb2.DeleteWorldRequest(world_id="w")
            await call(
                game, "delete_world", lambda: game.ask("Npcs/DeleteWorld", deleted, npcs_pb2.DeleteWorldResponse)
            )
            await game.channel.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    worst = max(longest, key=lambda name: longest[name])
    found.note(f"   the longest of all: {worst}")
    found.add("pauses.longest_call_ms", longest[worst])


async def _life(game: _Game, call: Callable[[_Game, str, Callable[[], Awaitable[object]]], Awaitable[None]]) -> bytes:
    """Makes the calls of one daemon's life. Returns its export."""
    names = [f"n{i}" for i in range(NPCS)]

    async def do(name: str, method: str, request: Any, answer: Any) -> None:
        await call(game, name, lambda: game.ask(method, request, answer))

    async def first_frame(request: intents_pb2.WatchIntentsRequest) -> None:
        stream = game.stream("Intents/Watch", request, intents_pb2.IntentFrame)
        await stream.read()
        stream.cancel()

    await do("define_world", "Npcs/DefineWorld", _world("A village."), npcs_pb2.DefineWorldResponse)
    await call(game, "register", game.register)
    await call(game, "register_again", game.register)
    all_of_them = npcs_pb2.RegisterRequest(world_id="w", npcs=_specs()).SerializeToString()
    bad = all_of_them.replace(b"Number 9999", b"Numb\xffr 9999")
    await call(game, "register_not_utf8", lambda: _refused(game, "Npcs/Register", bad))
    await call(game, "live_frames", lambda: _live(game))
    await call(game, "observe", lambda: game.ask("Intents/Observe", game.frame(0), intents_pb2.ObserveResponse))
    await _live_start_and_end(game, call)
    await call(game, "watch_first_frame", lambda: first_frame(intents_pb2.WatchIntentsRequest(world_id="w")))
    await call(game, "watch_ids", lambda: first_frame(intents_pb2.WatchIntentsRequest(world_id="w", npc_ids=names)))
    some = intents_pb2.GetIntentsRequest(world_id="w", npc_ids=names[:1000])
    await do("get", "Intents/Get", intents_pb2.GetIntentsRequest(world_id="w"), intents_pb2.GetIntentsResponse)
    await do("get_ids", "Intents/Get", some, intents_pb2.GetIntentsResponse)
    described = npcs_pb2.DescribeRequest(world_id="w", with_history=True)
    unknown = npcs_pb2.DescribeRequest(world_id="w", npc_ids=[f"x{i}" for i in range(NPCS)])
    await do("describe", "Npcs/Describe", described, npcs_pb2.DescribeResponse)
    await do("describe_unknown", "Npcs/Describe", unknown, npcs_pb2.DescribeResponse)
    await call(game, "set_cards", lambda: _cards(game))
    await call(game, "talk", lambda: _talk(game))
    known = npcs_pb2.RecallRequest(world_id="w", npc_id="n1", player_id="p1")
    await do("recall", "Npcs/Recall", known, npcs_pb2.RecallResponse)
    await do("status", "Admin/Status", admin_pb2.StatusRequest(), admin_pb2.StatusResponse)
    await call(game, "healthz", lambda: game.http("/healthz"))
    await call(game, "metrics", lambda: game.http("/metrics"))
    await call(game, "end_session", lambda: _end(game))
    saved = npcs_pb2.CheckpointRequest(world_id="w", checkpoint_id="c")
    await do("checkpoint", "Npcs/Checkpoint", saved, npcs_pb2.CheckpointResponse)
    await call(game, "list", lambda: _list(game))
    exported = bytearray()
    await call(game, "export", lambda: _export(game, exported))
    back = npcs_pb2.RestoreRequest(world_id="w", checkpoint_id="c")
    await do("restore", "Npcs/Restore", back, npcs_pb2.RestoreResponse)
    await call(game, "import", lambda: _import(game, bytes(exported)))
    gone = npcs_pb2.ForgetRequest(world_id="w", player_id="p1")
    await do("forget", "Npcs/Forget", gone, npcs_pb2.ForgetResponse)
    await call(game, "redefine_world", lambda: game.ask(
        "Npcs/DefineWorld", _world("A town."), npcs_pb2.DefineWorldResponse
    ))  # fmt: skip
    watched = [
        game.stream("Intents/Watch", intents_pb2.WatchIntentsRequest(world_id="w"), intents_pb2.IntentFrame),
        game.stream("Npcs/Watch", npcs_pb2.WatchNpcsRequest(world_id="w"), npcs_pb2.NpcEvent),
    ]
    await call(game, "take_over", lambda: game.register(take_over=True))
    for stream in watched:
        stream.cancel()
    await call(game, "house", lambda: asyncio.sleep(3))
    await call(game, "tidy", lambda: game.raw("npcd.bench/Tidy"))
    return bytes(exported)


async def _refused(game: _Game, method: str, data: bytes) -> None:
    code = grpc.StatusCode.OK
    try:
        await game.raw(f"npcd.v1.{method}", data)
    except grpc.aio.AioRpcError as error:
        code = error.code()
    assert code is grpc.StatusCode.INVALID_ARGUMENT, f"{method} took bytes that are not UTF-8: {code}"


async def _live(game: _Game) -> None:
    """A stream on which every NPC is observed once."""
    over = asyncio.Event()

    async def frames() -> AsyncIterator[intents_pb2.ObservationFrame]:
        for first in range(0, NPCS, FRAME_NPCS):
            yield game.frame(first)
            await asyncio.sleep(0.1)
        await over.wait()

    stream = game.both("Intents/Live", frames(), intents_pb2.IntentFrame)
    told: set[str] = set()
    while len(told) < NPCS:
        told.update(intent.npc_id for intent in (await stream.read()).intents)
    over.set()
    stream.cancel()


async def _live_start_and_end(
    game: _Game, call: Callable[[_Game, str, Callable[[], Awaitable[object]]], Awaitable[None]]
) -> None:
    over = asyncio.Event()

    async def frames() -> AsyncIterator[intents_pb2.ObservationFrame]:
        yield game.frame(0, 1)
        await over.wait()

    streams: list[Any] = []

    async def start() -> None:
        streams.append(game.both("Intents/Live", frames(), intents_pb2.IntentFrame))
        await streams[0].read()

    async def end() -> None:
        streams[0].cancel()

    await call(game, "live_first_frame", start)
    await call(game, "live_end", end)
    over.set()


async def _cards(game: _Game) -> None:
    card = npcs_pb2.RelationshipCard(trust=0.3, affinity=0.4, promises=["to bring the bread to the mill"] * 3)

    async def one(i: int) -> None:
        request = npcs_pb2.SetCardsRequest(world_id="w", npc_id=f"n{i}", player_id=f"p{i % 50}", relationship=card)
        await game.ask("Npcs/SetCards", request, npcs_pb2.SetCardsResponse)

    for first in range(0, BONDS, AT_ONCE):
        await asyncio.gather(*(one(i) for i in range(first, first + AT_ONCE)))


async def _talk(game: _Game) -> None:
    for i in range(TALKED):
        request = dialogue_pb2.TalkRequest(
            world_id="w", npc_id=f"n{i}", player_id=f"p{i}", text="My name is Aldo. I bring bread.", max_tokens=8
        )
        async for _ in game.stream("Dialogue/Talk", request, dialogue_pb2.TalkEvent):
            pass


async def _end(game: _Game) -> None:
    for i in range(TALKED):
        request = dialogue_pb2.EndSessionRequest(world_id="w", npc_id=f"n{i}", player_id=f"p{i}")
        await game.ask("Dialogue/EndSession", request, dialogue_pb2.EndSessionResponse)
    await asyncio.sleep(2)


async def _list(game: _Game) -> None:
    await game.ask("Npcs/ListWorlds", npcs_pb2.ListWorldsRequest(), npcs_pb2.ListWorldsResponse)
    request = npcs_pb2.ListCheckpointsRequest(world_id="w")
    await game.ask("Npcs/ListCheckpoints", request, npcs_pb2.ListCheckpointsResponse)


async def _export(game: _Game, out: bytearray) -> None:
    async for chunk in game.stream("Npcs/Export", npcs_pb2.ExportRequest(world_id="w"), npcs_pb2.ExportChunk):
        out += chunk.content


async def _import(game: _Game, data: bytes) -> None:
    async def chunks() -> AsyncIterator[npcs_pb2.ImportChunk]:
        size = 512 << 10
        for number, at in enumerate(range(0, len(data), size)):
            part = data[at : at + size]
            yield npcs_pb2.ImportChunk(world_id="w", sequence=number, content=part, last=at + size >= len(data))

    await game.send("Npcs/Import", chunks(), npcs_pb2.ImportResponse)


def _bytes(request: Any) -> bytes:
    return bytes(request.SerializeToString())


def _specs() -> list[npcs_pb2.NpcSpec]:
    return [
        npcs_pb2.NpcSpec(
            npc_id=f"n{i}",
            archetype_id=f"a{i % 64}",
            persona=npcs_pb2.Persona(name=f"Mira {i}", text=f"Number {i}. {TEXT}"),
        )
        for i in range(NPCS)
    ]


def _world(lore: str) -> npcs_pb2.DefineWorldRequest:
    def word(i: int) -> str:
        return f"{chr(97 + i % 26)}{chr(97 + i // 26)}"

    rows = [npcs_pb2.PolicyRow(archetype_id=f"a{i % 64}", action=word(i % 40), emotion="calm") for i in range(448)]
    return npcs_pb2.DefineWorldRequest(
        world_id="w",
        lore=f"{lore} It lies by the old road, between the forest and the swamp.",
        archetypes=[npcs_pb2.Archetype(archetype_id=f"a{i}", description="Plain folk.") for i in range(64)],
        actions=[npcs_pb2.ActionWord(word=word(i)) for i in range(40)],
        emotions=["calm", "afraid", "angry"],
        personas=[npcs_pb2.Persona(persona_id=f"p{i}", name=f"Mira {i}", text=TEXT) for i in range(4096)],
        policy=npcs_pb2.Policy(rows=rows),
    )
