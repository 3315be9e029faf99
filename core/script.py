"""A script: the text that a model is to read for one work, in named sections.

    world  words  archetype  examples | persona  summary  card  player  npc  player ... || digest  sight  player  answer
    `-- shared by NPCs -------------'   `-- one NPC's own; grows at its end only ---'    `-- the tail ---------------'

The tail of an intent is cut off again. Of a conversation's tail the line stays, with the reply that follows. Where the
layout says so, the situation stays too, before its line (Layout.situation_stays).

There are no tokens in it. Each model's layout (prompts/) renders the sections in its own way and puts what it made into
their `renders`, so that a section is rendered once per model, and a render is gone when nobody holds its section.
Scripts are made and rendered on the event loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class SectionKind(Enum):
    """The part that a section plays. Those that ask stand in tails alone."""

    WORLD = "world"  # lore
    WORDS = "words"  # the actions and feelings that answers are made of
    LANGUAGE = "language"  # the language to answer in, by its English name
    ARCHETYPE = "archetype"
    EXAMPLE = "example"  # a situation, and the answer to it; `items` are the percepts, then action, target, feeling
    PERSONA = "persona"
    SUMMARY = "summary"  # of earlier conversations
    CARD = "card"  # facts about the player
    PLAYER = "player"  # a player's line
    NPC = "npc"  # the NPC's finished line
    PARTNER = "partner"  # the player whom the NPC speaks with; `name` is the player's
    DIGEST = "digest"  # the player in one line
    SIGHT = "sight"  # the situation; `items` are the percepts, which answers name by their numbers, from 1
    CHOSEN = "chosen"  # an answer that was chosen; `items` are action, target ("#1", or "nobody") and feeling
    # These ask, and the model's answer follows.
    DO = "do"  # for an action, a target and a feeling
    SHOUT = "shout"  # for the few words that go with a chosen action
    ANSWER = "answer"  # for a reply to the player's line
    SUM_UP = "sum_up"  # for a summary of the conversation; the text is the language to write it in


# Nobody changes a section or a script. They are not frozen, because making a frozen one takes four times as long, and
# every question makes one of each.


@dataclass(slots=True, unsafe_hash=True)
class Section:
    """One piece of a script. `name` is whose text it is: an archetype's id, or the name of an NPC or a player."""

    kind: SectionKind
    text: str = ""
    name: str = ""
    items: tuple[str, ...] = ()
    renders: dict[object, Any] = field(default_factory=dict, repr=False, compare=False)  # by layout


@dataclass(slots=True, unsafe_hash=True)
class Script:
    """The text of one work: `sections`, of which the first `shared` are those of other NPCs too, and then `tail`.
    A script that goes on from another one begins with its sections, and its render with that one's.

    Invariant: scripts that differ in their tails alone have one `renders`, that of their sections.
    """

    sections: tuple[Section, ...]
    shared: int = 0
    tail: tuple[Section, ...] = ()
    renders: dict[object, Any] = field(default_factory=dict, repr=False, compare=False)  # of `sections`, by layout
    begins: Script | None = field(default=None, repr=False, compare=False)  # the one that it goes on from

    def asks(self, tail: tuple[Section, ...]) -> Script:
        """The same with another tail."""
        return Script(self.sections, self.shared, tail, self.renders, self.begins)

    def goes_on(self, more: Iterable[Section]) -> Script:
        """A longer one without a tail."""
        return Script((*self.sections, *more), self.shared, begins=self)


# The sections in which a turn tells the situation before the player's line.
SITUATION = frozenset([SectionKind.PARTNER, SectionKind.DIGEST, SectionKind.SIGHT])
LINES = frozenset([SectionKind.PLAYER, SectionKind.NPC])


def player_line(text: str, name: str = "") -> Section:
    """A line of a player, under the player's name if it is known."""
    return Section(SectionKind.PLAYER, text, name)


def npc_line(text: str) -> Section:
    """A finished line of an NPC."""
    return Section(SectionKind.NPC, text)
