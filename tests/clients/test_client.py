"""Worlds, leases, dialogue, health and errors over a real gRPC connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from npcd_client import (
    ActionWord,
    Archetype,
    CallerError,
    Client,
    NpcSpec,
    Observation,
    Overloaded,
    Percept,
    Persona,
    Policy,
    PolicyRow,
    Said,
    TalkEventKind,
    TalkFinish,
    TooLate,
    Unavailable,
    World,
    world_from_toml,
)
from tests.clients.fake_daemon import FakeDaemon, serving
from tests.patience import PATIENCE_S

WORLD = World(
    world_id="hollow",
    lore="A valley.",
    archetypes=(Archetype("villager", "Works."), Archetype("vampire", "Thirsts.")),
    actions=(ActionWord("idle"), ActionWord("attack", needs_target=True, speaks=True)),
    emotions=("calm", "angry"),
    personas=(Persona("mirela", "Mirela", "Keeps the inn."),),
    policy=Policy(
        (
            PolicyRow(percept_kind="player", archetype_id="vampire", action="attack", emotion="angry"),
            PolicyRow(action="idle"),
        )
    ),
)


async def test_a_world_arrives_as_it_was_written() -> None:
    async with serving() as (daemon, target), Client(target, token="secret", timeout_s=PATIENCE_S) as npcd:
        answer = await npcd.define_world(WORLD)
        assert answer.changed
        sent = daemon.worlds["hollow"]
        assert [a.archetype_id for a in sent.archetypes] == ["villager", "vampire"]
        assert [(a.word, a.needs_target, a.speaks) for a in sent.actions] == [
            ("idle", False, False),
            ("attack", True, True),
        ]
        assert sent.policy.rows[0].percept_kind == "player"
        assert daemon.metadata[0]["authorization"] == "Bearer secret"
        assert not (await npcd.define_world(WORLD)).changed


async def test_the_client_remembers_leases_and_policy() -> None:
    async with serving() as (daemon, target), Client(target, timeout_s=PATIENCE_S) as npcd:
        await npcd.define_world(WORLD)
        registration = await npcd.register(
            [NpcSpec("a", "vampire", "mirela"), NpcSpec("b", "villager", persona=Persona("", "Bo", "Digs."))]
        )
        assert registration.lease_epochs == daemon.leases
        assert registration.policy == WORLD.policy
        assert daemon.npcs["b"].persona.name == "Bo"
        seen = Observation("a", 1, percepts=(Percept("p1", "player"),))
        answer = npcd.policy_answer(seen)
        assert answer is not None and (answer.action, answer.target_entity_id) == ("attack", "p1")
        assert (await npcd.remove(["a"])).removed == 1
        assert [n.npc_id for n in (await npcd.describe()).npcs] == ["b"]


async def test_talk_streams_text_and_ends_with_timings() -> None:
    async with serving() as (daemon, target), Client(target, timeout_s=PATIENCE_S) as npcd:
        await npcd.define_world(WORLD)
        await npcd.register([NpcSpec("a", "vampire", "mirela")])
        said = Said()
        kinds = []
        async for event in npcd.talk("a", "p1", "Hello.", "t1", seed=0, temperature=0.0):
            said.add(event)
            kinds.append(event.kind)
        assert said.text == "Well met, stranger."
        assert kinds[0] is TalkEventKind.STARTED and kinds[-1] is TalkEventKind.END
        assert said.end is not None and said.end.finish is TalkFinish.STOP and said.end.accepted is True
        timings = said.end.timings
        assert timings is not None
        assert (timings.cached_tokens, timings.loaded_tokens, timings.copied_tokens) == (90, 60, 20)
        request = daemon.talks[0]
        assert request.turn_id == "t1" and request.has_seed and request.has_temperature


async def test_leaving_a_turn_cancels_it_on_the_daemon() -> None:
    async with serving() as (daemon, target), Client(target, timeout_s=PATIENCE_S) as npcd:
        await npcd.define_world(WORLD)
        await npcd.register([NpcSpec("a", "vampire", "mirela")])
        events = npcd.talk("a", "p1", "hold")
        async for event in events:
            if event.kind is TalkEventKind.TEXT:
                break
        await events.aclose()
        await asyncio.wait_for(daemon.talk_cancelled.wait(), PATIENCE_S)


async def test_a_conversation_takes_turns_interrupts_and_ends() -> None:
    async with serving() as (_, target), Client(target, timeout_s=PATIENCE_S) as npcd:
        await npcd.define_world(WORLD)
        async with npcd.converse("a", "p1") as conversation:
            turn_id = await conversation.say("Hello.")
            finishes = []
            async for event in conversation:
                if event.kind is not TalkEventKind.END:
                    assert event.turn_id == turn_id
                    continue
                finishes.append(event.finish)
                await (conversation.interrupt() if len(finishes) == 1 else conversation.end())
            assert finishes == [TalkFinish.STOP, TalkFinish.CANCELLED]


async def test_statuses_become_typed_errors() -> None:
    async with serving() as (_, target), Client(target, timeout_s=PATIENCE_S) as npcd:
        with pytest.raises(CallerError, match="archetypes") as wrong:
            await npcd.define_world(World("w", "", (), (), ()))
        assert wrong.value.code == "INVALID_ARGUMENT"
        with pytest.raises(CallerError, match="no world"):
            await npcd.register([NpcSpec("a", "x")], world_id="nowhere")
        with pytest.raises(Overloaded) as full:
            async for _event in npcd.talk("a", "p1", "busy", world_id="hollow"):
                pass
        assert full.value.retry_ms == 750
        with pytest.raises(CallerError, match="no NPC"):
            async for _event in npcd.talk("nobody", "p1", "hi", world_id="hollow"):
                pass


@pytest.mark.parametrize(
    "bad",
    [{"percepts": ("kim",)}, {"position_m": (10**400, 0, 0)}, {"activation": 99}, {"tick": None}, {"events": (1,)}],
)
async def test_an_observation_that_no_message_can_carry_is_a_callers_error(bad: dict[str, Any]) -> None:
    """Any Python error that the bad value causes inside reaches the caller as an error of the package."""
    async with serving() as (_, target), Client(target, world_id="hollow", timeout_s=PATIENCE_S) as npcd:
        with pytest.raises(CallerError, match="cannot be sent: "):
            await npcd.observe([replace(Observation("a", 1), **bad)])


def calls_with(npcd: Client, name: Any) -> list[Callable[[], Awaitable[object]]]:
    """Each call together with one name that it sends."""
    return [
        lambda: npcd.delete_world(world_id=name),
        lambda: npcd.remove([name]),
        lambda: npcd.describe([name]),
        lambda: npcd.forget(name),
        lambda: npcd.set_cards(name, "p"),
        lambda: npcd.recall(name, "p"),
        lambda: npcd.checkpoint(name),
        lambda: npcd.restore(name),
        lambda: npcd.list_checkpoints(world_id=name),
        lambda: npcd.delete_checkpoint(name),
        lambda: npcd.export_world(world_id=name),
        lambda: npcd.import_world(b"x", world_id=name),
        lambda: npcd.get_intents([name]),
        lambda: anext(npcd.watch_intents([name])),
        lambda: anext(npcd.talk(name, "p", "Hi.")),
        lambda: npcd.cancel(name, "p"),
        lambda: npcd.end_session(name, "p"),
    ]


async def test_a_name_that_no_message_can_carry_is_a_callers_error_in_every_call() -> None:
    """The call fails with CallerError for a number or half a surrogate pair in a text field, and for a text in a number
    field."""
    async with serving() as (_, target), Client(target, world_id="hollow", timeout_s=PATIENCE_S) as npcd:
        words: Any = "soon"
        calls = [*calls_with(npcd, 5), *calls_with(npcd, "\ud800")]
        calls += [lambda: npcd.drain(words), lambda: anext(npcd.watch_status(words))]
        for call in calls:
            with pytest.raises(CallerError, match="cannot be sent: "):
                await call()
        with pytest.raises(CallerError, match="cannot be sent: "):
            npcd.converse("\ud800", "p")


async def test_nobody_there_is_unavailable(tmp_path: Path) -> None:
    async with Client(f"unix://{tmp_path}/nobody.sock") as npcd:
        with pytest.raises(Unavailable):
            await npcd.status()
        with pytest.raises(TooLate, match="not ready"):
            await npcd.wait_ready(0.2)
    with pytest.raises(Unavailable, match="not open"):
        await npcd.status()


async def test_wait_ready_waits_for_the_model() -> None:
    async with serving() as (daemon, target), Client(target, timeout_s=PATIENCE_S) as npcd:
        daemon.serving = False
        with pytest.raises(TooLate, match=r"npcd\.v1\.Npcs is not serving yet"):
            await npcd.wait_ready(0.2)
        daemon.serving = True
        await npcd.wait_ready(PATIENCE_S)


async def test_a_client_starts_before_its_daemon(tmp_path: Path) -> None:
    """wait_ready() finds the daemon when the daemon starts after its client."""

    target = f"unix://{tmp_path}/late.sock"
    async with Client(target, timeout_s=PATIENCE_S) as npcd:
        waiting = asyncio.create_task(npcd.wait_ready(PATIENCE_S))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.2)
        daemon = FakeDaemon()
        await daemon.start(target)
        await waiting
        await daemon.stop()


async def test_status_is_streamed() -> None:
    async with serving() as (_, target), Client(target, timeout_s=PATIENCE_S) as npcd:
        seen = []
        async for status in npcd.watch_status(100):
            seen.append(status.version)
            if len(seen) == 2:
                break
        assert seen == ["fake", "fake"]


def test_toml_worlds_name_what_does_not_belong() -> None:
    text = """
