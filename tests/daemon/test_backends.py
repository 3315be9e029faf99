"""The daemon serves intents and conversations on any backend that its routes name, with or without tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.errors import ConfigError
from core.words import Tier
from core.work import Work
from daemon.config import Config
from npcd.v1 import dialogue_pb2, intents_pb2
from tests.daemon.rig import UNHURRIED, Rig, gated, running, until
from tests.engines.text_backend import TextBackend, in_plain_words
from tiers.routing import LLAMA, Routes, WorkKind

MODEL = intents_pb2.INTENT_SOURCE_MODEL
TEXT = dialogue_pb2.TALK_EVENT_KIND_TEXT


def routed(engine: str, *kinds: WorkKind) -> Config:
    """Settings that route works of these kinds to an engine."""
    routes = Routes()
    for kind in kinds:
        routes = replace(routes, **{kind.value: replace(routes.of(kind), engine=engine)})
    return replace(UNHURRIED, routes=routes)


class Noting:
    """A text backend, and every work that it was given."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.backend = TextBackend(self._says)

    def _says(self, work: Work):  # type: ignore[no-untyped-def]
        self.works.append(work)
        return in_plain_words(work)


async def a_life(rig: Rig) -> tuple[intents_pb2.Intent, list[str]]:
    """Runs an intent about a wolf, and a conversation of two lines that ends in a summary. Returns their texts."""
    await rig.daemon.calls.observe("", rig.frame(rig.sees("npc1", ("w1", "wolf", "hostile", 3.0), events=["attacked"])))
    intent = await rig.intent("npc1", lambda i: i.source == MODEL)
    said = []
    for line in ("I lost my lantern.", "Was it at the mill?"):
        events = await rig.say("npc0", line)
        assert events[-1].kind == dialogue_pb2.TALK_EVENT_KIND_END
        said.append("".join(e.text for e in events if e.kind == TEXT))
    end = dialogue_pb2.EndSessionRequest(world_id="vale", npc_id="npc0", player_id="p1")
    await rig.daemon.calls.end_session("", end)
    await rig.daemon.door.all_ended()
    return intent, said


async def test_intents_and_a_conversation_on_a_backend_without_tokens() -> None:
    """Its works have text and options and no token, and the daemon's own engine runs no step."""
    noting, model = Noting(), gated()
    async with running(model, routed("text", *WorkKind), others={"text": noting.backend}) as rig:
        steps = model.engine.steps
        intent, said = await a_life(rig)
        assert (intent.action, intent.target_entity_id, intent.emotion) == ("attack", "w1", "calm"), "it was attacked"
        assert [text.strip() for text in said] == ["You said: I lost my lantern.", "You said: Was it at the mill?"]
        assert model.engine.steps == steps
        status = rig.daemon.board.message()
        finished = {tier.tier: tier.finished for tier in status.tiers}
        assert finished["silver"] >= 2 and finished["gold"] >= 1
    spoke = [work for work in noting.works if work.max_tokens]
    assert {work.tier for work in spoke} == set(Tier), "intents, replies, and a summary"
    for work in spoke:
        assert not len(work.trunk) and not len(work.tail) and work.choice is None and not work.said
        assert work.script is not None and work.script.sections and work.script.tail
    second = next(
        w for w in spoke if w.script and w.script.tail and "mill" in w.script.tail[-2].text + w.script.tail[-1].text
    )
    heard = [section.text for section in second.script.sections] if second.script else []
    assert "I lost my lantern." in " ".join(heard), "the earlier lines are in the script"


async def test_each_route_is_followed() -> None:
    """Works of the kinds in the backend's route go there, and all others to the daemon's own engine."""
    noting, model = Noting(), gated()
    config = routed("text", WorkKind.REPLY)
    summary = replace(config.routes.summary, engine=LLAMA)  # else it goes where replies go
    config = replace(config, routes=replace(config.routes, summary=summary))
    async with running(model, config, others={"text": noting.backend}) as rig:
        steps = model.engine.steps
        _, said = await a_life(rig)
        assert said[0].startswith("You said:")
        assert model.engine.steps > steps, "intents and the summary are made here"
    assert {work.tier for work in noting.works} == {Tier.SILVER}


async def test_an_engine_that_there_is_not_is_refused_at_the_start() -> None:
    """The message has the setting, the existing names, and the nearest of them."""
    config = routed("txet", WorkKind.SUMMARY)
    said = r"routes\.summary\.engine: there is no engine 'txet'; there is: llama, text; did you mean 'text'\?"
    with pytest.raises(ConfigError, match=said):
        async with running(gated(), config, others={"text": TextBackend()}):
            pass


async def test_a_backend_that_is_not_ready_is_told() -> None:
    """Status and /healthz name it, and the daemon goes on serving."""
    noting = Noting()
    async with running(gated(), others={"text": noting.backend}) as rig:
        assert not rig.daemon.board.degraded()
        assert noting.backend.stop(1.0)
        await until(lambda: rig.daemon.board.degraded() == ["engine 'text' is not ready"], "it is told")
        assert await rig.say("npc0", "Hello.")
