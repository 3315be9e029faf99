"""Text that a guard cuts is nowhere: not heard, not in the conversation, in no record, and not in the next prompt."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from core.script import SectionKind
from core.words import NpcKey
from core.work import Chunk, Work
from memory.records import Kind
from npcd.v1 import dialogue_pb2, intents_pb2
from prompts.guard_rules import Directions, GuardSettings
from tests.daemon.rig import Rig, gated, running
from tests.daemon.test_backends import routed
from tests.engines.text_backend import TextBackend, in_plain_words
from tiers.routing import WorkKind

TEXT = dialogue_pb2.TALK_EVENT_KIND_TEXT
DIRECTION = dialogue_pb2.TALK_EVENT_KIND_DIRECTION
REPLACE = dialogue_pb2.TALK_EVENT_KIND_REPLACE
END = dialogue_pb2.TALK_EVENT_KIND_END
STOP = dialogue_pb2.TALK_FINISH_STOP


@dataclass
class Actor:
    """A model that says these replies, one after the other, in pieces of three characters."""

    replies: list[str]
    bark: str = ""
    works: list[Work] = field(default_factory=list)

    def says(self, work: Work) -> Sequence[Chunk]:
        """The answer to one work."""
        kinds = {section.kind for section in work.script.tail} if work.script is not None else set()
        if SectionKind.ANSWER in kinds:
            self.works.append(work)
            return pieces(self.replies.pop(0))
        if SectionKind.SHOUT in kinds:
            return pieces(self.bark)
        if SectionKind.SUM_UP in kinds:
            return pieces("<think>SECRET plan.</think>Tilda told that she lost SECRET.")
        return in_plain_words(work)


def pieces(text: str) -> list[Chunk]:
    """A text as a model's steps give it."""
    raw = text.encode()
    return [Chunk((), 0, text=raw[at : at + 3]) for at in range(0, len(raw), 3)]


@asynccontextmanager
async def acting(actor: Actor, guards: GuardSettings = GuardSettings()) -> AsyncIterator[tuple[Rig, list[object]]]:
    """A daemon whose NPCs speak as the actor does, and every record that it makes."""
    records: list[object] = []
    config = replace(routed("text", *WorkKind), guards=guards)
    async with running(gated(), config, others={"text": TextBackend(actor.says)}) as rig:
        keep_soon = rig.daemon.memory.keep_soon

        def kept(kind: Kind, npc: NpcKey, player: str = "", body: object = None):  # type: ignore[no-untyped-def]
            records.append(body)
            return keep_soon(kind, npc, player, body)  # type: ignore[arg-type]

        rig.daemon.memory.keep_soon = kept  # type: ignore[method-assign]
        yield rig, records


def heard(rig: Rig) -> list[str]:
    """The lines that are kept of the conversation."""
    session = rig.daemon.dialogue.hot.find(NpcKey("", "vale", "npc0"), "p1", rig.daemon.clock())
    return [turn.text for turn in session.turns] if session is not None else []


def shown(events: Sequence[dialogue_pb2.TalkEvent]) -> list[str]:
    """The events in short: text, ended sentences with a bar, directions in braces."""
    signs = {TEXT: "{}", DIRECTION: "{{{}}}", REPLACE: "<-{}"}
    return [signs[e.kind].format(e.text) + "|" * e.sentence_end for e in events if e.kind in signs]


async def test_what_was_cut_is_kept_nowhere() -> None:
    """Of a reply with a thought, a label, a stage direction and a line for the player, the player hears the NPC's own
    words. The conversation, the record, the next prompt and the retry have these words and nothing else.
    """
    reply = "<think>SECRET</think>\n\nMira: *SECRET* Good evening. Sit down.\nTilda: SECRET"
    actor = Actor([reply, "Yes."])
    async with acting(actor) as (rig, records):
        events = await rig.say("npc0", "Hello", player_name="Tilda", turn_id="t1")
        assert "".join(e.text for e in events) == "Good evening. Sit down."
        assert events[-1].finish == STOP and list(events[-1].flags) == [
            "guarded:direction", "guarded:label", "guarded:thought", "guarded:turn",
        ]  # fmt: skip
        assert heard(rig) == ["Hello", "Good evening. Sit down."]
        again = await rig.say("npc0", "Hello", player_name="Tilda", turn_id="t1")
        assert "".join(e.text for e in again) == "Good evening. Sit down."
        await rig.say("npc0", "Is there bread?", player_name="Tilda")
        script = actor.works[-1].script
        assert script is not None and "Good evening. Sit down." in [section.text for section in script.sections]
        end = dialogue_pb2.EndSessionRequest(world_id="vale", npc_id="npc0", player_id="p1")
        await rig.daemon.calls.end_session("", end)
        await rig.daemon.door.all_ended()
        assert records and not any("SECRET plan" in str(r) or "*SECRET" in str(r) for r in records)
        assert not any("SECRET" in section.text for section in script.sections)
        assert rig.daemon.dialogue.counts.guarded == {"thought": 1, "label": 1, "direction": 1, "turn": 1}


