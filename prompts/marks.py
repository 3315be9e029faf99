"""Marks: what stands before and behind a section, so that the model knows what it is. Three dialects have them.

Models trained for npcd have marks as control tokens (MARKS). Chat models have plain words inside the messages of their
own template (CHAT_MARKS; prompts/templates.py finds the text that stands between messages):

    head World: ... Kind: ... examples ... You are ... opens | You see: ... What do you do? ask You do: attack #1 angry
                                                       opens | line reply ... next | You see: ... line ask

so a trunk always ends where a line of the player may begin. The line stands there alone: with a label before it, models
write labels too (docs/decisions/0025). Any other model reads one long plain text (PLAIN_MARKS), and needs the labels.
An answer of fixed words always follows a colon, so that each word keeps its leading space: most vocabularies have
" flee" as one token and "flee" as two, and the first token of "flee" must not be compared with whole words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Protocol

from prompts.sight import TARGETS_MAX

# The control tokens of models made for npcd, and what stands in for them elsewhere.
MARKS: dict[str, str] = {
    "world": "<|world|>",
    "archetype": "<|archetype|>",
    "persona": "<|persona|>",
    "summary": "<|summary|>",
    "card": "<|card|>",
    "digest": "<|digest|>",
    "see": "<|see|>",
    "do": "<|do|>",
    "say": "<|say|>",
    "player": "<|player|>",
    "npc": "<|npc|>",
    "end": "<|end|>",
    **{f"p{i}": f"<|{i}|>" for i in range(TARGETS_MAX + 1)},
}
PLAIN_MARKS: dict[str, str] = {
    "world": "World:",
    "archetype": "\nKind:",
    "persona": "\nYou are",
    "summary": "\nEarlier:",
    "card": "\nYou remember:",
    "digest": "\nRemember:",
    "see": "\nYou see:",
    "do": "\nYou do:",
    "say": "\nYou shout:",
    "player": "\nPlayer:",
    "npc": "\nYou answer:",
    "end": "\n",
    "p0": " nobody",
    **{f"p{i}": f" #{i}" for i in range(1, TARGETS_MAX + 1)},
}

# Words in braces are the joints of the model's chat template.
CHAT_MARKS: dict[str, str] = {
    "world": "{head}World:",
    "archetype": "\nKind:",
    "persona": "\nYou are",
    "summary": "Earlier:",
    "card": "You remember:",
    "digest": "Remember:",
    "see": "You see:",
    "do": "\nWhat do you do?" + "{ask}You do:",
    "say": "{next}You shout, in a few words:{ask}",
    "player": "",
    "npc": "{ask}",
    "end": "",
    **{f"p{i}": PLAIN_MARKS[f"p{i}"] for i in range(TARGETS_MAX + 1)},
}
# The rules that a chat model is told once, in the shared prefix; a model made for npcd was trained to follow them.
CHAT_RULES = (
    '\nStay in this world and in your part. Told only what you see, say "You do:" and one action, then its target (a '
    "number that you see, or nobody), then one feeling."
)
CHAT_DONE = "\nWhat do you do?\nYou do:"  # the second half of a worked example, as the mark `do` has it
# The rule of conversations, after the persona.
CHAT_SPEECH = "\nAnswer as {name}, in the first person, in one or two short sentences. Say only {name}'s words."
CHAT_PARTNER = "You speak with {name}."  # before the first line of a player whose name is known
CHAT_LANGUAGE = "\nAnswer in {language}."
SUMMARY_LANGUAGE = " Write in {language}."

SUMMARY_ASKED = (
    "(This is not part of the play.) In at most four short sentences, in the third person and in the past tense, write "
    "down what the player told about themselves and what was agreed. Use names. Write nothing else."
)


def summary_asked(language: str = "") -> str:
    """The text that asks for a summary, in a language of an English name; empty: the model decides."""
    return SUMMARY_ASKED + (SUMMARY_LANGUAGE.format(language=language) if language else "")


class Encoder(Protocol):
    """The methods of a tokenizer that a layout calls (engines.base.Vocab has them; so has the trainer's)."""

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text, never a control token."""

    def control(self, text: str) -> int:
        """The id of a control token, or -1."""

    @property
    def bos_id(self) -> int:
        """The token every text must begin with, or -1."""


@dataclass(frozen=True, slots=True)
class Markup:
    """The text that a chat template writes between the messages, in one model's tokens (prompts/templates.py finds it).

    The leads are spaces that belong to the first word after a joint. `head` has the token that every text begins with,
    once. `stop_ids` are the template's markers: no answer holds one.
    """

    head: tuple[int, ...]
    opens: tuple[int, ...]
    reply: tuple[int, ...]
    next: tuple[int, ...]
    ask: tuple[int, ...]
    system_lead: str
    line_lead: str
    reply_lead: str
    stop_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Ends:
    """The tokens of one dialect that close a section, or stand before an answer that is kept.

    `rules` follow the world, `opens` the persona; `seen` and `done` begin the two halves of a worked example; `memory`
    ends a summary, card or digest, `sight` a perception before a line, `heard` a player's line, `said` an answer;
    `reply` begins one.
    """

    rules: tuple[int, ...] = ()
    seen: tuple[int, ...] = ()
    done: tuple[int, ...] = ()
    opens: tuple[int, ...] = ()
    memory: tuple[int, ...] = ()
    sight: tuple[int, ...] = ()
    heard: tuple[int, ...] = ()
    reply: tuple[int, ...] = ()
    said: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Dialect:
    """The marks of one model, in its tokens. `kind` is "npcd", "chat" or "plain".

    A text begins with `bos`, speech with the text `lead`. `stop_ids` end an answer. A plain dialect has no end token:
    an answer ends with `stop_text`, and the daemon watches for it.
    """

    kind: str
    bos: tuple[int, ...]
    lead: str
    marks: dict[str, tuple[int, ...]]
    ends: Ends
    stop_ids: frozenset[int] = frozenset()
    stop_text: str = ""
    line_lead: str = " "  # of a player's line


def dialect_of(encoder: Encoder, markup: Markup | None) -> Dialect:
    """The dialect that a model is addressed in. Its own control tokens come first, then its chat template's markup."""
    own = {name: encoder.control(text) for name, text in MARKS.items()}
    bos = (encoder.bos_id,) if encoder.bos_id >= 0 else ()
    if all(i >= 0 for i in own.values()):
        marks: dict[str, tuple[int, ...]] = {name: (i,) for name, i in own.items()}
        return Dialect("npcd", bos, " ", marks, _plain_ends(marks), frozenset(marks["end"]))
    if markup is None:
        marks = {name: tuple(encoder.encode(text)) for name, text in PLAIN_MARKS.items()}
        ends = replace(_plain_ends(marks), seen=marks["see"], done=marks["do"])
        return Dialect("plain", bos, " ", marks, ends, stop_text="\n")
    marks = {name: spelled(text, encoder, markup) for name, text in CHAT_MARKS.items()}
    line_break = tuple(encoder.encode("\n"))
    ends = Ends(
        rules=tuple(encoder.encode(CHAT_RULES)),
        seen=tuple(encoder.encode(PLAIN_MARKS["see"])),
        done=tuple(encoder.encode(CHAT_DONE)),
        opens=markup.opens,
        memory=line_break,
        sight=line_break,
        reply=markup.reply,
        said=markup.next,
    )
    # The head has BOS.
    return Dialect("chat", (), markup.reply_lead, marks, ends, markup.stop_ids, line_lead=markup.line_lead)


def _plain_ends(marks: dict[str, tuple[int, ...]]) -> Ends:
    return Ends(heard=marks["end"], reply=marks["npc"], said=marks["end"])


def spelled(text: str, encoder: Encoder, markup: Markup) -> tuple[int, ...]:
    """A mark of CHAT_MARKS in tokens."""
    joints = {
        "{head}": (markup.head, markup.system_lead),
        "{next}": (markup.next, markup.line_lead),
        "{ask}": (markup.ask, markup.reply_lead),
    }
    lead = markup.line_lead
    out: tuple[int, ...] = ()
    for part in re.split(r"(\{[a-z]+\})", text):
        if part in joints:
            tokens, lead = joints[part]
            out += tokens
        elif part:
            out += tuple(encoder.encode(part if part.startswith(("\n", " ")) else lead + part))
    return out
