"""Sections become one flat table: the world's rows first, then archetypes', then everybody's. The table always has an
answer.
"""

import random
import tomllib

import pytest

from core.errors import ConfigError
from core.observation import Observation
from tiers.policy import PolicyRow, evaluate
from tiers.policy_table import ROWS_MAX, Sections, WorldWords, compile_table, described, read_sections, whole, why_not

WORDS = WorldWords(
    archetypes=["villager", "zombie"],
    actions=["attack", "idle", "flee", "work"],
    targeted=["attack"],
    emotions=["calm", "afraid"],
)
FILE = """
[default]
rows = [
  { event = "attacked", action = "flee", emotion = "afraid" },
  { action = "idle", emotion = "calm" },
]
[villager]
rows = [{ time_of_day = "day", action = "work", emotion = "calm" }]
[zombie]
rows = [{ percept_stance = "hostile", distance_max_m = 8, action = "attack", emotion = "calm", bark = "Ugh." }]
"""


def sections(text: str = FILE) -> Sections:
    """The sections of a TOML text."""
    return read_sections(tomllib.loads(text), "p.toml")


def test_archetypes_come_before_everybody_wherever_they_stand() -> None:
    """Each row belongs to its section's archetype."""
    rows = whole(sections())
    assert [(r.archetype_id, r.action) for r in rows] == [
        ("villager", "work"),
        ("zombie", "attack"),
        ("", "flee"),
        ("", "idle"),
    ]
    assert rows[1] == PolicyRow("zombie", "", "hostile", 8.0, action="attack", emotion="calm", bark="Ugh.")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rows = []", "p.toml: 'rows' stands outside a section; write [archetype] or [default] above it"),
        ("[a]\nrow = []", "p.toml: [a]: unknown key 'row'; a section has rows = [...]"),
        ("[a]\nrows = 3", "p.toml: [a]: rows must be a list of tables"),
        ("[a]\nrows = [3]", "p.toml: [a] row 1: 3 must be a table"),
        ("[a.b]\nrows = []", "p.toml: [a]: unknown key 'b'"),
        ("[a]\nrows = [{}]", "p.toml: [a] row 1: action is missing"),
        ("[a]\nrows = [{action='idle'}]", "p.toml: [a] row 1: emotion is missing"),
        ("[a]\nrows = [{action='idle', emotion='calm'}, {action='', emotion='calm'}]", "[a] row 2: action is missing"),
        ("[a]\nrows = [{archetype_id='a'}]", "[a] row 1: archetype_id is said by the section's name; leave it out"),
        ("[a]\nrows = [{distnace_max_m=3}]", "[a] row 1: unknown key 'distnace_max_m'; did you mean 'distance_max_m'?"),
        ("[a]\nrows = [{zzz=3}]", "[a] row 1: unknown key 'zzz'; there are: percept_kind, percept_stance"),
        ("[a]\nrows = [{event=3}]", "[a] row 1: event must be a word in quotes, not 3"),
        ("[a]\nrows = [{health_max='low'}]", "[a] row 1: health_max must be a number, 0 to 1, not 'low'"),
        ("[a]\nrows = [{health_max=1.5}]", "[a] row 1: health_max must be a number, 0 to 1, not 1.5"),
        ("[a]\nrows = [{health_max=true}]", "[a] row 1: health_max must be a number, 0 to 1, not True"),
        ("[a]\nrows = [{distance_max_m=-1}]", "[a] row 1: distance_max_m must be a number, 0 or more, not -1"),
        ("[a]\nrows = [{distance_max_m=inf}]", "[a] row 1: distance_max_m must be a number, 0 or more, not inf"),
        ("[a]\nrows = [{distance_max_m=nan}]", "[a] row 1: distance_max_m must be a number, 0 or more, not nan"),
    ],
)
def test_an_error_is_named_with_file_section_and_row(text: str, said: str) -> None:
    """The error gives the allowed values, too."""
    with pytest.raises(ConfigError) as caught:
        sections(text)
    assert said in str(caught.value)


def test_a_file_has_a_bound() -> None:
    """A file with too many rows is refused, because each late intent reads them all."""
    row = "{action='idle', emotion='calm'},"
    sections(f"[a]\nrows = [{row * ROWS_MAX}]")
    with pytest.raises(ConfigError, match=f"{ROWS_MAX + 1} rows, the limit is {ROWS_MAX}"):
        sections(f"[a]\nrows = [{row * ROWS_MAX}]\n[default]\nrows = [{row}]")


def test_a_world_without_rows_has_the_files() -> None:
    """A world without rows has the file's rows, as far as it has their words."""
    table = compile_table([], sections(), WORDS)
    assert table.rows == whole(sections())
    assert table.places == [
        "p.toml [villager] row 1",
        "p.toml [zombie] row 1",
        *(f"p.toml [default] row {n}" for n in (1, 2)),
    ]
    assert not table.left_out
    few = WorldWords(["villager"], ["idle", "work"], [], ["calm"])
    table = compile_table([], sections(), few)
    assert [r.action for r in table.rows] == ["work", "idle"]
    assert [(x.place, x.reason, x.unknown_words) for x in table.left_out] == [
        ("p.toml [zombie] row 1", "the world has no archetype 'zombie'", False),
        ("p.toml [default] row 1", "'flee' is not an action of the world", True),
    ]


