"""Guards: a player hears a part of a reply that depends on its text alone, and never on the pieces that it comes in."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from prompts.guard_rules import Cut, Directions, Piece, Rules, Shown
from prompts.guards import DIRECTION_MAX, Guard, guarded
from prompts.thoughts import ANY_MARK, THOUGHTS, opens_a_thought

OWN, OTHERS = ("Bram Holt",), ("Tilda",)
# Everything that a guard looks at, whole and in parts, and some that it does not.
BITS = (
    "Bram", "Holt", "Tilda", "Player", "You", "The", "Guard", "says", "Mr", "hello", "Good", "smiles", "é", "İ", "3",
    ":", "：", ".", "...", "…", "!", "?", "。", ",", "，", "'", '"', "-", "---", "###", "//", "_",
    " ", " ", " ", "  ", "\n", "\n\n", "\r\n", "*", "**", "(", ")", "[", "]", "（", "）",
    "<think>", "</think>", "<", "<|", "|>", "◁think▷", "◁/think▷", "[THINK]", "[/THINK]", "</s>", "[INST]",
    "<|im_end|>", "<|channel|>", "analysis", "<answer>",
)  # fmt: skip
NEAR_LABELS = ("Bram", "Tilda", ":", ": ", " ", "*", "**", "(", ")", "\n", '"', "Guard", "hello", ".", ". ")


def some_rules(rng: random.Random) -> Rules:
    """Rules of any kind."""
    return Rules(
        directions=rng.choice(list(Directions)),
        labels=rng.random() < 0.8,
        turns=rng.random() < 0.8,
        sentences_max=rng.choice([0, 1, 3]),
        thought_max=rng.choice([3, 2000]),
        thinks_first=rng.random() < 0.1,
    )


def heard(text: str, rules: Rules, cuts: Sequence[int] = ()) -> list[Piece]:
    """The pieces that are shown of a text that is split at these places, with the laws checked after every piece."""
    guard = Guard(rules, OWN, OTHERS)
    shown: list[Piece] = []
    told = ""
    for begin, end in zip((0, *cuts), (*cuts, len(text)), strict=True):
        shown += (new := guard.add(text[begin:end]))
        for piece in new:
            told = "" if piece.shown is Shown.TAKEN_BACK else told + (piece.text if piece.shown is Shown.TOLD else "")
        assert told == guard.said
        decided = "".join(part for _, part in guard.parts)
        assert text[:end].startswith(decided)
        assert end - len(decided) == guard.held <= guard.held_max
    shown += guard.end()
    assert "".join(part for _, part in guard.parts) == text
    assert "".join(part for why, part in guard.parts if why is None) == guard.said == guard.verdict().kept
    assert guard.said == guard.said.strip()
    assert sum(guard.verdict().cut.values()) == len(text) - len(guard.said)
    return shown


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The same with neighbours that are told as one piece, from the last time that all was taken back."""
    out: list[Piece] = []
    for piece in pieces:
        if piece.shown is Shown.TAKEN_BACK:
            out = []
        elif piece.shown is Shown.TOLD and out and out[-1].shown is Shown.TOLD:
            out[-1] = Piece(Shown.TOLD, out[-1].text + piece.text)
        else:
            out.append(piece)
    return out


@pytest.mark.parametrize("seed", range(4))
def test_the_pieces_change_nothing(seed: int) -> None:
    """A text in one piece, in characters, and in any other pieces is heard alike: the same text, ends of sentences and
    stage directions. Told and cut parts are the text, and no more than `held_max` characters wait.
    """
    rng = random.Random(seed)
    for _ in range(3000):
        few = rng.choice([rng.sample(BITS, 6), rng.sample(NEAR_LABELS, 4)])  # so that they meet
        text = "".join(rng.choice(few) for _ in range(rng.randint(1, 16)))
        rules = some_rules(rng)
        cuts = sorted(rng.sample(range(len(text) + 1), rng.randint(1, min(len(text), 6))))
        at_once = joined(heard(text, rules))
        assert joined(heard(text, rules, cuts)) == at_once, (text, rules)
        assert joined(heard(text, rules, range(1, len(text)))) == at_once, (text, rules)


@pytest.mark.parametrize(
    "text", ["Guard " * 60, "(" * 400, "*a " * 200, "." * 400, " \n " * 200, "<|" * 200, "<think>" * 99]
)
def test_what_never_comes_is_not_waited_for(text: str) -> None:
    """A text that goes on being the beginning of something waits no longer than the bound."""
    for rules in (Rules(), Rules(Directions.EVENT, sentences_max=3), Rules(thinks_first=True)):
        heard(text, rules, range(1, len(text)))


