"""The examination in conversation: voice, variety and length of replies, and ten minutes with one NPC."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from core.observation import Observation, Percept
from core.script import player_line
from models.corpus import words
from models.corpus.dialogue import make_talk, sentences
from models.corpus.render import rng_of, trunk
from models.corpus.worlds import Npc, make_npc, make_world
from models.exam.speaker import Said, Speaker
from models.exam.voice import Voice

LINES_KEPT = 12  # lines of an NPC, for its sampler (memory.hot)
WINDOW_TURNS = 12  # no sentence twice within so many turns
HOT_TURNS, HOT_KEPT = 10, 6  # exchanges: the daemon rebuilds a session's trunk at 20 utterances from the last 12
_GROUP = 5  # replies that show a broken character together


@dataclass(frozen=True, slots=True)
class Spoken:
    """One reply in a held-out conversation."""

    archetype: str
    line: str
    said: Said


@dataclass(frozen=True, slots=True)
class Variety:
    """Counts of replies: their number, the share that ended, tokens each, shares of different replies, words and pairs
    of words, and of sentences that the same conversation had before."""

    replies: int
    ended: float
    tokens: float
    different: float
    distinct_1: float
    distinct_2: float
    repeated: float


@dataclass(frozen=True, slots=True)
class Long:
    """A long conversation: lines and replies, sentences said twice within the window, groups in another voice."""

    npc: Npc
    turns: tuple[tuple[str, str], ...]
    repeated: tuple[str, ...]
    broken: tuple[str, ...]
    unended: int


def converse(speaker: Speaker, talks: int, turns: int, seed: int) -> list[list[Spoken]]:
    """`talks` conversations per archetype with held-out players; the trunk grows with the model's own replies."""
    out: list[list[Spoken]] = []
    layout = speaker.layout
    for archetype in words.ARCHETYPES:
        for number in range(talks):
            rng = rng_of(seed, f"exam-talk-{archetype}", number)
            world = make_world(rng, unseen=True)
            npc = make_npc(rng, archetype, unseen=True)
            talk = make_talk(rng, layout, world, npc, turns)
            here = trunk(layout, world, npc)
            for mark, text in (("summary", talk.memory.summary), ("card", talk.memory.card)):
                if text:
                    here += (layout.summary if mark == "summary" else layout.card)(text).tokens
            made: list[Spoken] = []
            lines: list[tuple[int, ...]] = []
            for n, turn in enumerate(talk.turns):
                line = player_line(turn.line, talk.named)
                tail = layout.talk_tail(line, turn.perception, talk.memory.digest).tokens
                said = speaker.say(here, tail, 1000 * number + n, sum(lines[-LINES_KEPT:], ()))
                lines.append(layout.npc_turn(said.text))
                here += layout.render(line).tokens + lines[-1]
                made.append(Spoken(archetype, turn.line, said))
            out.append(made)
    return out


def variety(talks: Sequence[Sequence[Spoken]]) -> Variety:
    """The variety of the replies."""
    every = [one.said for talk in talks for one in talk]
    split = [s.text.lower().split() for s in every]
    single = [w for one in split for w in one]
    pairs = [p for one in split for p in pairwise(one)]
    again = total = 0
    for talk in talks:
        before: Counter[str] = Counter()
        for one in talk:
            now = sentences(one.said.text)
            total += len(now)
            again += sum(before[s] > 0 for s in now)
            before.update(now)
    return Variety(
        len(every),
        sum(s.ended for s in every) / len(every),
        sum(len(s.tokens) for s in every) / len(every),
        len({s.text for s in every}) / len(every),
        len(set(single)) / len(single),
        len(set(pairs)) / max(1, len(pairs)),
        again / max(1, total),
    )


def recognised(voice: Voice, talks: Sequence[Sequence[Spoken]]) -> dict[str, float]:
    """The share of replies whose archetype the classifier names, by archetype."""
    out: dict[str, float] = {}
    for archetype in words.ARCHETYPES:
        lines = [one.said.text for talk in talks for one in talk if one.archetype == archetype]
        out[archetype] = sum(voice.of(line) == archetype for line in lines) / max(1, len(lines))
    return out


