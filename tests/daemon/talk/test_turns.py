"""A turn belongs to no stream: retries read it from its beginning, and a cancel reaches it in every stage."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import EngineFailed, NotFound, Overloaded
from core.steps import at_once
from core.words import NpcKey, Tier
from daemon.config import Config
from engines.base import StepPlan, StepResult
from memory.recall import Recalled
from npcd.v1 import dialogue_pb2, npcs_pb2
from tests.daemon.process.test_keeping import JOURNAL_ALONE, REDIS_ALONE, kept
from tests.daemon.rig import GatedEngine, Rig, gate_of, gated, patience, running, until
from tests.daemon.talk.test_dialogue import END, STARTED, engine_of, said, settled
from tests.daemon.talk.test_sessions import bond_of, end
from tests.patience import PATIENCE_S

__all__ = ["patience"]
pytestmark = pytest.mark.usefixtures("patience")

LENGTH = dialogue_pb2.TALK_FINISH_LENGTH
CANCELLED, FAILED = dialogue_pb2.TALK_FINISH_CANCELLED, dialogue_pb2.TALK_FINISH_FAILED
REPEATED = dialogue_pb2.TALK_FINISH_REPEATED
NPC = NpcKey("", "vale", "npc0")
LINE = "Hello there, tell me of the mill."


@dataclass
class Stream:
    """One Talk that is read as it comes, and its events."""

    task: asyncio.Task[None]
    events: list[dialogue_pb2.TalkEvent]

    @property
    def text(self) -> str:
        """The text that it has received."""
        return said(self.events)

    async def hang_up(self) -> None:
        """Leaves, as a call does that is cancelled on the wire."""
        self.task.cancel()
        await asyncio.wait((self.task,))

    async def ended(self) -> dialogue_pb2.TalkEvent:
        """The last event."""
        async with asyncio.timeout(PATIENCE_S):
            await self.task
        assert self.events[-1].kind == END
        return self.events[-1]


def talks(rig: Rig, player: str = "p1", turn_id: str = "t1", max_tokens: int = 40) -> Stream:
    """Begins to talk with npc0."""
    events: list[dialogue_pb2.TalkEvent] = []

    async def read() -> None:
        async with aclosing(rig.daemon.calls.talk("", _line(rig, player, turn_id, max_tokens))) as stream:
            async for event in stream:
                events.append(event)

    return Stream(asyncio.create_task(read()), events)


def _line(rig: Rig, player: str, turn_id: str, max_tokens: int) -> dialogue_pb2.TalkRequest:
    return rig.talk("npc0", LINE, player, turn_id=turn_id, max_tokens=max_tokens)


def cancel(turn_id: str = "", player: str = "p1") -> dialogue_pb2.CancelTurnRequest:
    """A request to cancel a turn."""
    return dialogue_pb2.CancelTurnRequest(world_id="vale", npc_id="npc0", player_id=player, turn_id=turn_id)


def heard(rig: Rig, player: str = "p1") -> list[str]:
    """The NPC's utterances of the conversation under way."""
    return [t.text for s in rig.daemon.dialogue.hot.of_player("", "vale", player) for t in s.turns]


@asynccontextmanager
async def speaking() -> AsyncIterator[tuple[Rig, GatedEngine, Stream]]:
    """An NPC in the middle of its reply, which goes on when the engine is let go."""
    model = gated()
    engine = engine_of(model)
    async with running(model) as rig:
        engine.gated = True
        engine.gate.release(6)
        first = talks(rig)
        await until(lambda: bool(first.text), "the first words")
        await engine.stand_still()
        yield rig, engine, first


# -- retries ---------------------------------------------------------------------------------------------------------


async def test_a_retry_of_a_running_turn_goes_on_with_its_stream_from_the_beginning() -> None:
    """Both streams get the whole reply and the same end, from one turn. A later retry repeats the whole reply."""
    async with speaking() as (rig, engine, first):
        retry = talks(rig)
        await until(lambda: bool(retry.text), "what was said before")
        assert retry.events[0].kind == STARTED and retry.text == first.text
        engine.open()
        ends = [await first.ended(), await retry.ended()]
        assert {e.finish for e in ends} == {LENGTH}
        assert retry.text == first.text and first.events[-1].timings == retry.events[-1].timings
        assert [e.index for e in retry.events] == list(range(len(retry.events)))
        assert heard(rig) == [LINE, first.text]
        assert rig.daemon.dialogue.counts.started == 1
        later = talks(rig)
        assert (await later.ended()).finish == REPEATED and later.text == first.text


