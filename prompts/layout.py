"""The cache-stable layout: how one model reads a script, in tokens. The only place that knows it.

    [world, archetype, examples: shared] [persona] [summary] [cards] [turns: append only] | [digest, perception, line]
    \\______________________________ trunk ______________________________________________/   \\________ tail ________/

Every section starts with a mark (prompts/marks.py) and is tokenised on its own, so a longer trunk always begins with
the shorter one. A section is rendered once for each model, and its tokens are kept with it. An NPC's reply stands there
in the tokens that were drawn, while its session lives; else its text is encoded (docs/decisions/0026). All text is data
and is encoded without control tokens, whatever it says. The trainer of the shipped model renders its corpus with this
file too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np

from core.choice import END, Choice, Node, Option, Tokens
from core.observation import Observation, Percept
from core.script import Script, Section, SectionKind
from core.steps import Steps, at_once
from prompts import choices
from prompts.caps import TOKEN_BYTES_MAX, Caps, TooLong
from prompts.choices import ActionWord
from prompts.marks import CHAT_LANGUAGE, CHAT_PARTNER, CHAT_SPEECH, Encoder, Markup, dialect_of, summary_asked
from prompts.sight import TARGETS_MAX, notable, percept_words, situation_words

SUMMARY_ASKED_MAX = 256  # tokens that ask for a summary
LONGEST_LANGUAGE = "the language with the tag " + "x" * 64  # of those that daemon/worlds/language.py names
DO, SHOUT = Section(SectionKind.DO), Section(SectionKind.SHOUT)
ANSWER, SUM_UP = Section(SectionKind.ANSWER), Section(SectionKind.SUM_UP)


class Cut(NamedTuple):
    """Tokens of a section after its cap, and how many were cut away."""

    tokens: tuple[int, ...]
    lost: int = 0


class Trunk(NamedTuple):
    """A script's sections in tokens; the first `shared` of them are those of other NPCs too."""

    tokens: Tokens
    shared: int


class Tail(NamedTuple):
    """A script's tail: its sections, and the tokens that `by` made of them."""

    tokens: tuple[int, ...]
    sections: tuple[Section, ...]
    by: Layout


@dataclass(frozen=True, slots=True)
class Perception:
    """An observation as a model reads it: from mark `see` on, and the percepts that <|1|>, <|2|>, ... name."""

    tokens: tuple[int, ...]
    percepts: tuple[Percept, ...]
    section: Section