world_id = "w"
lore = '''two
lines'''
emotions = ["calm"]
[[archetypes]]
archetype_id = "a"
description = "d"
[[actions]]
word = "idle"
[[policy]]
action = "idle"
"""
    world = world_from_toml(text)
    assert world.lore == "two lines" and world.policy.rows[0].action == "idle"
    with pytest.raises(ValueError, match=r"\[\[actions\]\] number 1: unknown key speek"):
        world_from_toml(text.replace('word = "idle"', 'word = "idle"\nspeek = true'))
    with pytest.raises(ValueError, match="lore"):
        world_from_toml('world_id = "w"')


SMALL = """
world_id = "w"
lore = "l"
emotions = ["calm"]
archetypes = [{ archetype_id = "a", description = "d" }]
actions = [{ word = "idle" }]
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            SMALL.replace('{ word = "idle" }', '"idle"'),
            '[[actions]] number 1: must be a table such as { word = "..." }',
        ),
        (SMALL.replace('word = "idle"', "speaks = true"), "[[actions]] number 1: word is missing"),
        (SMALL.replace('word = "idle"', 'word = "idle", speaks = 1'), "speaks must be true or false, not 1"),
        (SMALL.replace('word = "idle"', "word = true"), "word must be a text in quotes, not True"),
        (SMALL.replace('["calm"]', '"calm"'), "emotions must be a list of words"),
        (SMALL.replace('["calm"]', "[1]"), "emotions must be a list of words"),
        (SMALL.replace('lore = "l"', "lore = 1"), "lore must be a text in quotes, not 1"),
        (SMALL.replace('"d"', "3"), "[[archetypes]] number 1: description must be a text in quotes, not 3"),
        (SMALL + 'personas = "mira"', "personas must be a list of tables, not 'mira'"),
        (SMALL + '[[persona]]\npersona_id = "mira"', "unknown key persona; did you mean personas?"),
        (SMALL + '[[personas]]\npersona_id = "mira"', "[[personas]] number 1: name is missing"),
        (SMALL + "policy = 3", "policy must be a list of tables, not 3"),
        (SMALL + '[policy.a]\nrows = ["x"]', "[[policy.a]] number 1: must be a table such as { action = "),
        (SMALL + '[policy.a]\nrows = [{ health_max = "low" }]', "health_max must be a number, not 'low'"),
        (SMALL + "[policy.a]\nrows = [{ health_max = true }]", "health_max must be a number, not True"),
    ],
)
def test_a_toml_world_is_refused_in_words_that_a_designer_knows(text: str, said: str) -> None:
    """The message names the table, its number and the key, and never a Python type."""
    assert world_from_toml(SMALL + "[game]\nkeeps = 1").world_id == "w"  # a table of the game's own
    with pytest.raises(ValueError, match=r"^[^_]") as refused:
        world_from_toml(text)
    assert said in str(refused.value)


