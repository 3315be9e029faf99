"""A fact that a player tells about themself, the question for it, and the check of an answer: the shipped model's kinds
of memories (models/corpus/memories.py), with names that its training never met.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from models.corpus import memories
from models.corpus.names import person_name
from models.corpus.spin import pick

_WORD = re.compile(r"[A-Za-z']+")
_STOP = frozenset("the a an of in at by is are you your i my me".split())


@dataclass(frozen=True, slots=True)
class Told:
    """A line that tells a fact, the question for it, and the words of a right answer."""

    player_name: str
    line: str
    question: str
    wanted: frozenset[str]

    def quoted_in(self, answer: str) -> bool:
        """True when every word that matters was said, as the examination of the model judges it."""
        said = {word.lower() for word in _WORD.findall(answer)}
        return all(word.lower() in said for word in self.wanted)


def told(chance: Random) -> Told:
    """A new fact of a player with a new name."""
    kind = chance.choice(memories.SAID)
    slots = memories.make_memory(chance, kind, True)
    values = " ".join(value for slot, value in slots.items() if slot != "tkin")
    return Told(
        person_name(chance, True),
        memories.said(chance, kind, slots),
        pick(chance, (memories.KINDS[kind].ask,), slots),
        frozenset(word for word in values.split() if word.lower() not in _STOP),
    )