async def test_a_turn_goes_on_for_a_retry_when_the_first_client_is_gone() -> None:
    """A client that hangs up does not cut the reply for the other one."""
    async with speaking() as (rig, engine, first):
        retry = talks(rig)
        await until(lambda: bool(retry.text), "what was said before")
        await first.hang_up()
        engine.open()
        assert (await retry.ended()).finish == LENGTH
        assert len(retry.text) > len(first.text) and heard(rig) == [LINE, retry.text]


@pytest.mark.parametrize("how", ["hang up", "cancel"])
async def test_a_turn_that_was_cancelled_is_generated_again_in_its_place(how: str) -> None:
    """The retry is a whole reply. Conversation and memory have the line once, with the whole reply."""
    async with speaking() as (rig, engine, first):
        if how == "cancel":
            assert (await rig.daemon.calls.cancel_turn("", cancel())).cancelled
        else:
            await first.hang_up()
        engine.open()
        if how == "cancel":
            assert (await first.ended()).finish == CANCELLED
        await settled(rig)
        assert heard(rig) == [LINE, first.text]
        retry = talks(rig)
        assert (await retry.ended()).finish == LENGTH
        assert heard(rig) == [LINE, retry.text] and len(retry.text) > len(first.text)
        session = bond_of(rig).session
        assert session is not None and session.count == 1
        assert [(e.line, e.reply) for e in session.exchanges] == [(LINE, retry.text)]
        assert (await talks(rig).ended()).finish == REPEATED


async def test_a_cancelled_turn_that_is_retried_after_another_is_a_turn_of_its_own() -> None:
    """The lines between the two tries stay where they were."""
    async with speaking() as (rig, engine, first):
        await first.hang_up()
        engine.open()
        other = talks(rig, turn_id="t2")
        await other.ended()
        retry = talks(rig)
        assert (await retry.ended()).finish == LENGTH
        assert heard(rig) == [LINE, first.text, LINE, other.text, LINE, retry.text]
        session = bond_of(rig).session
        assert session is not None and session.count == 3


async def test_a_retry_that_says_nothing_leaves_what_was_said_before() -> None:
    """The first try's words are removed for the second one. When that is cancelled at once, they are back."""
    async with speaking() as (rig, engine, first):
        await first.hang_up()
        retry = talks(rig)
        await until(lambda: bool(retry.events), "it is admitted")
        assert heard(rig) == []
        assert (await rig.daemon.calls.cancel_turn("", cancel())).cancelled
        assert heard(rig) == [LINE, first.text]
        engine.open()
        assert (await retry.ended()).finish == CANCELLED and not retry.text
        assert (await talks(rig).ended()).finish == LENGTH


@pytest.mark.parametrize("after_steps", [0, 12])
async def test_a_turn_that_failed_is_generated_again(monkeypatch: pytest.MonkeyPatch, after_steps: int) -> None:
    """With or without text of the first try, the next retry is a whole reply."""
    model = gated()
    engine = engine_of(model)
    async with running(model) as rig:
        honest, steps, failing = engine.step, 0, True

        def step(plan: StepPlan) -> StepResult:
            nonlocal steps
            steps += 1
            if failing and steps > after_steps:
                raise EngineFailed("the engine is ill")
            return honest(plan)

        monkeypatch.setattr(engine, "step", step)
        first = talks(rig)
        if after_steps:
            assert (await first.ended()).finish == FAILED and first.text
        else:
            with pytest.raises(EngineFailed, match="is ill"):
                await first.ended()
        failing = False
        retry = talks(rig)
        assert (await retry.ended()).finish == LENGTH
        assert len(retry.text) > len(first.text) and heard(rig) == [LINE, retry.text]


async def test_a_repeated_turn_tells_what_the_lost_end_told(tmp_path: Path) -> None:
    """accepted, accepted_known and timings are the first end's."""
    async with kept(tmp_path / "data", **JOURNAL_ALONE) as (rig, _):
        first, again = await talks(rig).ended(), await talks(rig).ended()
        assert again.finish == REPEATED and again.accepted and again.accepted_known
        assert again.timings == first.timings and first.timings.output_tokens == 40


