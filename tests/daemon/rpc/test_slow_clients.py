"""Clients that do not read, that vanish, or that send without end: memory for them is bounded, and others go on.

Each test counts the held objects, and watches the memory of the whole process: daemon, gRPC and the clients themselves.
"""

import asyncio
import gc
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from daemon.config import Config, ServeSettings
from daemon.model import Model
from daemon.rpc.grpc_face import RETRY_KEY, GrpcFace
from npcd.v1 import dialogue_pb2, dialogue_pb2_grpc, intents_pb2, intents_pb2_grpc, npcs_pb2
from tests.daemon.rig import Rig, gated, quick, running, until
from tests.patience import PATIENCE_S
from tiers.moments import SPARE
from tiers.promises import Promises

STARTED = dialogue_pb2.TALK_EVENT_KIND_STARTED
TEXT = dialogue_pb2.TALK_EVENT_KIND_TEXT
END = dialogue_pb2.TALK_EVENT_KIND_END
# A client with next to no buffer of its own, so that unread messages stay with the daemon.
NO_ROOM = [("grpc.http2.lookahead_bytes", 64), ("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
MB = 1 << 20


def resident() -> int:
    """The bytes of memory of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@asynccontextmanager
async def served(folder: Path, model: Model, config: Config, npcs: int = 4) -> AsyncIterator[tuple[Rig, Any, Any]]:
    """(a daemon, a channel as any other, a channel with no room)."""
    async with running(model, config, npcs) as rig:
        face = GrpcFace(ServeSettings(listen=(f"unix:{folder}/npcd.sock",)))
        (address,) = await face.start()
        face.calls = rig.daemon.calls
        async with (
            grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel,
            grpc.aio.insecure_channel(address, options=NO_ROOM) as narrow,
        ):
            yield rig, channel, narrow
        await face.stop(0)


def impatient(config: Config = Config(), slow_reader_s: float = 0.2) -> Config:
    """A configuration that waits less long for readers."""
    return replace(config, dialogue=replace(config.dialogue, slow_reader_s=slow_reader_s))


async def to_the_end(call: Any) -> None:
    """Reads the rest of a stream."""
    while await call.read() is not grpc.aio.EOF:
        pass


def nothing_held(rig: Rig) -> bool:
    """True when the daemon is as if no client had ever called."""
    daemon = rig.daemon
    return not (
        daemon.door.open
        or daemon.dialogue.floors
        or daemon.table.subscribers
        or daemon.board.lifecycle.streams
        or daemon.step_backend.scheduler.placer.lanes.leased
        or daemon.step_backend.scheduler.running
    )


async def test_a_live_stream_that_is_not_read_holds_one_frame_built_from_the_newest_state(tmp_path: Path) -> None:
    """That holds for any number of changes, of new NPCs and of removed ones. When the client reads again, it gets the
    newest intents."""
    async with served(tmp_path, gated(), quick(Config()), npcs=40) as (rig, channel, narrow):
        intents = rig.daemon.table
        built: list[Any] = []
        frame = intents.framing
        intents.framing = lambda *a: (built.append(a[0]), frame(*a))[1]  # type: ignore[func-returns-value, method-assign]
        call = intents_pb2_grpc.IntentsStub(narrow).Live()
        await call.write(rig.frame(*(rig.sees(f"npc{n}", ("w", "wolf", "hostile", 5.0)) for n in range(40))))
        await until(lambda: intents.counts.model >= 40)
        (subscriber,) = intents.subscribers["", "vale"]
        stub = intents_pb2_grpc.IntentsStub(channel)
        before = held = 0
        for n in range(300):
            kind = ("wolf", "bat", "ghoul", "player")[n % 4]
            rig.leases |= {
                lease.npc_id: lease.lease_epoch
                for lease in (
                    await rig.daemon.calls.register(
                        "",
                        npcs_pb2.RegisterRequest(
                            world_id="vale",
                            npcs=[npcs_pb2.NpcSpec(npc_id=f"guest{n}", archetype_id="villager", persona_id="mira")],
                        ),
                    )
                ).leases
            }
            seen = [rig.sees(f"npc{m}", ("w", kind, "hostile", 5.0)) for m in range(40)]
            await stub.Observe(rig.frame(*seen, rig.sees(f"guest{n}", ("w", kind, "hostile", 5.0))))
            await rig.intent(f"guest{n}", lambda _: True)
            await rig.daemon.calls.remove("", npcs_pb2.RemoveRequest(world_id="vale", npc_ids=[f"guest{n}"]))
            held = max(held, len(subscriber.changed) + len(subscriber.confirmed))
            if n == 50:
                before = resident()
        grown = resident() - before
        assert built.count(subscriber) < 10, "frames were built for a stream that does not take them"
        assert held <= 2 * 41 and len(subscriber.errors) == 0
        assert grown < 16 * MB
        newest = {o.npc_id: o.tick for o in seen}
        async with asyncio.timeout(PATIENCE_S):
            while newest:
                for intent in (await call.read()).intents:
                    if newest.get(intent.npc_id) == intent.observed_tick:
                        del newest[intent.npc_id]
        call.cancel()
        await until(lambda: nothing_held(rig))


@pytest.mark.parametrize("tokens", [500, 40])
async def test_a_talk_that_is_not_read_ends_and_frees_the_npc(tmp_path: Path, tokens: int) -> None:
    """That holds with 64 chunks waiting, or after the NPC has said all. After `slow_reader_s` lane and floor are free,
    the next player is answered, and the client gets RESOURCE_EXHAUSTED when it reads at last.
    """
    async with served(tmp_path, gated(), impatient()) as (rig, channel, narrow):
        dialogue = rig.daemon.dialogue
        before = resident()
        turn_id = "t" * 64
        call = dialogue_pb2_grpc.DialogueStub(narrow).Talk(
            rig.talk("npc0", "tell me all", "silent", max_tokens=tokens, turn_id=turn_id)
        )
        assert (await call.read()).kind == STARTED
        other = dialogue_pb2_grpc.DialogueStub(channel).Talk(rig.talk("npc0", "hello", "p2", max_tokens=3))
        async with asyncio.timeout(PATIENCE_S):
            events = [e async for e in other]
        assert events[-1].kind == END, "the next player waited for somebody who does not read"
        assert dialogue.counts.slow_readers == 1
        assert not dialogue.floors
        assert resident() - before < 8 * MB
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await to_the_end(call)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "the reader left an event unread for 0.2 s"
        assert RETRY_KEY in dict(caught.value.trailing_metadata())
        await until(lambda: nothing_held(rig))


async def test_a_talk_that_is_read_slowly_but_read_is_left_alone(tmp_path: Path) -> None:
    """The time limit starts anew with each event that is read."""
    model = gated()
    async with served(tmp_path, model, impatient(slow_reader_s=2.0)) as (rig, _, narrow):
        call = dialogue_pb2_grpc.DialogueStub(narrow).Talk(rig.talk("npc0", "tell me all", max_tokens=12))
        kinds = []
        while (event := await call.read()) is not grpc.aio.EOF:
            kinds.append(event.kind)
            await asyncio.sleep(0.25)
        assert kinds[-1] == END
        assert rig.daemon.dialogue.counts.slow_readers == 0


async def test_200_clients_that_vanish_leave_nothing(tmp_path: Path) -> None:
    """They vanish in the middle of a reply, of a prefill, in the line for a busy NPC, in a conversation, in a Live
    stream: by cancelling, or with their whole connection. Tickets end within a step, lanes are free, subscribers gone.
    """
    model = gated()
    engine = model.engine
    rng = random.Random(5)
    async with served(tmp_path, model, impatient(quick(Config())), npcs=8) as (rig, channel, _):
        address = f"unix:{tmp_path}/npcd.sock"
        before = 0
        for round_ in range(20):
            engine.gated = True
            async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as own:
                calls: list[Any] = []
                for n in range(10):
                    stub = dialogue_pb2_grpc.DialogueStub(own if n % 2 else channel)
                    line = rig.talk(f"npc{n % 4}", "a long line to read first " * 10, f"p{n}", max_tokens=80)
                    if n < 6:
                        calls.append(stub.Talk(line))
                    elif n < 8:
                        talk = stub.Converse()
                        await talk.write(dialogue_pb2.ConverseRequest(talk=line))
                        calls.append(talk)
                    else:
                        live = intents_pb2_grpc.IntentsStub(own if n % 2 else channel).Live()
                        await live.write(rig.frame(*(rig.sees(f"npc{m}", ("w", "wolf", "", 5.0)) for m in range(8))))
                        await live.read()
                        calls.append(live)
                await until(lambda: rig.daemon.dialogue.open_turns == 4)
                engine.gate.release(rng.randrange(0, 12))  # some are in their prefill, some in the middle of a word
                await asyncio.sleep(0.002)
                for call in calls:
                    if rng.random() < 0.7:
                        call.cancel()
            for call in calls:
                call.cancel()
            await until(lambda: not rig.daemon.dialogue.floors and not rig.daemon.board.lifecycle.streams)
            steps = engine.steps
            engine.open()
            await until(lambda: not rig.daemon.step_backend.scheduler.running)
            assert engine.steps - steps < 60, "cancelled works ran on"
            await until(lambda: nothing_held(rig))
            while engine.gate.acquire(blocking=False):
                pass
            if round_ == 4:
                before = resident()
        assert resident() - before < 16 * MB
        events = await rig.say("npc0", "is anybody there?", "last", max_tokens=3)
        assert events[-1].kind == END


async def test_a_flood_of_observations_is_coalesced(tmp_path: Path) -> None:
    """With 100,000 observations at full speed, works, due moments and memory stay those of eight NPCs.

    The engine thread hardly gets its turn meanwhile, so the works that it has not seen yet are bounded by Gold's
    permits.
    """
    promises = Promises()
    promises = replace(promises, gold=replace(promises.gold, waiting_max=24))
    async with served(tmp_path, gated(), quick(Config(promises=promises)), npcs=8) as (rig, channel, _):
        intents = rig.daemon.table
        call = intents_pb2_grpc.IntentsStub(channel).Live()
        read = 0

        async def reader() -> None:
            nonlocal read
            async for frame in call:
                read += len(frame.intents)

        before = most_moments = most_open = 0
        kinds = ("wolf", "bat", "ghoul", "player")
        reading = asyncio.create_task(reader())
        for n in range(200):
            many = [
                rig.sees(
                    f"npc{m % 8}", ("w", kinds[(m // 8 + n) % 4], "hostile", 5.0), events=["attacked"] * (m % 3 == 0)
                )
                for m in range(500)
            ]
            await call.write(rig.frame(*many))
            most_moments = max(most_moments, rig.daemon.intents.asking.held().moments)
            most_open = max(most_open, rig.daemon.door.open)
            if n == 40:
                before = resident()
        newest = {o.npc_id: o.tick for o in many}
        got = intents_pb2_grpc.IntentsStub(channel)

        async def told() -> bool:
            answer = await got.Get(intents_pb2.GetIntentsRequest(world_id="vale"))
            return {i.npc_id: i.observed_tick for i in answer.intents} == newest

        async with asyncio.timeout(PATIENCE_S):
            while not await told():  # noqa: ASYNC110 - as a client would
                await asyncio.sleep(0.01)
        assert intents.counts.observations == 100_000
        assert most_open <= 24 + 2 * 8, "waiting works, and a running intent and bark of each NPC"
        assert most_moments <= 4 * 8 + SPARE, "two moments of each NPC count, and few are kept beside them"
        assert intents.counts.model + intents.counts.policy < 10_000
        assert resident() - before < 16 * MB
        assert 0 < read < 20_000
        await call.done_writing()
        await reading
        await until(lambda: nothing_held(rig))


async def test_a_bad_observation_without_end_holds_a_thousand_errors_at_most(tmp_path: Path) -> None:
    """That holds for a stream that does not read, with ids as long as a frame allows."""
    async with served(tmp_path, gated(), Config()) as (rig, _, narrow):
        intents = rig.daemon.table
        call = intents_pb2_grpc.IntentsStub(narrow).Live()
        await call.write(rig.frame())
        before = resident()
        for _ in range(30):
            await call.write(rig.frame(*(rig.sees("ghost" * 200) for _ in range(200))))
        await until(lambda: bool(intents.subscribers))
        (subscriber,) = intents.subscribers["", "vale"]
        await until(lambda: len(subscriber.errors) == 1000)
        assert max(len(e.npc_id) for e in subscriber.errors) == 64
        assert resident() - before < 16 * MB
        call.cancel()
        await until(lambda: nothing_held(rig))


async def test_a_turn_that_waits_for_a_removed_npc_ends_with_the_reason(tmp_path: Path) -> None:
    """A turn that was forgotten while the NPC spoke leaves no trunk behind."""
    model = gated()
    async with served(tmp_path, model, Config()) as (rig, channel, _):
        stub = dialogue_pb2_grpc.DialogueStub(channel)
        model.engine.gated = True
        model.engine.gate.release(6)
        first = stub.Talk(rig.talk("npc0", "hello", "p1", max_tokens=60))
        while (await first.read()).kind != TEXT:
            pass
        second = stub.Talk(rig.talk("npc0", "hello", "p2"))
        await until(lambda: any(f.waiting for f in rig.daemon.dialogue.floors.values()))
        key = rig.daemon.worlds.npc("", "vale", "npc0").key
        await rig.daemon.calls.remove("", npcs_pb2.RemoveRequest(world_id="vale", npc_ids=["npc0"]))
        model.engine.open()
        await to_the_end(first)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await to_the_end(second)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        await until(lambda: nothing_held(rig))
        assert rig.daemon.step_backend.scheduler.placer.homes.of_npc(key) == []
