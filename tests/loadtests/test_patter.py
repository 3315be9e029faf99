"""Players' lines are drawn from a seed, begin with a greeting, end with a goodbye, and do not repeat."""

from __future__ import annotations

from random import Random

from loadtests.patter import Patter
from loadtests.scene import load_scene

SCRIPT = load_scene().player


def conversation(patter: Patter) -> list[tuple[str, str]]:
    patter.begin()
    said = []
    while not patter.over:
        said.append(patter.next())
    return said


def test_a_conversation_has_a_greeting_and_a_goodbye() -> None:
    patter = Patter(SCRIPT, Random(1))
    assert patter.over
    for _ in range(50):
        said = conversation(patter)
        assert len(said) == SCRIPT.lines_per_talk
        assert said[0][0] in SCRIPT.lines["greet"] and said[0][1] == "spoken_to"
        assert said[-1][0] in SCRIPT.lines["bye"] and said[-1][1] == "player_left"
        assert len({line for line, _ in said}) == len(said)


def test_the_same_seed_says_the_same() -> None:
    first, second, other = (Patter(SCRIPT, Random(seed)) for seed in (3, 3, 4))
    assert [conversation(first) for _ in range(5)] == [conversation(second) for _ in range(5)]
    assert [conversation(first) for _ in range(5)] != [conversation(other) for _ in range(5)]
