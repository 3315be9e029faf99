"""`npcd migrate` and `npcd archive`, as an operator runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.pseudonym import pseudonym
from daemon.main import main
from daemon.process.datafolder import OWNER_URL
from memory.archive import ArchiveSettings, ArchiveWriter
from memory.records import START, Kind, Record, make_id
from tests.memory.postgres_fixture import Database, archive_database, empty_database, postgres

__all__ = ["archive_database", "empty_database", "postgres"]

KEY = b"key"
AT_MS = 1_780_000_000_000  # 2026-05-28 20:26:40 UTC
KAEL = pseudonym(KEY, "", "p-77")
CONVERSATION: list[tuple[Kind, str, dict[str, Any]]] = [
    (Kind.INTENT, "", {"action": "greet", "target": "p-77", "target_kind": "player", "emotion": "calm", "bark": "Ho!",
                       "source": "model", "version": 3, "tick": 9}),
    (Kind.TURN, "p-77", {"session": "s1", "turn_id": "1", "line": "I am Kael.\x1b[2J", "reply": "Well met,\nKael.",
                         "name": "Kael", "emotion": "calm", "facts": [["{player} is a smith.", 0.4]]}),
    (Kind.CARD, "p-77", {"relationship": {"trust": 0.25, "affinity": 0.0, "promises": ["Kael owes a coin"],
                                          "betrayals": []}}),
    (Kind.ENDED, "p-77", {"session": "s1"}),
    (Kind.SUMMARY, "p-77", {"session": "s1", "text": "{player} talked with Greta.", "by": "model", "facts": []}),
    (Kind.REMOVED, "", {"npcs": ["greta"]}),
]  # fmt: skip
TOLD = f"""\
-- greta in vale, timeline first
2026-05-28 20:26:40Z intent     greet {KAEL} "Ho!" [calm] by model
2026-05-28 20:26:41Z turn       Kael ({KAEL}): I am Kael.\N{REPLACEMENT CHARACTER}[2J
                                greta [calm]: Well met, Kael.
                                - Kael is a smith.
2026-05-28 20:26:42Z card       {KAEL}: trust 0.25, affinity 0, promises Kael owes a coin (relationship)
2026-05-28 20:26:43Z ended      {KAEL}: session s1 is over
2026-05-28 20:26:44Z summary    {KAEL}: the player talked with Greta. (by model)
2026-05-28 20:26:45Z removed    npcs greta
"""

Npcd = Callable[..., tuple[int, str, str]]


@pytest.fixture
def npcd(capsys: pytest.CaptureFixture[str]) -> Npcd:
    """Runs a command. Returns its exit status, its output and its errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def told(archive_database: Database) -> Database:
    """An archive with some events."""
    writer = ArchiveWriter(ArchiveSettings(archive_database.serving_url, op_s=60), KEY)
    writer.write(
        [
            Record(kind, AT_MS + 1000 * i, "", "vale", "greta", player, "first", body, make_id(AT_MS))
            for i, (kind, player, body) in enumerate(CONVERSATION)
        ],
        START,
    )
    writer.close()
    return archive_database


def test_migrate(npcd: Npcd, empty_database: Database) -> None:
    """The first run prints all that it made, and the second that there is nothing to do. Then the database serves."""
    superuser = empty_database.server.url(empty_database.name)
    status, out, err = npcd("migrate", "--postgres", superuser, "--months", "3")
    assert (status, err) == (0, "")
    assert "0001_events.sql is applied\n" in out and "5 months have partitions now" in out
    assert "npcd_serving may add events and forget players, and nothing else\n" in out
    assert npcd("migrate", "--postgres", superuser, "--months", "3") in (
        (0, "nothing to do\n", ""),
        (0, "no column embedding: the server has no pgvector; nothing needs it yet\n", ""),
    )
    ArchiveWriter(ArchiveSettings(empty_database.serving_url), KEY).connect()


def test_the_password_file(npcd: Npcd, archive_database: Database, tmp_path: Path) -> None:
    """The password comes from a file and is not printed. A file that is missing or empty is an error."""
    file, role = tmp_path / "password", f"npcd_{archive_database.name}"
    where = ("--postgres", archive_database.url)
    arguments = ("migrate", *where, "--serving-role", role, "--serving-password-file", str(file))
    status, out, err = npcd(*arguments)
    assert (status, out) == (2, "") and err == f"npcd: --serving-password-file {file}: No such file or directory\n"
    file.write_text("\n")
    assert npcd(*arguments)[2] == f"npcd: --serving-password-file {file}: is empty\n"
    file.write_text("s3cret\n")
    try:
        status, out, err = npcd(*arguments)
        assert status == 0 and f"role {role} is made, with a password\n" in out and "s3cret" not in out + err
    finally:
        archive_database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_show_prints_a_conversation(npcd: Npcd, told: Database) -> None:
    """Every line has its speaker and time, in order. Control characters in players' text are escaped."""
    assert npcd("archive", "show", "greta", "--postgres", told.url) == (0, TOLD, "")


def test_show_for_programs(npcd: Npcd, told: Database) -> None:
    """Each event is one line of JSON with all fields."""
    status, out, _ = npcd("archive", "show", "greta", "--postgres", told.url, "--json", "--limit", "5")
    events = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and [e["kind"] for e in events] == ["turn", "card", "ended", "summary", "removed"]
    assert events[0]["event_time"] == "2026-05-28T20:26:41+00:00" and events[0]["body"]["reply"] == "Well met,\nKael."
    assert events[0]["player"] == KAEL and len(events[0]["event_id"]) == 36


def test_show_nobody(npcd: Npcd, told: Database) -> None:
    """An NPC without events is no error."""
    assert npcd("archive", "show", "olaf", "--postgres", told.url) == (0, "no events of olaf\n", "")
    assert npcd("archive", "show", "olaf", "--postgres", told.url, "--json") == (0, "", "")
    assert npcd("archive", "show", "greta", "--world", "moor", "--postgres", told.url)[1] == "no events of greta\n"


def test_forget_and_compact(npcd: Npcd, told: Database) -> None:
    """forget takes the pseudonym that show prints. compact drops old months."""
    assert npcd("archive", "forget", KAEL, "--world", "vale", "--npc", "greta", "--postgres", told.url) == (
        *(0, "5 events deleted\n", ""),
    )
    out = npcd("archive", "show", "greta", "--postgres", told.url)[1]
    assert "Kael" not in out and f"forget     {KAEL} is forgotten, 5 events deleted\n" in out
    keep_all = ("archive", "compact", "--postgres", told.url, "--keep-months", "2000")
    assert npcd(*keep_all) == (0, "no month is that old\n", "")


@pytest.mark.parametrize(
    "player", ["kim", "p-77", "", "0123456789abcde", "0123456789abcdefa", "0123456789abcdeg", " " * 16]
)
def test_forget_takes_pseudonyms_alone(npcd: Npcd, told: Database, player: str) -> None:
    """Another word is refused in one line that says where the pseudonym is printed. The archive does not change."""
    before = told.execute("SELECT count(*) FROM events")
    status, out, err = npcd("archive", "forget", player, "--world", "vale", "--postgres", told.url)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "16 hex digits" in err and "npcd archive show NPC" in err
    assert told.execute("SELECT count(*) FROM events") == before


def test_a_forget_that_finds_nothing_says_so(npcd: Npcd, told: Database) -> None:
    """That holds for a pseudonym of nobody, and for an NPC that the player never met. Capital hex digits are
    accepted."""
    where = ("--world", "vale", "--postgres", told.url)
    status, out, err = npcd("archive", "forget", "0123456789abcdef", *where)
    assert (status, err) == (0, "") and out.startswith("nothing deleted: no events of 0123456789abcdef in vale; ")
    out = npcd("archive", "forget", KAEL, "--npc", "olaf", *where)[1]
    assert out.startswith(f"nothing deleted: no events of {KAEL} with olaf in vale; ")
    assert npcd("archive", "forget", KAEL.upper(), *where) == (0, "5 events deleted\n", "")


@pytest.mark.parametrize("place", [("--world", "moor"), ("--world", "vale", "--tenant", "studio"), ("--world", "")])
def test_a_forget_in_a_world_that_is_unknown_fails(npcd: Npcd, told: Database, place: tuple[str, ...]) -> None:
    """It fails the second time as well, because it leaves no row that would make the world known. A world is known to
    its tenant only."""
    for _ in range(2):
        status, out, err = npcd("archive", "forget", KAEL, *place, "--postgres", told.url)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert "the archive has no events of a world" in err and repr(place[1]) in err
    assert told.execute("SELECT count(*) FROM events") == [(len(CONVERSATION),)]


@pytest.mark.parametrize("command", [("migrate",), ("archive", "show", "greta")])
def test_an_error_is_one_line(npcd: Npcd, archive_database: Database, command: tuple[str, ...]) -> None:
    """A server that is down gives status 1, an invalid URL status 2. The line has no password, and names the remedy."""
    away = archive_database.server.url("none", "owner", "s3cret").replace("npcd-pg-", "npcd-none-")
    status, out, err = npcd(*command, "--postgres", away)
    assert (status, out) == (1, "") and err.startswith("npcd: PostgreSQL: ") and err.count("\n") == 1
    assert "s3cret" not in err
    status, out, err = npcd(*command, "--postgres", "postgresql://u:s3cret%zz@h/d")
    assert (status, out) == (2, "") and err.startswith("npcd: --postgres: must be like") and "s3cret" not in err


def test_options_that_are_left_out(npcd: Npcd, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without --url the command uses the URL of a running npcd's own PostgreSQL, or fails with an error that says so.
    It does not guess a number of months."""
    for command in (("migrate",), ("archive", "show", "greta")):
        status, out, err = npcd(*command, "--data", str(tmp_path))
        assert (status, out) == (2, "") and err.startswith("npcd: --postgres: give a URL, or with --data")
    with pytest.raises(SystemExit) as ended:
        npcd("archive", "compact", "--postgres", "x")
    assert ended.value.code == 2
    assert "required" in capsys.readouterr().err


def test_a_running_npcds_own_postgresql_is_found(npcd: Npcd, archive_database: Database, tmp_path: Path) -> None:
    """It is found by the data folder, where PostgreSQL's owner has its URL."""
    (tmp_path / OWNER_URL).write_text(archive_database.url)
    assert npcd("archive", "show", "greta", "--data", str(tmp_path))[:2] == (0, "no events of greta\n")
