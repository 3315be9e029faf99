"""No call blocks the event loop for a time that grows with the number of NPCs.

Slices last no time at all here, so every call gives others a turn wherever it can. The work between two turns is
counted in function calls: with few NPCs, and with four times as many, it is the same.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.config import Config
from npcd.v1 import intents_pb2, npcs_pb2
from tests.daemon.rig import UNHURRIED, Rig, Standing, gated, running, world
from tests.daemon.stretches import largest_collection, longest

FEW, MANY = 300, 1200
FEW_OBJECTS = 2 * 700  # Python itself collects young objects when there are 700 more than before
SAME = 1500  # calls of functions: allowance for other bounded work in the same turn
CONFIG: Config = replace(UNHURRIED, calls=replace(UNHURRIED.calls, slice_ms=0.0))

Act = Callable[[Rig, int], Awaitable[object]]


def inline(count: int) -> list[npcs_pb2.NpcSpec]:
    """NPCs with personas of their own."""
    return [
        npcs_pb2.NpcSpec(
            npc_id=f"npc{i}", archetype_id="villager", persona=npcs_pb2.Persona(name=f"Mira {i}", text=f"Bakes {i}.")
        )
        for i in range(count)
    ]


async def register(rig: Rig, count: int, **more: bool) -> None:
    """All NPCs."""
    request = npcs_pb2.RegisterRequest(world_id="vale", npcs=inline(count), **more)
    answer = await rig.daemon.calls.register("", request)
    rig.leases |= {lease.npc_id: lease.lease_epoch for lease in answer.leases}


async def take_over(rig: Rig, count: int) -> None:
    """Registers all NPCs again, with new leases."""
    await register(rig, count, take_over=True)


async def define(rig: Rig, count: int) -> None:
    """The world with other lore, and personas of its own."""
    personas = [npcs_pb2.Persona(persona_id=f"p{i}", name=f"Mira {i}", text="Bakes.") for i in range(count)]
    await rig.daemon.calls.define_world("", world(lore=" It rains.", personas=personas))


async def define_rows(rig: Rig, count: int) -> None:
    """The world with the longest allowed table of rules and the most NPCs."""
    rows = [npcs_pb2.PolicyRow(action="idle", emotion="calm", percept_kind="wolf")] * (512 * count // MANY)
    await rig.daemon.calls.define_world("", world(lore=" It rains.", policy=npcs_pb2.Policy(rows=rows)))


async def describe(rig: Rig, count: int) -> None:
    """The whole world."""
    answer = await rig.daemon.calls.describe("", npcs_pb2.DescribeRequest(world_id="vale", with_history=True))
    assert len(answer.npcs) >= count


async def describe_unknown(rig: Rig, count: int) -> None:
    """NPCs that do not exist."""
    ids = [f"nobody{i}" for i in range(count)]
    answer = await rig.daemon.calls.describe("", npcs_pb2.DescribeRequest(world_id="vale", npc_ids=ids))
    assert list(answer.unknown_npc_ids) == ids


async def get(rig: Rig, count: int) -> None:
    """The intents of the whole world."""
    answer = await rig.daemon.calls.get_intents("", intents_pb2.GetIntentsRequest(world_id="vale"))
    assert len(answer.intents) == count


async def first_frame(rig: Rig, count: int) -> None:
    """A stream's first frame is the whole table, in one piece."""
    stream = rig.daemon.calls.watch_intents("", intents_pb2.WatchIntentsRequest(world_id="vale"))
    frame = await anext(stream)
    assert frame.snapshot and len(frame.intents) == count
    await stream.aclose()


async def remove(rig: Rig, count: int) -> None:
    """All NPCs."""
    ids = [f"npc{i}" for i in range(count)]
    answer = await rig.daemon.calls.remove("", npcs_pb2.RemoveRequest(world_id="vale", npc_ids=ids))
    assert answer.removed == count


async def checkpoint(rig: Rig, count: int) -> None:
    """A checkpoint of all memories."""
    await rig.daemon.calls.save_games.checkpoint(
        "", npcs_pb2.CheckpointRequest(world_id="vale", checkpoint_id=f"c{count}")
    )


async def restore(rig: Rig, count: int) -> None:
    """Goes back to the existing save."""
    await rig.daemon.calls.save_games.restore("", npcs_pb2.RestoreRequest(world_id="vale", checkpoint_id="saved"))


