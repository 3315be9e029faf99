"""Labels: the name and colon that scripts of plays have before a line, as in "Mira: Good evening".

A label is one of these, with quotes, brackets, stars or underscores around it or not:

* a name that is known, of the NPC or of the player, in any script and of any length, or one word of it; between name
  and colon there may be one word ("Mira says:") or a remark in brackets or stars ("Mira (smiling):");
* a part that is known, such as "Player", "User" or "Assistant";
* up to four words in at most 28 characters, each with a capital letter or a particle ("The Guard of Arl:"), unless a
  small letter follows the colon, or it is one of the words that open a sentence ("Listen:").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

LABEL_MAX = 28
WORDS_MAX = 4
REMARK_MAX = 24
WORD_MAX = 12
DECOR_MAX = 3
SPACE_MAX = 8  # characters between the colon and the first letter that are looked at
# The parts that models write for themselves, and for whom they answer.
OWN_PARTS = ("assistant", "npc", "ai", "bot", "me", "character", "model", "reply", "response", "answer")
OTHER_PARTS = ("player", "user", "human", "you", "system", "narrator")
# Single words before a colon that belong to the sentence. A name that is known is a label all the same.
OPENERS = frozenset((
    "listen", "look", "remember", "note", "well", "wait", "hear", "warning", "beware", "careful", "yes", "no", "hint",
    "tip", "now", "so", "then", "but", "and", "or", "first", "second", "third", "finally", "think", "see", "mark",
    "known", "question", "price", "prices", "news", "rule", "rules", "fact", "truth", "today", "tonight", "tomorrow",
))  # fmt: skip
PARTICLES = ("the", "of", "de", "la", "von", "van", "der", "den", "al", "el", "du", "di", "da", "a", "an")
TITLES = frozenset(("mr.", "mrs.", "ms.", "dr.", "st.", "lt.", "sgt.", "capt.", "prof.", "fr.", "sr.", "jr."))

_OPENING = "*_\"'“«„‹[(<「"
_CLOSING = "*_\"'”»“›])>」"
_NAMED = re.compile(
    rf"[{re.escape(_CLOSING)}]{{0,{DECOR_MAX}}}"
    rf"(?:[^\S\n]?\([^()\n:]{{0,{REMARK_MAX}}}\)|[^\S\n]?\*[^*\n:]{{0,{REMARK_MAX}}}\*|[^\S\n][^\W\d_]{{2,{WORD_MAX}}})?"
    rf"[*_]{{0,2}}[^\S\n]?[:：]"
)
_NAMED_BEGUN = re.compile(
    rf"[{re.escape(_CLOSING)}]{{0,{DECOR_MAX}}}"
    rf"(?:[^\S\n]?(?:\([^()\n:]{{0,{REMARK_MAX}}}\)?|\*[^*\n:]{{0,{REMARK_MAX}}}\*?)|[^\S\n][^\W\d_]{{0,{WORD_MAX}}})?"
    rf"[*_]{{0,2}}[^\S\n]?"
)
# The same for parts: nothing but marks may stand before the colon ("You see: ..." is speech).
_PART = re.compile(rf"[{re.escape(_CLOSING)}]{{0,{DECOR_MAX}}}[^\S\n]?[:：]")
_PART_BEGUN = re.compile(rf"[{re.escape(_CLOSING)}]{{0,{DECOR_MAX}}}[^\S\n]?")
_UNKNOWN = re.compile(
    rf"([^{re.escape(_OPENING + _CLOSING)}:：\n]+)[{re.escape(_CLOSING)}]{{0,{DECOR_MAX}}}[^\S\n]?[:：]"
)


class Whose(Enum):
    """The one whose line a label begins."""

    OWN = "own"
    OTHER = "other"
    UNKNOWN = "unknown"


class Label(NamedTuple):
    """A label at the beginning of a text, in characters. `closer` may follow it: the stars that were opened before."""

    whose: Whose
    length: int
    closer: str = ""


class Labels:
    """The labels of one conversation. Compares only; it keeps nothing."""

    def __init__(self, own: Sequence[str], others: Sequence[str]) -> None:
        named = [(name, Whose.OWN) for name in _names(own)] + [(name, Whose.OTHER) for name in _names(others)]
        parts = [(name, Whose.OWN) for name in OWN_PARTS] + [(name, Whose.OTHER) for name in OTHER_PARTS]
        # Longer ones first, and an NPC's own before a player's of the same name.
        self._known = [(name, whose, _NAMED, _NAMED_BEGUN) for name, whose in named]
        self._known += [(name, whose, _PART, _PART_BEGUN) for name, whose in parts]
        self._known.sort(key=lambda known: -len(known[0]))
        longest = max(len(name) for name, *_ in self._known)
        self.length_max = max(LABEL_MAX + SPACE_MAX, longest + REMARK_MAX + 4) + 3 * DECOR_MAX
        """Characters after which it is known whether a text begins with a label."""

    def at_start(self, text: str, last: bool, known_only: bool = False) -> Label | bool | None:
        """The label that a text begins with; None if there is none, and True if more text is needed to tell. `last`:
        there is no more.
        """
        decor = _decor(text)
        rest = text[decor:]
        if not rest:
            return None if last or decor > DECOR_MAX else True
        if decor > DECOR_MAX:
            return None
        known = self._known_at(rest, last)
        if known is None and not known_only:
            known = _unknown_at(rest, last)
        if isinstance(known, Label):
            stars = "".join(c for c in text[:decor] if c in "*_")
            return Label(known.whose, decor + known.length, stars if not _closed(rest[: known.length], stars) else "")
        return known

    def _known_at(self, text: str, last: bool) -> Label | bool | None:
        low, maybe = text[: self.length_max].lower(), False
        for name, whose, ends, begun in self._known:
            if low.startswith(name):
                at = len(name)
                found = ends.match(text, at)
                if found is not None:
                    # A longer name may still be the one that is meant: names never hold a colon, so it is not.
                    return Label(whose, found.end())
                maybe = maybe or begun.fullmatch(text, at) is not None
            elif name.startswith(low):
                maybe = True
        return True if maybe and not last else None


def _names(given: Sequence[str]) -> list[str]:
    """The given names and each of their words, in small letters, without those that say nothing."""
    found: dict[str, None] = {}
    for name in given:
        whole = " ".join(name.lower().split())
        if ":" in whole or "：" in whole or not whole:
            continue
        found[whole] = None
        for word in whole.split():
            if len(word) > 1 and word not in PARTICLES:
                found[word] = None
    return list(found)


def _decor(text: str) -> int:
    """How many marks a text opens with; one more than there may be is enough to know."""
    count = 0
    while count <= DECOR_MAX and count < len(text) and text[count] in _OPENING:
        count += 1
    return count


def _closed(label: str, stars: str) -> bool:
    return bool(stars) and stars in label


def _unknown_at(text: str, last: bool) -> Label | bool | None:
    found = _UNKNOWN.match(text[: LABEL_MAX + DECOR_MAX + 2])
    if found is None:
        return (_may_be_unknown(text) and not last) or None
    words = found[1].rstrip().split(" ")
    if len(found[1]) > LABEL_MAX or len(words) > WORDS_MAX or not all(_fits(word) for word in words):
        return None
    if not any(word[0].isupper() for word in words) or (len(words) == 1 and words[0].lower() in OPENERS):
        return None
    after = text[found.end() : found.end() + SPACE_MAX]
    following = after.lstrip()
    if not following and not last and len(after) < SPACE_MAX:
        return True
    if following and (following[0].islower() or (following[0] == "/" and after[0] == "/")):
        return None
    return Label(Whose.UNKNOWN, found.end())


def _may_be_unknown(text: str) -> bool:
    """True if a text without its colon may be the beginning of a label."""
    if len(text) > LABEL_MAX + DECOR_MAX + 1 or "\n" in text or ":" in text or "：" in text:
        return False
    words = text.rstrip(_CLOSING + " ").split(" ")
    *whole, newest = words
    if len(words) > WORDS_MAX or not all(_fits(word) for word in whole):
        return False
    if text.endswith(" "):
        return _fits(newest)
    return not newest or _fits(newest) or any(known.startswith(newest.lower()) for known in (*PARTICLES, *TITLES))


@lru_cache(maxsize=1024)
def _fits(word: str) -> bool:
    """True if a word may stand in a label of a name that is not known."""
    if not word:
        return False
    if word in PARTICLES or word.lower() in TITLES:
        return True
    if word.isdigit():
        return True
    return word[0].isupper() and all(c.isalnum() or c in "'’-" for c in word)
