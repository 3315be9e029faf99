"""How often a draft model predicts the next token right, by tier: intents (gold), replies (silver), summaries
(bronze)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from core.script import player_line
from models.corpus import words
from models.corpus.dialogue import make_talk
from models.corpus.intents import make_sample
from models.corpus.render import rng_of, trunk
from models.corpus.worlds import make_npc, make_world
from models.exam.speaker import Speaker
from models.play import Played


def acceptance(speaker: Speaker, draft: Path, npcs: int, seed: int) -> dict[str, tuple[float, int]]:
    """By tier: the share of the model's own tokens that the draft would have proposed, and their number.

    A proposal is the draft's likeliest token (among the allowed ones in an intent), after the text that the model
    really wrote.
    """
    hits: dict[str, list[bool]] = defaultdict(list)
    layout = speaker.layout
    with Played(str(draft)) as small:
        for number in range(npcs):
            archetype = words.ARCHETYPES[number % len(words.ARCHETYPES)]
            rng = rng_of(seed, "exam-draft", number)
            world = make_world(rng, unseen=True)
            npc = make_npc(rng, archetype, unseen=True)
            here = trunk(layout, world, npc)
            choices = layout.intents(world.actions, world.emotions)
            for _ in range(4):
                sample = make_sample(rng, layout, world, archetype)
                tokens = list(here + layout.intent_tail(sample.perception).tokens)
                node = choices[len(sample.perception.percepts)]
                taken = speaker.choose(tokens, node)
                way = [
                    layout.word(world.actions[taken["actions"]].word),
                    layout.marks[f"p{taken['targets']}"],
                    layout.word(world.emotions[taken["emotions"]]),
                ]
                for token in (t for part in way for t in part):
                    if not node.forced:  # forced tokens need no draft
                        scores = small.logits(tokens)[0]
                        hits["gold"].append(int(node.ids[int(scores[node.ids].argmax())]) == token)
                    node, _ = node.step(token)
                    tokens.append(token)
            for n, turn in enumerate(make_talk(rng, layout, world, npc, 4).turns):
                line = player_line(turn.line)
                tail = layout.talk_tail(line, turn.perception).tokens
                said = speaker.say(here, tail, 100 * number + n)
                hits["silver"] += _proposed(small, here + tail, said.tokens)
                here += layout.render(line).tokens + layout.npc_turn(said.text)
            told = speaker.say(here, layout.marks["summary"], number)
            hits["bronze"] += _proposed(small, here + layout.marks["summary"], told.tokens)
    return {tier: (sum(made) / len(made), len(made)) for tier, made in hits.items()}


def _proposed(small: Played, before: tuple[int, ...], said: Sequence[int]) -> list[bool]:
    """For each generated token: True when the draft would have proposed it."""
    scores = small.logits([*before, *said], every=True)
    first = len(before) - 1
    return [int(scores[first + i].argmax()) == token for i, token in enumerate(said)]
