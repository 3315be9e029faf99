"""Text that models write about their text: marks around a thought, and marks of chat templates that were written out.

A model that thinks writes a thought before its reply, between two marks of its own. The marks below are those of the
models in common use. They are matched in any case. A model that was not told where to stop writes its template's own
markers, or another template's, as text.
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache
from typing import NamedTuple


class Mark(Enum):
    """The meaning of a mark in the text."""

    OPENS = "opens"  # a thought begins
    CLOSES = "closes"  # a thought ends
    WRAPS = "wraps"  # the reply stands in it: the mark alone is not part of it
    ENDS = "ends"  # a template's marker: the reply is over


class Found(NamedTuple):
    """A mark at the beginning of a text, in characters, and the text that closes the thought that it opens."""

    mark: Mark
    length: int
    close: str = ""


_TAGS = ("think", "thinking", "thought", "thoughts", "reasoning", "reason", "reflection", "analysis", "scratchpad",
         "inner_monologue", "internal_monologue", "seed:think")  # fmt: skip
# The mark that opens a thought, and the one that closes it.
THOUGHTS: dict[str, str] = {
    **{f"<{tag}>": f"</{tag}>" for tag in _TAGS},
    "[think]": "[/think]",
    "◁think▷": "◁/think▷",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|start_thinking|>": "<|end_thinking|>",
    "<|think|>": "<|/think|>",
    "<|channel|>analysis": "<|channel|>final<|message|>",
    "<|channel|>commentary": "<|channel|>final<|message|>",
    "<|channel>thought": "<channel|>",
}
_WRAPS = ("<answer>", "</answer>", "<response>", "</response>", "<|start_response|>", "<|end_response|>",
          "<|begin_of_solution|>", "<|end_of_solution|>")  # fmt: skip
_ENDS = ("</s>", "<s>", "<bos>", "<eos>", "[inst]", "[/inst]", "<<sys>>", "<</sys>>", "<start_of_turn>",
         "<end_of_turn>", "<end_of_utterance>", "<end_of_text>", "###")  # fmt: skip

_MARKS: dict[str, Found] = {
    **{text: Found(Mark.ENDS, len(text)) for text in _ENDS},
    **{text: Found(Mark.WRAPS, len(text)) for text in _WRAPS},
    **{close: Found(Mark.CLOSES, len(close)) for close in THOUGHTS.values()},
    **{text: Found(Mark.OPENS, len(text), close) for text, close in THOUGHTS.items()},
}
# Any other name between a template's brackets, as in <|im_start|> and <｜User｜>.
_BRACKETED_MAX = 32
_BRACKETED = re.compile(rf"<[|｜][^\s|｜<>]{{1,{_BRACKETED_MAX}}}[|｜]>")
_BRACKETED_BEGUN = re.compile(rf"<(?:[|｜](?:[^\s|｜<>]{{1,{_BRACKETED_MAX}}}[|｜]?)?)?")

HEADS = "".join(sorted({text[0] for text in _MARKS}))
"""The characters that a mark begins with."""
MARK_MAX = max(*map(len, _MARKS), _BRACKETED_MAX + 4)
"""Characters of the longest mark."""
ANY_CLOSE = re.compile("|".join(map(re.escape, dict.fromkeys(THOUGHTS.values()))), re.IGNORECASE)
ANY_MARK = re.compile("|".join(map(re.escape, _MARKS)) + "|" + _BRACKETED.pattern, re.IGNORECASE)


@lru_cache(maxsize=64)
def close_of(mark: str) -> re.Pattern[str]:
    """Finds the mark that closes a thought."""
    return re.compile(re.escape(mark), re.IGNORECASE)


def mark_at_start(text: str, last: bool) -> Found | bool | None:
    """The mark that a text begins with; None if there is none, and True if more text is needed to tell. `last`: there
    is no more.
    """
    begun = text[:MARK_MAX].lower()
    if not last and any(mark.startswith(begun) and len(mark) > len(begun) for mark in _MARKS):
        return True
    found = [known for mark, known in _MARKS.items() if begun.startswith(mark)]
    if found:
        return max(found, key=lambda known: known.length)
    bracketed = _BRACKETED.match(text)
    if bracketed is not None:
        return Found(Mark.ENDS, bracketed.end())
    return True if not last and _BRACKETED_BEGUN.fullmatch(text) else None


def is_of_a_thought(text: str) -> bool:
    """True if a text is a mark that opens or closes a thought, and nothing else."""
    return text.lower() in THOUGHTS or ANY_CLOSE.fullmatch(text) is not None


def opens_a_thought(text: str) -> bool:
    """True if a text ends inside a thought, as templates do that ask for one."""
    low = text.lower()
    opened = max((at + len(mark) for mark in THOUGHTS if (at := low.rfind(mark)) >= 0), default=-1)
    return opened >= 0 and all(low.find(close, opened) < 0 for close in set(THOUGHTS.values()))
