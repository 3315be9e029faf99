"""Over the wire: errors have the right status, sockets are private, and health and reflection are right."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from core.errors import ConfigError
from daemon.config import ServeSettings
from daemon.model import Model
from daemon.rpc.grpc_face import BUILT, RETRY_KEY, SERVICES, GrpcFace
from npcd.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    dialogue_pb2,
    dialogue_pb2_grpc,
    intents_pb2,
    intents_pb2_grpc,
    npcs_pb2,
    npcs_pb2_grpc,
    story_pb2,
    story_pb2_grpc,
)
from npcd_client import Client, Intent, Live, NpcSpec, Observation, Percept
from tests.daemon.rig import Rig, gated, running, specs, until, world
from tests.patience import PATIENCE_S

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@asynccontextmanager
async def served(model: Model, settings: ServeSettings) -> AsyncIterator[tuple[Rig, grpc.aio.Channel, GrpcFace]]:
    """A daemon behind its gRPC face, and a channel to it."""
    async with running(model) as rig:
        face = GrpcFace(settings)
        addresses = await face.start()
        face.calls = rig.daemon.calls
        await face.report(serving=True)
        async with grpc.aio.insecure_channel(addresses[0]) as channel:
            yield rig, channel, face
        await face.stop(0)


@pytest.fixture
def unix(tmp_path: Path) -> ServeSettings:
    """A socket of the test's own."""
    return ServeSettings(listen=(f"unix:{tmp_path}/npcd.sock",))


async def failure(call: grpc.aio.UnaryUnaryCall) -> grpc.aio.AioRpcError:  # type: ignore[type-arg]
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_errors_have_the_status_of_the_table(unix: ServeSettings) -> None:
    """For not found, wrong field, stale version and not built, code and message name the cause."""
    async with served(gated(), unix) as (_, channel, _):
        npcs = npcs_pb2_grpc.NpcsStub(channel)
        error = await failure(npcs.Describe(npcs_pb2.DescribeRequest(world_id="nowhere")))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "DefineWorld first" in (error.details() or "")
        error = await failure(npcs.Register(npcs_pb2.RegisterRequest(world_id="vale")))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "npcs: 0 NPCs, must be 1 to 10000"
        error = await failure(npcs.DefineWorld(npcs_pb2.DefineWorldRequest(world_id="vale", expected_version=9)))
        assert error.code() is grpc.StatusCode.ABORTED
        error = await failure(npcs.Checkpoint(npcs_pb2.CheckpointRequest(world_id="vale", checkpoint_id="c")))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED  # from a daemon that keeps nothing
        story = story_pb2_grpc.StoryStub(channel)
        error = await failure(story.Submit(story_pb2.SubmitStoryRequest()))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in story.Watch(story_pb2.WatchStoryRequest()):
                pass
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_overload_says_when_to_come_again(unix: ServeSettings) -> None:
    """The status is RESOURCE_EXHAUSTED with retry-after-ms, before the first event."""
    model = gated()
    async with served(model, unix) as (rig, channel, _):
        model.engine.gated = True
        talk = dialogue_pb2_grpc.DialogueStub(channel).Talk
        open_calls = [talk(rig.talk("npc0", "hello", f"p{n}", max_tokens=2)) for n in range(9)]
        floors = rig.daemon.dialogue.floors
        await until(lambda: any(floor.waiting == 8 for floor in floors.values()))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await talk(rig.talk("npc0", "hello", "p9")).read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(caught.value.trailing_metadata())[RETRY_KEY]) > 0
        model.engine.open()
        for call in open_calls:
            assert [e async for e in call][-1].kind == dialogue_pb2.TALK_EVENT_KIND_END


async def test_a_cancelled_call_frees_its_lane(unix: ServeSettings) -> None:
    """A cancel on the wire reaches the scheduler."""
    model = gated()
    async with served(model, unix) as (rig, channel, _):
        model.engine.gated = True
        model.engine.gate.release(6)
        call = dialogue_pb2_grpc.DialogueStub(channel).Talk(rig.talk("npc0", "hello there", max_tokens=80))
        async for event in call:
            if event.kind == dialogue_pb2.TALK_EVENT_KIND_TEXT:
                break
        call.cancel()
        await until(lambda: rig.daemon.dialogue.open_turns == 0)
        model.engine.open()
        await until(lambda: rig.daemon.step_backend.scheduler.placer.lanes.leased == 0)


