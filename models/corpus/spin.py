"""Text with alternatives: "{Good|Fair} evening, <name>." becomes one of its readings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random

_CHOICE = re.compile(r"\{([^{}]*)\}")
_SLOT = re.compile(r"<([a-z]+)>")


def slots_of(text: str) -> frozenset[str]:
    """The slot names that `text` may need."""
    return frozenset(_SLOT.findall(text))


def spin(rng: Random, text: str, slots: Mapping[str, str] | None = None) -> str:
    """One reading of `text`: every {a|b} decided (innermost first), every <slot> filled; "a owl" becomes "an owl".

    Raises KeyError when a slot has no value.
    """
    while found := _CHOICE.search(text):
        text = text[: found.start()] + rng.choice(found.group(1).split("|")) + text[found.end() :]
    values = slots or {}
    text = " ".join(_SLOT.sub(lambda m: values[m.group(1)], text).split())
    text = re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)
    return re.sub(r"(^|[.!?] )([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)


def pick(rng: Random, lines: Sequence[str], slots: Mapping[str, str]) -> str:
    """One reading of one of the lines whose slots all have values. Raises IndexError when there is none."""
    usable = [line for line in lines if slots_of(line) <= slots.keys()]
    return spin(rng, rng.choice(usable), slots)