def test_a_thought_is_never_told() -> None:
    """Of a thought between any of the known marks, whole or without an end, no word is shown at any time, whatever
    stands around it.
    """
    rng = random.Random(5)
    around = [bit for bit in BITS if not ANY_MARK.search(bit)]
    for _ in range(4000):
        opens, close = rng.choice(list(THOUGHTS.items()))
        opens = rng.choice([opens, opens.upper()])
        soup = ["".join(rng.choice(around) for _ in range(rng.randint(0, 6))) for _ in range(3)]
        thought = soup[1].replace("<|", "").replace("[", "") + " SECRET " + rng.choice(["", "\n\n", "*", ")", "."])
        text = f"{soup[0]} {opens}{thought}{rng.choice([close, close, ''])}{soup[2]}"
        if len(ANY_MARK.findall(text)) > 2:
            continue  # two bits made another mark
        shown = heard(text, some_rules(rng), sorted(rng.sample(range(len(text)), 3)))
        assert not any("SECRET" in piece.text for piece in shown), text


def test_a_reply_is_heard_without_what_does_not_belong_to_it() -> None:
    """Of replies that are made of a thought, a label, stage directions, sentences and a line for the player, the
    sentences are heard, up to the longest reply.
    """
    rng = random.Random(6)
    for _ in range(4000):
        text, kept = "", []
        if rng.random() < 0.3:
            text += "<think>Tilda: who is she?\n\nI *know*. (Really.)</think>" + rng.choice(["", "\n\n", " "])
        if rng.random() < 0.5:
            text += rng.choice(["Bram Holt: ", "Bram: ", "**Holt:** ", "Bram says: ", "The Ferryman: ", "Assistant: "])
        most = rng.choice([0, 2])
        for n in range(rng.randint(1, 4)):
            if rng.random() < 0.3:
                text += rng.choice(["*smiles at her* ", "(He sighs.) ", "[laughs] "])
            sentence = rng.choice(["I row the ferry.", "Who is there?", "Mr. Holt is well...", "It is 12:30 now!"])
            text += sentence + " "
            if not most or n < most:
                kept.append(sentence)
        text += rng.choice(["", "\nTilda: Good.", "Player: Good.", "\n\nThe end", "<|im_end|>user", "\nMiller: Ho!"])
        rules = Rules(sentences_max=most)
        shown = heard(text, rules, sorted(rng.sample(range(len(text)), 4)))
        assert "".join(piece.text for piece in shown) == " ".join(kept), text
        assert sum(piece.shown is Shown.SENTENCE for piece in shown) == len(kept), text


def test_a_stage_direction_has_a_longest_length() -> None:
    """A remark of 160 characters is one; with one more character it is text."""
    for length, kept in ((DIRECTION_MAX - 1, ""), (DIRECTION_MAX, "(" + "x" * DIRECTION_MAX + ")")):
        for cuts in ((), range(1, length)):
            shown = heard("(" + "x" * length + ") ", Rules(), cuts)
            assert "".join(piece.text for piece in shown) == kept


def test_text_is_told_as_early_as_it_is_certain() -> None:
    """A reply without a label waits for its second word at most, and later text waits only after a sentence."""
    guard = Guard(Rules(), OWN, OTHERS)
    told = [("".join(p.text for p in guard.add(piece))) for piece in ("Good", " evening", " to you", ".", " I", " row")]
    assert told == ["", "Good evening", " to you", "", ". I", " row"]


def test_a_verdict_says_if_the_reply_was_cut_at_its_end_alone() -> None:
    """Then the beginning of what the model wrote is kept as it is; a label or a direction within it changes that."""
    assert guarded("I row. \n\nTilda: Ho", Rules(), OWN, OTHERS).begins
    assert guarded("  I row.", Rules(), OWN, OTHERS).begins
    assert not guarded("Bram: I row.", Rules(), OWN, OTHERS).begins
    assert not guarded("I row. *nods* Ho.", Rules(), OWN, OTHERS).begins
    other = guarded("Tilda: I row.", Rules(), OWN, OTHERS)
    assert other.empty and set(other.cut) == {Cut.ANOTHER}


def test_after_the_end_nothing_is_told() -> None:
    """Text that a model writes after its reply is over is cut for the same reason."""
    guard = Guard(Rules(sentences_max=1), OWN, OTHERS)
    assert [p.shown for p in guard.add("I row. And")] == [Shown.TOLD, Shown.SENTENCE]
    assert guard.stopped
    assert guard.add(" so on. <think>") == []
    assert guard.verdict().cut[Cut.SENTENCES] == len("And so on. <think>") + 1


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<think>\n\n</think>\n\n", False),
        ("assistant:", False),
        ("[THINK]", True),
    ],
)
def test_a_template_may_open_a_thought(text: str, inside: bool) -> None:
    """A text that ends within a thought is told from one that does not."""
    assert opens_a_thought(text) == inside