async def test_an_empty_reply_is_drawn_once_more() -> None:
    """If the model speaks for the player, it is asked again with another seed, and the player hears the second reply
    alone.
    """
    actor = Actor(["Tilda: I go home.", "Good evening."])
    async with acting(actor) as (rig, _):
        events = await rig.say("npc0", "Hello", player_name="Tilda", seed=7, has_seed=True)
        assert "".join(shown(events)) == "Good evening.|"
        assert list(events[-1].flags) == ["drawn_again"]
        assert [work.sampling.seed for work in actor.works] == [7, 8]
        assert heard(rig) == ["Hello", "Good evening."]
        counts = rig.daemon.dialogue.counts
        assert (counts.started, counts.drawn_again, counts.empty, counts.finished) == (1, 1, 0, 1)


async def test_a_second_draw_is_not_greedy() -> None:
    """At temperature 0 the same reply would come again."""
    actor = Actor(["", "Good evening."])
    async with acting(actor) as (rig, _):
        await rig.say("npc0", "Hello", temperature=0.0, has_temperature=True)
        first, second = (work.sampling.temperature for work in actor.works)
        assert first == 0 and second > 0


async def test_a_reply_that_stays_empty_is_told_and_not_kept() -> None:
    """The end says so, nothing is remembered, and a retry makes the turn again."""
    actor = Actor(["", "<think>hm", "Good evening."])
    async with acting(actor) as (rig, records):
        events = await rig.say("npc0", "Hello", turn_id="t1")
        assert [e.kind for e in events][-1] == END and not shown(events)
        assert (events[-1].finish, events[-1].accepted) == (STOP, False)
        assert list(events[-1].flags) == ["empty", "drawn_again", "guarded:thought"]
        assert heard(rig) == [] and records == []
        again = await rig.say("npc0", "Hello", turn_id="t1")
        assert "".join(e.text for e in again) == "Good evening."
        assert heard(rig) == ["Hello", "Good evening."]


async def test_no_second_draw_if_the_settings_say_so() -> None:
    """With guards.again = false an empty reply is the turn's end."""
    actor = Actor(["", "Good evening."])
    async with acting(actor, GuardSettings(again=False)) as (rig, _):
        events = await rig.say("npc0", "Hello")
        assert list(events[-1].flags) == ["empty"] and len(actor.works) == 1


async def test_text_events_end_with_sentences() -> None:
    """No text event goes beyond the end of a sentence, and each says whether a sentence ends with it. It has the NPC's
    present emotion.
    """
    actor = Actor(["Mr. Holt is in... maybe. Go! Now"])
    async with acting(actor) as (rig, _):
        await rig.daemon.calls.observe("", rig.frame(rig.sees("npc0", ("w1", "wolf", "hostile", 3.0))))
        intent = await rig.intent("npc0", lambda i: i.source == intents_pb2.INTENT_SOURCE_MODEL)
        events = await rig.say("npc0", "Hello")
        text = "".join(shown(events))
        assert text == "Mr. Holt is in... maybe.| Go!| Now"
        assert {e.emotion for e in events if e.kind == TEXT} == {intent.emotion} != {""}


async def test_a_stage_direction_may_be_an_event() -> None:
    """It stands where the NPC does it, and no part of it is said or kept."""
    actor = Actor(["*smiles* Good evening. (nods) Sit."])
    async with acting(actor, GuardSettings(Directions.EVENT)) as (rig, _):
        events = await rig.say("npc0", "Hello")
        assert "".join(shown(events)) == "{smiles}Good evening.|{nods} Sit.|"
        assert heard(rig) == ["Hello", "Good evening. Sit."]


async def test_a_thought_that_was_told_is_taken_back() -> None:
    """If a thought ends that never began, a REPLACE event empties what was heard, and the reply goes on after it."""
    actor = Actor(["The player is rude. I stay calm.</think>Good evening."])
    async with acting(actor) as (rig, _):
        events = await rig.say("npc0", "Hello")
        kinds = [e.kind for e in events]
        after = events[kinds.index(REPLACE) :] if REPLACE in kinds else events
        assert "".join(e.text for e in after) == "Good evening."
        assert heard(rig) == ["Hello", "Good evening."]


async def test_barks_are_guarded() -> None:
    """A bark has no label, no thought and no stage direction."""
    actor = Actor([], bark="<think>hm</think>Count Veil: *growls* Back!")
    async with acting(actor, GuardSettings(Directions.EVENT)) as (rig, _):
        await rig.daemon.calls.observe(
            "", rig.frame(rig.sees("npc1", ("w1", "wolf", "hostile", 3.0), events=["attacked"]))
        )
        intent = await rig.intent("npc1", lambda i: bool(i.bark))
        assert intent.bark == "Back!"