@pytest.mark.parametrize("memory", [REDIS_ALONE, JOURNAL_ALONE], ids=["Redis", "journal"])
async def test_a_retry_after_a_restart(tmp_path: Path, memory: dict[str, Any]) -> None:
    """A finished turn is repeated, as accepted. A cancelled one is generated again, in its place."""
    async with kept(tmp_path / "data", **memory) as (rig, _):
        finished = talks(rig, turn_id="t1", max_tokens=5)
        await finished.ended()
        engine = gate_of(rig)
        engine.gated = True
        engine.gate.release(6)
        cut = talks(rig, turn_id="t2")
        await until(lambda: bool(cut.text), "the first words")
        await cut.hang_up()
        engine.open()
    async with kept(tmp_path / "data", npcs=0, **memory) as (rig, _):
        again = talks(rig, turn_id="t1", max_tokens=5)
        event = await again.ended()
        assert event.finish == REPEATED and again.text == finished.text
        assert event.accepted and event.accepted_known and list(event.timings.stores)
        whole = talks(rig, turn_id="t2")
        assert (await whole.ended()).finish == LENGTH and len(whole.text) > len(cut.text)
        assert heard(rig) == [LINE, finished.text, LINE, whole.text]
        session = bond_of(rig).session
        assert session is not None and session.count == 2
        assert [e.reply for e in session.exchanges] == [finished.text, whole.text]


async def test_a_retry_of_a_finished_turn_does_not_wait_for_the_floor() -> None:
    """Another player talks with the NPC meanwhile."""
    model = gated()
    engine = engine_of(model)
    async with running(model) as rig:
        first = talks(rig, max_tokens=3)
        await first.ended()
        engine.gated = True
        other = talks(rig, "p2", "other")
        await until(lambda: bool(other.events), "the other has the floor")
        again = talks(rig, max_tokens=3)
        assert (await again.ended()).finish == REPEATED and again.text == first.text
        engine.open()
        await other.ended()


@pytest.mark.parametrize("max_tokens", [500, 40])
async def test_a_retry_after_the_end_of_a_slow_reader(max_tokens: int) -> None:
    """A reply that was cut for a slow reader is generated again. A complete one is repeated in full."""
    config = Config()
    config = replace(config, dialogue=replace(config.dialogue, slow_reader_s=0.05))
    model = gated()
    engine = engine_of(model)
    async with running(model, config) as rig:
        engine.gated = True
        engine.gate.release(100)
        slow = rig.daemon.calls.talk("", _line(rig, "p1", "t1", max_tokens))
        assert (await anext(slow)).kind == STARTED
        await until(lambda: rig.daemon.dialogue.counts.slow_readers == 1, "it is given up")
        await until(lambda: not rig.daemon.dialogue.floors, "the floor is free")
        engine.open()
        retry = talks(rig, max_tokens=max_tokens)
        assert (await retry.ended()).finish == (REPEATED if max_tokens == 40 else LENGTH)
        assert heard(rig) == [LINE, retry.text] and len(retry.text) > 40
        with pytest.raises(Overloaded, match="left an event unread"):
            await anext(slow)


async def test_a_first_client_that_does_not_read_holds_nobody_up() -> None:
    """Its connection is dead, and the daemon has not noticed. The retry gets everything, and then the next player gets
    the floor."""
    async with running(gated()) as rig:
        dead = rig.daemon.calls.talk("", _line(rig, "p1", "t1", 500))
        assert (await anext(dead)).kind == STARTED
        retry = talks(rig, max_tokens=500)
        assert (await retry.ended()).finish == LENGTH
        assert (await talks(rig, "p2", "other").ended()).finish == LENGTH
        assert rig.daemon.dialogue.counts.slow_readers == 0
        await dead.aclose()


# -- stops -----------------------------------------------------------------------------------------------------------

STAGES = ("floor", "recall", "queue", "prefill", "words")


@asynccontextmanager
async def in_stage(stage: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Rig, GatedEngine, Stream]]:
    """A turn of p1 that has come to a stage and stays there until the engine is let go."""
    model = gated()
    engine = engine_of(model)
    async with running(model) as rig:
        dialogue, door = rig.daemon.dialogue, rig.daemon.door
        if stage == "recall":
            recall = rig.daemon.memory.recall
            let_go = asyncio.Event()

            async def held_up(npc: NpcKey, player: str) -> Recalled:
                await let_go.wait()
                return await recall(npc, player)

            monkeypatch.setattr(rig.daemon.memory, "recall", held_up)
            honest = engine.open

            def let_all_go() -> None:
                let_go.set()
                honest()

            monkeypatch.setattr(engine, "open", let_all_go)
        engine.gated = True
        if stage == "floor":
            other = talks(rig, "p0", "other", 3)
            await until(lambda: bool(other.events), "the other has the floor")
        stream = talks(rig)
        if stage == "floor":
            await until(lambda: any(f.waiting for f in dialogue.floors.values()), "it waits")
        elif stage == "recall":
            await until(lambda: any(t.stage.value == "recalls" for t in dialogue.turns(NPC)), "it waits")
        elif stage == "queue":
            await until(lambda: door.waiting(Tier.SILVER) == 1, "it waits")
        elif stage == "prefill":
            await until(lambda: bool(rig.daemon.step_backend.scheduler.running), "it is taken")
        else:
            engine.gate.release(6)
            await until(lambda: bool(stream.text), "the first words")
        if stage != "recall":
            await engine.stand_still()
        try:
            yield rig, engine, stream
        finally:
            engine.open()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("turn_id", ["", "t1"])