async def test_live_over_the_wire_on_the_shipped_model(real: Model, unix: ServeSettings) -> None:
    """Several NPCs on one stream each get the model's intent."""
    async with served(real, unix) as (rig, channel, _):
        call = intents_pb2_grpc.IntentsStub(channel).Live()
        await call.write(rig.frame(*(rig.sees(f"npc{n}", ("w", "wolf", "hostile", 5.0)) for n in range(4))))
        answered: set[str] = set()
        async with asyncio.timeout(PATIENCE_S):
            while len(answered) < 4:
                frame = await call.read()
                assert isinstance(frame, intents_pb2.IntentFrame)
                answered |= {i.npc_id for i in frame.intents if i.source == intents_pb2.INTENT_SOURCE_MODEL}
        assert rig.daemon.board.lifecycle.streams == 1
        await call.done_writing()
        await until(lambda: rig.daemon.board.lifecycle.streams == 0)


async def test_until_the_model_is_warm_calls_wait_outside(unix: ServeSettings) -> None:
    """Health is NOT_SERVING and calls fail with UNAVAILABLE, then it is SERVING. Story is never SERVING."""
    face = GrpcFace(unix)
    addresses = await face.start()
    async with grpc.aio.insecure_channel(addresses[0]) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICES):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == NOT_SERVING
        error = await failure(admin_pb2_grpc.AdminStub(channel).Status(admin_pb2.StatusRequest()))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        await face.report(serving=True)
        for service in SERVICES:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == (SERVING if service in BUILT else NOT_SERVING)
    await face.stop(0)


async def test_reflection_lists_every_service(unix: ServeSettings) -> None:
    """grpcurl and similar tools find the contract."""
    async with served(gated(), unix) as (_, channel, _):
        stub: Any = cast(Any, reflection_pb2_grpc.ServerReflectionStub)(channel)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await call.read()
        names = {s.name for s in answer.list_services_response.service}
        assert names >= {*SERVICES, "grpc.health.v1.Health"}
        await call.done_writing()


async def test_a_unix_socket_is_its_owners_and_goes_with_the_daemon(unix: ServeSettings) -> None:
    """Its mode is 0600, and it is gone after stop."""
    face = GrpcFace(unix)
    await face.start()
    path = unix.listen[0].removeprefix("unix:")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    await face.stop(0)
    with pytest.raises(FileNotFoundError):
        os.stat(path)


async def test_a_port_in_use_is_one_clear_error() -> None:
    """It has no stack trace of ours."""
    first = GrpcFace(ServeSettings(listen=("127.0.0.1:0",)))
    address = (await first.start())[0]
    with pytest.raises(ConfigError, match=r"another npcd"):
        await GrpcFace(ServeSettings(listen=(address,))).start()
    await first.stop(0)


async def test_tokens_name_the_tenant_and_unknown_ones_are_refused(unix: ServeSettings, tmp_path: Path) -> None:
    """With a tokens file a call without a token is refused, and each tenant has its own worlds."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('"aaaaaaaaaaaaaaaa" = "studio-a"\n"bbbbbbbbbbbbbbbb" = "studio-b"\n')
    async with served(gated(), replace(unix, tokens_file=str(tokens))) as (_, channel, _):
        npcs = npcs_pb2_grpc.NpcsStub(channel)
        request = npcs_pb2.DescribeRequest(world_id="vale")
        for metadata in ((), (("authorization", "Bearer wrong"),)):
            error = await failure(npcs.Describe(request, metadata=metadata))
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        error = await failure(npcs.Describe(request, metadata=(("authorization", "Bearer aaaaaaaaaaaaaaaa"),)))
        assert error.code() is grpc.StatusCode.NOT_FOUND, "the test's world belongs to another tenant"
    tokens.write_text('"short" = "x"\n')
    with pytest.raises(ConfigError, match="16 characters"):
        GrpcFace(replace(unix, tokens_file=str(tokens)))


TOKENS = """
aaaaaaaaaaaaaaaa = "studio-a"
bbbbbbbbbbbbbbbb = "studio-b"
oooooooooooooooo = { tenant = "studio-o", role = "operator" }
"""


def bearer(letter: str, *more: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """The metadata of a token's holder, and more."""
    return (("authorization", f"Bearer {letter * 16}"), *more)


