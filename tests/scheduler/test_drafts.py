"""n-gram drafts: the tokens that followed the same few tokens before."""

import random

import numpy as np
import pytest

from core.words import Tier, TrunkKey
from core.work import Work
from engines.base import Asked, tokens_of, verify
from scheduler.drafts import Ngrams, Text, followed
from tests.scheduler.simulated import npc, words

SCENES = """
1 2 3 4 5 1 2 | 3 | 3 4 5
1 2 3 4 5 1 2 | 9 | 3 4 5 1 2
1 2 3 9 2 7 1 2 | 1 | 3
9 2 3 1 2 4 9 9 1 2 | 1 | 4
9 1 2 3 8 5 1 2 7 8 9 1 2 | 2 | 3 8
1 2 3 4 5 9 2 | 3 |
7 | 3 |
7 7 | 3 |
7 7 7 | 3 | 7
7 7 7 7 7 7 7 7 | 3 | 7 7 7
1 2 1 2 1 2 | 4 | 1 2
1 2 1 2 | 4 | 1 2
"""


@pytest.mark.parametrize("scene", SCENES.strip().splitlines())
def test_the_longest_match_gives_the_guess(scene: str) -> None:
    """The longest match of the last two to four tokens gives the guess. Of equal matches it is the latest with enough
    tokens behind it."""
    text, count, wanted = (part.split() for part in scene.split("|"))
    found = followed(tokens_of([int(t) for t in text]), int(count[0]), 2, 4)
    assert found.tolist() == [int(t) for t in wanted]


def dumb(text: list[int], count: int, match_min: int, match_max: int) -> list[int]:
    """The same by trying every match."""
    last = len(text) - 1
    for alike in range(match_max, match_min - 1, -1):
        ends = [e for e in range(alike - 1, last) if text[e - alike + 1 : e + 1] == text[last - alike + 1 :]]
        if ends and alike <= len(text):
            whole = [e for e in ends if e + count <= last]
            end = whole[-1] if whole else ends[0]
            return text[end + 1 : end + 1 + count]
    return []


def test_it_finds_what_the_dumb_version_finds() -> None:
    """On random texts of few words and for any bounds, the drafts equal those of the simple twin."""
    rng = random.Random(1)
    found = 0
    for _ in range(3000):
        text = [rng.randrange(3) for _ in range(rng.randrange(1, 40))]
        match_min = rng.randrange(1, 4)
        bounds = rng.randrange(1, 6), match_min, rng.randrange(match_min, 6)
        wanted = dumb(text, *bounds)
        assert followed(tokens_of(text), *bounds).tolist() == wanted, f"{text} {bounds}"
        found += bool(wanted)
    assert found > 1000


def test_a_works_text_is_trunk_tail_and_what_was_said() -> None:
    """The text is the same however many tokens arrived at a time."""
    text = Text(Work(Tier.SILVER, TrunkKey(npc(1), ""), words(1, 2), words(3), 5))
    made: list[int] = []
    for more in ([], [4], [5, 6], [7, 8]):
        made += more
        assert text.upto(made).tolist() == [*words(1, 2, 3), *made]


def test_every_work_has_guesses_of_its_own() -> None:
    """Each work's guesses come from its own text."""
    asked = [
        Asked(1, tokens_of([1, 2, 3, 1, 2]), 3),
        Asked(2, tokens_of([4, 5, 6]), 3),
        Asked(3, tokens_of([8, 8, 8]), 1),
    ]
    assert [g.tolist() for g in Ngrams(2, 4).draft(asked, 0.0)] == [[3, 1, 2], [], [8]]


def test_verifying_ends_with_the_first_wrong_guess() -> None:
    """Right guesses count, and one more pick. No pick behind a wrong guess counts."""
    picked = [5, 6, 7, 8]
    asked: list[int] = []

    def pick(right: int) -> int:
        asked.append(right)
        return picked[right]

    assert verify([5, 6, 7], pick) == [5, 6, 7, 8]
    assert verify([5, 9, 7], pick) == [5, 6]
    assert verify(np.asarray([1, 6, 7]), pick) == [5]
    assert asked == [0, 1, 2, 3, 0, 1, 0]
