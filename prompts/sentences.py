"""The ends of sentences, for a voice that reads aloud and for the longest reply.

A sentence ends at a full stop, question or exclamation mark of any of the scripts below, with the quotes that close
after it. In scripts with spaces a space, a line break or the end of the text must follow. A full stop ends none after
an abbreviation or an initial, or if a small letter goes on ("Well... maybe"). Scripts without such marks, such as Thai,
have no ends of sentences here.
"""

from __future__ import annotations

import re

_SPACED = ".!?…؟۔।॥։።⁇⁈⁉‽"
_UNSPACED = "。！？｡．"
_SOFT = ".…"  # marks that a sentence may go on after
_CLOSERS = "\"'”’»›」』）)"
RUN_MAX = 16
"""Characters of a run of marks that are looked at together."""
MARKS = _SPACED + _UNSPACED
RUN = re.compile(rf"[{re.escape(MARKS)}][{re.escape(MARKS + _CLOSERS)}]{{0,{RUN_MAX - 1}}}")

ABBREVIATIONS = frozenset((
    "mr", "mrs", "ms", "dr", "st", "prof", "sr", "jr", "lt", "sgt", "capt", "col", "gen", "rev", "hon", "mt",
    "vs", "approx", "e.g", "i.e", "cf", "nr", "bzw", "z.b", "d.h", "ca", "sra", "dra", "mme", "mlle", "sig",
))  # fmt: skip


def ends(run: str, before: str, after: str) -> bool:
    """True if a sentence ends with a run of marks. `before` is the word before it, `after` the text that follows, up to
    its first visible character at least; empty at the end of all.
    """
    if any(mark in run for mark in _UNSPACED) or not after:
        return True
    if not after[0].isspace():
        return False
    following = after.lstrip()
    if not following or "\n" in after[: len(after) - len(following)]:
        return True
    soft = run.rstrip(_CLOSERS)[-1:] in _SOFT
    if following[0].islower():
        # "Go!" he said; but "Really? yes." are two.
        return not soft and run[-1] not in _CLOSERS
    if run == "." and (word := before.lstrip("(\"'“‘")):
        initial = len(word) == 1 and word.isupper() and word != "I"
        return not initial and word.lower() not in ABBREVIATIONS
    return True