FAR = ("x-forwarded-for", "203.0.113.9")  # as a proxy on this machine adds it


async def test_only_an_operator_or_this_machine_drains(unix: ServeSettings, tmp_path: Path) -> None:
    """A tenant's token from elsewhere cannot end the daemon. An operator's token can, and so can a caller on this
    machine."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(TOKENS)
    drained = asyncio.Event()

    async def drain(_: float) -> None:
        drained.set()

    async with running(gated(), drain=drain) as rig:
        face = GrpcFace(replace(unix, tokens_file=str(tokens)))
        (address,) = await face.start()
        face.calls = rig.daemon.calls
        async with grpc.aio.insecure_channel(address) as channel:
            admin = admin_pb2_grpc.AdminStub(channel)
            request = admin_pb2.DrainRequest(grace_ms=1)
            error = await failure(admin.Drain(request, metadata=(FAR,)))
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            error = await failure(admin.Drain(request, metadata=bearer("a", FAR)))
            assert error.code() is grpc.StatusCode.PERMISSION_DENIED
            assert 'role = "operator"' in (error.details() or "")
            assert not rig.daemon.calls.admin.draining
            await admin.Drain(request, metadata=bearer("o", FAR))
            await asyncio.wait_for(drained.wait(), PATIENCE_S)
            await admin.Drain(request, metadata=bearer("b"))
        await face.stop(0)


@pytest.mark.parametrize(
    ("letter", "metadata", "by"), [("o", (FAR,), "an operator"), ("a", (), "this machine"), ("", (), "this machine")]
)
async def test_a_drain_is_told_in_the_log(
    letter: str, metadata: tuple[tuple[str, str], ...], by: str, unix: ServeSettings, tmp_path: Path
) -> None:
    """One line gives the request's origin and tenant, and no token. Further calls add no line."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(TOKENS)
    async with running(gated()) as rig:
        face = GrpcFace(replace(unix, tokens_file=str(tokens) if letter else ""))
        (address,) = await face.start()
        face.calls = rig.daemon.calls
        with capture_logs() as logs:
            async with grpc.aio.insecure_channel(address) as channel:
                for _ in range(2):
                    await admin_pb2_grpc.AdminStub(channel).Drain(
                        admin_pb2.DrainRequest(grace_ms=7), metadata=bearer(letter, *metadata) if letter else metadata
                    )
        await face.stop(0)
    (line,) = [line for line in logs if line["event"] == "drain asked for"]
    assert (line["by"], line["grace_ms"]) == (by, 7)
    assert bool(line["tenant"]) is bool(letter)
    assert letter * 16 not in str(line) or not letter


