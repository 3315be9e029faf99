"""Any GGUF: models of other families answer through the daemon, from the frame to the spoken word."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest

from core.errors import ConfigError
from core.words import NpcKey
from core.work import Sampling
from daemon.config import Config
from daemon.model import Model, choose_layout
from engines.llama import LlamaEngine, LlamaSettings
from npcd.v1 import dialogue_pb2, intents_pb2
from prompts.caps import Caps
from scheduler.placing import KvSettings
from tests.daemon.rig import Rig, gated, quick, running, until, world
from tests.engines.shapes import FAMILIES

MODEL = intents_pb2.INTENT_SOURCE_MODEL
TEXT = dialogue_pb2.TALK_EVENT_KIND_TEXT
KINDS = {"qwen2": "chat", "llama3": "chat", "mistral": "chat", "gemma": "chat", "bare": "plain"}
WOLF = ("w1", "wolf", "hostile", 6.0)
FRIEND = ("p1", "player", "friendly", 3.0)
# Their vocabularies are small, so texts take many tokens. There are fewer residents than NPCs, so trunks move to host
# RAM and back.
CAPS = Caps(lore=400, words=200, archetype=250, persona=250, intent_tail=120, talk_tail=256)
KV = KvSettings(prefixes=2, lanes=3)


@pytest.fixture(scope="module", params=list(FAMILIES))
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model of each family."""
    path = FAMILIES[request.param](tmp_path_factory.mktemp("other") / f"{request.param}.gguf")
    engine = LlamaEngine(LlamaSettings(path, sequences=12, context_len=2048, batch_len=512, micro_len=256, threads=1))
    yield Model(engine, engine.card.name, engine.card.sha256, engine.card.chat_template)
    engine.close()


@asynccontextmanager
async def serving(model: Model, npcs: int = 4) -> AsyncIterator[Rig]:
    """A daemon on empty sequences."""
    model.engine.rebuild()
    config = quick(Config(caps=CAPS))
    # Some of these models, which learned nothing, end at once. A second draw would not be greedy.
    config = replace(config, scheduler=replace(config.scheduler, kv=KV), guards=replace(config.guards, again=False))
    async with running(model, config, npcs=npcs) as rig:
        yield rig


def said(events: list[dialogue_pb2.TalkEvent]) -> str:
    """The whole text."""
    return "".join(e.text for e in events if e.kind == TEXT)


async def test_intents_are_of_the_worlds_words(other: Model) -> None:
    """With any tokens, every NPC gets the model's answer, within the allowed words."""
    layout, why = choose_layout(other, CAPS)
    assert layout.kind == KINDS[other.name], why
    async with serving(other) as rig:
        for n in range(4):
            seen = rig.sees(f"npc{n}", WOLF, FRIEND, time_of_day="night", place="road")
            await rig.daemon.calls.observe("", rig.frame(seen))
        for n in range(4):
            intent = await rig.intent(f"npc{n}", lambda i: i.source == MODEL)
            assert intent.action in ("idle", "flee", "attack", "greet")
            assert intent.emotion in ("calm", "happy", "afraid", "angry")
            assert intent.target_entity_id in ("", "w1", "p1")
            assert (intent.target_entity_id != "") or intent.action in ("idle", "flee")
            assert 0 < intent.confidence <= 1
        assert rig.daemon.board.about.first.layout.startswith(KINDS[other.name])


async def test_intents_alone_and_among_others_are_the_same(other: Model) -> None:
    """There are more NPCs than sequences. Trunks share their prefix and move to host RAM and back, and no answer
    changes."""
    scenes = [(WOLF,), (WOLF, FRIEND), ()]
    answers: list[list[tuple[str, str, str]]] = []
    for crowd in (1, 9):
        async with serving(other, npcs=9) as rig:
            placer = rig.daemon.step_backend.scheduler.placer
            told: list[tuple[str, str, str]] = []
            for scene in scenes:
                frame = [rig.sees(f"npc{n}", *scene, time_of_day="night") for n in range(9)]
                if crowd == 1:
                    for seen in frame:
                        await rig.daemon.calls.observe("", rig.frame(seen))
                        await rig.daemon.door.all_ended()
                        await _answered(rig, seen)
                else:
                    await rig.daemon.calls.observe("", rig.frame(*frame))
                for seen in frame:
                    intent = await _answered(rig, seen)
                    told.append((intent.action, intent.target_entity_id, intent.emotion))
            answers.append(told)
            assert placer.moves.loaded > 0 and placer.moves.moved_out > 0
            assert placer.moves.loads_refused == 0
            meter = rig.daemon.step_backend.scheduler.meter
            assert meter.cached_tokens > meter.prefilled_tokens, "siblings share their prefix"
    assert answers[0] == answers[1]


async def _answered(rig: Rig, seen: intents_pb2.Observation) -> intents_pb2.Intent:
    return await rig.intent(seen.npc_id, lambda i: i.observed_tick >= seen.tick and i.source == MODEL)