def test_a_worlds_rows_take_the_place_of_their_archetypes_section() -> None:
    """The world's rows for an archetype replace that archetype's section of the file; the file's other rows stay."""
    own = [PolicyRow("villager", event="bell_rang", action="work", emotion="calm")]
    table = compile_table(own, sections(), WORDS)
    assert table.places == [
        "world row 1",
        "p.toml [zombie] row 1",
        "p.toml [default] row 1",
        "p.toml [default] row 2",
    ]
    assert [x.reason for x in table.left_out] == ["the world has rows of its own for 'villager'"]


def test_a_worlds_rows_for_everybody_come_before_the_files_archetypes() -> None:
    """A world's rows for every archetype come before all rows of the file."""
    own = [PolicyRow(event="attacked", action="idle", emotion="calm")]
    table = compile_table(own, sections(), WORDS)
    assert table.rows[0] == own[0] and len(table.rows) == 5


def test_a_whole_table_of_a_world_is_all_there_is() -> None:
    """If the world's last row always holds, no row of the file is reached."""
    own = [PolicyRow("zombie", action="flee", emotion="calm"), PolicyRow(action="idle", emotion="calm")]
    table = compile_table(own, sections(), WORDS)
    assert table.rows == own
    assert table.left_out[0].reason == "never reached, world row 2 holds always"


def test_rows_that_cannot_be_reached_are_left_out() -> None:
    """Rows behind one of the same archetype that always holds are left out."""
    own = [
        PolicyRow("zombie", action="flee", emotion="calm", bark="Ugh."),
        PolicyRow("zombie", event="attacked", action="idle", emotion="calm"),
    ]
    table = compile_table(own, sections(), WORDS)
    assert table.rows[0] == own[0] and own[1] not in table.rows
    assert table.left_out[0] == ("world row 2", "never reached, world row 1 holds always", False)
    assert table.rows[-1] == PolicyRow(action="idle", emotion="calm")


def test_there_is_always_an_answer() -> None:
    """If no row always holds, the world's first action without a target is the answer."""
    table = compile_table([], {}, WORDS)
    assert table.rows == [PolicyRow(action="idle", emotion="calm")]
    assert table.places == ["so that some row holds"]
    closed = [PolicyRow("villager", action="work", emotion="calm")]
    assert compile_table(closed, {}, WORDS).rows == [*closed, PolicyRow(action="idle", emotion="calm")]


@pytest.mark.parametrize("seed", range(10))
def test_leaving_out_changes_no_answer(seed: int) -> None:
    """In random tables every observation gets the answer that the table with all rows gives."""
    rng = random.Random(seed)

    def rows(archetypes: list[str], count: int) -> list[PolicyRow]:
        return [
            PolicyRow(
                rng.choice(archetypes),
                event=rng.choice(["", "attacked"]),
                time_of_day=rng.choice(["", "", "day"]),
                action=rng.choice(["idle", "flee", "work"]),
                emotion=rng.choice(["calm", "afraid"]),
            )
            for _ in range(count)
        ]

    for _ in range(200):
        own = rows(["", "villager", "zombie"], rng.randint(0, 4))
        text = ""
        for name in ("villager", "zombie", "default"):
            said = [f"{{event='{r.event}', time_of_day='{r.time_of_day}', action='{r.action}', emotion='{r.emotion}'}}"
                    for r in rows([""], rng.randint(0, 3))]  # fmt: skip
            text += f"[{name}]\nrows = [{', '.join(said)}]\n"
        below = sections(text)
        table = compile_table(own, below, WORDS).rows
        has = {r.archetype_id for r in own if r.archetype_id}
        all_rows = [
            *own,
            *(r for r in whole(below) if r.archetype_id not in has),
            PolicyRow(action="idle", emotion="calm"),
        ]
        for archetype_id in ("villager", "zombie", "ghoul"):
            for events in ((), ("attacked",)):
                for time_of_day in ("day", "night"):
                    seen = Observation(1, events=events, time_of_day=time_of_day)
                    answer = evaluate(table, archetype_id, seen)
                    assert answer is not None and answer == evaluate(all_rows, archetype_id, seen)


def test_why_a_world_cannot_have_a_row() -> None:
    """The error names the row's action, its emotion, or the percept that its action needs."""
    assert why_not(PolicyRow(action="fly", emotion="calm"), WORDS) == ("action", "'fly' is not an action of the world")
    assert why_not(PolicyRow(action="idle", emotion="bored"), WORDS)[0] == "emotion"
    attack = PolicyRow(action="attack", emotion="calm")
    assert why_not(attack, WORDS) == ("", "'attack' needs a target and the row names no percept")
    assert why_not(PolicyRow(percept_stance="hostile", action="attack", emotion="calm"), WORDS) == ("", "")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (PolicyRow(), "always"),
        (PolicyRow(percept_stance="hostile", distance_max_m=8.0), "sees anything hostile within 8 m"),
        (PolicyRow(percept_kind="player", percept_stance="friendly"), "sees friendly player"),
        (PolicyRow(distance_max_m=2.5), "sees anything within 2.5 m"),
        (
            PolicyRow(event="attacked", health_max=0.3, time_of_day="night"),
            "event attacked, health at most 0.3, at night",
        ),
    ],
)
def test_a_row_in_words(row: PolicyRow, said: str) -> None:
    """`npcd policy check` prints a row in words."""
    assert described(row) == said
