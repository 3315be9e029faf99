"""Full collections run when no caller waits, and always within a bound."""

import asyncio
import gc
from collections import Counter

from core.clock import S
from daemon.process.tidy import EVERY_S, GROWN_MAX, Tidy
from engines.sim import VirtualClock
from npcd.v1 import intents_pb2, npcs_pb2
from tests.daemon.rig import gated, running, specs


def test_collects_when_idle_and_due_or_long_overdue() -> None:
    """On a busy loop it runs after ten times the interval, on an idle one after one."""
    before = gc.get_threshold()
    clock = VirtualClock()
    tidy = Tidy(clock)
    try:
        tidy.start()
        assert gc.get_threshold()[2] > 1_000_000
        assert gc.get_freeze_count() > 0
        tidy.look(idle=True)
        assert tidy.full == 0
        clock.advance((EVERY_S + 1) * S)
        tidy.look(idle=False)
        assert tidy.full == 0
        tidy.look(idle=True)
        assert tidy.full == 1
        clock.advance(10 * EVERY_S * S)
        tidy.look(idle=False)
        assert tidy.full == 2
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def test_many_old_objects_are_not_searched() -> None:
    """Many old objects are frozen within a second, without a collection. Few are collected when they are due."""
    before, clock = gc.get_threshold(), VirtualClock()
    tidy = Tidy(clock)
    try:
        tidy.start()
        grown = GROWN_MAX
        aside = gc.get_freeze_count()
        tidy.look(idle=True)
        assert gc.get_freeze_count() <= aside, "nothing has grown old"
        living = []
        for times in range(1, 4):
            living += [[i] for i in range(3 * grown)]
            tidy.look(idle=True)
            assert gc.get_freeze_count() >= aside + times * 2 * grown and tidy.full == 0
        aside = gc.get_freeze_count()
        clock.advance((EVERY_S + 1) * S)
        tidy.look(idle=True)
        assert gc.get_freeze_count() <= aside and tidy.full == 1 and len(living) == 9 * grown
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


async def test_turns_intents_and_calls_leave_nothing_for_the_collector() -> None:
    """They are freed as soon as they end. Otherwise objects that were frozen with them would never be."""
    async with running(gated()) as rig:

        async def play(times: int) -> None:
            for i in range(times):
                await rig.daemon.calls.observe("", rig.frame(rig.sees("npc0", ("w", "wolf", "hostile", 2.0 + 9 * i))))
                await rig.say("npc1", "What have you seen?", max_tokens=4)
                await rig.daemon.calls.describe("", npcs_pb2.DescribeRequest(world_id="vale", with_history=True))
                await rig.daemon.calls.register("", npcs_pb2.RegisterRequest(world_id="vale", npcs=specs(4)))
                stream = rig.daemon.calls.watch_intents("", intents_pb2.WatchIntentsRequest(world_id="vale"))
                await anext(stream)
                await stream.aclose()
            await rig.daemon.door.all_ended()

        await play(2)
        gc.collect()
        gc.disable()
        try:
            await play(10)
            await asyncio.sleep(0)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            ours = Counter(
                f"{type(o).__module__}.{type(o).__qualname__}"
                for o in gc.garbage
                if type(o).__module__.partition(".")[0] in ("core", "daemon", "memory", "scheduler", "tiers")
            )
            assert not {name: count for name, count in ours.items() if count >= 10}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
