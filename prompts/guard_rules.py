"""The rules of guards, and the values that they answer with (prompts/guards.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple


class Directions(Enum):
    """The use that is made of stage directions."""

    KEEP = "keep"
    CUT = "cut"
    EVENT = "event"


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """The guards between a model's text and players: they keep back thoughts, names before a line, lines for the
    player, and text of chat templates.
    """

    directions: Directions = Directions.CUT
    """Stage directions such as `*smiles*`, `(sighs)` or `[leaves]`: `keep` leaves them in the text, `cut` drops them,
    `event` sends each one as an event of its own.
    """
    sentences_max: int = 3
    """A reply of a model with a chat template, or without one, ends after this number of sentences; 0: no limit. Models
    made for npcd end by themselves. From 0 to 32.
    """
    thought_max: int = 2_000
    """If a model's thought is not over after this number of characters, the reply counts as empty. From 0 to 100000."""
    thinks_first: bool = False
    """Takes every reply as a thought until it is closed: for models that begin to think without saying so."""
    again: bool = True
    """If nothing is left of a reply, it is drawn once more."""

    def reply(self, native: bool) -> Rules:
        """The rules for replies. A `native` model was made for npcd: it writes no labels, and comes to its end."""
        most = 0 if native else self.sentences_max
        return Rules(self.directions, not native, not native, most, self.thought_max, self.thinks_first)

    def bark(self, native: bool) -> Rules:
        """The rules for barks. They have no events of their own."""
        shown = Directions.KEEP if self.directions is Directions.KEEP else Directions.CUT
        return replace(self.reply(native), directions=shown)

    def summary(self) -> Rules:
        """The rules for summaries, which nobody hears."""
        return Rules(Directions.KEEP, False, False, 0, self.thought_max, self.thinks_first)


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one guard, which cuts thoughts and markers in any case. `sentences_max` 0: no limit."""

    directions: Directions = Directions.CUT
    labels: bool = True
    turns: bool = True
    sentences_max: int = 0
    thought_max: int = 2_000
    thinks_first: bool = False


class Cut(Enum):
    """The reason for which text was not told."""

    THOUGHT = "thought"
    LABEL = "label"
    ANOTHER = "another"
    TURN = "turn"
    MARKER = "marker"
    DIRECTION = "direction"
    EMPHASIS = "emphasis"
    SENTENCES = "sentences"
    SPACE = "space"


class Shown(Enum):
    """The kind of a piece."""

    TOLD = "told"
    SENTENCE = "sentence"  # a sentence ended here; no text
    DIRECTION = "direction"  # a stage direction, without its marks
    TAKEN_BACK = "taken back"  # all that was told so far was a thought; no text


class Piece(NamedTuple):
    """Something that may be shown, in order."""

    shown: Shown
    text: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A reply that is over: the `kept` text, and how many characters were cut and why.

    `begins`: the kept text is the beginning of what the model wrote, but for white space. `empty`: nothing is left, and
    the reply may be drawn again.
    """

    kept: str
    cut: Mapping[Cut, int]
    begins: bool

    @property
    def empty(self) -> bool:
        """True if there is nothing to say."""
        return not self.kept
