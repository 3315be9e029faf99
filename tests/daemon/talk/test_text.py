"""Delivered text is never taken back, ends on code points, and never contains the stop text."""

import random

from daemon.talk.text import TextAssembler


def assemble(raw: bytes, stop: str, rng: random.Random) -> tuple[list[str], TextAssembler]:
    """The pieces that come out when bytes arrive in random portions."""
    text, out, at = TextAssembler(stop), [], 0
    while at < len(raw):
        n = rng.randrange(1, 4)
        out.append(text.add(raw[at : at + n]))
        at += n
    out.append(text.end())
    return out, text


def test_any_portions_give_the_same_text() -> None:
    """The text equals that of a simple twin that has all bytes at once."""
    rng = random.Random(1)
    for _ in range(2000):
        words = [rng.choice(["Hä", "no", "én", "💀", "\n", "END", "EN", "E", " ", "D", "Player:"]) for _ in range(12)]
        whole = " " + " ".join(words)
        stop = rng.choice(["", "\n", "END", "Player:"])
        pieces, text = assemble(whole.encode(), stop, rng)
        expected = whole.lstrip()
        stopped = bool(stop) and stop in expected
        if stopped:
            expected = expected[: expected.index(stop)]
        assert "".join(pieces) == text.said == expected.rstrip()
        assert text.stopped == stopped


def test_an_unfinished_code_point_at_the_end_is_not_shown() -> None:
    """Half an emoji gives no text."""
    text = TextAssembler()
    assert text.add(b" Hi " + "💀".encode()[:2]) == "Hi"
    assert text.end() == ""
    assert text.said == "Hi"


def test_text_comes_out_as_early_as_it_is_certain() -> None:
    """Words do not wait for the end."""
    text = TextAssembler("STOP")
    assert text.add(b" Good") == "Good"
    assert text.add(b" evening") == " evening"
    assert text.add(b" ST") == ""
    assert text.add(b"ay") == " STay"
