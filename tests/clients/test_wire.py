"""The Python client sets and reads every field of the contract, and calls every rpc."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

import npcd_client
from npcd_client import CallerError, perception, wire, world
from npcd_client.v1 import admin_pb2, dialogue_pb2, intents_pb2, npcs_pb2, story_pb2, words_pb2

# The contract has stories; no daemon serves them yet.
NOT_BUILT = {story_pb2.DESCRIPTOR.services_by_name["Story"].full_name}

PERSONA = world.Persona("mira", "Mira", "Bakes.")
WORLD = world.World(
    "vale",
    "Lore.",
    (world.Archetype("vampire", "Thirsts.", "fangs+accent"),),
    (world.ActionWord("greet", needs_target=True, speaks=True),),
    ("calm",),
    (PERSONA,),
    world.Policy(
        (world.PolicyRow("vampire", "wolf", "hostile", 3.0, "attacked", 0.5, "night", "greet", "calm", "Ha."),)
    ),
    "fi",
)
SEEN = perception.Observation(
    "npc", 7, (1, 2, 3), (4, 5, 6), 0.5, "night", "crypt", (perception.Percept("p1", "wolf", "hostile", 2.0),),
    ("attacked",), perception.Activation.WARM,
)  # fmt: skip
FIRST = dialogue_pb2.TalkRequest(world_id="vale", npc_id="npc", player_id="p", player_name="Ann")


def unset(message: Message, path: str = "") -> Iterator[str]:
    """The fields of a message, and of the messages in it, that are not set."""
    present = {field.name for field, _ in message.ListFields()}
    for field in message.DESCRIPTOR.fields:
        name = f"{path}{field.name}"
        if field.name not in present:
            yield name
        elif field.message_type is not None:
            value = getattr(message, field.name)
            for one in value if field.is_repeated else [value]:
                yield from unset(one, f"{name}.")


def test_every_field_that_a_game_sends_can_be_set() -> None:
    """Values whose fields are all set become messages whose fields are all set."""
    spec = world.NpcSpec("npc", "vampire", "mira", PERSONA)
    sent: list[Message] = [
        wire.define_world(WORLD, expected_version=3),
        wire.npc_spec(spec),
        wire.observation(SEEN, lease_epoch=9),
        wire.talk(FIRST, "Hi.", "t1", 20, 5, 0.5),
    ]
    assert [name for message in sent for name in unset(message)] == []


def filled(descriptor: Any, kinds: dict[str, type[Message]]) -> Message:
    """A message whose fields are all set."""
    message = kinds[descriptor.full_name]()
    for field in descriptor.fields:
        if field.message_type is not None:
            value: Any = filled(field.message_type, kinds)
        elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            value = field.name
        else:
            value = 1
        if field.is_repeated:
            getattr(message, field.name).append(value)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(value)
        else:
            setattr(message, field.name, value)
    return message


KINDS: dict[str, type[Message]] = {
    f"npcd.v1.{name}": getattr(module, name)
    for module in (dialogue_pb2, intents_pb2, npcs_pb2, words_pb2)
    for name in module.DESCRIPTOR.message_types_by_name
}
CLOCK = perception.GameClock()
READERS: dict[type[Message], Callable[[Any], object]] = {
    intents_pb2.Intent: lambda m: wire.intent(m, 1, m.age_ms, CLOCK),
    words_pb2.Timings: wire.timings,
    npcs_pb2.Policy: wire.policy,
}


@pytest.mark.parametrize("kind", READERS, ids=lambda kind: kind.DESCRIPTOR.name)
def test_every_field_that_the_daemon_tells_can_be_read(kind: type[Message]) -> None:
    """Each field of an answer changes the value that the game gets."""
    whole = filled(kind.DESCRIPTOR, KINDS)
    for field in kind.DESCRIPTOR.fields:
        without = kind()
        without.CopyFrom(whole)
        without.ClearField(field.name)
        assert READERS[kind](without) != READERS[kind](whole), f"{kind.DESCRIPTOR.name}.{field.name} is not read"


def test_every_field_of_a_talk_event_can_be_read() -> None:
    """Each field of a talk event changes the value that the game gets. The END event has `accepted` and `timings`."""
    end = filled(dialogue_pb2.TalkEvent.DESCRIPTOR, KINDS)
    assert isinstance(end, dialogue_pb2.TalkEvent)
    end.kind = dialogue_pb2.TALK_EVENT_KIND_END
    for field in dialogue_pb2.TalkEvent.DESCRIPTOR.fields:
        clear: Any = dialogue_pb2.TalkEvent()
        clear.CopyFrom(end)
        clear.ClearField(field.name)
        assert wire.talk_event(clear) != wire.talk_event(end), field.name


METHODS = {  # the method of Client, where its name differs from the rpc's
    "Npcs.Watch": "watch_npcs",
    "Npcs.Export": "export_world",
    "Npcs.Import": "import_world",
    "Intents.Watch": "watch_intents",
    "Intents.Get": "get_intents",
    "Admin.Watch": "watch_status",
}


def test_every_rpc_can_be_called() -> None:
    """Client has a method for each rpc of a daemon."""
    missing = []
    for module in (admin_pb2, dialogue_pb2, intents_pb2, npcs_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for rpc in service.methods:
                words = "".join(f"_{c.lower()}" if c.isupper() else c for c in rpc.name).lstrip("_")
                name = METHODS.get(f"{service.name}.{rpc.name}", words)
                if service.full_name not in NOT_BUILT and not hasattr(npcd_client.Client, name):
                    missing.append(f"{service.name}.{rpc.name}: Client.{name}")
    assert missing == []


@pytest.mark.parametrize(
    ("max_tokens", "seed", "field"),
    [(-1, 0, "max_tokens"), (2**32, 0, "max_tokens"), (0, -1, "seed"), (0, 2**64, "seed")],
)
def test_a_number_that_the_contract_cannot_carry_is_named(max_tokens: int, seed: int, field: str) -> None:
    """A turn with such a number is refused before it is sent, by an error that names the field and the limit."""
    with pytest.raises(CallerError, match=rf"{field}: is -?\d+, must be 0 to"):
        wire.talk(FIRST, "Hi.", "t1", max_tokens, seed, None)


def test_an_archetypes_adapter_can_be_written_in_toml() -> None:
    """An adapter in the `[archetypes]` of a world's file reaches the daemon."""
    text = """
    world_id = "vale"
    lore = "Lore."
    archetypes = [{ archetype_id = "vampire", description = "Thirsts.", adapter = "fangs" }]
    actions = [{ word = "idle" }]
    emotions = ["calm"]
    """
    assert wire.define_world(world.world_from_toml(text), 0).archetypes[0].adapter == "fangs"
