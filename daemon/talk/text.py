"""Tokens' bytes into text that may be shown: whole code points only, stop text held back. Decides; knows no clock."""

from __future__ import annotations

import codecs


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
