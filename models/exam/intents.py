"""The examination in intents: held-out worlds, the oracle's decisions, and the model's choices among the allowed
ones."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from models.corpus import words
from models.corpus.intents import make_sample
from models.corpus.render import rng_of, trunk
from models.corpus.worlds import make_npc, make_world
from models.exam.speaker import Speaker

_INTENTS_PER_NPC = 10
Choice = tuple[str, int, str]  # action, target, emotion


@dataclass(frozen=True, slots=True)
class Asked:
    """One situation: the right choice, and the model's."""

    archetype: str
    wanted: Choice
    made: Choice


@dataclass(frozen=True, slots=True)
class Score:
    """Shares of the questions: right choices by piece and whole, and those of always choosing the most frequent one.

    `same_action` is the share of the most chosen action: near 1, the model ignores the situation.
    """

    asked: int
    action: float
    target: float
    emotion: float
    whole: float
    majority_action: float
    majority_whole: float
    same_action: float


def ask(speaker: Speaker, count: int, seed: int) -> list[Asked]:
    """`count` situations on worlds of held-out names, items and word orders; greedy among the allowed."""
    layout = speaker.layout
    out: list[Asked] = []
    for number in range(-(-count // _INTENTS_PER_NPC)):
        archetype = words.ARCHETYPES[number % len(words.ARCHETYPES)]
        rng = rng_of(seed, "exam-intents", number)
        world = make_world(rng, unseen=True)
        beginning = trunk(layout, world, make_npc(rng, archetype, unseen=True))
        choices = layout.intents(world.actions, world.emotions)
        for _ in range(_INTENTS_PER_NPC):
            sample = make_sample(rng, layout, world, archetype)
            right = sample.decision
            taken = speaker.choose(
                beginning + layout.intent_tail(sample.perception).tokens, choices[len(sample.perception.percepts)]
            )
            made = (world.actions[taken["actions"]].word, taken["targets"], world.emotions[taken["emotions"]])
            out.append(Asked(archetype, (right.action, right.target, right.emotion), made))
    return out


def scores(asked: Sequence[Asked]) -> dict[str, Score]:
    """By archetype, and "all"."""
    groups: dict[str, list[Asked]] = defaultdict(list)
    for one in asked:
        groups[one.archetype].append(one)
    return {name: _score([group]) for name, group in groups.items()} | {"all": _score(list(groups.values()))}


def _score(groups: Sequence[Sequence[Asked]]) -> Score:
    """The most frequent answer is taken per group, so the baseline may know the archetype."""
    every = [one for group in groups for one in group]

    def part(hits: float) -> float:
        return hits / max(1, len(every))

    return Score(
        len(every),
        part(sum(o.made[0] == o.wanted[0] for o in every)),
        part(sum(o.made[1] == o.wanted[1] for o in every)),
        part(sum(o.made[2] == o.wanted[2] for o in every)),
        part(sum(o.made == o.wanted for o in every)),
        part(sum(max(Counter(o.wanted[0] for o in group).values()) for group in groups)),
        part(sum(max(Counter(o.wanted for o in group).values()) for group in groups)),
        part(max(Counter(o.made[0] for o in every).values())),
    )


def shuffled(asked: Sequence[Asked], part: float, seed: int) -> list[Asked]:
    """The same with this share of the right answers shuffled within an archetype."""
    rng = Random(f"shuffle:{seed}")
    out = list(asked)
    for archetype in words.ARCHETYPES:
        places = [i for i, one in enumerate(out) if one.archetype == archetype and rng.random() < part]
        wanted = [out[i].wanted for i in places]
        rng.shuffle(wanted)
        for i, right in zip(places, wanted, strict=True):
            out[i] = replace(out[i], wanted=right)
    return out
