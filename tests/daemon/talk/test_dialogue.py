"""Turns stream, end once, survive retries and cancels, and leave a trunk that the next line uses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest

from core.clock import MS, S
from core.errors import CallerError, Draining, NotFound, Overloaded
from core.words import Finish, Tier, TrunkKey
from core.work import Ended, Timings
from daemon.config import Config
from daemon.model import Model
from daemon.talk.ends import timings_message
from engines.base import StepPlan, StepResult
from engines.sim import VirtualClock
from npcd.v1 import dialogue_pb2, npcs_pb2
from tests.daemon.rig import Gated, GatedEngine, Rig, gated, move_out, running, until
from tests.patience import PATIENCE_S

STARTED = dialogue_pb2.TALK_EVENT_KIND_STARTED
TEXT = dialogue_pb2.TALK_EVENT_KIND_TEXT
END = dialogue_pb2.TALK_EVENT_KIND_END


def said(events: list[dialogue_pb2.TalkEvent]) -> str:
    """The whole text."""
    return "".join(e.text for e in events if e.kind == TEXT)


async def settled(rig: Rig) -> None:
    """Waits until no work is open, so that the background has caught up."""
    async with asyncio.timeout(PATIENCE_S):
        await rig.daemon.door.all_ended()


def engine_of(model: Gated) -> GatedEngine:
    """The gated engine."""
    return model.engine


async def test_the_first_chunk_leaves_before_the_last_token_is_made_slow_engine() -> None:
    """With an engine that runs step by step, the text arrives while most steps are still to come."""
    model = gated()
    engine = engine_of(model)
    async with running(model) as rig:
        engine.gated = True
        before = engine.steps
        at_first_text = -1
        async with aclosing(rig.daemon.calls.talk("", rig.talk("npc0", "hello there", max_tokens=40))) as events:
            engine.gate.release(5)
            async for event in events:
                if event.kind == TEXT and at_first_text < 0:
                    at_first_text = engine.steps - before
                    engine.open()
                if event.kind == END:
                    assert event.timings.output_tokens > 20
        assert 0 < at_first_text <= 5
        assert engine.steps - before >= 20


async def test_the_first_chunk_leaves_before_the_last_token_is_made_real_engine(
    real: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the shipped model the work still runs when the first text is delivered, and chunks come one by one."""
    loop, honest = asyncio.get_running_loop(), real.engine.step

    def step(plan: StepPlan) -> StepResult:
        """On any machine: the last step's chunk is delivered before the next step."""
        handed_out = asyncio.run_coroutine_threadsafe(turns_of_the_loop(20), loop)
        handed_out.result(20)
        return honest(plan)

    async def turns_of_the_loop(count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async with running(real) as rig:
        monkeypatch.setattr(real.engine, "step", step)
        states = []
        texts = 0
        async for event in rig.daemon.calls.talk("", rig.talk("npc1", "Good evening. Who are you?", max_tokens=60)):
            if event.kind == TEXT:
                texts += 1
                states.append(rig.daemon.door.open)
        assert texts >= 3
        assert states[0] == 1, "the work had ended before its first text went out"
        await settled(rig)
        monkeypatch.undo()


async def test_a_turn_is_started_text_end_with_timings(real: Model) -> None:
    """Indexes count up. The last event says where time and tokens went. Without a journal accepted is not known."""
    async with running(real) as rig:
        events = await rig.say("npc0", "Hello! What is your name?", turn_id="t1")
        assert [e.kind for e in events[:1]] == [STARTED]
        assert [e.kind for e in events[1:-1]] == [TEXT] * (len(events) - 2)
        assert events[-1].kind == END
        assert [e.index for e in events] == list(range(len(events)))
        assert said(events) == said(events).strip() != ""
        last = events[-1]
        assert last.finish in (dialogue_pb2.TALK_FINISH_STOP, dialogue_pb2.TALK_FINISH_LENGTH)
        assert last.timings.output_tokens >= len(events) - 2
        assert last.timings.prefilled_tokens > 0
        assert list(last.timings.stores) == ["hot"]
        assert not last.accepted and not last.accepted_known
        assert {e.turn_id for e in events} == {"t1"}
        assert len({e.session_id for e in events}) == 1


async def test_the_next_line_finds_the_trunk_ready(real: Model) -> None:
    """After a finished turn only the new tail is prefilled."""
    async with running(real) as rig:
        await rig.say("npc0", "Hello!")
        await settled(rig)
        timings = (await rig.say("npc0", "And how is the bread today?"))[-1].timings
        assert timings.cached_tokens > 60
        assert timings.prefilled_tokens <= 40


async def test_timings_say_where_the_trunk_came_from(real: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first turn copies the NPC's own trunk, the next one finds its own in place, and a trunk that was moved out is
    loaded."""
    async with running(real) as rig:
        placer = rig.daemon.step_backend.scheduler.placer
        # A trunk of a hundred tokens is computed about as fast as its bytes are verified.
        monkeypatch.setattr(placer.moves.loads, "pays", lambda *_: True)
        own = len(rig.trunk("npc0").tokens)
        first = (await rig.say("npc0", "Hello!"))[-1].timings
        assert (first.cached_tokens, first.copied_tokens, first.loaded_tokens) == (own, own, 0)
        await settled(rig)
        second = (await rig.say("npc0", "How is the bread?"))[-1].timings
        assert second.cached_tokens > own
        assert (second.copied_tokens, second.loaded_tokens) == (0, 0)
        await settled(rig)
        await move_out(rig, "npc0")
        third = (await rig.say("npc0", "And the mill?"))[-1].timings
        assert third.loaded_tokens == third.cached_tokens > second.cached_tokens
        assert third.copied_tokens == 0


async def test_the_same_seed_gives_the_same_words(real: Model) -> None:
    """Greedy and seeded turns repeat in separate sessions."""
    async with running(real) as rig:
        texts = set()
        for player in ("a", "b", "c"):
            events = await rig.say("npc0", "Tell me about the mill.", player, seed=7, has_seed=True)
            texts.add(said(events))
        assert len(texts) == 1


async def test_a_retry_of_a_finished_turn_gives_the_same_text_and_says_nothing_twice(real: Model) -> None:
    """The turn_id makes the retry safe."""
    async with running(real) as rig:
        first = await rig.say("npc0", "Hello!", turn_id="t1")
        again = await rig.say("npc0", "Hello!", turn_id="t1")
        assert said(again) == said(first)
        assert again[-1].finish == dialogue_pb2.TALK_FINISH_REPEATED
        ended = await rig.daemon.calls.end_session(
            "", dialogue_pb2.EndSessionRequest(world_id="vale", npc_id="npc0", player_id="p1")
        )
        assert ended.turns == 2


async def test_a_client_that_hangs_up_frees_the_lane_and_leaves_what_was_said() -> None:
    """Closing the iterator cancels the work, and the partial reply is in the session."""
    model = gated()
    engine = engine_of(model)
    async with running(model) as rig:
        engine.gated = True
        engine.gate.release(8)
        heard = ""
        async with aclosing(rig.daemon.calls.talk("", rig.talk("npc0", "hello there", max_tokens=60))) as events:
            async for event in events:
                heard += event.text
                if event.text:
                    break
        engine.open()
        await settled(rig)
        assert rig.daemon.step_backend.scheduler.placer.lanes.leased == 0
        (session,) = rig.daemon.dialogue.hot.of_player("", "vale", "p1")
        assert session.turns[-1].text == heard


async def test_a_client_that_hangs_up_before_the_first_word_leaves_nothing() -> None:
    """The session is as if the line had never come."""
    model = gated()
    engine = engine_of(model)
    async with running(model) as rig:
        engine.gated = True
        async with aclosing(rig.daemon.calls.talk("", rig.talk("npc0", "hello"))) as events:
            assert (await anext(events)).kind == STARTED
        engine.open()
        await settled(rig)
        ended = await rig.daemon.calls.end_session(
            "", dialogue_pb2.EndSessionRequest(world_id="vale", npc_id="npc0", player_id="p1")
        )
        assert ended.turns == 0
        assert rig.daemon.step_backend.scheduler.meter.tiers[Tier.SILVER].ended[Finish.CANCELLED] == 1


async def test_cancel_ends_the_turn_with_an_end_event() -> None:
    """The stream ends properly, as CANCELLED. A second cancel finds nothing."""
    model = gated()
    engine = engine_of(model)
    async with running(model) as rig:
        engine.gated = True
        engine.gate.release(6)
        calls = rig.daemon.calls
        request = dialogue_pb2.CancelTurnRequest(world_id="vale", npc_id="npc0", player_id="p1")
        events = []
        async for event in calls.talk("", rig.talk("npc0", "hello there", max_tokens=60, turn_id="t")):
            events.append(event)
            if event.kind == TEXT and len(events) == 2:
                wrong = dialogue_pb2.CancelTurnRequest(world_id="vale", npc_id="npc0", player_id="p1", turn_id="x")
                assert not (await calls.cancel_turn("", wrong)).cancelled
                assert (await calls.cancel_turn("", request)).cancelled
                engine.open()
        assert events[-1].finish == dialogue_pb2.TALK_FINISH_CANCELLED
        assert not (await calls.cancel_turn("", request)).cancelled


async def test_a_second_player_waits_in_order_and_the_ninth_is_refused() -> None:
    """An NPC has one conversation at a time."""
    model = gated()
    engine = engine_of(model)
    async with running(model) as rig:
        engine.gated = True
        order: list[str] = []

        async def talks(player: str) -> None:
            await rig.say("npc0", "hello", player, max_tokens=2)
            order.append(player)

        tasks = [asyncio.create_task(talks(f"p{n}")) for n in range(9)]
        floors = rig.daemon.dialogue.floors
        await until(lambda: any(floor.waiting == 8 for floor in floors.values()))
        with pytest.raises(Overloaded) as caught:
            await rig.say("npc0", "hello", "p9")
        assert caught.value.retry_ms > 0
        engine.open()
        await asyncio.gather(*tasks)
        assert order == [f"p{n}" for n in range(9)]


async def test_the_retry_time_of_a_full_line_follows_how_long_turns_take_not_how_long_nobody_came() -> None:
    """Turns took a fifth of a second, and then no player came for half a minute. Players whom a full line of eight
    refuses get the time of about four turns.
    """
    model, clock = gated(), VirtualClock(10**9)
    engine = engine_of(model)
    async with running(model, clock=clock) as rig:
        for n in range(4):
            engine.close()
            turn = asyncio.create_task(rig.say("npc0", "hello", f"early{n}", max_tokens=2))
            await until(lambda: any(f.speaker and f.speaker.ticket for f in rig.daemon.dialogue.floors.values()))
            clock.advance(200 * MS)
            engine.open()
            await turn
            await until(lambda: not rig.daemon.dialogue.floors)
            await rig.daemon.door.all_ended()
        clock.advance(30 * S)
        engine.close()
        turns = [asyncio.create_task(rig.say("npc0", "hello", f"p{n}", max_tokens=2)) for n in range(20)]
        await until(lambda: sum(turn.done() for turn in turns) == 11, "eleven are refused")
        engine.open()
        said = await asyncio.gather(*turns, return_exceptions=True)
        refused = [error for error in said if isinstance(error, Overloaded)]
        assert len(refused) == 11 and all(400 <= error.retry_ms <= 1_600 for error in refused)


async def test_a_full_silver_queue_refuses_before_the_first_event() -> None:
    """The error becomes RESOURCE_EXHAUSTED, with a retry time."""
    config = Config()
    promises = replace(config.promises, silver=replace(config.promises.silver, waiting_max=1, running_max=1))
    model = gated()
    engine = engine_of(model)
    async with running(model, replace(config, promises=promises), npcs=6) as rig:
        engine.gated = True
        door = rig.daemon.door
        tasks = [asyncio.create_task(rig.say("npc0", "hello", max_tokens=2))]
        await until(lambda: door.waiting(Tier.SILVER) == 1)
        engine.gate.release(1)
        await until(lambda: door.waiting(Tier.SILVER) == 0)  # the work runs
        tasks.append(asyncio.create_task(rig.say("npc1", "hello", max_tokens=2)))
        await until(lambda: door.waiting(Tier.SILVER) == 1)
        with pytest.raises(Overloaded, match="silver queue is full"):
            await rig.say("npc2", "hello")
        engine.open()
        await asyncio.gather(*tasks)


async def test_converse_barge_in_stops_the_npc_and_answers_the_new_line() -> None:
    """A new line comes in the middle. The first turn ends CANCELLED, the second is answered, and end_session ends the
    stream."""
    model = gated()
    engine = engine_of(model)
    async with running(model) as rig:
        engine.gated = True
        engine.gate.release(6)
        requests: asyncio.Queue[dialogue_pb2.ConverseRequest | None] = asyncio.Queue()

        async def lines() -> AsyncIterator[dialogue_pb2.ConverseRequest]:
            while (request := await requests.get()) is not None:
                yield request

        requests.put_nowait(
            dialogue_pb2.ConverseRequest(talk=rig.talk("npc0", "tell me all", max_tokens=60, turn_id="a"))
        )
        finishes = {}
        async with asyncio.timeout(PATIENCE_S):
            async for event in rig.daemon.calls.converse("", lines()):
                if event.kind == TEXT and event.turn_id == "a" and requests.empty() and "b" not in finishes:
                    finishes["b"] = 0
                    requests.put_nowait(
                        dialogue_pb2.ConverseRequest(talk=rig.talk("npc0", "no, wait", max_tokens=3, turn_id="b"))
                    )
                    (turn,) = rig.daemon.dialogue.turns(rig.daemon.worlds.npc("", "vale", "npc0").key, "p1")
                    await until(lambda: bool(turn.finish))  # noqa: B023
                    engine.open()
                if event.kind == END:
                    finishes[event.turn_id] = event.finish
                    if event.turn_id == "b":
                        requests.put_nowait(dialogue_pb2.ConverseRequest(end_session=True))
        assert finishes["a"] == dialogue_pb2.TALK_FINISH_CANCELLED
        assert finishes["b"] in (dialogue_pb2.TALK_FINISH_LENGTH, dialogue_pb2.TALK_FINISH_STOP)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"text": ""}, "text"),
        ({"text": " \n "}, "text"),
        ({"text": "x" * 3000}, "text"),
        ({"player": ""}, "player_id"),
        ({"player": "p\n"}, "player_id"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"temperature": float("nan"), "has_temperature": True}, "temperature"),
        ({"temperature": 9.0, "has_temperature": True}, "temperature"),
        ({"turn_id": "t" * 100}, "turn_id"),
    ],
)
async def test_bad_lines_name_the_field(change: dict[str, object], field: str) -> None:
    """A bad line starts nothing."""
    async with running(gated()) as rig:
        arguments: dict[str, object] = {"text": "hello", **change}
        with pytest.raises(CallerError) as caught:
            await rig.say("npc0", **arguments)  # type: ignore[arg-type]
        assert caught.value.field == field
        assert rig.daemon.door.open == 0
        with pytest.raises(NotFound):
            await rig.say("ghost", "hello")


async def test_long_conversations_rebuild_the_trunk_once_in_eight_turns_and_stay_inside_the_context() -> None:
    """At 20 utterances the trunk is cut to the last 12: it grows, is cut once, and grows again."""
    async with running(gated()) as rig:
        npc = rig.daemon.worlds.npc("", "vale", "npc0")
        lengths, rebuilds = [], []
        for n in range(30):
            await rig.say("npc0", f"line number {n} of a long talk", max_tokens=6)
            await settled(rig)
            session, _ = rig.daemon.dialogue.hot.open(npc.key, "p1", 0, rig.daemon.clock())
            lengths.append(len(session.turns))
            rebuilds.append(session.rebuilds)
        assert max(lengths) < 20
        assert min(lengths[10:]) >= 12
        assert rebuilds[-1] == (30 * 2 - 20) // 8 + 1
        trunk = rig.daemon.step_backend.scheduler.placer.homes.get(TrunkKey(npc.key, "p1"))
        assert trunk.held == len(rig.trunk("npc0", session).tokens)


async def test_sessions_end_and_are_forgotten_with_their_trunks() -> None:
    """EndSession, Forget and Remove leave no trunk of the player's."""
    async with running(gated()) as rig:
        calls, homes = rig.daemon.calls, rig.daemon.step_backend.scheduler.placer.homes
        npc = rig.daemon.worlds.npc("", "vale", "npc0").key
        for player in ("a", "b", "c"):
            await rig.say("npc0", "hello", player)
        await settled(rig)
        assert {t.key.partner for t in homes.of_npc(npc)} >= {"a", "b", "c"}
        end = dialogue_pb2.EndSessionRequest(world_id="vale", npc_id="npc0", player_id="a")
        assert (await calls.end_session("", end)).ended
        assert not (await calls.end_session("", end)).ended
        forgotten = await calls.forgetting.forget("", npcs_pb2.ForgetRequest(world_id="vale", player_id="b"))
        assert (forgotten.sessions, forgotten.turns) == (1, 2)
        await calls.remove("", npcs_pb2.RemoveRequest(world_id="vale", npc_ids=["npc0"]))
        await until(lambda: homes.of_npc(npc) == [], "the trunks are gone, also that of a session that was summed up")


async def test_draining_refuses_new_turns() -> None:
    """The error becomes UNAVAILABLE."""
    async with running(gated()) as rig:
        rig.daemon.door.draining = True
        with pytest.raises(Draining):
            await rig.say("npc0", "hello")


def test_timings_are_never_negative() -> None:
    """That holds for a work that never ran."""
    message = timings_message(Ended(Finish.REFUSED, Timings(submitted_ns=5_000_000)))
    assert (message.queue_us, message.prefill_us, message.decode_us) == (0, 0, 0)
