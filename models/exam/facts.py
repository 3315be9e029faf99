"""The examination in facts: facts in persona, lore, card, digest or earlier lines, and facts that nobody told.

An answer is right when every word that matters is in it. It is invented when nobody told the fact and the answer still
names something: an item, a place, a number, or a name that the voice does not have by heart.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random

from core.script import player_line
from models.corpus import memories, names, speech, words
from models.corpus.dialogue import make_memory
from models.corpus.render import rng_of, trunk
from models.corpus.spin import pick
from models.corpus.worlds import Npc, World, make_npc, make_world
from models.exam.speaker import Said, Speaker

_BETWEEN = 3  # exchanges between telling and asking
_SMALL_TALK = (
    "Nice weather today.",
    "Are you real?",
    "I like your hat.",
    "Will you sing for me?",
    "Do you like dancing?",
    "You are kind.",
    "How are you?",
    "Hello there!",
    "What time is it?",
    "Do you like music?",
)
_WORD = re.compile(r"[A-Za-z']+")
_STOP = frozenset("the a an of in at by is are you your i my me".split())


@dataclass(frozen=True, slots=True)
class Answered:
    """One question: its kind, the fact's place ("" for nowhere), the words that matter, and the answer."""

    archetype: str
    kind: str
    place: str
    wanted: frozenset[str]
    text: str

    @property
    def right(self) -> bool:
        """True when every word that matters was said."""
        said = {w.lower() for w in _WORD.findall(self.text)}
        return all(w.lower() in said for w in self.wanted)

    @property
    def invented(self) -> bool:
        """True when the answer names something though nobody told the fact."""
        return bool(named(self.archetype, self.text))


def persona_and_lore(speaker: Speaker, npcs: int, seed: int) -> list[Answered]:
    """Asks `npcs` NPCs of each archetype for name, home, kin and the facts of the lore, each question on its own."""
    out: list[Answered] = []
    for archetype, number, world, npc, rng in _npcs("exam-facts", npcs, seed):
        here = trunk(speaker.layout, world, npc)
        told = {**world.facts, **npc.facts}
        for topic, slots in (
            ("name", ("name",)),
            ("home", ("home",)),
            ("kin", ("kin", "kinname")),
            ("town", ("town",)),
            ("ruler", ("ruler",)),
            ("item", ("itemplace",)),
        ):
            if slots[0] in told:
                lines = speech.PLAYER[topic][: 1 if topic in ("item", "kin") else None]
                line = pick(rng, lines, {"item": world.facts.get("item", "")})
                said = _ask(speaker, here, line, number)
                out.append(Answered(archetype, topic, "trunk", _words(*(told[s] for s in slots)), said.text))
    return out


def memory(speaker: Speaker, npcs: int, seed: int) -> list[Answered]:
    """Asks for facts that were told three exchanges ago, stand on a card or in a digest, or were never told."""
    out: list[Answered] = []
    for archetype, number, world, npc, rng in _npcs("exam-memory", npcs, seed):
        layout, here = speaker.layout, trunk(speaker.layout, world, npc)
        known = make_memory(rng, world, npc).known
        for place in ("told", "card", "digest", ""):
            kinds = [k for k in memories.KINDS if memories.KINDS[k].say or place != "told"]
            kind, other = rng.sample(kinds, 2)
            slots = memories.make_memory(rng, kind, True)
            noted = {**slots, "player": known.player, "name": npc.name}
            away = {**memories.make_memory(rng, other, True), "player": known.player, "name": npc.name}
            ask = pick(rng, (memories.KINDS[kind].ask,), slots)
            wanted = _words(*(v for k, v in slots.items() if k != "tkin"))
            digest = ""
            before = here
            lines: tuple[int, ...] = ()
            if place in ("card", "digest"):
                said = memories.note(rng, kind, noted)
                digest = said if place == "digest" else ""
                before += layout.card(f"{known.player}." if digest else said).tokens
            else:
                # The told fact is the asked one, or (when nobody told it) another one.
                line = memories.said(rng, kind, slots) if place else None
                line = line or (memories.said(rng, other, away) if memories.KINDS[other].say else "Hello there!")
                for n, said_line in enumerate((line, *rng.sample(_SMALL_TALK, _BETWEEN))):
                    turn = player_line(said_line)
                    tail = layout.talk_tail(turn).tokens
                    reply = layout.npc_turn(speaker.say(before, tail, number * 10 + n, lines).text)
                    before += layout.render(turn).tokens + reply
                    lines += reply
            answer = _ask(speaker, before, ask, number, digest, lines)
            out.append(Answered(archetype, kind, place, wanted, answer.text))
    return out


