"""Text that a player must never hear, from models that say it word for word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.words import NpcKey
from daemon.config import Config
from daemon.model import Model, choose_layout
from engines.llama import LlamaEngine, LlamaSettings
from npcd.v1 import dialogue_pb2
from prompts.caps import Caps
from scheduler.placing import KvSettings
from tests.daemon.rig import running
from tests.engines.scripted import TEMPLATE, letters, scripted

# A small vocabulary needs many tokens for a text.
CAPS = Caps(lore=400, words=200, archetype=250, persona=250, intent_tail=200, talk_tail=300)
THOUGHT = ("<think>", "</think>")
PRIMED = TEMPLATE.replace("assistant<|im_sep|>{%", "assistant<|im_sep|><think>{%")


async def heard(path: Path) -> tuple[str, int]:
    """The text that a player hears from Mira, and the number of utterances that are kept of it."""
    engine = LlamaEngine(LlamaSettings(path, sequences=8, context_len=2048, threads=1, weights="file"))
    model = Model(engine, engine.card.name, engine.card.sha256, engine.card.chat_template)
    assert choose_layout(model, CAPS)[0].kind == "chat"
    config = Config(caps=CAPS)
    config = replace(config, scheduler=replace(config.scheduler, kv=KvSettings(prefixes=2, lanes=2)))
    try:
        async with running(model, config, npcs=1) as rig:
            events = await rig.say("npc0", "Hello", max_tokens=40)
            session = rig.daemon.dialogue.hot.find(NpcKey("", "vale", "npc0"), "p1", 0)
            text = "".join(e.text for e in events if e.kind == dialogue_pb2.TALK_EVENT_KIND_TEXT)
            return text, len(session.turns) if session is not None else 0
    finally:
        engine.close()


async def test_a_scripted_model_says_its_script(tmp_path: Path) -> None:
    """So the other tests hear the model's own text, and an ordinary reply is a turn."""
    assert await heard(scripted(tmp_path / "m.gguf", letters("Go, yes."))) == ("Go, yes.", 2)


@pytest.mark.parametrize("template", [TEMPLATE, PRIMED], ids=["by itself", "asked by the template"])
async def test_a_thought_is_not_heard(tmp_path: Path, template: str) -> None:
    """Of "<think>hmx</think>Go" the player hears "Go"."""
    script = [THOUGHT[0], *letters("hmx"), THOUGHT[1], *letters("Go")]
    text, kept = await heard(scripted(tmp_path / "m.gguf", script, template, THOUGHT))
    assert (text, kept) == ("Go", 2)


async def test_a_thought_between_control_tokens_is_not_heard(tmp_path: Path) -> None:
    """Control tokens have no text, but those that mark a thought do: else its end would be unknown."""
    script = ["[THINK]", *letters("hmx"), "[/THINK]", *letters("Go")]
    assert await heard(scripted(tmp_path / "m.gguf", script, controls=("[THINK]", "[/THINK]"))) == ("Go", 2)


async def test_a_thought_without_an_end_is_no_reply(tmp_path: Path) -> None:
    """Of "<think>hmx" the player hears nothing, and no turn is kept."""
    script = [THOUGHT[0], *letters("hmx")]
    assert await heard(scripted(tmp_path / "m.gguf", script, added=THOUGHT)) == ("", 0)


async def test_a_reply_ends_where_the_model_speaks_for_the_player(tmp_path: Path) -> None:
    """Of "Hi", a line break and "Player: ok" the player hears "Hi"."""
    assert await heard(scripted(tmp_path / "m.gguf", letters("Hi\nPlayer: ok"))) == ("Hi", 2)


async def test_the_speakers_own_name_is_not_heard(tmp_path: Path) -> None:
    """Of "Mira: Go" the player hears "Go" from Mira."""
    assert await heard(scripted(tmp_path / "m.gguf", letters("Mira: Go"))) == ("Go", 2)


async def test_an_empty_reply_is_no_turn(tmp_path: Path) -> None:
    """A model that ends at once gives no reply, and no turn is kept."""
    assert await heard(scripted(tmp_path / "m.gguf", [])) == ("", 0)