async def test_cancel_reaches_a_turn_in_every_stage(stage: str, turn_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancel reports it, the turn ends CANCELLED without further text, and a second cancel finds nothing."""
    async with in_stage(stage, monkeypatch) as (rig, engine, stream):
        calls = rig.daemon.calls
        assert not (await calls.cancel_turn("", cancel("another"))).cancelled
        assert not (await calls.cancel_turn("", cancel(player="p2"))).cancelled
        assert (await calls.cancel_turn("", cancel(turn_id))).cancelled
        assert not (await calls.cancel_turn("", cancel(turn_id))).cancelled
        before = stream.text
        engine.open()
        assert (await stream.ended()).finish == CANCELLED
        assert stream.text == before and heard(rig) == ([LINE, before] if before else [])
        await settled(rig)
        assert not rig.daemon.step_backend.scheduler.placer.lanes.leased
        if stage in ("floor", "recall"):
            assert len(stream.events) == 1, "it was never admitted"
        await until(lambda: not rig.daemon.dialogue.floors, "the floor is free")


@pytest.mark.parametrize("stage", STAGES)
async def test_the_end_of_a_session_reaches_a_turn_in_every_stage(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn ends CANCELLED. Its text so far is part of the session that is summed up."""
    async with in_stage(stage, monkeypatch) as (rig, engine, stream):
        ended = await rig.daemon.calls.end_session("", end())
        assert ended.turns == (2 if stage == "words" else 0)
        engine.open()
        assert (await stream.ended()).finish == CANCELLED
        await settled(rig)
        assert heard(rig) == []
        assert bool(bond_of(rig).summaries) is (stage == "words")


@pytest.mark.parametrize("stage", STAGES)
async def test_a_client_that_hangs_up_stops_its_turn_in_every_stage(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lane and floor are free, and text that was not delivered is not kept."""
    async with in_stage(stage, monkeypatch) as (rig, engine, stream):
        await stream.hang_up()
        assert rig.daemon.dialogue.counts.cancelled == 1
        assert not rig.daemon.dialogue.turns(NPC, "p1")
        engine.open()
        await settled(rig)
        assert not rig.daemon.step_backend.scheduler.placer.lanes.leased
        assert heard(rig) == ([LINE, stream.text] if stream.text else [])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", ["forget", "restore"])
async def test_forget_and_restore_end_turns_in_every_stage(
    stage: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line that was under way comes into the memories that follow."""
    async with in_stage(stage, monkeypatch) as (rig, engine, stream):
        if how == "forget":
            rig.daemon.dialogue.forget("", "vale", "p1", "")
        else:
            at_once(rig.daemon.dialogue.turning_back("", "vale"))
        engine.open()
        assert (await stream.ended()).finish == CANCELLED
        await settled(rig)
        assert heard(rig) == [] and bond_of(rig).session is None


@pytest.mark.parametrize("stage", STAGES)
async def test_a_turn_with_an_npc_that_is_removed_ends_in_every_stage(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with CANCELLED when the NPC speaks, and with NOT_FOUND while it waits for the NPC."""
    async with in_stage(stage, monkeypatch) as (rig, engine, stream):
        await rig.daemon.calls.remove("", npcs_pb2.RemoveRequest(world_id="vale", npc_ids=["npc0"]))
        engine.open()
        if stage in ("floor", "recall"):
            with pytest.raises(NotFound):
                await stream.ended()
        else:
            assert (await stream.ended()).finish == CANCELLED
        await until(lambda: not rig.daemon.dialogue.floors, "the floor is free")
        await settled(rig)
        await rig.daemon.door.obeyed()
        assert rig.daemon.step_backend.scheduler.placer.homes.of_npc(NPC) == []


async def test_a_cancel_that_says_so_ends_the_turn_as_cancelled_also_when_the_engine_is_done_with_it() -> None:
    """The engine reached the reply's end before it got the cancel, and the end was not delivered yet. The turn ends as
    the cancel's answer says, and its text stays the delivered one.
    """
    async with speaking() as (rig, engine, first):
        engine.open()
        while rig.daemon.step_backend.scheduler.running:  # the event loop stands still meanwhile
            time.sleep(0.001)  # noqa: ASYNC251
        told = first.text
        assert (await rig.daemon.calls.cancel_turn("", cancel())).cancelled
        assert (await first.ended()).finish == CANCELLED
        assert first.text == told and heard(rig) == [LINE, told]


async def test_a_cancel_of_a_turn_that_has_come_to_its_end_says_that_there_was_nothing_to_stop() -> None:
    """The reader has not taken the end yet."""
    async with running(gated()) as rig:
        stream: AsyncGenerator[dialogue_pb2.TalkEvent, None] = rig.daemon.calls.talk("", _line(rig, "p1", "t1", 3))
        events = [await anext(stream)]
        await settled(rig)
        assert not (await rig.daemon.calls.cancel_turn("", cancel())).cancelled
        events += [e async for e in stream]
        assert events[-1].finish == LENGTH


async def test_a_place_in_the_line_is_free_when_its_turn_is_cancelled() -> None:
    """Eight turns wait for a busy NPC. When one of them is cancelled, another may wait."""
    async with speaking() as (rig, engine, first):
        floor = rig.daemon.dialogue.floors[NPC]
        waiting = [talks(rig, f"q{n}", f"w{n}", 2) for n in range(8)]
        await until(lambda: floor.waiting == 8, "they wait")
        with pytest.raises(Overloaded):
            await talks(rig, "late", "late").ended()
        assert (await rig.daemon.calls.cancel_turn("", cancel(player="q3"))).cancelled
        assert (await waiting[3].ended()).finish == CANCELLED
        late = talks(rig, "late", "late", 2)
        await until(lambda: floor.waiting == 8, "it waits")
        engine.open()
        assert (await first.ended()).finish == LENGTH
        for stream in (*waiting[:3], *waiting[4:], late):
            assert (await stream.ended()).finish == LENGTH


# -- admission -------------------------------------------------------------------------------------------------------


async def test_turns_that_are_cancelled_in_quick_succession_do_not_fill_the_queue() -> None:
    """One client cancels 400 turns while the engine is in one step, with 400 players and four NPCs, before any text.
    None is refused, and the next turn is served.
    """
    model = gated()
    engine = engine_of(model)
    async with running(model, npcs=4) as rig:
        engine.gated = True
        for n in range(400):
            line = rig.talk(f"npc{n % 4}", LINE, f"p{n}", turn_id="t", max_tokens=20)
            async with aclosing(rig.daemon.calls.talk("", line)) as stream:
                assert (await anext(stream)).kind == STARTED
        last = talks(rig, max_tokens=3)
        await until(lambda: bool(last.events), "it is admitted")
        assert rig.daemon.door.waiting(Tier.SILVER) == 1
        engine.open()
        assert (await last.ended()).finish == LENGTH
        await settled(rig)


async def test_conversations_that_are_made_ready_do_not_keep_players_from_being_served() -> None:
    """Turns that are cut off in the middle leave KV for the background to prepare. That does not fill the queue."""
    config = Config()
    promises = replace(config.promises, silver=replace(config.promises.silver, waiting_max=4))
    model = gated()
    engine = engine_of(model)
    async with running(model, replace(config, promises=promises), npcs=12) as rig:
        streams = []
        for n in range(8):
            engine.gated = True
            line = rig.talk(f"npc{n}", LINE, turn_id="t", max_tokens=60)
            stream = rig.daemon.calls.talk("", line)
            assert (await anext(stream)).kind == STARTED
            engine.gate.release(4)
            assert (await anext(stream)).text
            streams.append(stream)
            await engine.stand_still()
        for stream in streams:
            await stream.aclose()
        assert rig.daemon.door.waiting(Tier.SILVER) == 4, "the background has the whole queue"
        tasks = [asyncio.create_task(rig.say(f"npc{n}", LINE, max_tokens=3)) for n in range(8, 12)]
        await until(lambda: rig.daemon.dialogue.open_turns == 4, "they are admitted")
        engine.open()
        for task in tasks:
            assert (await task)[-1].finish == LENGTH
        await settled(rig)