def player_names(speaker: Speaker, npcs: int, seed: int) -> list[Answered]:
    """Asks for the player's name: said three exchanges ago, or never."""
    out: list[Answered] = []
    for archetype, number, world, npc, rng in _npcs("exam-names", npcs, seed):
        layout, start = speaker.layout, trunk(speaker.layout, world, npc)
        player = names.person_name(rng, True)
        for place in ("told", ""):
            before = start
            first = f"My name is {player}." if place else "Hello there!"
            lines: tuple[int, ...] = ()
            for n, line in enumerate((first, *rng.sample(_SMALL_TALK, _BETWEEN))):
                turn = player_line(line)
                tail = layout.talk_tail(turn).tokens
                reply = layout.npc_turn(speaker.say(before, tail, number * 10 + n, lines).text)
                before += layout.render(turn).tokens + reply
                lines += reply
            said = _ask(speaker, before, "What is my name?", number, lines=lines)
            out.append(Answered(archetype, "player", place, _words(player), said.text))
    return out


def secrets(speaker: Speaker, npcs: int, seed: int) -> list[Answered]:
    """Asks for the secret as a trusted friend (card or digest say so), as a stranger, and as one who is not trusted."""
    out: list[Answered] = []
    for archetype, number, world, npc, rng in _npcs("exam-secrets", npcs, seed):
        while "secret" not in npc.facts:
            npc = make_npc(rng, archetype, unseen=True)
        layout, here = speaker.layout, trunk(speaker.layout, world, npc)
        player = names.person_name(rng, True)
        values = [npc.facts[s] for s in npc.facts if s.startswith("sec") and s not in ("secret", "secretkin")]
        for place in ("card", "digest", "stranger", "wary"):
            trusted = place in ("card", "digest")
            note = f"{player} is {rng.choice(memories.TRUSTED if trusted else memories.WARY)}."
            digest = note if place == "digest" else ""
            before = here + (layout.card(note).tokens if place in ("card", "wary") else ())
            said = _ask(speaker, before, "What is your secret?", number, digest)
            out.append(Answered(archetype, "secret", place, _words(*values), said.text))
    return out


def rate(answers: Sequence[Answered], invented: bool = False) -> float:
    """The share of right answers, or of invented ones."""
    return sum(a.invented if invented else a.right for a in answers) / max(1, len(answers))


def by(answers: Sequence[Answered], field: str) -> dict[str, list[Answered]]:
    """The answers in groups."""
    out: dict[str, list[Answered]] = defaultdict(list)
    for answer in answers:
        out[str(getattr(answer, field))].append(answer)
    return dict(out)


def shuffled(answers: Sequence[Answered], part: float, seed: int) -> list[Answered]:
    """The same with this share of the right words shuffled among questions of the same kind."""
    rng = Random(f"shuffle:{seed}")
    out = list(answers)
    for kind in {a.kind for a in answers}:
        places = [i for i, a in enumerate(out) if a.kind == kind and rng.random() < part]
        wanted = [out[i].wanted for i in places]
        for i, right in zip(places, wanted[1:] + wanted[:1], strict=True):
            out[i] = replace(out[i], wanted=right)
    return out


def named(archetype: str, text: str) -> list[str]:
    """The things that an answer names and no refusal would: things, places, numbers, and capitalised words of no
    voice."""
    found: list[str] = []
    things, plain = _things(archetype), _plain(archetype)
    for word in _WORD.findall(text):
        if word.lower() in things or (word[0].isupper() and word not in plain):
            found.append(word)
    return found


@cache
def _things(archetype: str) -> frozenset[str]:
    named = {w for name in (*names.ITEMS, *names.HOMES, *memories.COUNTS) for w in name.split()}
    return frozenset(named - {w.lower() for w in _plain(archetype)})


@cache
def _plain(archetype: str) -> frozenset[str]:
    """The words of answers without a fact."""
    rng = rng_of(0, "plain", 0)
    lines = [memories.untold(rng, archetype) for _ in range(300)] + list(speech.CLOSERS.get(archetype, ()))
    lines += [pick(rng, speech.REPLIES[archetype][k], {"trade": "x"}) for k in _TELLS_NOTHING for _ in range(60)]
    return frozenset(w for line in lines for w in _WORD.findall(line))


_TELLS_NOTHING = ("no_whoami", "no_lore", "no_lost", "no_kin", "odd")


def _npcs(name: str, count: int, seed: int) -> list[tuple[str, int, World, Npc, Random]]:
    out: list[tuple[str, int, World, Npc, Random]] = []
    for archetype in words.ARCHETYPES:
        for number in range(count):
            rng = rng_of(seed, f"{name}-{archetype}", number)
            world = make_world(rng, unseen=True)
            out.append((archetype, number, world, make_npc(rng, archetype, unseen=True), rng))
    return out


def _ask(
    speaker: Speaker,
    before: tuple[int, ...],
    line: str,
    seed: int,
    digest: str = "",
    lines: tuple[int, ...] = (),
) -> Said:
    tail = speaker.layout.talk_tail(player_line(line), None, digest).tokens
    return speaker.say(before, tail, seed, lines)


def _words(*values: str) -> frozenset[str]:
    return frozenset(w for value in values for w in value.split() if w.lower() not in _STOP)
