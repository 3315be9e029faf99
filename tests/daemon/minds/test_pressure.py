"""Under load optional work is left out, the status says which and why, and it comes back by itself."""

import asyncio
from contextlib import aclosing, suppress
from dataclasses import replace

import pytest

from core.clock import now_ns
from core.errors import Draining, Overloaded
from core.words import Tier
from core.work import Work
from daemon.config import Config
from daemon.minds.pressure import Pressure
from daemon.process.telemetry import StatusCollector
from npcd.v1 import admin_pb2, intents_pb2
from tests.daemon.rig import Gated, GatedEngine, Rig, Standing, gated, passes, running, until, world
from tiers.shedding import ShedSettings

QUICK = ShedSettings(calm_ms=50)


def engine_of(model: Gated) -> GatedEngine:
    """The gated engine."""
    return model.engine


def shed(rig: Rig) -> dict[str, admin_pb2.Shed]:
    """The status's entries, by work."""
    return {s.work: s for s in rig.daemon.board.message().shedding}


async def line(rig: Rig, npc: str, player: str) -> None:
    """Runs a turn to its end."""
    async with aclosing(rig.daemon.calls.talk("", rig.talk(npc, "Hello.", player))) as events:
        async for _ in events:
            pass


async def test_an_idle_daemon_puts_nothing_off() -> None:
    """An idle engine does not count as stalled."""
    async with running(gated(), Config(shedding=QUICK), clock=Standing()) as rig:
        for _ in range(100):
            assert shed(rig) == {}
            await passes(rig, 50)


async def test_an_engine_that_stands_is_told_and_barks_are_left_out() -> None:
    """All optional works are put off while it is stalled, and no work is refused. They come back by themselves."""
    model = gated()
    engine = engine_of(model)
    async with running(model, Config(shedding=QUICK)) as rig:
        pressure = rig.daemon.board.pressure
        engine.gated = True
        turn = asyncio.create_task(line(rig, "npc0", "p1"))
        await until(lambda: "dialogue" in shed(rig), "the engine stands")
        said = shed(rig)
        assert set(said) == {"predictions", "barks", "intents", "dialogue", "stories"}
        assert said["dialogue"].reason.startswith("the engine has not come round for ")
        assert said["intents"].reason.endswith("; the policy answers")
        assert all(s.retry_ms == 0 for s in said.values())
        assert not pressure.allows_barks() and not pressure.allows_predictions()
        engine.open()
        await turn
        await until(lambda: shed(rig) == {}, "it comes back")
        assert pressure.allows_barks() and pressure.allows_predictions()


@pytest.mark.parametrize("stands", [False, True])
async def test_intents_come_without_words_while_barks_are_put_off(stands: bool) -> None:
    """The intent is the model's as usual. Barks are made for it only while there is time for them."""
    shedding = ShedSettings(stalled_ms=20.0, calm_ms=60_000)
    config = Config(shedding=shedding)
    prediction = replace(config.intents.prediction, on=False)
    config = replace(config, intents=replace(config.intents, bark_every_ms=1, prediction=prediction))
    model = gated()
    engine = engine_of(model)
    async with running(model, config) as rig:
        loud = world()
        for action in loud.actions:
            action.speaks = True
        await rig.daemon.calls.define_world("", loud)
        await rig.daemon.door.all_ended()
        works: list[Work] = []
        submit = rig.daemon.door.submit_group

        def heard(group):  # type: ignore[no-untyped-def]
            works.extend(work for work, _, _ in group)
            return submit(group)

        rig.daemon.door.submit_group = heard  # type: ignore[method-assign]
        engine.gated = stands
        await rig.daemon.calls.observe("", rig.frame(rig.sees("npc1", ("w1", "wolf", "hostile", 3.0))))
        if stands:
            await until(lambda: "barks" in shed(rig), "barks are put off")
            engine.open()
        await rig.intent("npc1", lambda i: i.source == intents_pb2.INTENT_SOURCE_MODEL)
        await rig.daemon.door.all_ended()
        barks = [w for w in works if w.max_tokens and w.choice is None]
        assert bool(barks) != stands