async def export(rig: Rig, count: int) -> list[npcs_pb2.ExportChunk]:
    """The world's save."""
    chunks = rig.daemon.calls.save_games.export("", npcs_pb2.ExportRequest(world_id="vale"))
    return [chunk async for chunk in chunks]


async def import_new(rig: Rig, count: int) -> None:
    """A world with all of its NPCs, for a tenant who has none."""
    exported = await export(rig, count)

    async def chunks() -> AsyncIterator[npcs_pb2.ImportChunk]:
        for c in exported:
            yield npcs_pb2.ImportChunk(world_id="vale", sequence=c.sequence, content=c.content, last=c.last)

    answer = await rig.daemon.calls.save_games.import_("other", chunks())
    assert answer.npcs >= count


async def observe_all(rig: Rig, count: int) -> None:
    """All NPCs see something else, several times."""
    for distance_m in (5.0, 15.0, 25.0, 35.0):
        for first in range(0, count, 300):
            seen = [rig.sees(f"npc{first + i}", ("w", "wolf", "hostile", distance_m)) for i in range(300)]
            await rig.daemon.calls.observe("", rig.frame(*seen))


async def prepared(rig: Rig, count: int) -> None:
    """All NPCs have an intent, a bond with a player, and a session that is saved under a name."""
    await register(rig, count)
    for first in range(0, count, 300):
        seen = [rig.sees(f"npc{first + i}", ("w", "wolf", "hostile", 50.0)) for i in range(300)]
        await rig.daemon.calls.observe("", rig.frame(*seen))
    for i in range(count):
        card = npcs_pb2.RelationshipCard(trust=0.5)
        request = npcs_pb2.SetCardsRequest(world_id="vale", npc_id=f"npc{i}", player_id="p", relationship=card)
        await rig.daemon.calls.recalling.set_cards("", request)
    await rig.daemon.calls.save_games.checkpoint("", npcs_pb2.CheckpointRequest(world_id="vale", checkpoint_id="saved"))
    await rig.daemon.door.all_ended()


async def stretch(act: Act, count: int, folder: Path, bare: bool) -> int:
    """The longest stretch of a call with so many NPCs."""
    model, standing = gated(), Standing()
    async with running(model, CONFIG, npcs=1, saves=folder, clock=standing) as rig:
        if not bare:
            await prepared(rig, count)
        model.engine.gated = True  # the engine's results come in portions of their own
        standing.at_ns = rig.daemon.clock()  # and so do NPCs that become due meanwhile
        return await longest(act(rig, count))


@pytest.mark.parametrize(
    ("act", "bare"),
    [
        (register, True),
        (register, False),
        (take_over, False),
        (define, True),
        (define, False),
        (define_rows, True),
        (describe, False),
        (describe_unknown, True),
        (get, False),
        (first_frame, False),
        (remove, False),
        (checkpoint, False),
        (restore, False),
        (export, False),
        (import_new, False),
    ],
    ids=lambda value: value.__name__ if callable(value) else "nothing_yet" if value else "prepared",
)
async def test_a_call_gives_others_a_turn_however_many_npcs_it_is_about(act: Act, bare: bool, tmp_path: Path) -> None:
    """The longest stretch without a turn is as long with four times as many NPCs."""
    few = await stretch(act, FEW, tmp_path / "few", bare)
    many = await stretch(act, MANY, tmp_path / "many", bare)
    assert many <= few + SAME, f"{few} calls of functions in one stretch with {FEW} NPCs, {many} with {MANY}"


@pytest.mark.parametrize("act", [checkpoint, export, observe_all], ids=lambda act: act.__name__)
async def test_collections_stay_small_while_new_objects_take_the_place_of_old_ones(act: Act, tmp_path: Path) -> None:
    """Python counts allocations less frees, so such work could leave all its objects to one collection."""
    model = gated()
    async with running(model, CONFIG, npcs=1, saves=tmp_path) as rig:
        await prepared(rig, MANY)
        model.engine.gated = True
        with largest_collection() as looked_through:
            await act(rig, MANY)
    assert len(looked_through) > 10, "nothing was collected"
    assert max(looked_through) < FEW_OBJECTS, f"a collection looked through {max(looked_through)} objects"
