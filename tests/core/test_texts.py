"""Characters that people use are accepted in names and texts. Control characters and direction overrides are
refused."""

import sys
import unicodedata

import pytest

from core.errors import CallerError
from core.texts import check_line, check_name, check_prose, cleaned, cleaned_name, line_fault, name_fault, prose_fault

PEOPLE_HAVE = [
    "Mira",
    "Count Veil",
    "山田　太郎",  # U+3000
    "Jean\u00a0Luc",
    "علی\u200cرضا",  # ZWNJ
    "क्\u200dष",  # ZWJ
    "Åsa",
    "A\u030asa",  # the same, decomposed
    "D’Artagnan",
    "O'Neil-Smythe, Jr. (III)",
    "Nguyễn Thị Minh Khai",
    "ប្រាក់",
    "שָׁלוֹם\u200f",  # with a right-to-left mark
    "👨\u200d👩\u200d👧 & 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "❤\ufe0f",
    "\ue001 Guild",  # an icon of the game's own font
    "\u2003wide\u2009thin\u202f",
    "X",
    "☠",
    "1337",
]
NEVER = [
    "\x1b[31mRed",
    "a\x00b",
    "a\x07",
    "a\x7f",
    "a\x85b",
    "a\x9bb",
    "\u202egnp.exe",
    "a\u202d",
    "a\u202a",
    "a\u202b",
    "a\u202c",
    "a\u2066b\u2069",
    "a\u2067",
    "a\u2068",
    "a\ufff9b",
    "a\U000e0041\U000e0042",  # tags outside of a flag
    "\U0001f3f4\U000e0067",  # a flag that does not end
    "a\ufffeb",
    "a\U0010ffff",
    "a\ud800",
]


@pytest.mark.parametrize("value", PEOPLE_HAVE)
def test_characters_that_people_use_are_accepted(value: str) -> None:
    """Each value is accepted unchanged as a name, a line and prose."""
    assert check_name("f", value) == check_line("f", value) == check_prose("f", value) == value
    assert cleaned(value) == cleaned_name(value) == value


@pytest.mark.parametrize("value", NEVER)
def test_characters_that_nobody_writes_are_refused(value: str) -> None:
    """The error for a name, a line or prose gives the field and the code point. Values that earlier versions accepted
    can be cleaned."""
    for check in (check_name, check_line, check_prose):
        with pytest.raises(CallerError, match=r"f: has U\+[0-9A-F]{4,6}") as caught:
            check("f", value)
        assert value not in str(caught.value), "the text itself is not shown again"
    assert not prose_fault(cleaned(value)) and not line_fault(cleaned_name(value))


@pytest.mark.parametrize("value", ["a\nb", "a\r\nb", "a\tb", "a\u2028b", "a\u2029b"])
def test_lines_break_in_prose_alone(value: str) -> None:
    """A line break is accepted in prose and refused in names and words."""
    assert check_prose("f", value) == value and line_fault(value) and name_fault(value)


def test_a_name_is_seen_and_has_64_bytes_at_most() -> None:
    """The limit counts bytes and not characters: 21 characters of 3 bytes are accepted, 22 are not."""
    assert not name_fault("山" * 21) and name_fault("山" * 22) == "66 bytes, the limit is 64"
    assert name_fault("x" * 119) == "119 bytes, the limit is 64" and cleaned_name("山" * 22) == "山" * 21
    assert name_fault("") == "is empty"
    for nothing in (" ", "\u3000", "\u200b\u200d", "\u00a0", "\u0301", "\u200e"):
        assert name_fault(nothing) == "has nothing that can be seen"


def test_every_letter_of_every_script_is_taken() -> None:
    """Characters that this Python does not know yet are accepted as well. Only Unicode's noncharacters are refused."""
    for point in range(sys.maxunicode + 1):
        char = chr(point)
        if unicodedata.category(char)[0] in "LMNPS" or unicodedata.category(char) in ("Zs", "Co"):
            assert not line_fault(char), hex(point)
    assert not line_fault("\u0378"), "not assigned yet"
