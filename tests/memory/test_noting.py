"""Facts and names are noted as people type them: with any apostrophe or none, with capitals or without, in any
script."""

import pytest

from memory.bond import Exchange
from memory.noting import PLAYER, believed, covered, facts_of, name_of


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("My name is Corvessa.", "Corvessa"),
        ("my name is corvessa", "Corvessa"),
        ("my name is corvessa hale", "Corvessa Hale"),
        ("my name is corvessa and i come from riverwood", "Corvessa"),
        ("MY NAME IS CORVESSA!", "Corvessa"),
        ("Hi, my name's corvessa.", "Corvessa"),
        ("my name’s Corvessa Hale, and yours?", "Corvessa Hale"),
        ("I’m called Åsa", "Åsa"),
        ("i'm called åsa", "Åsa"),
        ("im called åsa", "Åsa"),
        ("My name is Åsa.", "Åsa"),
        ("My name is A\u030asa.", "A\u030asa"),
        ("My name is Élodie Dubois.", "Élodie Dubois"),
        ("my name is josé maría", "José María"),
        ("They call me Þór.", "Þór"),
        ("call me D’Artagnan!", "D’Artagnan"),
        ("Call me Jean-Luc.", "Jean-Luc"),
        ("My name is Ян Ким.", "Ян Ким"),
        ("my name is дарья", "Дарья"),
        ("My name is Ἀλέξανδρος", "Ἀλέξανδρος"),
        ("My name is 山田　太郎。", "山田　太郎"),
        ("My name is 李.", "李"),
        ("My name is 김민준, nice to meet you", "김민준"),
        ("My name is علی\u200cرضا.", "علی\u200cرضا"),
        ("My name is שרה", "שרה"),
        ("my name is प्रिया and i am new here", "प्रिया"),
        ("Call me the day after. My name is Corvessa.", "Corvessa"),
        ("They call me Old Tom.", "Old Tom"),
    ],
)
def test_a_name_is_noted_as_it_is_told(line: str, name: str) -> None:
    """A name is noted in the script in which it is told. A name without capitals gets them."""
    assert name_of(line) == name


@pytest.mark.parametrize(
    "line",
    [
        "What is my name?",
        "my name is not important",
        "my name is my own business",
        "Call me later.",
        "call me a fool",
        "call me crazy",
        "I am called away.",
        "they call me names",
        "My name is I forgot",
        "My name is 42",
        "my name is …",
        "MY NAME IS NOT IMPORTANT",
        f"My name is {'x' * 65}",
        "Nameless is my horse.",
    ],
)
def test_words_that_are_no_names_are_not_noted(line: str) -> None:
    """Usual words after the same beginnings are no names."""
    assert name_of(line) == ""


@pytest.mark.parametrize("mark", ["'", "’", "‘", "ʼ", "′", "＇", "´", "`", "‛"])
@pytest.mark.parametrize(
    ("line", "fact"),
    [
        ("I'm from Riverwood.", "comes from Riverwood."),
        ("I've lost my ring near the ferry.", "lost the ring near the ferry."),
        ("I'm looking for the old crown.", "seeks the old crown."),
        ("My sister's name is Anna.", "{}'s sister is Anna."),
        ("I'll pay you ten coins.", "owes Mira ten coins."),
        ("I'm a smith's daughter.", "is a smith's daughter."),
    ],
)
def test_every_apostrophe_is_one(mark: str, line: str, fact: str) -> None:
    """Every kind of apostrophe gives the same fact, with the plain one in it."""
    expected = fact.replace("{}", PLAYER) if "{}" in fact else f"{PLAYER} {fact}"
    assert [text for text, _ in facts_of(line.replace("'", mark), "Mira")] == [expected]


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        ("im from riverwood", "comes from riverwood."),
        ("ive lost my lantern", "lost the lantern."),
        ("I come from Århus.", "comes from Århus."),
        ("I come from 東京。", "comes from 東京."),
        ("I come from ایران\u200cشهر.", "comes from ایران\u200cشهر."),
        ("I seek the प्रिया lamp.", "seeks the प्रिया lamp."),
        ("I\u00a0am from Riverwood.", "comes from Riverwood."),
        ("I was robbed at the Öresund!", "was robbed at the Öresund."),
    ],
)
def test_facts_are_noted_in_every_spelling_and_script(line: str, fact: str) -> None:
    """Words are the text between spaces and punctuation."""
    assert [text for text, _ in facts_of(line, "Mira")] == [f"{PLAYER} {fact}"]


@pytest.mark.parametrize("mark", ["?", "？", "؟", "\u037e"])
def test_a_question_is_no_fact(mark: str) -> None:
    """A question with any ending is no fact."""
    assert facts_of(f"I am from Riverwood{mark}", "Mira") == []


def test_a_summary_is_borne_out_whatever_its_apostrophes() -> None:
    """The player may use one apostrophe and the model another; the summary and an existing fact still match."""
    heard = [Exchange("", "I lost my sister’s lantern.", "Oh.")]
    assert believed("The player's brother's dragon was slain.", heard, ("Mira", "player")) == ""
    assert believed("The player's sister's lantern was lost.", heard, ("Mira", "player"))
    assert covered("The sister’s lantern.", ["The player lost the sister's lantern."])
