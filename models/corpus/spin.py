"""Text with alternatives: "{Good|Fair} evening, <name>." becomes one of its readings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random

_CHOICE = re.compile(r"\{([^{}]*)\}")
_SLOT = re.compile(r"<([a-z]+)>")
_KEPT = "\x01"
KEEP_LETTERS = frozenset(
    "item itemplace home lost lostplace titem tplace sitem pitem qitem rplace secretitem secretplace secondplace".split()
)


def slots_of(text: str) -> frozenset[str]:
    """The slot names that `text` may need."""
    return frozenset(_SLOT.findall(text))


def spin(rng: Random, text: str, slots: Mapping[str, str] | None = None, capitals: bool = True) -> str:
    """One reading of `text`: every {a|b} decided (innermost first), every <slot> filled; "a owl" becomes "an owl".

    Sentences begin with a capital letter, except where one begins with an item or a place: they keep their letters, and
    so their tokens. Raises KeyError when a slot has no value.
    """
    while found := _CHOICE.search(text):
        text = text[: found.start()] + rng.choice(found.group(1).split("|")) + text[found.end() :]
    values = slots or {}
    text = _SLOT.sub(lambda m: (_KEPT if m.group(1) in KEEP_LETTERS else "") + values[m.group(1)], text)
    text = re.sub(rf"\b([Aa]) (?={_KEPT}?[aeiouAEIOU])", r"\1n ", " ".join(text.split()))
    if capitals:
        text = re.sub(r"(^|(?<!\.\.)[.!?] )([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)
    return text.replace(_KEPT, "")


def pick(rng: Random, lines: Sequence[str], slots: Mapping[str, str]) -> str:
    """One reading of one of the lines whose slots all have values. Raises IndexError when there is none."""
    usable = [line for line in lines if slots_of(line) <= slots.keys()]
    return spin(rng, rng.choice(usable), slots)