async def test_a_refused_turn_and_the_status_say_the_same_retry_time() -> None:
    """The turn that waits longest stays. The newest is refused before its first event."""
    config = Config(shedding=replace(QUICK, stalled_ms=60_000.0))
    silver = replace(config.promises.silver, waiting_max=2, running_max=1)
    config = replace(config, promises=replace(config.promises, silver=silver))
    model = gated()
    engine = engine_of(model)
    async with running(model, config, npcs=6) as rig:
        await line(rig, "npc5", "p9")
        await rig.daemon.door.all_ended()
        engine.gated = True
        turns = [asyncio.create_task(line(rig, f"npc{n}", f"p{n}")) for n in range(2)]
        await until(lambda: rig.daemon.door.waiting(Tier.SILVER) == 2, "the queue is full")
        with pytest.raises(Overloaded) as refused:
            await line(rig, "npc4", "p4")
        said = shed(rig)["dialogue"]
        assert said.reason == "Silver's queue is full"
        assert said.retry_ms > 0 and abs(said.retry_ms - refused.value.retry_ms) <= 50
        engine.open()
        await asyncio.gather(*turns)


async def test_a_daemon_that_goes_away_says_so() -> None:
    """New work of every kind is refused."""
    async with running(gated()) as rig:
        rig.daemon.door.draining = True
        assert {s.reason.split(";")[0] for s in shed(rig).values()} == {"the daemon is going away"}
        with suppress(Draining):
            await line(rig, "npc0", "p1")
        rig.daemon.door.draining = False


async def test_npcs_that_wait_for_their_share_come_before_guesses() -> None:
    """The code that knows their number reports it."""
    async with running(gated()) as rig:
        waiting = [3]
        pressure = Pressure(rig.daemon.door, Config().promises, QUICK, now_ns, lambda: waiting[0])
        assert not pressure.allows_predictions() and pressure.allows_barks()
        waiting[0] = 0
        await until(pressure.allows_predictions, "they are asked")


async def test_the_door_knows_who_waits_longest() -> None:
    """The wait counts from the submission until the work is taken."""
    model = gated()
    engine = engine_of(model)
    async with running(model) as rig:
        door = rig.daemon.door
        assert [door.oldest_ns(tier) for tier in Tier] == [None, None, None]
        engine.gated = True
        began_ns = now_ns()
        first = asyncio.create_task(line(rig, "npc0", "p0"))
        await until(lambda: door.waiting(Tier.SILVER) == 1, "it waits")
        oldest_ns = door.oldest_ns(Tier.SILVER)
        assert oldest_ns is not None and began_ns < oldest_ns <= now_ns()
        rest = [asyncio.create_task(line(rig, f"npc{n}", f"p{n}")) for n in (1, 2)]
        await until(lambda: door.waiting(Tier.SILVER) == 3, "they wait")
        assert door.oldest_ns(Tier.SILVER) == oldest_ns
        engine.open()
        await asyncio.gather(first, *rest)
        await door.all_ended()
        assert door.oldest_ns(Tier.SILVER) is None


async def test_the_metrics_have_every_kind_of_work() -> None:
    """They are 1 for work that is put off now and 0 for the rest, so that a graph has no gaps."""
    async with running(gated()) as rig:
        collector = StatusCollector(rig.daemon.board.message, dict)

        def gauges() -> dict[str, float]:
            (family,) = (m for m in collector.collect() if m.name == "npcd_shedding")
            return {s.labels["work"]: s.value for s in family.samples}

        assert gauges() == dict.fromkeys(("predictions", "barks", "intents", "dialogue", "stories"), 0.0)
        rig.daemon.door.draining = True
        await until(lambda: set(gauges().values()) == {1.0}, "it is told")
        rig.daemon.door.draining = False
