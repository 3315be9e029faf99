"""`npcd policy check`, and the operator's policy in a running daemon."""

import json
from pathlib import Path

import pytest

from core.errors import ConfigError
from daemon.config import load
from daemon.main import main
from daemon.worlds.policy_file import load_policy
from npcd.v1 import npcs_pb2
from tests.daemon.rig import gated, running, world

ROOT = Path(__file__).resolve().parents[3]
OWN = """
[villager]
rows = [
  { event = "bell_rang", action = "idle", emotion = "calm", bark = "Hush." },
  { percept_stance = "hostile", action = "flee", emotion = "afraid" },
]
"""
WORLD = """
world_id = "vale"
lore = "A vale."
emotions = ["calm", "afraid"]
archetypes = [{ archetype_id = "villager", description = "Folk." }, { archetype_id = "ghoul", description = "Dead." }]
actions = [{ word = "idle" }, { word = "flee" }, { word = "attack", needs_target = true }]
"""


def check(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Runs it. Returns exit status, stdout and stderr."""
    status = main(["policy", "check", *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A designer's file."""
    file = tmp_path / "own.toml"
    file.write_text(OWN)
    return file


@pytest.fixture
def vale(tmp_path: Path) -> Path:
    """A world's file."""
    file = tmp_path / "vale.toml"
    file.write_text(WORLD)
    return file


def test_the_built_in_policy_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with a row for every archetype that always holds."""
    status, out, _ = check(capsys)
    assert status == 0
    last = out.splitlines()[-1].split()
    assert last[1:3] == ["everybody", "always"] and last[3:5] == ["idle,", "calm"]


def test_a_file_stands_over_the_built_in_one(capsys: pytest.CaptureFixture[str], own: Path) -> None:
    """Its sections replace those with the same name."""
    status, out, _ = check(capsys, own)
    assert status == 0
    villagers = [line for line in out.splitlines() if " villager " in line]
    assert len(villagers) == 2 and all(f"{own} [villager]" in line for line in villagers)
    assert 'idle, calm: "Hush."' in villagers[0]
    assert "built in [ghoul] row 2" in out


def test_for_a_world_it_is_the_table_that_register_answers(
    capsys: pytest.CaptureFixture[str], own: Path, vale: Path
) -> None:
    """It has the words and archetypes of the world."""
    status, out, _ = check(capsys, own, "--world", vale)
    assert status == 0
    assert "world 'vale'" in out.splitlines()[0]
    assert "zombie" not in out and "feed" not in out
    who = [line.split()[1] for line in out.splitlines()[1:5]]
    assert who == ["villager", "villager", "ghoul", "everybody"]


def test_words_that_the_world_does_not_have_are_found(
    capsys: pytest.CaptureFixture[str], own: Path, vale: Path
) -> None:
    """They are found in the given file, and in the world's own rows. Such rows of npcd's own policy are intended."""
    own.write_text(OWN.replace('action = "flee"', 'action = "fly"'))
    vale.write_text(WORLD + '[[policy]]\narchetype_id = "goul"\naction = "idle"\nemotion = "calm"\n')
    status, out, _ = check(capsys, own, "--world", vale)
    assert status == 1
    assert f"! {own} [villager] row 2: 'fly' is not an action of the world" in out
    assert "! world row 1: the world has no archetype 'goul'" in out
    assert "built in" not in out.partition("left out:")[2]


def test_a_worlds_own_sections(capsys: pytest.CaptureFixture[str], vale: Path) -> None:
    """The sections of a world, such as [policy.villager], come before npcd's own."""
    vale.write_text(WORLD + '[policy.ghoul]\nrows = [{ action = "idle", emotion = "calm", bark = "Gnh." }]\n')
    status, out, _ = check(capsys, "--world", vale)
    assert status == 0
    assert "ghoul" in out.splitlines()[1] and out.splitlines()[1].endswith("world row 1")


def test_sections_that_a_world_replaces_are_listed(capsys: pytest.CaptureFixture[str], own: Path, vale: Path) -> None:
    """Such a section of the file is listed as left out, without an error."""
    vale.write_text(WORLD + '[policy.villager]\nrows = [{ action = "idle", emotion = "calm" }]\n')
    status, out, _ = check(capsys, own, "--world", vale)
    assert status == 0
    assert f"left out:\n  {own} [villager] row 1: the world has rows of its own for 'villager'\n" in out


def test_json(capsys: pytest.CaptureFixture[str], own: Path, vale: Path) -> None:
    """--json prints the same for programs."""
    own.write_text(OWN.replace('action = "flee"', 'action = "fly"'))
    status, out, _ = check(capsys, own, "--world", vale, "--json")
    answer = json.loads(out)
    assert status == 1
    assert answer["rows"][0]["bark"] == "Hush." and answer["rows"][0]["from"] == f"{own} [villager] row 1"
    wrong = [row for row in answer["left_out"] if row["wrong"]]
    assert [row["from"] for row in wrong] == [f"{own} [villager] row 2"]


def test_the_demos_world_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    """Each of its rows uses its words."""
    status, _, _ = check(capsys, "--world", ROOT / "loadtests/scenes/demo.toml")
    assert status == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[villager]\nrows = [{ actoin = 'idle' }]", "own.toml: [villager] row 1: unknown key 'actoin'; did you mean"),
        ("[villager\n", "own.toml: "),
    ],
)
def test_a_wrong_file_ends_with_2(capsys: pytest.CaptureFixture[str], own: Path, text: str, said: str) -> None:
    """The error is one line."""
    own.write_text(text)
    status, out, err = check(capsys, own)
    assert (status, out) == (2, "") and said in err and err.startswith("npcd: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("world_id = 'w'", "archetypes is missing; a world has world_id, archetypes, actions and emotions"),
        (WORLD.replace('{ word = "idle" }', '"idle"'), '[[actions]] number 1 must be a table with word = "..."'),
        (WORLD.replace('["calm", "afraid"]', '"calm"'), 'emotions must be a list of words, such as ["calm", "afraid"]'),
        (WORLD + 'personas = "mira"', "personas must be a list of tables"),
        (WORLD.replace('{ word = "idle" }, { word = "flee" }, ', ""), "an action that does without a target"),
        (WORLD + "policy = 3", "policy must be [[policy]] rows, or sections like [policy.default]"),
        (WORLD + "[[policy]]\naction = 3", "[[policy]] number 1: action must be a word in quotes, not 3"),
        (WORLD + "policy = [3]", "[[policy]] number 1: must be a table"),
        (WORLD + "[policy.villager]\nrows = [{}]", "[villager] row 1: action is missing"),
    ],
)
def test_a_wrong_world_ends_with_2(capsys: pytest.CaptureFixture[str], vale: Path, text: str, said: str) -> None:
    """The error is one line that names the file."""
    vale.write_text(text)
    status, _, err = check(capsys, "--world", vale)
    assert status == 2 and said in err and str(vale) in err


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            'percept_stance = "hostil"',
            "percept_stance 'hostil' is never observed; there are hostile, friendly",
        ),
        ('time_of_day = "nite"', "time_of_day 'nite' is never observed; there are day, dusk, night"),
    ],
)
def test_a_condition_that_no_observation_meets_is_found(
    capsys: pytest.CaptureFixture[str], own: Path, vale: Path, row: str, said: str
) -> None:
    """It is found in the designer's file, alone and for a world, and in the world's own rows."""
    wrong = f'[villager]\nrows = [{{ {row}, action = "flee", emotion = "afraid" }}]\n'
    own.write_text(wrong)
    for arguments in ([own], [own, "--world", vale]):
        status, out, _ = check(capsys, *arguments)
        assert status == 1 and f"! {own} [villager] row 1: {said}" in out
    own.write_text(OWN)
    vale.write_text(WORLD + f'[[policy]]\n{row}\naction = "flee"\nemotion = "afraid"\n'.replace(", ", "\n"))
    status, out, _ = check(capsys, own, "--world", vale)
    assert status == 1 and f"! world row 1: {said}" in out


