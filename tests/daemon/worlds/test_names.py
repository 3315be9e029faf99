"""One rule (core/texts.py) holds for all names and texts of all calls."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from core.errors import CallerError
from npcd.v1 import dialogue_pb2, intents_pb2, npcs_pb2
from tests.core.test_texts import NEVER, PEOPLE_HAVE
from tests.daemon.rig import Rig, gated, running, world

Give = Callable[[Rig, str], Awaitable[object]]


def define(change: Callable[[npcs_pb2.DefineWorldRequest, str], None]) -> Give:
    """Defines a world with a text in one field."""

    async def give(rig: Rig, text: str) -> object:
        request = world()
        change(request, text)
        return await rig.daemon.calls.define_world("", request)

    return give


def register(change: Callable[[npcs_pb2.NpcSpec, str], None]) -> Give:
    """Registers an NPC with a text in one field."""

    async def give(rig: Rig, text: str) -> object:
        spec = npcs_pb2.NpcSpec(
            npc_id="new", archetype_id="villager", persona=npcs_pb2.Persona(name="Ann", text="Old.")
        )
        change(spec, text)
        return await rig.daemon.calls.register("", npcs_pb2.RegisterRequest(world_id="vale", npcs=[spec]))

    return give


def say(field: str) -> Give:
    """Talks with a text in one field."""

    async def give(rig: Rig, text: str) -> object:
        request = dialogue_pb2.TalkRequest(world_id="vale", npc_id="npc0", player_id="p1", text="Hi.", max_tokens=1)
        setattr(request, field, text)
        return [e async for e in rig.daemon.calls.talk("", request)]

    return give


def see(change: Callable[[intents_pb2.Observation, str], None]) -> Give:
    """Observes with a text in one field."""

    async def give(rig: Rig, text: str) -> object:
        seen = rig.sees("npc0", ("w", "wolf", "hostile", 5.0))
        change(seen, text)
        answer = await rig.daemon.calls.observe("", rig.frame(seen))
        for error in answer.errors:
            raise CallerError(error.field, error.message)
        return answer

    return give


def cards(change: Callable[[npcs_pb2.SetCardsRequest, str], None]) -> Give:
    """Sets cards with a text in one field."""

    async def give(rig: Rig, text: str) -> object:
        request = npcs_pb2.SetCardsRequest(world_id="vale", npc_id="npc0", player_id="p1")
        change(request, text)
        return await rig.daemon.calls.recalling.set_cards("", request)

    return give


async def checkpoint(rig: Rig, text: str) -> object:
    """Marks a world's state under a name."""
    request = npcs_pb2.CheckpointRequest(world_id="vale", checkpoint_id=text)
    return await rig.daemon.calls.save_games.checkpoint("", request)


def _archetype(request: npcs_pb2.DefineWorldRequest, text: str) -> None:
    request.archetypes[0].description = text


def _persona(name: str) -> Callable[[npcs_pb2.DefineWorldRequest, str], None]:
    return lambda request, text: setattr(request.personas[0], name, text)


def _row(name: str) -> Callable[[npcs_pb2.DefineWorldRequest, str], None]:
    def change(request: npcs_pb2.DefineWorldRequest, text: str) -> None:
        setattr(request.policy.rows.add(action="idle", emotion="calm"), name, text)

    return change


def _percept(name: str) -> Callable[[intents_pb2.Observation, str], None]:
    return lambda seen, text: setattr(seen.percepts[0], name, text)


