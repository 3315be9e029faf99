"""Cards: facts that a game sets about an NPC and one player. Two cards, 2 KB each at most: relationship and quest.

A card has a full form, which stands in the trunk, and a digest of one line, which goes with every tail. The sentences
are those that the shipped model was trained on. Plain values without times and tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from core.errors import CallerError
from core.texts import check_prose

CARD_BYTES_MAX = 2048
ITEMS_MAX = 16
ITEM_BYTES_MAX = 200

# From this trust on, these words.
TRUST_WORDS = ((0.6, "a trusted friend"), (0.2, "a friend"), (-0.2, ""), (-0.6, "not trusted"), (-1.0, "an enemy"))


@dataclass(frozen=True, slots=True)
class Relationship:
    """An NPC's relationship to a player. Trust and affinity are -1 to 1; promises and betrayals are sentences."""

    trust: float = 0.0
    affinity: float = 0.0
    promises: tuple[str, ...] = ()
    betrayals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Quest:
    """Quests that an NPC and a player share: `active` ones and `milestones` that were reached, as sentences."""

    active: tuple[str, ...] = ()
    milestones: tuple[str, ...] = ()


Card = Relationship | Quest


def check(field: str, card: Card) -> None:
    """Raises CallerError naming the field to shorten when a card is too large, or has values that are none."""
    for name in ("trust", "affinity"):
        value = getattr(card, name, 0.0)
        if not -1.0 <= value <= 1.0:  # NaN is not either
            raise CallerError(f"{field}.{name}", f"is {value:g}, must be -1 to 1")
    longest, most = "", 0
    for name, items in _lists(card):
        if len(items) > ITEMS_MAX:
            raise CallerError(f"{field}.{name}", f"{len(items)} of them, the limit is {ITEMS_MAX}")
        for i, item in enumerate(items):
            size = len(item.encode("utf-8", "replace"))
            if size > ITEM_BYTES_MAX:
                raise CallerError(f"{field}.{name}[{i}]", f"{size} bytes, the limit is {ITEM_BYTES_MAX}")
            if not item.strip():
                raise CallerError(f"{field}.{name}[{i}]", "must be a line of text")
            check_prose(f"{field}.{name}[{i}]", item)
        size = sum(len(item.encode("utf-8", "replace")) for item in items)
        if size > most:
            longest, most = name, size
    size = len(json.dumps(to_body(card), ensure_ascii=False).encode("utf-8", "replace"))
    if size > CARD_BYTES_MAX:
        raise CallerError(
            f"{field}.{longest}", f"the card has {size} bytes, the limit is {CARD_BYTES_MAX}; shorten this"
        )


def relation(card: Relationship | None) -> str:
    """The relationship in words; empty if the NPC has no opinion of the player."""
    if card is None:
        return ""
    return next(words for least, words in TRUST_WORDS if card.trust >= least)


def full(name: str, relationship: Relationship | None, quest: Quest | None) -> list[str]:
    """Both cards as sentences, the most important first."""
    said = relation(relationship)
    out = [f"{name} is {said}."] if said else []
    if relationship is not None:
        out += [_sentence(item) for item in (*relationship.betrayals, *relationship.promises)]
    if quest is not None:
        out += [_sentence(item) for item in (*quest.active, *quest.milestones)]
    return out


def digest(name: str, relationship: Relationship | None, quest: Quest | None) -> str:
    """One short line: the relationship and the newest quest; empty without both."""
    said = relation(relationship)
    out = [f"{name}, {said}."] if said else []
    if quest is not None and quest.active:
        out.append(_sentence(quest.active[-1]))
    return " ".join(out)


def to_body(card: Card) -> dict[str, Any]:
    """A card as JSON has it."""
    if isinstance(card, Quest):
        return {"active": list(card.active), "milestones": list(card.milestones)}
    return {
        "trust": card.trust,
        "affinity": card.affinity,
        "promises": list(card.promises),
        "betrayals": list(card.betrayals),
    }


def relationship_of(body: dict[str, Any] | None) -> Relationship | None:
    """The card of to_body()."""
    if body is None:
        return None
    return Relationship(body["trust"], body["affinity"], tuple(body["promises"]), tuple(body["betrayals"]))


def quest_of(body: dict[str, Any] | None) -> Quest | None:
    """The card of to_body()."""
    return None if body is None else Quest(tuple(body["active"]), tuple(body["milestones"]))


def _lists(card: Card) -> Iterator[tuple[str, tuple[str, ...]]]:
    names = ("active", "milestones") if isinstance(card, Quest) else ("promises", "betrayals")
    return ((name, getattr(card, name)) for name in names)


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith((".", "!", "?")) else f"{text}."
