"""A conversation on one stream: a newer line interrupts all earlier ones, in any stage."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from core.errors import CallerError
from npcd.v1 import dialogue_pb2
from tests.daemon.rig import GatedEngine, Rig, gated, running, until
from tests.daemon.talk.test_dialogue import END, TEXT, engine_of
from tests.daemon.talk.test_turns import CANCELLED, LENGTH, LINE, NPC, REPEATED, heard, talks
from tests.patience import PATIENCE_S


@dataclass
class Call:
    """A Converse stream: requests go in one by one, events are gathered."""

    rig: Rig
    requests: asyncio.Queue[dialogue_pb2.ConverseRequest | None]
    events: list[dialogue_pb2.TalkEvent]
    task: asyncio.Task[None]

    def say(self, turn_id: str, max_tokens: int = 40, text: str = LINE) -> None:
        """A player's line."""
        talk = self.rig.talk("npc0", text, turn_id=turn_id, max_tokens=max_tokens)
        self.requests.put_nowait(dialogue_pb2.ConverseRequest(talk=talk))

    def send(self, interrupt: bool = False, end_session: bool = False) -> None:
        """Sends a request without a line."""
        self.requests.put_nowait(dialogue_pb2.ConverseRequest(interrupt=interrupt, end_session=end_session))

    def text(self, turn_id: str) -> str:
        """The text of a turn."""
        return "".join(e.text for e in self.events if e.turn_id == turn_id and e.kind == TEXT)

    async def finishes(self) -> list[tuple[str, int]]:
        """The turns' finishes, after the stream has ended."""
        self.requests.put_nowait(None)
        async with asyncio.timeout(PATIENCE_S):
            await self.task
        return [(e.turn_id, e.finish) for e in self.events if e.kind == END]


def converse(rig: Rig) -> Call:
    """Opens a stream."""
    requests: asyncio.Queue[dialogue_pb2.ConverseRequest | None] = asyncio.Queue()
    events: list[dialogue_pb2.TalkEvent] = []

    async def lines() -> AsyncIterator[dialogue_pb2.ConverseRequest]:
        while (request := await requests.get()) is not None:
            yield request

    async def read() -> None:
        async for event in rig.daemon.calls.converse("", lines()):
            events.append(event)

    return Call(rig, requests, events, asyncio.create_task(read()))


@asynccontextmanager
async def conversing() -> AsyncIterator[tuple[Rig, GatedEngine, Call]]:
    """A conversation in which the NPC speaks turn `a` until the engine is let go."""
    model = gated()
    engine = engine_of(model)
    async with running(model) as rig:
        engine.gated = True
        engine.gate.release(6)
        call = converse(rig)
        call.say("a")
        await until(lambda: bool(call.text("a")), "the first words")
        await engine.stand_still()
        yield rig, engine, call


async def test_each_new_line_interrupts_all_that_came_before() -> None:
    """Of three lines in quick succession the running turn and the waiting one end CANCELLED, and the last is
    answered."""
    async with conversing() as (_, engine, call):
        call.say("b")
        call.say("c", 3)
        await until(call.requests.empty, "they are heard")
        engine.open()
        assert await call.finishes() == [("a", CANCELLED), ("b", CANCELLED), ("c", LENGTH)]
        assert not call.text("b")


async def test_lines_sent_at_once_are_interrupted_by_the_last() -> None:
    """That holds before the first of them has begun."""
    async with running(gated()) as rig:
        call = converse(rig)
        for turn_id in "abc":
            call.say(turn_id, 3)
        finishes = await call.finishes()
        assert [f for f in finishes if f[0] != "a"] == [("b", CANCELLED), ("c", LENGTH)]
        assert finishes[0] == ("a", CANCELLED)
        assert heard(rig)[-2:] == [LINE, call.text("c")]