def test_a_policy_in_sections_is_flat_with_everybodys_rows_last() -> None:
    """The rows of a section inherit the archetype in the section's name, so the rows do not repeat it."""
    world = """
world_id = "w"
lore = "l"
emotions = ["calm"]
archetypes = [{ archetype_id = "a", description = "d" }]
actions = [{ word = "idle" }]
"""
    sections = """
[policy.default]
rows = [{ action = "idle" }]
[policy.villager]
rows = [{ event = "bell_rang", action = "pray" }, { action = "work" }]
[policy.ghoul]
rows = []
"""
    rows = world_from_toml(world + sections).policy.rows
    assert [(r.archetype_id, r.event, r.action) for r in rows] == [
        ("villager", "bell_rang", "pray"),
        ("villager", "", "work"),
        ("", "", "idle"),
    ]
    with pytest.raises(ValueError, match=r"\[\[policy\.villager\]\] number 2: unknown key actoin"):
        world_from_toml(world + sections.replace('{ action = "work" }', '{ actoin = "work" }'))
    with pytest.raises(ValueError, match=r"\[policy\.ghoul\] has rows = \[\.\.\.\] and nothing else"):
        world_from_toml(world + sections + "more = 1\n")
    with pytest.raises(ValueError, match=r"\[policy\.default\]: archetype_id is said by the section's name"):
        world_from_toml(world + sections.replace('{ action = "idle" }', '{ archetype_id = "x", action = "idle" }'))
