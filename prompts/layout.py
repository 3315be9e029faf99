"""The cache-stable layout: how worlds, personas, turns and perceptions become tokens. The only place that knows it.

    [world + archetype: shared prefix] [persona] [summary] [cards] [turns: append only]  |  [digest, perception, line]
    \\______________________________ trunk ______________________________________________/    \\________ tail ________/

Every section starts with a mark and is tokenised on its own, so a longer trunk always begins with the shorter one.
There are three dialects of marks. Models trained for npcd have them as control tokens (MARKS). Chat models have plain
words inside the messages of their own template (CHAT_MARKS; prompts/templates.py finds what stands between messages):

    head World: ... Kind: ... You are ... opens | You see: ... ask You do:      attack #1 angry
                                          opens | Player: ... reply ... next | You see: ... Player: ... ask

so a trunk always ends where a line of the player may begin. Any other model reads one long plain text (PLAIN_MARKS).
An answer of fixed words always follows a colon, so that each word keeps its leading space: most vocabularies have
" flee" as one token and "flee" as two, and the first token of "flee" must not be compared with whole words.
All other text is data and is encoded without control tokens, whatever it says. The trainer of the shipped model renders
its corpus with this file too.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from core.choice import END, Node, stage
from core.errors import CallerError
from core.observation import Observation, Percept
from core.steps import Steps, at_once

TARGETS_MAX = 8  # percept marks <|1|> .. <|8|>; <|0|> is "nobody"
PERCEPT_WORD_LEN_MAX = 24
DISTANCE_EDGES_M = (2.0, 8.0, 20.0)  # where distance_word changes
HEALTH_EDGES = (0.25, 0.7)
EVENTS_KEPT = 2
TOKEN_BYTES_MAX = 64  # of prose, in any vocabulary

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
    "do": "{ask}You do:",
    "say": "{next}You shout, in a few words:{ask}",
    "player": "Player:",
    "npc": "{ask}",
    "end": "",
    **{f"p{i}": PLAIN_MARKS[f"p{i}"] for i in range(TARGETS_MAX + 1)},
}
# What a chat model is told once, in the shared prefix; a model made for npcd was trained to do it.
CHAT_RULES = (
    '\nStay in this world and in your part. Told only what you see, say "You do:" and one action, then its target (a '
    "number that you see, or nobody), then one feeling. Spoken to, answer in one or two short sentences."
)


SUMMARY_ASKED = (
    "(This is not part of the play.) In at most four short sentences, in the third person and in the past tense, write "
    "down what the player told about themselves and what was agreed. Use names. Write nothing else."
)


class Encoder(Protocol):
    """What the layout needs of a tokenizer (engines.base.Vocab has it; so has the trainer's)."""

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text, never a control token."""

    def control(self, text: str) -> int:
        """The id of a control token, or -1."""

    @property
    def bos_id(self) -> int:
        """The token every text must begin with, or -1."""


@dataclass(frozen=True, slots=True)
class Caps:
    """Token limits of each part of a prompt. npcd refuses definitions that are longer; parts that grow while playing
    are cut.
    """

    lore: int = 320
    """Tokens of a world's lore."""
    words: int = 160
    """Tokens of a world's list of actions and emotions."""
    archetype: int = 160
    """Tokens of an archetype's description."""
    persona: int = 160
    """Tokens of a persona."""
    summary: int = 160
    """Tokens of the summary of earlier conversations."""
    card: int = 96
    """Tokens of one card (relationship, quest and so on)."""
    player_line: int = 128
    """Tokens of a player's line."""
    reply: int = 160
    """Tokens of an NPC's own reply that stay in the conversation."""
    intent_tail: int = 32
    """Tokens that describe what an NPC sees when it is asked for an intent."""
    talk_tail: int = 192
    """Tokens of the tail that asks for a reply: memory, what the NPC sees, and the player's line."""
    bark: int = 8
    """Internal: give it as `routes.bark.output_max`."""
    percepts: int = 5
    """Percepts that are described to the model; the most notable ones come first."""


@dataclass(frozen=True, slots=True)
class ActionWord:
    """One thing an NPC can do."""

    word: str
    needs_target: bool = False
    speaks: bool = False


@dataclass(frozen=True, slots=True)
class Perception:
    """An observation as the model reads it: tokens from mark `see` on, and the percepts that <|1|>, <|2|>, ... name."""

    tokens: tuple[int, ...]
    percepts: tuple[Percept, ...]
    state: str


@dataclass(frozen=True, slots=True)
class Cut:
    """Tokens of a section after its cap, and how many were cut away."""

    tokens: tuple[int, ...]
    lost: int


def distance_word(distance_m: float) -> str:
    """Metres as the model's word: close < 2 <= near < 8 <= away < 20 <= far."""
    close_m, near_m, away_m = DISTANCE_EDGES_M
    if distance_m < close_m:
        return "close"
    if distance_m < near_m:
        return "near"
    return "away" if distance_m < away_m else "far"


def health_word(health: float) -> str:
    """Health 0..1 as the model's word: dying < 0.25 <= hurt < 0.7 <= nothing."""
    dying, hurt = HEALTH_EDGES
    if health < dying:
        return "dying"
    return "hurt" if health < hurt else ""


def notable(percepts: Sequence[Percept], count: int) -> list[Percept]:
    """The percepts that matter most, first: hostile before others, then seen before heard, then the nearest.

    Those that are equally far in words keep an order of their own: who of two wolves near is nearer changes nothing.
    """
    kept = sorted(percepts, key=lambda p: (p.stance != "hostile", not p.in_sight, p.distance_m, p.entity_id))[:count]
    edges_m = DISTANCE_EDGES_M
    kept.sort(key=lambda p: (p.stance != "hostile", not p.in_sight, bisect_right(edges_m, p.distance_m), p.entity_id))
    return kept


def situation_words(seen: Observation) -> str:
    """Time, place, health and the newest two events, as words with a leading space each; may be empty."""
    return _situation(seen.time_of_day, seen.place, health_word(seen.health), *seen.events[:EVENTS_KEPT])


def percept_words(percept: Percept) -> str:
    """A percept in words: " player hostile near", or " wolf away heard" when it is out of sight."""
    _, kind, stance, distance_m, in_sight = percept
    return _sighting(kind, stance, distance_word(distance_m), in_sight)


def state_of(seen: Observation, percepts_max: int) -> str:
    """An observation quantised: equal states ask for equal intents, so this serves as its hash.

    Targets are part of it: another wolf at the same distance is another situation.
    """
    kept = notable(seen.percepts, min(percepts_max, TARGETS_MAX))
    return situation_words(seen) + "".join([f"|{percept_words(p)}@{p.entity_id}" for p in kept])


# Every observation is put into words, and they are few: finding what was put together before is a tenth of the cost.
@lru_cache(maxsize=8192)
def _situation(*said: str) -> str:
    return "".join(f" {_word(w)}" for w in said if w)


@lru_cache(maxsize=8192)
def _sighting(kind: str, stance: str, distance: str, in_sight: bool) -> str:
    words = (_word(kind), _word(stance), distance, "" if in_sight else "heard")
    return "".join(f" {w}" for w in words if w)


def _word(text: str) -> str:
    return " ".join(text.replace("_", " ").split())[:PERCEPT_WORD_LEN_MAX]


@dataclass(frozen=True, slots=True)
class Markup:
    """What a chat template writes between the messages, in one model's tokens (prompts/templates.py finds it).

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
    """What closes a section, or stands before an answer that is kept, in tokens of one dialect.

    `rules` follow the world, `opens` the persona; `memory` ends a summary, card or digest, `sight` a perception before
    a line, `heard` a player's line, `said` an answer; `reply` begins one.
    """

    rules: tuple[int, ...] = ()
    opens: tuple[int, ...] = ()
    memory: tuple[int, ...] = ()
    sight: tuple[int, ...] = ()
    heard: tuple[int, ...] = ()
    reply: tuple[int, ...] = ()
    said: tuple[int, ...] = ()


class TooLong(CallerError):
    """A text of a world that is longer than its cap; `size` says how long it is."""

    def __init__(self, field: str, size: str, limit: str) -> None:
        super().__init__(field, f"{size}, {limit}; shorten it")
        self.size = size


class Layout:
    """Renders the sections for one model. Plain values in, token ids out; holds nothing but the model's marks.

    `markup` is that of the model's chat template; a model that has npcd's marks does not need it.
    """

    def __init__(self, encoder: Encoder, caps: Caps = Caps(), markup: Markup | None = None) -> None:
        self.caps = caps
        self._encode = encoder.encode
        # Perceptions are made of few words again and again; finding their tokens once is most of their cost.
        self._short = lru_cache(maxsize=8192)(lambda text: tuple(encoder.encode(text)))
        own = {name: encoder.control(text) for name, text in MARKS.items()}
        self.native = all(i >= 0 for i in own.values())
        self.kind = "npcd" if self.native else "chat" if markup else "plain"
        self._bos = (encoder.bos_id,) if encoder.bos_id >= 0 else ()
        self._lead = " "  # what speech begins with
        # A plain layout has no end token: the line break is a stop string, the daemon watches for it.
        self.stop_text = "\n" if self.kind == "plain" else ""
        self.marks: dict[str, tuple[int, ...]]
        if self.native:
            self.marks = {name: (i,) for name, i in own.items()}
            self.stop_ids = frozenset(self.marks["end"])
        elif markup:
            self._bos = ()  # the head has it
            self._lead = markup.reply_lead
            self.marks = {name: _spelled(text, encoder, markup) for name, text in CHAT_MARKS.items()}
            self.stop_ids = markup.stop_ids
        else:
            self.marks = {name: tuple(encoder.encode(text)) for name, text in PLAIN_MARKS.items()}
            self.stop_ids = frozenset()
        # Tokens that close an answer as text. They end nothing by themselves: a reply may begin with a line break.
        self.closing_ids = frozenset(encoder.encode(self.stop_text)) if self.stop_text else frozenset()
        if markup and not self.native:
            line_break = tuple(encoder.encode("\n"))
            self.ends = Ends(
                rules=tuple(encoder.encode(CHAT_RULES)),
                opens=markup.opens,
                memory=line_break,
                sight=line_break,
                reply=markup.reply,
                said=markup.next,
            )
        else:
            self.ends = Ends(heard=self.marks["end"], reply=self.marks["npc"], said=self.marks["end"])

    @property
    def trunk_max(self) -> int:
        """Tokens that an intent's trunk has at most: world, archetype and persona at their caps."""
        caps, marks = self.caps, self.marks
        said = caps.lore + caps.words + caps.archetype + caps.persona
        marked = sum(len(marks[name]) for name in ("world", "archetype", "persona"))
        return len(self._bos) + said + marked + len(self.ends.rules) + len(self.ends.opens)

    def knows(self, word: str) -> bool:
        """Whether a word is one token where it follows a space: models made for npcd were trained on those."""
        return len(self._encode(f" {word}")) == 1

    @property
    def sight_room(self) -> int:
        """Tokens that an intent's tail has for what is seen, beside the marks."""
        return self.caps.intent_tail - len(self.marks["see"]) - len(self.marks["do"])

    # -- trunk -------------------------------------------------------------------------------------------------

    def world(self, lore: str, actions: Sequence[ActionWord], emotions: Sequence[str]) -> tuple[int, ...]:
        """What every NPC of a world shares: lore, and the words it may act and feel with, in the world's order."""
        lore_ids = self._capped("lore", lore, "lore")
        words = f" Actions: {', '.join(a.word for a in actions)}. Feelings: {', '.join(emotions)}."
        words_ids = self._capped("actions", words, "words")
        return self._bos + self.marks["world"] + lore_ids + words_ids + self.ends.rules

    def archetype(self, archetype_id: str, description: str) -> tuple[int, ...]:
        """The second half of the shared prefix."""
        text = f"{archetype_id}. {description}"
        return self.marks["archetype"] + self._capped(f"archetypes[{archetype_id}].description", text, "archetype")

    def persona(self, name: str, text: str) -> tuple[int, ...]:
        """Who this NPC is; the intent trunk ends here."""
        told = self._capped(f"personas[{name}].text", f"{name}. {text}", "persona")
        return self.marks["persona"] + told + self.ends.opens

    def summary(self, text: str) -> Cut:
        """What happened in earlier sessions; frozen within a session."""
        return self._cut("summary", text, self.caps.summary, self.ends.memory)

    def card(self, text: str) -> Cut:
        """A card in full, or one line of change to it."""
        return self._cut("card", text, self.caps.card, self.ends.memory)

    def player_turn(self, text: str, player_name: str = "") -> Cut:
        """A player's line, closed. `text` is data: it is encoded without control tokens and on one line."""
        said = " ".join(text.split())
        named = f"{player_name}: {said}" if player_name else said
        return self._cut("player", named, self.caps.player_line, self.ends.heard)

    def npc_turn(self, text: str) -> tuple[int, ...]:
        """An NPC's finished line, closed."""
        return self.ends.reply + self.spoken(text)[: self.caps.reply] + self.ends.said

    def spoken(self, text: str) -> tuple[int, ...]:
        """Speech as the model writes it, after `npc` or `say`: one line, not closed."""
        return tuple(self._encode(self._lead + _line(text)))

    # -- tail --------------------------------------------------------------------------------------------------

    def perceive(self, seen: Observation) -> Perception:
        """An observation in few tokens: the situation, then the most notable percepts while they fit the tail."""
        room = self.caps.intent_tail - len(self.marks["do"])
        tokens = (self.marks["see"] + self._short(situation_words(seen)))[:room]
        kept: list[Percept] = []
        for percept in notable(seen.percepts, min(self.caps.percepts, TARGETS_MAX)):
            more = self.marks[f"p{len(kept) + 1}"] + self._short(percept_words(percept))
            if len(tokens) + len(more) > room:
                break
            tokens += more
            kept.append(percept)
        return Perception(tokens, tuple(kept), state_of(seen, self.caps.percepts))

    def digest(self, text: str) -> tuple[int, ...]:
        """One line about the player, for tails; empty for empty text."""
        return self.marks["digest"] + self._short(f" {_line(text)}") + self.ends.memory if text else ()

    def intent_tail(self, perception: Perception, digest: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The branch that asks for an intent; the digest gives way when both do not fit."""
        asked = perception.tokens + self.marks["do"]
        return digest + asked if len(digest) + len(asked) <= self.caps.intent_tail else asked

    def bark_tail(self, intent_tail: tuple[int, ...], chosen: Sequence[int]) -> tuple[int, ...]:
        """The branch that asks for a bark, after the chosen action, target and emotion."""
        answer = tuple(chosen[:-1] if chosen and chosen[-1] == self._answer_end else chosen)
        return intent_tail + answer + self.marks["say"]

    def talk_tail(
        self, player_turn: tuple[int, ...], perception: Perception | None = None, digest: tuple[int, ...] = ()
    ) -> tuple[int, ...]:
        """The branch that asks for a reply: digest, perception, the player's line. The first two give way when full."""
        asked = player_turn + self.marks["npc"]
        sight = perception.tokens + self.ends.sight if perception else ()
        for before in (digest + sight, digest):
            if len(before) + len(asked) <= self.caps.talk_tail:
                return before + asked
        return asked

    def summary_tail(self) -> tuple[int, ...]:
        """The branch that asks for a summary of the conversation, for what the NPC will remember of it."""
        if self.native:
            return self.marks["summary"]
        return self.player_turn(SUMMARY_ASKED).tokens + self.marks["npc"]

    # -- choice ------------------------------------------------------------------------------------------------

    def word(self, text: str) -> tuple[int, ...]:
        """An action or emotion word as the model writes it in an answer, with its leading space."""
        return tuple(self._encode(f" {text}"))

    def intents(self, actions: Sequence[ActionWord], emotions: Sequence[str]) -> list[Node]:
        """The allowed answers, by how many percepts can be named (0 .. caps.percepts): action, target, emotion.

        Target option 0 is nobody; option i is the i-th percept. Raises CallerError when this model's tokens cannot tell
        two words apart.
        """
        return at_once(self.intents_in_steps(actions, emotions))

    def intents_in_steps(self, actions: Sequence[ActionWord], emotions: Sequence[str]) -> Steps[list[Node]]:
        """The same in steps."""
        felt = [self.word(e) for e in emotions]
        done = [self.word(a.word) for a in actions]
        yield
        closed = Node(np.asarray([self._answer_end], np.int32), [END], [None]) if self._answer_end >= 0 else END

        def after(word: tuple[int, ...]) -> Node:
            # A feeling that another begins with ("sad", "sadly" in few tokens) is over when the answer ends.
            return closed if any(len(o) > len(word) and o[: len(word)] == word for o in felt) else END

        feel = stage("emotions", [(i, word, after(word)) for i, word in enumerate(felt)])
        choices: list[Node] = []
        for percepts in range(self.caps.percepts + 1):
            targets = [(i, self.marks[f"p{i}"], feel) for i in range(percepts + 1)]
            may = stage("targets", targets)
            must = stage("targets", targets[1:]) if percepts else END
            options = [
                (i, done[i], must if a.needs_target else may)
                for i, a in enumerate(actions)
                if percepts or not a.needs_target
            ]
            if not options:
                raise CallerError("actions", "at least one action word must do without a target")
            choices.append(stage("actions", options))
            yield
        return choices

    # -- pieces ------------------------------------------------------------------------------------------------

    def _capped(self, field: str, text: str, name: str) -> tuple[int, ...]:
        # `name` is the cap's in the settings. Everybody waits while a text is tokenised: megabytes are refused before.
        cap: int = getattr(self.caps, name)
        size, most = len(text.encode("utf-8", "replace")), cap * TOKEN_BYTES_MAX
        if size > most:
            raise TooLong(field, f"{size} bytes", f"more than {most} are never {cap} tokens (caps.{name})")
        tokens = tuple(self._encode(f" {_line(text)}"))
        if len(tokens) > cap:
            raise TooLong(field, f"{len(tokens)} tokens", f"the limit is {cap} (caps.{name})")
        return tokens

    def _cut(self, mark: str, text: str, cap: int, end: tuple[int, ...]) -> Cut:
        tokens = tuple(self._encode(f" {_line(text)}"))
        return Cut(self.marks[mark] + tokens[:cap] + end, max(0, len(tokens) - cap))

    @property
    def _answer_end(self) -> int:
        """A token that no word begins with; -1 when there is none."""
        said = self.ends.said
        return next((t for t in said if t in self.stop_ids), said[0] if said else -1)


def _spelled(text: str, encoder: Encoder, markup: Markup) -> tuple[int, ...]:
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


def _line(text: str) -> str:
    return " ".join(text.split())