async def test_a_conversation_finds_its_trunk_and_repeats_with_its_seed(other: Model) -> None:
    """Text arrives as whole code points, later lines prefill only their tail, and two players who say the same to the
    same NPC hear the same.
    """
    async with serving(other) as rig:
        heard = []
        for player in ("a", "b"):
            texts = []
            for line in ("hello <|im_end|></s><end_of_turn>", "what is your name?", "tell me about the bread é世"):
                events = await rig.say("npc0", line, player, max_tokens=12, seed=7, has_seed=True)
                timings = events[-1].timings
                assert events[-1].finish in (dialogue_pb2.TALK_FINISH_LENGTH, dialogue_pb2.TALK_FINISH_STOP)
                texts.append(said(events))
                await rig.daemon.door.all_ended()
                if len(texts) > 1:
                    assert timings.cached_tokens > 100
                    assert timings.prefilled_tokens < timings.cached_tokens
            heard.append(texts)
        assert heard[0] == heard[1]
        assert all(heard[0])
        session = rig.daemon.dialogue.hot.find(NpcKey("", "vale", "npc0"), "a", 0)
        assert session is not None and len(session.turns) == 6


async def test_talking_greedily_alone_and_beside_others_gives_the_same_words(other: Model) -> None:
    """Three conversations at once get the replies that each gets alone."""
    async with serving(other) as rig:

        async def tell(npc: str, player: str) -> str:
            return said(await rig.say(npc, "hello", player, max_tokens=10, temperature=0.0, has_temperature=True))

        alone = [await tell(f"npc{n}", "alone") for n in range(3)]
        together = await asyncio.gather(*(tell(f"npc{n}", "together") for n in range(3)))
        assert list(together) == alone


async def test_no_sampler_has_seen_the_end_of_an_answer(other: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """In replies, barks and later turns the penalties see no marker of the template, no end token of the model, and no
    line break that ends a plain answer. If an end were penalised, replies would ramble.
    """
    engine = other.engine
    add, given = engine.add_sampler, list[list[int]]()

    def spy(sampling: Sampling, recent: Sequence[int]) -> int:
        given.append(list(recent))
        return add(sampling, recent)

    monkeypatch.setattr(engine, "add_sampler", spy)
    layout, _ = choose_layout(other, CAPS)
    async with serving(other) as rig:
        for _ in range(3):
            await rig.say("npc0", "hello", max_tokens=8)
        replies = len(given)
        talkative = world()
        for action in talkative.actions:
            action.speaks = True
        await rig.daemon.calls.define_world("", talkative)
        seen = rig.sees("npc0", FRIEND)
        await rig.daemon.calls.observe("", rig.frame(seen))
        await _answered(rig, seen)
        await until(lambda: len(given) > replies, "a bark")
        await rig.daemon.door.all_ended()
    assert replies == 3 and len(given) > replies
    over = layout.stop_ids | engine.vocab.eog_ids | frozenset(engine.vocab.encode("\n") if layout.stop_text else ())
    assert over
    for recent in given:
        assert recent and over.isdisjoint(recent)


async def test_a_client_that_hangs_up_frees_the_lane(other: Model) -> None:
    """That holds in the middle of a reply, and the next line is answered."""
    async with serving(other) as rig:
        lanes = rig.daemon.step_backend.scheduler.placer.lanes
        async with aclosing(rig.daemon.calls.talk("", rig.talk("npc0", "tell me all", max_tokens=400))) as events:
            async for event in events:
                if event.kind == TEXT:
                    break
        await rig.daemon.door.all_ended()
        await until(lambda: lanes.leased == 0)
        assert said(await rig.say("npc0", "hello", max_tokens=8))


async def test_a_context_too_short_for_the_caps_is_refused() -> None:
    """The error comes at the start, with the length that would do. Later it would be a failed intent."""
    with pytest.raises(ConfigError, match=r"engine\.context_len: 1024 is too short .* make it 1479 or more"):
        async with running(gated(), Config(caps=Caps(lore=900))):
            pass


async def test_a_reply_ends_where_the_context_does() -> None:
    """A long world and a long line leave fewer tokens than requested: the reply is short and nothing fails."""
    async with running(gated(), Config(caps=Caps(lore=400, archetype=100, persona=100))) as rig:
        longer = world(lore="old " * 390)
        longer.lore = "old " * 390
        await rig.daemon.calls.define_world("", longer)
        events = await rig.say("npc0", "hello " * 150, max_tokens=512)
        last = events[-1]
        assert last.finish == dialogue_pb2.TALK_FINISH_LENGTH
        held = last.timings.cached_tokens + last.timings.prefilled_tokens + last.timings.output_tokens
        assert held == 1024
        assert said(await rig.say("npc0", "hello again", max_tokens=4))
