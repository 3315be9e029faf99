"""Observations and the acts that follow: situations drawn so that every rule of the oracle is met, and barks."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from core.observation import Observation, Percept
from models.corpus import speech, words
from models.corpus.oracle import Decision, Scene, decide
from models.corpus.spin import pick
from models.corpus.worlds import World
from prompts.layout import Layout, Perception
from prompts.sight import health_word

# Distances in metres that fall well inside close, near, away and far.
_DISTANCES_M = ((0.3, 1.9), (2.1, 7.9), (8.1, 19.9), (20.1, 60.0))


@dataclass(frozen=True, slots=True)
class Sample:
    """One asked intent: the situation, its perceived part, the act, and the bark ("" for none)."""

    seen: Observation
    perception: Perception
    decision: Decision
    bark: str


def make_percept(rng: Random, number: int) -> Percept:
    """One percept; people are met most often."""
    group = rng.choices((words.PEOPLE, words.MONSTERS, words.ANIMALS, words.THINGS), (45, 20, 8, 27))[0]
    kind = rng.choice(group)
    if kind in words.THINGS:
        stance = ""
    elif kind in words.ANIMALS:
        stance = rng.choice(("neutral", "", "neutral", "hostile"))
    else:
        stance = rng.choices(("hostile", "friendly", "neutral", ""), (26, 30, 30, 14))[0]
    low, high = rng.choices(_DISTANCES_M, (30, 35, 20, 15))[0]
    return Percept(f"e{number}", kind, stance, rng.uniform(low, high), rng.random() < 0.88)


def make_observation(rng: Random) -> Observation:
    """A situation: none to five percepts, none to two events, at any time, in any place and health; gaps are common."""
    percepts = tuple(make_percept(rng, i) for i in range(rng.choices(range(6), (14, 27, 24, 17, 11, 7))[0]))
    events = tuple(rng.sample(words.EVENTS, rng.choices(range(3), (45, 42, 13))[0]))
    return Observation(
        tick=1,
        percepts=percepts,
        events=events,
        time_of_day=rng.choice(words.TIMES) if rng.random() < 0.96 else "",
        place=rng.choice(words.PLACES) if rng.random() < 0.9 else "",
        health=rng.choices((1.0, 0.5, 0.1), (72, 16, 12))[0],
    )


def scene_of(seen: Observation, perception: Perception) -> Scene:
    """The part of `seen` that the tokens of `perception` show."""
    return Scene(seen.time_of_day, seen.place, health_word(seen.health), seen.events[:2], perception.percepts)


def make_sample(rng: Random, layout: Layout, world: World, archetype: str) -> Sample:
    """An observation, the oracle's decision in this world's words, and a bark when the action speaks."""
    seen = make_observation(rng)
    perception = layout.perceive(seen)
    decision = decide(archetype, scene_of(seen, perception), world.actions, world.emotions)
    bark = ""
    if words.ACTION[decision.action].speaks:
        bark = make_bark(rng, layout, archetype, decision, perception)
    return Sample(seen, perception, decision, bark)


def make_bark(rng: Random, layout: Layout, archetype: str, decision: Decision, perception: Perception) -> str:
    """A short shout that fits the bark's token limit, its end included."""
    kind = perception.percepts[decision.target - 1].kind if decision.target else ""
    slots = {"kind": kind} if kind and " " not in kind else {}
    for _ in range(8):
        bark = pick(rng, speech.BARKS[archetype][decision.action], slots)
        if len(layout.spoken(bark)) < layout.caps.bark:
            return bark
    return "No!" if decision.action == "attack" else "You."
