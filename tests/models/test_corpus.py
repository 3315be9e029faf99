"""The corpus: the same for the same seed, within the layout's limits, and true to the oracle."""

from itertools import islice
from random import Random

import pytest

from core.observation import Percept
from daemon.prompt import Layout
from models.corpus import speech, words
from models.corpus.dialogue import make_talk
from models.corpus.intents import make_observation, make_sample, scene_of
from models.corpus.oracle import RULES, Decision, Scene, decide
from models.corpus.render import chosen, make_tree, rng_of, trees, trunk
from models.corpus.spin import spin
from models.corpus.worlds import make_npc, make_world


def test_same_seed_same_trees(layout: Layout) -> None:
    """A seed gives the same trees every time, and another seed gives others."""
    first, again, other = (list(islice(trees(layout, seed, "train", 512), 5)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_trees_fit(layout: Layout) -> None:
    """A tree is never longer than asked, its parents come first, and every token has a weight."""
    for number in range(50):
        tree = make_tree(rng_of(3, "test", number), layout, 640)
        assert tree.length <= 640
        for i, piece in enumerate(tree.pieces):
            assert piece.parent < i
            assert len(piece.tokens) == len(piece.weights) > 0


@pytest.mark.parametrize("archetype", words.ARCHETYPES)
def test_every_decision_can_be_walked(layout: Layout, archetype: str) -> None:
    """What the oracle decides is a path through the choice that the daemon offers, and ends it."""
    for number in range(60):
        rng = rng_of(4, archetype, number)
        world = make_world(rng)
        choices = layout.intents(world.actions, world.emotions)
        for _ in range(10):
            sample = make_sample(rng, layout, world, archetype)
            node = choices[len(sample.perception.percepts)]
            for token in chosen(layout, sample):
                node, _ = node.step(token)
            assert node.complete


@pytest.mark.parametrize("archetype", words.ARCHETYPES)
def test_sections_keep_their_caps(layout: Layout, archetype: str) -> None:
    """Definitions are within the layout's caps, tails and barks too, and nothing said is cut."""
    for number in range(60):
        rng = rng_of(5, archetype, number)
        world, npc = make_world(rng), make_npc(rng, archetype)
        assert len(trunk(layout, world, npc)) <= 320
        sample = make_sample(rng, layout, world, archetype)
        assert len(layout.intent_tail(sample.perception)) <= layout.caps.intent_tail
        assert len(layout.spoken(sample.bark)) < layout.caps.bark or not sample.bark
        for turn in make_talk(rng, layout, world, npc, 4).turns:
            assert layout.player_turn(turn.line).lost == 0
            assert len(layout.spoken(turn.reply)) <= 48
            assert "<" not in turn.line + turn.reply and "{" not in turn.line + turn.reply


@pytest.mark.parametrize("archetype", words.ARCHETYPES)
def test_every_rule_is_met(layout: Layout, archetype: str) -> None:
    """The situations that are drawn reach every rule of the oracle."""
    met = set()
    rng = Random(6)
    for _ in range(6000):
        seen = make_observation(rng)
        scene = scene_of(seen, layout.perceive(seen))
        met.add(next(i for i, (matches, _, _) in enumerate(RULES[archetype]) if matches(scene)))
    assert met == set(range(len(RULES[archetype])))


def test_decide_by_example() -> None:
    """A few decisions as a person would read them."""
    everything = (words.ACTIONS, words.EMOTIONS)
    guest = Percept("p", "player", "neutral", 1.0)
    foe = Percept("w", "wolf", "hostile", 1.0)
    assert decide("vampire", Scene("night", "crypt", "", (), (guest,)), *everything) == Decision("feed", 1, "hungry")
    assert decide("villager", Scene("day", "mill", "", (), ()), *everything) == Decision("work", 0, "calm")
    assert decide("villager", Scene("day", "mill", "", ("spoken_to",), (guest,)), *everything) == Decision(
        "talk", 1, "curious"
    )
    assert decide("zombie", Scene("day", "mill", "dying", (), (foe,)), *everything) == Decision("attack", 1, "angry")
    assert decide("werewolf", Scene("day", "mill", "dying", (), (foe,)), *everything) == Decision("flee", 1, "afraid")


def test_decide_with_few_words() -> None:
    """A world that offers little still gets an answer in its own words."""
    offered = (words.ACTION["idle"], words.ACTION["attack"])
    assert decide("villager", Scene("day", "mill", "", (), ()), offered, ("angry",)) == Decision("idle", 0, "angry")


@pytest.mark.parametrize("archetype", words.ARCHETYPES)
def test_voices_are_whole(archetype: str) -> None:
    """Every archetype has words for every topic, and a bark for every action that speaks."""
    assert speech.REPLIES[archetype].keys() == speech.REPLIES["villager"].keys()
    assert speech.BARKS[archetype].keys() == {a.word for a in words.ACTIONS if a.speaks}


def test_spin() -> None:
    """Choices and slots are filled, articles fit, sentences begin with a capital letter."""
    assert spin(Random(1), "{a|a} <thing>. {{see|see}|see} it", {"thing": "owl"}) == "An owl. See it"