async def test_an_interrupt_reaches_the_lines_that_wait() -> None:
    """The NPC then listens: the next line is answered."""
    async with conversing() as (_, engine, call):
        call.say("b")
        call.send(interrupt=True)
        await until(call.requests.empty, "it is heard")
        engine.open()
        await until(lambda: len([e for e in call.events if e.kind == END]) == 2, "both are over")
        call.say("c", 3)
        assert await call.finishes() == [("a", CANCELLED), ("b", CANCELLED), ("c", LENGTH)]


async def test_a_line_that_waits_for_the_floor_is_interrupted() -> None:
    """Another player has the floor. The stream's line ends without waiting for that player."""
    model = gated()
    engine = engine_of(model)
    async with running(model) as rig:
        engine.gated = True
        other = talks(rig, "p2", "other", 3)
        await until(lambda: bool(other.events), "the other has the floor")
        call = converse(rig)
        call.say("a")
        await until(lambda: rig.daemon.dialogue.floors[NPC].waiting == 1, "it waits")
        call.send(interrupt=True)
        await until(lambda: bool(call.events), "it hears of it")
        assert [(e.turn_id, e.finish) for e in call.events] == [("a", CANCELLED)]
        engine.open()
        assert await call.finishes() == [("a", CANCELLED)]
        assert (await other.ended()).finish == LENGTH


async def test_the_end_of_the_session_interrupts_and_ends_the_stream() -> None:
    """Waiting lines end CANCELLED, and the conversation is summed up."""
    async with conversing() as (rig, engine, call):
        call.say("b")
        call.send(end_session=True)
        await until(call.requests.empty, "it is heard")
        engine.open()
        async with asyncio.timeout(PATIENCE_S):
            await call.task
        assert [(e.turn_id, e.finish) for e in call.events if e.kind == END] == [("a", CANCELLED), ("b", CANCELLED)]
        assert heard(rig) == []


async def test_the_retry_of_a_line_interrupts_nothing() -> None:
    """On the same stream the turn goes on, and the retry repeats it."""
    async with conversing() as (_, engine, call):
        call.say("a")
        call.send()  # an empty request is no line
        await until(call.requests.empty, "they are heard")
        engine.open()
        assert await call.finishes() == [("a", LENGTH), ("a", REPEATED)]
        told = [e.text for e in call.events if e.kind == TEXT]
        assert "".join(told[:-1]) == told[-1]


async def test_the_retry_of_a_line_on_another_stream_goes_on_with_the_turn() -> None:
    """The first stream is dead, and the daemon has not noticed."""
    async with conversing() as (rig, engine, call):
        retry = converse(rig)
        retry.say("a")
        await until(lambda: retry.text("a") == call.text("a"), "what was said before")
        call.task.cancel()
        await asyncio.wait((call.task,))
        engine.open()
        assert await retry.finishes() == [("a", LENGTH)]
        assert heard(rig) == [LINE, retry.text("a")]


async def test_a_client_that_hangs_up_leaves_no_task_behind() -> None:
    """That holds with more lines than may wait, when the stream is not read further."""
    async with conversing() as (rig, engine, call):
        for n in range(20):
            call.say(f"b{n}")
        await until(lambda: call.requests.qsize() == 20 - 9, "as many are read as may wait, and one more")
        call.task.cancel()
        await asyncio.wait((call.task,))
        engine.open()
        await until(
            lambda: not any("_listen" in repr(t.get_coro()) for t in asyncio.all_tasks()), "the listener is gone"
        )
        await until(lambda: not rig.daemon.dialogue.floors, "the floor is free")


async def test_a_wrong_line_is_told_after_what_was_under_way() -> None:
    """The line interrupts, and ends the stream with its field's name."""
    async with conversing() as (_, engine, call):
        call.say("b", text="")
        await until(call.requests.empty, "it is heard")
        engine.open()
        with pytest.raises(CallerError, match="text"):
            await call.finishes()
        assert [(e.turn_id, e.finish) for e in call.events if e.kind == END] == [("a", CANCELLED)]