class Layout:
    """Renders scripts for one model. It holds nothing but the model's marks, and changes only `renders`.

    `markup` is that of the model's chat template; a model that has npcd's marks does not need it.
    """

    def __init__(self, encoder: Encoder, caps: Caps = Caps(), markup: Markup | None = None) -> None:
        self.caps = caps
        self._encode = encoder.encode
        # Perceptions are made of few words again and again; finding their tokens once is most of their cost.
        self._short = lru_cache(maxsize=8192)(lambda text: tuple(encoder.encode(text)))
        dialect = dialect_of(encoder, markup)
        self.kind, self.marks, self.ends = dialect.kind, dialect.marks, dialect.ends
        self.native = dialect.kind == "npcd"
        # True: a turn's situation stays in the conversation, before its line, and is told again when it has changed; so
        # a finished turn is the trunk already. False: it stands in the tail and is cut off, as the model was trained.
        self.situation_stays = not self.native
        self._bos, self._lead, self._line_lead = dialect.bos, dialect.lead, dialect.line_lead
        self.stop_ids, self.stop_text = dialect.stop_ids, dialect.stop_text
        # Tokens that close an answer as text. They end nothing by themselves: a reply may begin with a line break.
        self.closing_ids = frozenset(encoder.encode(self.stop_text)) if self.stop_text else frozenset()
        self._closed = END
        if self._answer_end >= 0:
            self._closed = Node(np.asarray([self._answer_end], np.int32), [END], [None])

    @property
    def trunk_max(self) -> int:
        """Tokens that an intent's trunk has at most: world, archetype, examples and persona at their caps."""
        caps, marks = self.caps, self.marks
        said = caps.lore + caps.words + caps.archetype + caps.persona
        marked = sum(len(marks[name]) for name in ("world", "archetype", "persona"))
        told = 0 if self.native else caps.examples + len(self._language(LONGEST_LANGUAGE)) + len(self._manner("n" * 64))
        return len(self._bos) + said + marked + told + len(self.ends.rules) + len(self.ends.opens)

    def knows(self, word: str) -> bool:
        """True when a word is one token where it follows a space: models made for npcd were trained on those."""
        return len(self._encode(f" {word}")) == 1

    @property
    def closing_len(self) -> int:
        """Tokens that close a finished reply. They are computed with the work that follows."""
        return len(self.ends.said)

    @property
    def sight_room(self) -> int:
        """Tokens that an intent's tail has for what is seen, beside the marks."""
        return self.caps.intent_tail - len(self.marks["see"]) - len(self.marks["do"])

    # -- scripts -----------------------------------------------------------------------------------------------

    def trunk(self, script: Script) -> Trunk:
        """The sections of a script in tokens. Raises TooLong for a definition over its cap."""
        made = script.renders.get(self)
        if not isinstance(made, Trunk):
            begins = script.begins
            if begins is None:
                tokens = np.asarray(self.lines(script.sections), np.int32)
                made = Trunk(tokens, len(self.lines(script.sections[: script.shared])))
            else:
                start, more = self.trunk(begins), self.lines(script.sections[len(begins.sections) :])
                made = Trunk(np.concatenate((start.tokens, np.asarray(more, np.int32))), start.shared)
            script.renders[self] = made
        return made

    def tail(self, tail: Tail) -> tuple[int, ...]:
        """A tail in this model's tokens, whichever layout made it."""
        return tail.tokens if tail.by is self else self.encode(tail.sections)

    def lines(self, sections: Iterable[Section]) -> tuple[int, ...]:
        """Sections of a trunk one after the other."""
        return tuple(chain.from_iterable(self._joined(sections, self.render)))

    def render(self, section: Section) -> Cut:
        """A section of a trunk, as this model reads it. Raises TooLong for a definition over its cap."""
        made = section.renders.get(self)
        if not isinstance(made, Cut):
            made = section.renders[self] = self._rendered(section)
        return made

    def encode(self, tail: Sequence[Section]) -> tuple[int, ...]:
        """The sections of a tail, rendered from their texts."""
        return tuple(chain.from_iterable(self._joined(tail, self._rendered)))

    def _joined(self, sections: Iterable[Section], render: Callable[[Section], Cut]) -> Iterator[tuple[int, ...]]:
        seen = False
        for section in sections:
            if seen and section.kind is SectionKind.PLAYER:
                yield self.ends.sight
            yield render(section).tokens
            seen = section.kind is SectionKind.SIGHT

    def _rendered(self, section: Section) -> Cut:
        text, name = section.text, section.name
        match section.kind:
            case SectionKind.WORLD:
                return Cut(self._bos + self.marks["world"] + self._capped("lore", text, "lore"))
            case SectionKind.WORDS:
                return Cut(self._capped("actions", text, "words") + self.ends.rules)
            case SectionKind.ARCHETYPE:
                return Cut(self.archetype(name, text))
            case SectionKind.LANGUAGE:
                return Cut(self._language(text))
            case SectionKind.EXAMPLE:
                return Cut(self._example(text, section.items))
            case SectionKind.PERSONA:
                return Cut(self.persona(name, text))
            case SectionKind.SUMMARY:
                return self.summary(text)
            case SectionKind.CARD:
                return self.card(text)
            case SectionKind.PLAYER:
                return self.player_turn(text, name)
            case SectionKind.NPC:
                return Cut(self.npc_turn(text))
            case SectionKind.PARTNER:
                return Cut(self._partner(name))
            case SectionKind.DIGEST:
                return Cut(self._digest(text))
            case SectionKind.SIGHT:
                return Cut(self._sight(text, section.items)[0])
            case SectionKind.CHOSEN:
                return Cut(self._chosen(section.items))
            case SectionKind.DO:
                return Cut(self.marks["do"])
            case SectionKind.SHOUT:
                return Cut(self.marks["say"])
            case SectionKind.ANSWER:
                return Cut(self.marks["npc"])
            case SectionKind.SUM_UP if self.native:
                return Cut(self.marks["summary"])
            case SectionKind.SUM_UP:
                return Cut(self._heard(summary_asked(text), SUMMARY_ASKED_MAX).tokens + self.marks["npc"])

    # -- trunk -------------------------------------------------------------------------------------------------

    def world(self, lore: str, actions: Sequence[ActionWord], emotions: Sequence[str]) -> tuple[int, ...]:
        """The beginning that all NPCs of a world share: lore, and the words they may act and feel with."""
        return self.lines(world_sections(lore, actions, emotions))

    def archetype(self, archetype_id: str, description: str) -> tuple[int, ...]:
        """The second half of the shared prefix."""
        text = f"{archetype_id}. {description}"
        return self.marks["archetype"] + self._capped(f"archetypes[{archetype_id}].description", text, "archetype")

    def persona(self, name: str, text: str) -> tuple[int, ...]:
        """The NPC's identity, and how it speaks; the intent trunk ends here."""
        told = self._capped(f"personas[{name}].text", f"{name}. {text}", "persona")
        return self.marks["persona"] + told + self._manner(name) + self.ends.opens

    def summary(self, text: str) -> Cut:
        """The summary of earlier sessions; frozen within a session."""
        return self._cut("summary", text, self.caps.summary, self.ends.memory)

    def card(self, text: str) -> Cut:
        """A card in full, or one line of change to it."""
        return self._cut("card", text, self.caps.card, self.ends.memory)

    def player_turn(self, text: str, player_name: str = "") -> Cut:
        """A player's line, closed. `text` is data: it is encoded without control tokens and on one line. For a chat
        model the line is all that is said: after a name it would write names too, so its tail tells the name once.
        """
        named = f"{player_name}: {text}" if player_name and self.kind != "chat" else text
        return self._heard(named, self.caps.player_line)

    def npc_turn(self, text: str) -> tuple[int, ...]:
        """An NPC's finished line, closed."""
        return self.ends.reply + self.spoken(text)[: self.caps.reply] + self.ends.said

    def spoken(self, text: str) -> tuple[int, ...]:
        """Speech as the model writes it, after `npc` or `say`: one line, not closed."""
        return tuple(self._encode(self._lead + _line(text)))

    # -- tail --------------------------------------------------------------------------------------------------

    def perceive(self, seen: Observation) -> Perception:
        """An observation in few tokens: the situation, then the most notable percepts while they fit the tail."""
        percepts = notable(seen.percepts, min(self.caps.percepts, TARGETS_MAX))
        situation, items = situation_words(seen), [percept_words(percept) for percept in percepts]
        tokens, kept = self._sight(situation, items)
        section = Section(SectionKind.SIGHT, situation, "", tuple(items[:kept]))
        return Perception(tokens, tuple(percepts[:kept]), section)

    def intent_tail(self, perception: Perception, digest: str = "") -> Tail:
        """The tail that asks for an intent. `digest` is one line about the player, or empty; it gives way when both do
        not fit.
        """
        asked, sections = perception.tokens + self.marks["do"], (perception.section, DO)
        told = self._digest(digest) if digest else ()
        if told and len(told) + len(asked) <= self.caps.intent_tail:
            return Tail(told + asked, (Section(SectionKind.DIGEST, digest), *sections), self)
        return Tail(asked, sections, self)

    def bark_tail(self, asked: Tail, chosen: tuple[str, ...]) -> Tail:
        """The tail that asks for a bark, after the action, target ("#1", "nobody") and emotion that were chosen."""
        sections = (*asked.sections, Section(SectionKind.CHOSEN, items=chosen), SHOUT)
        return Tail(self.tail(asked) + self._chosen(chosen) + self.marks["say"], sections, self)

    def talk_tail(
        self, line: Section, perception: Perception | None = None, digest: str = "", standing: Collection[Section] = ()
    ) -> Tail:
        """The tail that asks for a reply: a chat model's name of the player, digest, perception, the line. Perception
        gives way first when not all fit, and then name and digest. Where the situation stays, a section that is
        `standing` there is not told again.
        """
        about: tuple[Section, ...] = (Section(SectionKind.DIGEST, digest),) if digest else ()
        if self.kind == "chat" and line.name:
            about = (Section(SectionKind.PARTNER, name=line.name), *about)
        if self.situation_stays:
            if perception is not None and perception.section in standing:
                perception = None
            about = tuple(section for section in about if section not in standing)
        asked, sections = self.render(line).tokens + self.marks["npc"], (line, ANSWER)
        told = self.encode(about)
        if perception is not None:
            sight = perception.tokens + self.ends.sight
            if len(told) + len(sight) + len(asked) <= self.caps.talk_tail:
                return Tail(told + sight + asked, (*about, perception.section, *sections), self)
        if told and len(told) + len(asked) <= self.caps.talk_tail:
            return Tail(told + asked, (*about, *sections), self)
        return Tail(asked, sections, self)

    def stays(self, tail: Tail) -> tuple[Section, ...]:
        """The sections of a talk_tail that the finished turn keeps, before the reply."""
        if self.situation_stays:
            return tail.sections[:-1]
        return tuple(section for section in tail.sections if section.kind is SectionKind.PLAYER)

    def keep_drawn(self, line: Section, drawn: Sequence[int], rest: str = "") -> None:
        """Has an NPC's finished line stand in the trunk as the tokens that were drawn for it, after `ANSWER`, and then
        `rest`: the drawn ones are computed already. So it is while somebody holds the section.
        """
        spoken = (*drawn, *(self._encode(rest) if rest else ()))
        line.renders[self] = Cut(self.marks["npc"] + spoken[: self.caps.reply] + self.ends.said)

    def summary_tail(self, language: str = "") -> Tail:
        """The tail that asks for a summary of the conversation, for what the NPC will remember of it. `language` is the
        one to write in, by its English name; empty: the model decides.
        """
        asked = Section(SectionKind.SUM_UP, language) if language else SUM_UP
        return Tail(self.encode((asked,)), (asked,), self)

    # -- choice ------------------------------------------------------------------------------------------------

    def word(self, text: str) -> tuple[int, ...]:
        """An action or emotion word as the model writes it in an answer, with its leading space."""
        return self._short(f" {text}")

    def graph(self, choice: Choice) -> Node:
        """A choice in this model's tokens. Raises CallerError when they cannot tell two options apart."""
        return choices.graph(choice, self, self._spell, self._closed)

    def intents(self, actions: Sequence[ActionWord], emotions: Sequence[str]) -> list[Node]:
        """The allowed answers in this model's tokens, by how many percepts can be named (prompts/choices.py)."""
        return at_once(self.graphs_in_steps(choices.intents(actions, emotions, self.caps.percepts)))

    def graphs_in_steps(self, allowed: Sequence[Choice]) -> Steps[list[Node]]:
        """graph() of each, in steps."""
        made = []
        for choice in allowed:
            yield
            made.append(self.graph(choice))
        return made

    # -- pieces ------------------------------------------------------------------------------------------------

    def _sight(self, situation: str, items: Sequence[str]) -> tuple[tuple[int, ...], int]:
        """Tokens of a situation and of as many percepts as fit, and how many did."""
        room = self.caps.intent_tail - len(self.marks["do"])
        tokens = (self.marks["see"] + self._short(situation))[:room]
        for number, words in enumerate(items, 1):
            more = self.marks[f"p{number}"] + self._short(words)
            if len(tokens) + len(more) > room:
                return tokens, number - 1
            tokens += more
        return tokens, len(items)

    def _example(self, situation: str, items: Sequence[str]) -> tuple[int, ...]:
        """A worked example, in the tokens of a tail and its answer. A model made for npcd needs none."""
        if self.native:
            return ()
        percepts, chosen = items[:-3], items[-3:]
        tokens = self.ends.seen + self._short(situation)
        for number, words in enumerate(percepts, 1):
            tokens += self.marks[f"p{number}"] + self._short(words)
        return tokens + self.ends.done + self._chosen(chosen)

    def _language(self, language: str) -> tuple[int, ...]:
        return () if self.native else tuple(self._encode(CHAT_LANGUAGE.format(language=language)))

    def _manner(self, name: str) -> tuple[int, ...]:
        """How a chat model is to speak for an NPC."""
        return tuple(self._encode(CHAT_SPEECH.format(name=name))) if self.kind == "chat" else ()

    def _partner(self, name: str) -> tuple[int, ...]:
        """The player's name, as data. Other models read it before each line (player_turn)."""
        if self.kind != "chat":
            return ()
        return tuple(self._encode(self._line_lead + _line(CHAT_PARTNER.format(name=name)))) + self.ends.memory

    def _digest(self, text: str) -> tuple[int, ...]:
        return self.marks["digest"] + self._short(f" {_line(text)}") + self.ends.memory

    def _chosen(self, chosen: Sequence[str]) -> tuple[int, ...]:
        action, target, emotion = chosen
        number = "0" if target == choices.NOBODY else target.removeprefix("#")
        return self.word(action) + self.marks[f"p{number}"] + self.word(emotion)

    def _spell(self, stage: str, option: Option) -> tuple[int, ...]:
        return self.marks[f"p{option.number}"] if stage == "targets" else self.word(option.text)

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

    def _heard(self, text: str, cap: int) -> Cut:
        return self._cut("player", text, cap, self.ends.heard, self._line_lead)

    def _cut(self, mark: str, text: str, cap: int, end: tuple[int, ...], lead: str = " ") -> Cut:
        tokens = tuple(self._encode(lead + _line(text)))
        return Cut(self.marks[mark] + tokens[:cap] + end, max(0, len(tokens) - cap))

    @property
    def _answer_end(self) -> int:
        """A token that no word begins with; -1 when there is none."""
        said = self.ends.said
        return next((t for t in said if t in self.stop_ids), said[0] if said else -1)


def world_sections(lore: str, actions: Sequence[ActionWord], emotions: Sequence[str]) -> tuple[Section, Section]:
    """The sections that all scripts of a world begin with."""
    return Section(SectionKind.WORLD, lore), Section(SectionKind.WORDS, choices.words_of(actions, emotions))


def _line(text: str) -> str:
    return " ".join(text.split())
