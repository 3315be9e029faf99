"""The text that callers may give: one rule for names, short words and prose, in every language.

Accepted are letters and marks of every script, spaces of every width, joiners, apostrophes, emoji, and icons of a
game's own font. Refused are characters that nobody writes and that change how others see a text: controls (ESC
drives terminals), the overrides, embeddings and isolates of bidirectional text (Unicode TR 36, 3.2), tags (invisible
text, except in flags), and code points that are no characters. Decides only.
"""

from __future__ import annotations

import re
import unicodedata

from core.errors import CallerError

NAME_BYTES_MAX = 64

_BREAKS = "\n\r\u2028\u2029"
_NEVER = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # controls, but for tab and line breaks
    "\u202a-\u202e\u2066-\u2069\u206a-\u206f"  # overrides, embeddings, isolates, and what is deprecated beside them
    "\ufff9-\ufffb\U000e0000-\U000e007f"  # annotations, tags
    "\ud800-\udfff\ufdd0-\ufdef" + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
)
_NOT_IN_PROSE = re.compile(f"[{_NEVER}]")
_NOT_IN_A_LINE = re.compile(f"[{_NEVER}\t{_BREAKS}]")
# The flags of England, Scotland and Wales, and others of that kind (Unicode TR 51, ED-14a).
_FLAGS = re.compile("\U0001f3f4[\U000e0020-\U000e007e]{1,6}\U000e007f")


def name_fault(value: str) -> str:
    """The reason why a value cannot be a name, as a predicate; empty: it can. A name is one visible line."""
    if not value:
        return "is empty"
    size = len(value.encode("utf-8", "replace"))
    if size > NAME_BYTES_MAX:
        return f"{size} bytes, the limit is {NAME_BYTES_MAX}"
    return line_fault(value) or ("" if any(map(_seen, value)) else "has nothing that can be seen")


def line_fault(value: str) -> str:
    """The reason why a value cannot be one line; empty: it can."""
    # Nearly all words are plain, and observations bring thousands of them a second.
    return "" if value.isascii() and value.isprintable() else _fault(_NOT_IN_A_LINE, value)


def prose_fault(value: str) -> str:
    """The same for text of several lines, with tabs."""
    return _fault(_NOT_IN_PROSE, value)


def check_name(field: str, value: str) -> str:
    """The value, if it can be a name: one visible line of 1 to 64 bytes. Raises CallerError."""
    return _checked(field, value, name_fault(value))


def check_line(field: str, value: str) -> str:
    """The value, if it can be one line; it may be empty. Raises CallerError."""
    return _checked(field, value, line_fault(value))


def check_prose(field: str, value: str) -> str:
    """The value, if it can be text of several lines; it may be empty. Raises CallerError."""
    return _checked(field, value, prose_fault(value))


def cleaned(value: str) -> str:
    """The text without characters that are refused in prose: for text that earlier versions accepted."""
    return value if not prose_fault(value) else _NOT_IN_PROSE.sub("", value)


def cleaned_line(value: str) -> str:
    """The same for a line."""
    return " ".join(_NOT_IN_A_LINE.sub(" ", value).split()) if line_fault(value) else value


def cleaned_name(value: str) -> str:
    """The same for a name, cut to its limit."""
    return cleaned_line(value).encode("utf-8", "replace")[:NAME_BYTES_MAX].decode("utf-8", "ignore")


def _checked(field: str, value: str, fault: str) -> str:
    if fault:
        raise CallerError(field, fault)
    return value


def _fault(refused: re.Pattern[str], value: str) -> str:
    found = refused.search(value)
    if found is not None and found[0] >= "\U000e0000":
        found = refused.search(_FLAGS.sub("", value))
    if found is None:
        return ""
    what = unicodedata.name(found[0], "a control character" if unicodedata.category(found[0]) == "Cc" else "")
    return f"has U+{ord(found[0]):04X}{f' ({what})' if what else ''}, which cannot stand in it; leave it out"


def _seen(char: str) -> bool:
    return unicodedata.category(char) not in ("Zs", "Cf", "Mn", "Me", "Cc", "Zl", "Zp")