def long_talk(speaker: Speaker, voice: Voice, archetype: str, seed: int) -> Long:
    """SCRIPT with one NPC, as the daemon keeps it: the oldest turns leave at the hot window's end.

    World and persona are drawn until they have enough facts: a ruler, a past, goods, kin, fears, a secret.
    """
    layout = speaker.layout
    rng = rng_of(seed, f"exam-long-{archetype}", 0)
    world, npc = make_world(rng, unseen=True), make_npc(rng, archetype, unseen=True)
    while not {"ruler", "event", "goods", "danger"} <= world.facts.keys():
        world = make_world(rng, unseen=True)
    while not {"kin", "fear", "secret"} <= npc.facts.keys():
        npc = make_npc(rng, archetype, unseen=True)
    around = Observation(
        tick=1,
        percepts=(Percept("p", "player", "friendly", 1.5), Percept("d", "door", "", 5.0)),
        time_of_day="night",
        place="castle",
    )
    seen = layout.perceive(around)
    start = trunk(layout, world, npc)
    kept: list[tuple[int, ...]] = []
    lines: list[tuple[int, ...]] = []
    turns: list[tuple[str, str]] = []
    unended = 0
    for n, line in enumerate(SCRIPT):
        if len(kept) >= HOT_TURNS:
            kept = kept[-HOT_KEPT:]
        asked = player_line(line)
        tail = layout.talk_tail(asked, seen).tokens
        said = speaker.say(sum(kept, start), tail, seed * 1000 + n, sum(lines[-LINES_KEPT:], ()))
        lines.append(layout.npc_turn(said.text))
        kept.append(layout.render(asked).tokens + lines[-1])
        turns.append((line, said.text))
        unended += not said.ended
    replies = [reply for _, reply in turns]
    groups = [" ".join(replies[i : i + _GROUP]) for i in range(len(replies) - _GROUP + 1)]
    broken = tuple(g for g in groups if voice.of(g) != archetype)
    return Long(npc, tuple(turns), repeats(replies), broken, unended)


def repeats(replies: Sequence[str], window: int = WINDOW_TURNS) -> tuple[str, ...]:
    """The sentences that were said before within `window` turns, or twice in one reply."""
    out: list[str] = []
    for i, reply in enumerate(replies):
        before = [s for earlier in replies[max(0, i - window + 1) : i] for s in sentences(earlier)]
        for sentence in sentences(reply):
            if sentence in before:
                out.append(sentence)
            before.append(sentence)
    return tuple(out)


SCRIPT = tuple(
    line.strip()
    for line in """
Good evening. / What is your name? / Where do you live? / What do you do all day? / My name is Corvessa. / I
lost my green lantern at the old ferry. / Do you have family? / What do you fear? / Nice weather tonight. / Do
you remember what I lost? / Who rules this town? / What is this town called? / Are you real? / I like your hat.
/ What do you love? / Is it dangerous here? / Do you remember my name? / Tell me an old tale. / Can you dance? /
I come from Hartmoor. / What do they sell here? / I want to trade. / What would you give me for this? / What is
your secret? / Do you trust me? / Where am I from? / You look well. / Do you like music? / How are you? / Are
you alone here? / I owe you seven coins. / Have you lost anything? / Can you help me? / Will you sing for me? /
How much do I owe you? / Tell me about your work. / What makes you happy? / You are a fool. / I am sorry. / Do
you know about dragons? / I seek the copper mask. / Where is your home? / What time is it? / Have we met? / What
am I looking for? / Who is the lord here? / Are there monsters? / I will kill you! / Forgive me. / What happened
here long ago? / Do you sleep? / What do you think of the stars? / Thank you, friend. / Why? / What should I
call you? / Do you have a secret? / You are wise. / I must go soon. / Will you remember me? / Goodbye.
""".replace("\n", " ").split(" / ")
)