async def test_status_counts_the_callers_own(unix: ServeSettings, tmp_path: Path) -> None:
    """Worlds, NPCs, streams, turns, intents and bonds of one tenant are visible to that tenant only. An operator sees
    the sum."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(TOKENS)
    own = ("worlds", "npcs", "live_streams", "turns_open", "turns_finished", "npcs_active", "bonds")
    async with served(gated(), replace(unix, tokens_file=str(tokens))) as (rig, channel, _):
        npcs, intents = npcs_pb2_grpc.NpcsStub(channel), intents_pb2_grpc.IntentsStub(channel)
        dialogue, admin = dialogue_pb2_grpc.DialogueStub(channel), admin_pb2_grpc.AdminStub(channel)

        async def counts(letter: str) -> list[int]:
            status = await admin.Status(admin_pb2.StatusRequest(), metadata=bearer(letter))
            watch = admin.Watch(admin_pb2.WatchStatusRequest(), metadata=bearer(letter))
            again = await watch.read()
            assert isinstance(again, admin_pb2.StatusResponse)
            watch.cancel()
            said = [getattr(status, name) for name in own]
            assert said == [getattr(again, name) for name in own]
            assert status.intents_model + status.intents_policy <= status.npcs * 10
            return said

        assert await counts("a") == [0] * 7, "the rig's own world is the tenant's without a name"
        await npcs.DefineWorld(world(), metadata=bearer("a"))
        registered = await npcs.Register(npcs_pb2.RegisterRequest(world_id="vale", npcs=specs(3)), metadata=bearer("a"))
        rig.leases = {lease.npc_id: lease.lease_epoch for lease in registered.leases}
        live = intents.Live(metadata=bearer("a"))
        await live.write(rig.frame(*(rig.sees(f"npc{n}", ("p", "player", "friendly", 5.0)) for n in range(2))))
        answered: set[str] = set()
        async with asyncio.timeout(PATIENCE_S):
            while len(answered) < 2:
                frame = await live.read()
                assert isinstance(frame, intents_pb2.IntentFrame)
                answered |= {i.npc_id for i in frame.intents}
        assert [e async for e in dialogue.Talk(rig.talk("npc0", "Hello.", max_tokens=2), metadata=bearer("a"))]
        assert await counts("a") == [1, 3, 1, 0, 1, 2, 1]
        assert await counts("b") == [0] * 7
        assert await counts("o") == [2, 7, 1, 0, 1, 2, 1]
        engine = rig.daemon.board.message("studio-b").steps
        assert engine == rig.daemon.board.message().steps, "the engine is one for all"
        await live.done_writing()
        await npcs.Remove(npcs_pb2.RemoveRequest(world_id="vale", npc_ids=["npc0"]), metadata=bearer("a"))
        await until(lambda: rig.daemon.board.lifecycle.streams == 0)
        assert (await counts("a"))[1:6] == [2, 0, 0, 1, 1]


async def latest(live: Live, tick: int) -> Intent:
    """The client's intent of npc0 once it agrees with that observation."""

    def there() -> bool:
        held = live.latest("npc0")
        return held is not None and held.observed_tick == tick

    await until(there, f"an intent of tick {tick}")
    held = live.latest("npc0")
    assert held is not None
    return held


async def test_the_python_client_follows_a_new_lease_and_its_pause(unix: ServeSettings) -> None:
    """Ticks start anew after take_over, and confirmations keep the intent young. During a pause the model is not
    asked."""
    async with served(gated(), unix) as (rig, _, _), Client(unix.listen[0], timeout_s=PATIENCE_S) as npcd:
        npcs = [NpcSpec("npc0", "villager", "mira")]
        wolf = (Percept("w1", "wolf", "hostile", 6.0),)
        await npcd.register(npcs, take_over=True, world_id="vale")
        async with npcd.live("vale") as live:
            await live.wait_connected(PATIENCE_S)
            live.observe(Observation("npc0", 500, percepts=wolf))
            first = await latest(live, 500)
            lease = (await npcd.register(npcs, take_over=True, world_id="vale")).lease_epochs["npc0"]
            for tick in (1, 2, 3):
                live.observe(Observation("npc0", tick, percepts=wolf))
                held = await latest(live, tick)
                assert (held.action, held.lease_epoch) == (first.action, lease)
                assert held.agreed_ns > first.agreed_ns
            live.tell_time(5_000, paused=True)
            live.observe(Observation("npc0", 4, percepts=(Percept("p1", "player", "friendly", 3.0),)))
            await until(lambda: rig.daemon.table.counts.observations == 5)
            assert (await latest(live, 3)).action == first.action
            live.tell_time(5_000)
            live.observe(Observation("npc0", 5, percepts=(Percept("p1", "player", "friendly", 3.0),)))
            assert (await latest(live, 5)).version > first.version
        (one,) = (await npcd.get_intents(["npc0"], world_id="vale")).intents
        assert (one.observed_tick, one.lease_epoch) == (5, lease)
