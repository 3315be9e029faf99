"""On any chat model a finished turn is the trunk already: each of its tokens is computed once."""

import codecs
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from core.script import SITUATION, SectionKind
from core.work import Chunk, Ended, Work
from daemon.config import Config
from daemon.model import Model
from engines.llama import LlamaEngine, LlamaSettings
from npcd.v1 import dialogue_pb2, words_pb2
from prompts.caps import Caps
from scheduler.placing import KvSettings
from scheduler.ticket import Ticket
from tests.daemon.rig import Rig, running, until
from tests.engines.shapes import FAMILIES

CAPS = Caps(lore=400, words=200, archetype=250, persona=250, intent_tail=120, talk_tail=256)
WOLF = ("w1", "wolf", "hostile", 6.0)
FRIEND = ("p1", "player", "friendly", 3.0)
SCENES = [(WOLF,), (WOLF,), (WOLF, FRIEND), (), (), (FRIEND,)]
TEXT = dialogue_pb2.TALK_EVENT_KIND_TEXT
END = dialogue_pb2.TALK_EVENT_KIND_END


@pytest.fixture(scope="module", params=list(FAMILIES))
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model of each family, with random weights: it says anything, in any tokens."""
    path = FAMILIES[request.param](tmp_path_factory.mktemp("once") / f"{request.param}.gguf")
    engine = LlamaEngine(LlamaSettings(path, sequences=12, context_len=2048, batch_len=512, micro_len=256, threads=1))
    yield Model(engine, engine.card.name, engine.card.sha256, engine.card.chat_template)
    engine.close()


class Talk:
    """A conversation of npc0 with p1 on a daemon whose works are recorded."""

    def __init__(self, rig: Rig, works: list[Work]) -> None:
        self.rig = rig
        self.works = works
        self.ticks = 0
        self.odd = False  # the last reply had a control token, ended with half a character, or was cut by a guard
        self.drawn = ""

    async def sees(self, *percepts: tuple[str, str, str, float]) -> None:
        """The NPC sees this from now on."""
        self.ticks += 1
        seen = self.rig.sees("npc0", *percepts, time_of_day="night", place="road")
        await self.rig.daemon.calls.observe("", self.rig.frame(seen))

    async def say(self, line: str, **more: object) -> words_pb2.Timings:
        """The timings of one turn, when nothing is left to do in the background."""
        more = {"max_tokens": 12, "seed": 7 + len(self.works), "has_seed": True} | more
        self.odd = False
        last = (await self.rig.say("npc0", line, **more))[-1]  # type: ignore[arg-type]
        assert last.kind == END
        await self.rig.daemon.door.all_ended()
        key = self.rig.daemon.worlds.npc("", "vale", "npc0").key
        kept = self.rig.daemon.dialogue.hot.of_npc(key)[0].lines
        self.odd = self.odd or not kept or kept[-1].text != self.drawn.strip()
        return last.timings

    @property
    def turns(self) -> list[Work]:
        """The works of all turns."""
        return [work for work in self.works if work.key.partner and work.max_tokens]

    @property
    def held(self) -> list[int]:
        """The tokens of the conversation's trunk that are computed."""
        key = self.rig.daemon.worlds.npc("", "vale", "npc0").trunk_key("p1")
        trunk = self.rig.daemon.step_backend.scheduler.placer.homes.get(key)
        tokens: list[int] = trunk.tokens[: trunk.held].tolist()
        return tokens

    @property
    def kinds(self) -> list[SectionKind]:
        """The kinds of the sections of the conversation."""
        found = self.rig.daemon.dialogue.hot.of_npc(self.rig.daemon.worlds.npc("", "vale", "npc0").key)
        return [section.kind for session in found for section in session.turns]


@asynccontextmanager
async def talking(model: Model, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Talk]:
    """A conversation on empty sequences."""
    model.engine.rebuild()
    config = replace(Config(caps=CAPS), scheduler=replace(Config().scheduler, kv=KvSettings(prefixes=2, lanes=3)))
    async with running(model, config, npcs=2) as rig:
        works: list[Work] = []
        talk, submit = Talk(rig, works), rig.daemon.door.submit

        def submitted(
            work: Work, on_end: Callable[[Ended], None], on_chunk: Callable[[Chunk], None] = lambda _: None
        ) -> Ticket:
            texts: list[bytes] = []

            def seen(chunk: Chunk) -> None:
                texts.append(chunk.text)
                on_chunk(chunk)

            def over(ended: Ended) -> None:
                if work.max_tokens and work.key.partner:
                    decoder = codecs.getincrementaldecoder("utf-8")("replace")
                    talk.drawn = decoder.decode(b"".join(texts))
                    talk.odd = not all(texts) or bool(decoder.getstate()[0])
                on_end(ended)

            works.append(work)
            return submit(work, over, seen)

        with monkeypatch.context() as patch:
            patch.setattr(rig.daemon.door, "submit", submitted)
            yield talk