def test_a_section_whose_name_is_a_slip_is_found(capsys: pytest.CaptureFixture[str], own: Path, vale: Path) -> None:
    """A section of an archetype that the world does not have is left out silently, unless its name resembles one that
    the world has."""
    own.write_text(OWN.replace("[villager]", "[vilager]"))
    status, out, _ = check(capsys, own, "--world", vale)
    assert status == 1 and f"! {own} [vilager] row 1: the world has no archetype 'vilager'" in out
    own.write_text(OWN.replace("[villager]", "[vampire]"))
    assert check(capsys, own, "--world", vale)[0] == 0


def test_the_setting_is_checked_at_the_start(tmp_path: Path, own: Path) -> None:
    """A missing or faulty file is refused with the setting's name."""
    assert load(None, [f"worlds.policy_file={own}"], {}).worlds.policy_file == str(own)
    with pytest.raises(ConfigError, match=r"worlds\.policy_file: .*none\.toml: No such file"):
        load(None, [f"worlds.policy_file={tmp_path}/none.toml"], {})
    own.write_text("[villager]\nrows = 1\n")
    with pytest.raises(ConfigError, match=r"worlds\.policy_file: .*own\.toml: \[villager\]: rows must be"):
        load_policy(str(own))


async def test_register_answers_with_the_operators_rows_and_the_worlds_before_them(own: Path) -> None:
    """A world without rows has the file's. A world's own rows come first."""
    config = load(None, [f"worlds.policy_file={own}"], {"": ""})
    async with running(gated(), config) as rig:
        again = npcs_pb2.RegisterRequest(
            world_id="vale", npcs=[npcs_pb2.NpcSpec(npc_id="npc0", archetype_id="villager", persona_id="mira")]
        )
        rows = (await rig.daemon.calls.register("", again)).policy.rows
        assert [(r.archetype_id, r.event, r.bark) for r in rows[:2]] == [
            ("villager", "bell_rang", "Hush."),
            ("villager", "", ""),
        ]
        changed = world()
        changed.policy.rows.add(archetype_id="villager", action="idle", emotion="happy")
        await rig.daemon.calls.define_world("", changed)
        rows = (await rig.daemon.calls.register("", again)).policy.rows
        assert [(r.archetype_id, r.emotion) for r in rows if r.archetype_id] == [
            ("villager", "happy"),
            ("vampire", "afraid"),
        ]
        assert rows[-1].action == "idle" and not rows[-1].archetype_id
