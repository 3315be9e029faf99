"""What the shipped file can do, measured through the file itself: intents on held-out worlds, and replies to read.

python -m models.evaluate [--model models/npcd-demo.gguf] [--intents 1200] [--talks 12] [--seed 1]
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.choice import Node
from core.observation import Observation, Percept
from daemon.prompt import Layout
from models.corpus import words
from models.corpus.dialogue import make_talk
from models.corpus.intents import Sample, make_sample
from models.corpus.render import rng_of, trunk
from models.corpus.worlds import World, make_npc, make_world
from models.play import SHIPPED, Played

TEMPERATURE, TOP_P = 0.7, 0.95
_INTENTS_PER_NPC = 10
_REPLY_MAX = 60
_SCRIPT = (
    "Hello there!",
    "What is your name?",
    "Where do you live?",
    "What do you see?",
    "Tell me about this town.",
    "What are you afraid of?",
    "My name is Wilna.",
    "Do you remember my name?",
    "Can you sing me a song?",
    "Goodbye.",
)


@dataclass(slots=True)
class Score:
    """Counts of right answers; the majority is what the most frequent answer of the same archetype would reach."""

    asked: int = 0
    action: int = 0
    target: int = 0
    emotion: int = 0
    whole: int = 0
    majority_action: int = 0
    majority_whole: int = 0

    def rate(self, count: int) -> str:
        """A count as a part of what was asked."""
        return f"{count / max(1, self.asked):.3f}"


@dataclass(slots=True)
class Speech:
    """Replies on held-out conversations: how many, how many came to their end, how many differ, their tokens."""

    replies: int = 0
    ended: int = 0
    distinct: int = 0
    tokens: int = 0


def intents(model: Played, layout: Layout, count: int, seed: int, split: str = "held") -> dict[str, Score]:
    """Scores by archetype and in "all" on worlds that no training saw; greedy among the allowed words."""
    scores = {name: Score() for name in (*words.ARCHETYPES, "all")}
    told: dict[str, Counter[tuple[str, int, str]]] = defaultdict(Counter)
    for number in range(-(-count // _INTENTS_PER_NPC)):
        archetype = words.ARCHETYPES[number % len(words.ARCHETYPES)]
        rng = rng_of(seed, split, number)
        world = make_world(rng)
        beginning = trunk(layout, world, make_npc(rng, archetype))
        choices = layout.intents(world.actions, world.emotions)
        for _ in range(_INTENTS_PER_NPC):
            sample = make_sample(rng, layout, world, archetype)
            wanted = (sample.decision.action, sample.decision.target, sample.decision.emotion)
            made = _answer(model, layout, beginning, world, choices[len(sample.perception.percepts)], sample)
            told[archetype][wanted] += 1
            for score in (scores[archetype], scores["all"]):
                score.asked += 1
                score.action += made[0] == wanted[0]
                score.target += made[1] == wanted[1]
                score.emotion += made[2] == wanted[2]
                score.whole += made == wanted
    for archetype, wholes in told.items():
        actions: Counter[str] = Counter()
        for (action, _, _), times in wholes.items():
            actions[action] += times
        for score in (scores[archetype], scores["all"]):
            score.majority_action += max(actions.values())
            score.majority_whole += max(wholes.values())
    return scores


def _answer(
    model: Played, layout: Layout, beginning: tuple[int, ...], world: World, choice: Node, sample: Sample
) -> tuple[str, int, str]:
    taken = dict(model.choose(beginning + layout.intent_tail(sample.perception), choice))
    return world.actions[taken["actions"]].word, taken["targets"], world.emotions[taken["emotions"]]


def drawing(seed: int) -> Callable[[NDArray[np.float32]], int]:
    """A picker that draws from the likeliest tokens, the same way for the same seed."""
    rng = np.random.default_rng(seed)

    def pick(scores: NDArray[np.float32]) -> int:
        weights = np.exp((scores - scores.max()).astype(np.float64) / TEMPERATURE)
        weights /= weights.sum()
        order = weights.argsort()[::-1]
        kept = order[: int(np.searchsorted(weights[order].cumsum(), TOP_P)) + 1]
        return int(rng.choice(kept, p=weights[kept] / weights[kept].sum()))

    return pick


def speech(model: Played, layout: Layout, talks: int, seed: int) -> Speech:
    """Sampled replies to the players of held-out conversations, the trunk grown with the model's own replies."""
    result, pick, seen = Speech(), drawing(seed), set[str]()
    for number in range(talks):
        rng = rng_of(seed, "held-talk", number)
        world = make_world(rng)
        npc = make_npc(rng, words.ARCHETYPES[number % len(words.ARCHETYPES)])
        here = trunk(layout, world, npc)
        for turn in make_talk(rng, layout, world, npc, 4).turns:
            line = layout.player_turn(turn.line).tokens
            said, ended = model.speak(here + layout.talk_tail(line, turn.perception), _REPLY_MAX, pick)
            text = model.decode(said).strip()
            here += line + layout.npc_turn(text)
            seen.add(text)
            result.replies += 1
            result.ended += ended
            result.tokens += len(said)
    result.distinct = len(seen)
    return result


def transcript(model: Played, layout: Layout, archetype: str, seed: int) -> list[str]:
    """One conversation from a fixed script with an NPC of a held-out world, as lines."""
    rng, pick = rng_of(seed, "transcript", words.ARCHETYPES.index(archetype)), drawing(seed)
    world = make_world(rng)
    npc = make_npc(rng, archetype)
    sight = Observation(
        tick=1,
        percepts=(Percept("a", "wolf", "hostile", 12.0), Percept("b", "lantern", "", 3.0)),
        time_of_day="night",
        place="road",
    )
    here = trunk(layout, world, npc)
    lines = [f"{npc.name}, {archetype}. {npc.text} | {world.lore}"]
    for asked in _SCRIPT:
        line = layout.player_turn(asked).tokens
        said, ended = model.speak(here + layout.talk_tail(line, layout.perceive(sight)), _REPLY_MAX, pick)
        text = model.decode(said).strip()
        here += line + layout.npc_turn(text)
        lines += [f"  > {asked}", f"    {text}{'' if ended else ' [cut]'}"]
    return lines


def show(model: Played, layout: Layout, count: int, talks: int, seed: int) -> None:
    """Measures and prints everything."""
    heads = f"{'intents':<10} {'asked':>6} {'action':>7} {'target':>7} {'emotion':>8} {'all three':>10}"
    print(f"{heads}   always the most frequent: action, all three")
    for name, s in intents(model, layout, count, seed).items():
        rates = f"{s.rate(s.action):>7} {s.rate(s.target):>7} {s.rate(s.emotion):>8} {s.rate(s.whole):>10}"
        print(f"{name:<10} {s.asked:>6} {rates}   {s.rate(s.majority_action)}, {s.rate(s.majority_whole)}")
    if talks:
        said = speech(model, layout, talks, seed)
        print(
            f"\nreplies: {said.replies}, ended by themselves {said.ended / said.replies:.3f}, "
            f"all different {said.distinct / said.replies:.3f}, {said.tokens / said.replies:.1f} tokens each"
        )
        for archetype in words.ARCHETYPES:
            print("\n" + "\n".join(transcript(model, layout, archetype, seed)))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure a model file on held-out worlds.")
    parser.add_argument("--model", default=str(SHIPPED))
    parser.add_argument("--intents", type=int, default=1200)
    parser.add_argument("--talks", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with Played(asked.model) as model:
        show(model, Layout(model), asked.intents, asked.talks, asked.seed)


if __name__ == "__main__":
    main()