async def test_nothing_of_a_turn_is_computed_twice(other: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trunk begins with all that the turn before computed, token by token, and the next turn computes the tokens
    that close it and its own tail. Only when the oldest turns leave, the trunk is built again. A control token in a
    reply is no word of it, so what follows is computed anew, and counted as a guard's.
    """
    async with talking(other, monkeypatch) as talk:
        rebuilt, guarded, made_ready = 0, 0, 1
        for n in range(12):
            await talk.sees(*SCENES[n % len(SCENES)])
            before, odd = talk.held, talk.odd
            made_ready += odd and n != 10
            timings = await talk.say(f"hello number {n} <|im_end|></s>, tell me about the bread é世")
            assert timings.recomputed_tokens == 0 and (odd or timings.guard_tokens == 0), f"turn {n}"
            turn, layout = talk.turns[-1], talk.rig.daemon.dialogue.layout
            assert turn.adopt
            trunk, tail = turn.trunk.tolist(), turn.tail.tolist()
            assert talk.held[: len(trunk) + len(tail)] == trunk + tail or n == 9
            if n and n != 10 and not odd:
                assert trunk[: len(before)] == before
                assert timings.cached_tokens == len(before)
                assert len(trunk) - len(before) <= layout.closing_len + 1
                assert timings.prefilled_tokens == len(trunk) - len(before) + len(tail)
            rebuilt += timings.rebuild_tokens
            guarded += timings.guard_tokens
            assert bool(timings.rebuild_tokens) == (n == 10), f"turn {n}"
        status = talk.rig.daemon.board.message()
        assert (status.recomputed_tokens, status.rebuild_tokens, status.guard_tokens) == (0, rebuilt, guarded)
        ready = [work for work in talk.works if work.key.partner and not work.max_tokens]
        assert 1 <= len(ready) <= made_ready + talk.odd < 12, "only after the rebuild, and after odd replies"


async def test_the_situation_is_told_when_it_has_changed(other: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands before the line, at most 32 tokens' worth of it; the same situation is told once. A rebuild keeps the
    newest one alone.
    """
    sight, player, npc = SectionKind.SIGHT, SectionKind.PLAYER, SectionKind.NPC
    async with talking(other, monkeypatch) as talk:
        await talk.sees(WOLF)
        await talk.say("hello")
        await talk.say("hello again")
        await talk.sees(WOLF, FRIEND)
        await talk.say("who is there?")
        assert talk.kinds == [sight, player, npc, player, npc, sight, player, npc]
        layout = talk.rig.daemon.dialogue.layout
        assert all(
            len(layout.render(section).tokens) + len(layout.ends.sight) <= layout.caps.intent_tail
            for session in talk.rig.daemon.dialogue.hot.of_npc(talk.turns[0].key.npc)
            for section in session.turns
            if section.kind in SITUATION
        )
        for n in range(7):
            await talk.sees(*SCENES[n % 2 * 2])
            await talk.say("and now?")
        assert len([k for k in talk.kinds if k in SITUATION]) == 1
        assert len([k for k in talk.kinds if k not in SITUATION]) == 12


async def test_a_chat_model_is_told_the_players_name_once(other: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands before the first line of the first conversation, stays in the trunk, and is not computed again."""
    async with talking(other, monkeypatch) as talk:
        for line in ("hello", "and now?"):
            before, odd = talk.held, talk.odd
            timings = await talk.say(line, player_name="Tilda")
            assert odd or timings.cached_tokens >= len(before)
        layout = talk.rig.daemon.dialogue.layout
        if layout.kind == "chat":
            assert talk.kinds[0] is SectionKind.PARTNER
            assert talk.kinds.count(SectionKind.PARTNER) == 1
        vocab = other.engine.vocab
        first, second = (b"".join(map(vocab.piece, talk.turns[n].tail.tolist())) for n in (0, -1))
        assert b"Tilda" in first
        assert (b"Tilda" in second) == (layout.kind == "plain"), "a plain text has the name before each line"


async def test_a_reply_that_was_cut_off_stands_as_far_as_it_was_heard(
    other: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next turn finds the words that were heard, and computes no token of them again but those of a word that was
    cut in two.
    """
    async with talking(other, monkeypatch) as talk:
        await talk.say("hello")
        dialogue = talk.rig.daemon.dialogue
        heard = ""
        async for event in talk.rig.daemon.calls.talk("", talk.rig.talk("npc0", "tell me all", max_tokens=90, seed=3)):
            heard += event.text
            if len(heard) > 8:
                break
        await until(lambda: not any(dialogue.floors), "the turn is over")
        await talk.rig.daemon.door.all_ended()
        session = dialogue.hot.of_npc(talk.turns[0].key.npc)[0]
        if len(session.lines) < 4:
            return  # this model had ended before so much was said
        assert session.lines[-1].text == heard.rstrip() or session.lines[-1].text.startswith(heard)
        odd, timings = talk.odd, await talk.say("go on")
        assert timings.recomputed_tokens <= (16 if odd else 4)
        assert timings.cached_tokens > len(talk.turns[1].trunk)


async def test_a_retry_of_a_turn_that_was_cut_off_leaves_no_trace(
    other: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try's words, and the situation that stood before its line, are taken back."""
    rng = random.Random(1)
    async with talking(other, monkeypatch) as talk:
        await talk.sees(WOLF)
        for _ in range(2):
            heard = ""
            turn_id = f"t{rng.random()}"
            request = talk.rig.talk("npc0", "tell me all", max_tokens=60, turn_id=turn_id)
            async for event in talk.rig.daemon.calls.talk("", request):
                heard += event.text
                if heard:
                    break
            await until(lambda: not any(talk.rig.daemon.dialogue.floors), "the turn is over")
            before = len(talk.kinds)
            await talk.say("tell me all", turn_id=turn_id)
            assert len(talk.kinds) in (before, before + 2)
        assert talk.kinds.count(SectionKind.SIGHT) == 1
