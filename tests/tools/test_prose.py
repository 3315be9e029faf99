"""tools.prose finds the sentences that open with a bare clause, and nothing else."""

from pathlib import Path

import pytest

from tools import prose

# Sentences that our guide to style refuses, and its own instead of them.
ROWS = [
    (
        "What does not fit is refused with a number that does.",
        "If the model's KV does not fit, npcd refuses to start and prints the largest `engine.sequences` that fits.",
    ),
    ("Who had to leave RAM, as vacate().", "Returns the trunks that were evicted from RAM."),
    ("Whether it serves yet says /readyz", "`/readyz` returns 200 once the model is warm."),
    ("Out of sight counts as half as far again", "A player who is out of sight counts as 1.5 times farther away."),
]


def found(text: str) -> list[str]:
    """The sentences that are refused in a page of Markdown."""
    return [fault.sentence for piece in prose.markdown(text) for fault in prose.faults(piece)]


@pytest.mark.parametrize(("instead_of", "write"), ROWS)
def test_the_table_of_the_guide(instead_of: str, write: str) -> None:
    """Each sentence that the guide refuses is found, and the sentence that it recommends is not."""
    assert found(instead_of) == [instead_of]
    assert found(write) == []


@pytest.mark.parametrize(
    "sentence",
    [
        "Whoever asks waits.",
        "whatever it says stays.",
        "That the model is late is counted.",
        "That npcd waits is a bug.",
        "Which rule closed it is counted.",
        "**What** is new is marked.",
        "`x` stays; what is in it goes.",
        "Two laws: What is free is not leased.",
        "- an item\n- who waits is told",
        "| a | b |\n|---|---|\n| x | what it costs |",
        "> What is quoted counts.",
    ],
)
def test_a_bare_clause_is_found(sentence: str) -> None:
    """A clause at the beginning of a sentence is found: in running text, in lists, in cells and in quotations."""
    assert len(found(sentence)) == 1


@pytest.mark.parametrize(
    "sentence",
    [
        "Who goes there?",
        "*What is it?*",
        "What is a lane? A sequence.",
        "That is so. That file holds it. That works.",
        "This says what it costs: who asks, and when.",
        "When it is late, the policy answers. Where it is missing, nothing happens.",
        "What's new stays.",
        "# What it is",
        "| what | who |\n|---|---|\n| x | y |",
        "```\nwho asks\n```",
        "text\n\n    what a program prints\n",
        "> — Are you real? *What a thing to say.*  \n> — Why? *Whoever asks pays.*",
    ],
)
def test_other_sentences_are_not_found(sentence: str) -> None:
    """Questions, demonstratives, titles, code and speech are not found, and neither are clauses inside a sentence."""
    assert found(sentence) == []


def test_a_sentence_is_named_by_the_line_on_which_it_opens() -> None:
    """The line is that of the sentence, not of its paragraph; the sentence is printed on one line."""
    text = "One line is good. And\nso is this. What is\nbad is here."
    assert [fault for piece in prose.markdown(text) for fault in prose.faults(piece)] == [(2, "What is bad is here.")]


PYTHON = '''"""What a module does."""

# What a comment says goes on
# in its next line.
x = 1  # whose number it is


def f() -> str:
    """Good. Whether it is so."""
    assert x, "who made it one"
    return f"what {x} costs" + "who are" + "what"
'''


def test_python_is_read_where_people_read_it() -> None:
    """Docstrings, comments and strings of three words are read; of tests' strings only the messages of assertions."""
    lines = [fault.line for piece in prose.python(PYTHON) for fault in prose.faults(piece)]
    assert sorted(lines) == [1, 3, 5, 9, 10, 11]
    of_a_test = [fault.line for piece in prose.python(PYTHON, strings=False) for fault in prose.faults(piece)]
    assert sorted(of_a_test) == [1, 3, 5, 9, 10]


@pytest.mark.parametrize(
    ("mark", "text"),
    [
        ("//", "message A {\n  // Who asks.\n  int32 a = 1;  // what it\n}"),
        ("#", 'a = "#b"  # what it is\n# Who asks.'),
        ("--", "select 1; -- what it is\n-- Who asks."),
    ],
)
def test_comments_of_other_languages_are_read(mark: str, text: str) -> None:
    """A comment on a line of its own and one after code are paragraphs of their own."""
    assert len([fault for piece in prose.comments(text, mark) for fault in prose.faults(piece)]) == 2


def test_generated_code_and_what_players_say_are_not_read(tmp_path: Path) -> None:
    """Of a tree all kinds of files are read but generated ones, data of models and scenes, and hidden folders beside
    .ci."""
    for name in ("npcd/v1/a.py", "models/corpus/a.py", ".venv/a.py", "core/a.py", ".ci/run", "a.png", "core/a.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# What\n")
    assert [str(path.relative_to(tmp_path)) for path in prose.files(tmp_path)] == [".ci/run", "core/a.md", "core/a.py"]


def test_it_exits_with_one_when_there_is_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints file:line: sentence and exits 1; for a tree without a finding it prints nothing and exits
    0."""
    (tmp_path / "a.md").write_text("All is\nwell.\n")
    assert prose.main([], tmp_path) == 0
    assert capsys.readouterr().out == ""
    (tmp_path / "b.md").write_text("All is well.\nWhat is here\nis bad.\n")
    assert prose.main([], tmp_path) == 1
    assert capsys.readouterr().out == "b.md:2: What is here is bad.\n"
    assert prose.main([str(tmp_path / "a.md")], tmp_path) == 0
