"""Tokens' bytes into text that may be shown: whole code points only, stop text held back, and past the guards
(prompts/guards.py). Decides; knows no clock.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from prompts.guard_rules import Directions, Piece, Rules, Shown, Verdict
from prompts.guards import Guard

_ANYTHING = Rules(Directions.KEEP, labels=False, turns=False)


class TextAssembler:
    """Collects the bytes of one reply. Text from add() is final: it is never taken back.

    `stop` is text that ends the reply and is not part of it; empty: there is none.
    """

    def __init__(self, stop: str = "") -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop
        self._held = ""
        self.said = ""
        self.stopped = False

    def add(self, piece: bytes) -> str:
        """The text that became certain with these bytes; may be empty."""
        return "" if self.stopped else self._release(self._decoder.decode(piece), last=False)

    def end(self) -> str:
        """The text that was still held back, when no more bytes come. An unfinished code point is dropped."""
        return "" if self.stopped else self._release("", last=True)

    def _release(self, more: str, last: bool) -> str:
        text = self._held + more
        if not self.said:
            text = text.lstrip()
        keep = 0
        if self._stop:
            at = text.find(self._stop)
            if at >= 0:
                self.stopped = True
                text = text[:at]
            elif not last:
                # The longest end of the text that may be the beginning of the stop text.
                keep = next((n for n in range(len(self._stop) - 1, 0, -1) if text.endswith(self._stop[:n])), 0)
        # Spaces wait for what follows them, so that a reply does not end with one.
        out = text[: len(text) - keep].rstrip()
        self._held = "" if last or self.stopped else text[len(out) :]
        self.said += out
        return out


class Spoken:
    """One answer of a model, as far as it may be heard: the text that was `said`, where its sentences end, and stage
    directions beside it.

    Text that was said stays said, unless the guard takes it back: then `said` begins anew and `takes` grows. `stop` is
    text that ends the answer.
    """

    def __init__(self, stop: str = "", guard: Guard | None = None) -> None:
        self._begin(stop, guard or Guard(_ANYTHING))
        self.takes = 0

    @classmethod
    def again(cls, text: str) -> Spoken:
        """An answer that was heard before."""
        spoken = cls()
        spoken._show(spoken._guard.add(text))
        spoken._show(spoken._guard.end())
        if spoken.said != text:
            spoken.ends.clear()
        spoken.said = text
        return spoken

    def begin_again(self, stop: str, guard: Guard) -> None:
        """Another draw takes this one's place. Everything that was shown is taken back."""
        shown = bool(self.said or self.directions)
        self._begin(stop, guard)
        self.takes += shown

    @property
    def stopped(self) -> bool:
        """True if the answer is over before the model is."""
        return self._bytes.stopped or self._guard.stopped

    def add(self, piece: bytes) -> None:
        """Takes the bytes of a step."""
        self._show(self._guard.add(self._bytes.add(piece)))

    def end(self, whole: bool = True) -> None:
        """No more bytes come. `whole` is false if the model did not come to its end."""
        self._show(self._guard.add(self._bytes.end()))
        self._show(self._guard.end(whole))

    def verdict(self) -> Verdict:
        """The guard's verdict: the kept text, and the reasons of the cuts."""
        return self._guard.verdict()

    def _begin(self, stop: str, guard: Guard) -> None:
        self._bytes = TextAssembler(stop)
        self._guard = guard
        self.said = ""
        self.ends: list[int] = []
        """The places in `said` at which a sentence ends."""
        self.directions: list[tuple[int, str]] = []
        """Stage directions, with the places in `said` at which they stand."""

    def _show(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            match piece.shown:
                case Shown.TOLD:
                    self.said += piece.text
                case Shown.SENTENCE:
                    self.ends.append(len(self.said))
                case Shown.DIRECTION:
                    self.directions.append((len(self.said), piece.text))
                case Shown.TAKEN_BACK:
                    self.said = ""
                    self.ends.clear()
                    self.directions.clear()
                    self.takes += 1