PLACES: dict[str, Give] = {
    "lore": define(lambda request, text: setattr(request, "lore", text)),
    "archetypes[0].description": define(_archetype),
    "personas[0].name": define(_persona("name")),
    "personas[0].text": define(_persona("text")),
    "personas[0].persona_id": define(_persona("persona_id")),
    "policy.rows[0].bark": define(_row("bark")),
    "policy.rows[0].percept_kind": define(_row("percept_kind")),
    "policy.rows[0].event": define(_row("event")),
    "npcs[0].npc_id": register(lambda spec, text: setattr(spec, "npc_id", text)),
    "npcs[0].persona.name": register(lambda spec, text: setattr(spec.persona, "name", text)),
    "npcs[0].persona.text": register(lambda spec, text: setattr(spec.persona, "text", text)),
    "text": say("text"),
    "player_name": say("player_name"),
    "player_id": say("player_id"),
    "turn_id": say("turn_id"),
    "percepts[0].entity_id": see(_percept("entity_id")),
    "percepts[0].kind": see(_percept("kind")),
    "percepts[0].stance": see(_percept("stance")),
    "events": see(lambda seen, text: seen.events.append(text)),
    "place": see(lambda seen, text: setattr(seen, "place", text)),
    "time_of_day": see(lambda seen, text: setattr(seen, "time_of_day", text)),
    "relationship.promises[0]": cards(lambda request, text: request.relationship.promises.append(text)),
    "quest.active[0]": cards(lambda request, text: request.quest.active.append(text)),
    "checkpoint_id": checkpoint,
}
# One to three words with single, plain spaces: other text between them is the model's.
WORDS: dict[str, Give] = {
    "actions[4].word": define(lambda request, text: request.actions.append(npcs_pb2.ActionWord(word=text))),
    "emotions[4]": define(lambda request, text: request.emotions.append(text)),
}


@pytest.mark.parametrize("field", [*PLACES, *WORDS])
async def test_characters_that_nobody_writes_are_refused_by_their_field(field: str, tmp_path: Path) -> None:
    """Each control character and each direction override is refused."""
    async with running(gated(), saves=tmp_path) as rig:
        give = {**PLACES, **WORDS}[field]
        for text in NEVER:
            if text == "a\ud800":
                continue  # no message can carry it
            with pytest.raises(CallerError, match=r"U\+[0-9A-F]{4}") as caught:
                await give(rig, text)
            assert caught.value.field == field


@pytest.mark.parametrize("field", [*PLACES, *WORDS])
async def test_characters_that_people_use_are_accepted_everywhere(field: str, tmp_path: Path) -> None:
    """Full-width spaces, joiners, marks, apostrophes and emoji are accepted."""
    async with running(gated(), saves=tmp_path) as rig:
        for text in PEOPLE_HAVE:
            if field not in WORDS:
                await PLACES[field](rig, text)
            elif text == " ".join(text.split()) and text.count(" ") < 3:
                await WORDS[field](rig, text)


@pytest.mark.parametrize("name", ["x" * 119, "two\nlines", "\x1b[2J", "\u3000"])
async def test_an_inline_persona_is_named_like_any_other(name: str) -> None:
    """It has up to 64 bytes in one visible line, as in DefineWorld and Talk."""
    async with running(gated()) as rig:
        for field in ("npcs[0].persona.name", "personas[0].name", "player_name"):
            with pytest.raises(CallerError) as caught:
                await PLACES[field](rig, name)
            assert caught.value.field == field


async def test_a_world_of_an_earlier_version_is_taken_up_without_what_is_refused_now() -> None:
    """A control character in its lore does not lose a save, nor one in its name an NPC."""
    definition = world(lore="Raven\x1bmere is\u202e old.")
    definition.personas[0].name = "M\x07ira"
    definition.policy.rows.add(action="idle", emotion="calm", bark="Oh\x00!")
    spec = npcs_pb2.NpcSpec(
        npc_id="n", archetype_id="villager", persona=npcs_pb2.Persona(name="山" * 30, text="Bakes.\x1b")
    )
    async with running(gated(), npcs=0) as rig:
        worlds = rig.daemon.worlds
        revived = worlds.revive("", definition.SerializeToString(), 3, 1, [(spec.SerializeToString(), 1)])
        assert revived.version == 3 and worlds.npc("", "vale", "n").name == "山" * 21
        assert revived.personas["mira"].name == "M ira"
