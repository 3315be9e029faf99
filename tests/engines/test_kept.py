"""Results of a start are kept for the next one, and used only where they still hold."""

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.config import SHIPPED_MODEL
from engines.kept import FILES_MAX, Kept, chosen_before, hash_of, keep_choice, tuning_of
from engines.llama import LlamaSettings
from engines.machine import machine_says
from engines.model_file import ModelFile, look
from engines.tune import candidates

AUTO = LlamaSettings(SHIPPED_MODEL)
AMONG = candidates(AUTO, cores=2)
ABOUT = tuning_of(AUTO, "a" * 64, "a machine", ("1.0", "0.3"))


def test_a_choice_is_found_again_for_the_same_model_machine_and_versions(tmp_path: Path) -> None:
    """The chosen candidate is given with everything else as it is now, such as the number of sequences."""
    kept = Kept(tmp_path / "start")
    assert chosen_before(kept, ABOUT, AMONG) is None
    for chosen in (AMONG[-1], AMONG[1]):
        keep_choice(kept, ABOUT, chosen)
        assert chosen_before(Kept(tmp_path / "start"), ABOUT, AMONG) == chosen
    wider = [replace(one, sequences=99) for one in AMONG]
    assert chosen_before(kept, ABOUT, wider) == wider[1]
    assert not kept.troubles


@pytest.mark.parametrize(
    "other",
    [
        tuning_of(AUTO, "b" * 64, "a machine", ("1.0", "0.3")),
        tuning_of(AUTO, "a" * 64, "another machine", ("1.0", "0.3")),
        tuning_of(AUTO, "a" * 64, "a machine", ("1.1", "0.3")),
        tuning_of(AUTO, "a" * 64, "a machine", ("1.0", "0.4")),
        tuning_of(replace(AUTO, kv_type="q8_0"), "a" * 64, "a machine", ("1.0", "0.3")),
        tuning_of(replace(AUTO, threads=2), "a" * 64, "a machine", ("1.0", "0.3")),
    ],
    ids=["model", "machine", "npcd", "llama", "kv type", "threads"],
)
def test_a_choice_for_something_else_is_ignored(other: dict[str, object], tmp_path: Path) -> None:
    """Also where it lies in the other's file."""
    kept = Kept(tmp_path)
    keep_choice(kept, ABOUT, AMONG[1])
    assert chosen_before(kept, other, AMONG) is None
    keep_choice(kept, other, AMONG[2])
    (mine, theirs) = sorted(tmp_path.iterdir(), key=lambda file: json.loads(file.read_text())["about"] == other)
    theirs.write_bytes(mine.read_bytes())
    assert chosen_before(kept, other, AMONG) is None
    assert chosen_before(kept, ABOUT, AMONG) == AMONG[1]


def test_a_choice_that_is_no_candidate_any_more_is_ignored(tmp_path: Path) -> None:
    """A value that nobody would choose now does not come in by the file."""
    kept = Kept(tmp_path)
    keep_choice(kept, ABOUT, replace(AMONG[0], threads=512))
    assert chosen_before(kept, ABOUT, AMONG) is None


@pytest.mark.parametrize("length", [0, 1, 40, -2])
def test_a_torn_file_is_ignored_and_said(length: int, tmp_path: Path) -> None:
    """The next choice replaces it."""
    kept = Kept(tmp_path)
    keep_choice(kept, ABOUT, AMONG[1])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:length])
    assert chosen_before(kept, ABOUT, AMONG) is None
    assert [str(file) in said and "damaged" in said for said in kept.troubles] == [True]
    keep_choice(kept, ABOUT, AMONG[2])
    assert chosen_before(kept, ABOUT, AMONG) == AMONG[2]


@pytest.mark.parametrize("text", ["[]", "{}", "7", '{"format": 1, "about": {}, "values": 3}'])
def test_a_file_of_another_form_is_ignored(text: str, tmp_path: Path) -> None:
    """It is as if it were not there."""
    kept = Kept(tmp_path)
    keep_choice(kept, ABOUT, AMONG[1])
    (file,) = tmp_path.iterdir()
    file.write_text(text)
    assert chosen_before(kept, ABOUT, AMONG) is None


def test_where_nothing_can_be_written_nothing_is_kept_and_the_reason_is_said(tmp_path: Path) -> None:
    """A file stands where the folder should be; and without a data folder there is nothing to say."""
    (tmp_path / "start").write_text("no folder")
    kept = Kept(tmp_path / "start")
    keep_choice(kept, ABOUT, AMONG[1])
    assert chosen_before(kept, ABOUT, AMONG) is None and kept.troubles
    nowhere = Kept(None)
    keep_choice(nowhere, ABOUT, AMONG[1])
    assert chosen_before(nowhere, ABOUT, AMONG) is None and not nowhere.troubles


def test_on_a_full_disk_the_earlier_choice_stays(small_disk: Path) -> None:
    """A file is replaced in one step, or not at all."""
    kept = Kept(small_disk)
    keep_choice(kept, ABOUT, AMONG[1])
    filler = os.open(small_disk / "filler", os.O_CREAT | os.O_WRONLY)
    with contextlib.suppress(OSError):
        while os.write(filler, bytes(4096)):
            pass
    os.close(filler)
    keep_choice(kept, ABOUT, AMONG[2])
    assert kept.troubles and chosen_before(Kept(small_disk), ABOUT, AMONG) == AMONG[1]


def test_the_folder_is_bounded(tmp_path: Path) -> None:
    """The files that were written last stay."""
    kept = Kept(tmp_path)
    for number in range(FILES_MAX + 3):
        kept.put({"what": "test", "number": number}, {"is": number})
        os.utime(next(file for file in tmp_path.glob("*") if f'"is": {number}' in file.read_text()), (number, number))
    assert len(list(tmp_path.iterdir())) == FILES_MAX
    assert kept.get({"what": "test", "number": FILES_MAX + 2}) == {"is": FILES_MAX + 2}


def test_a_file_is_read_for_its_hash_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that leaves the size as it is, and sets the time back, is noticed."""
    path, kept = tmp_path / "m.gguf", Kept(tmp_path / "start")
    path.write_bytes(SHIPPED_MODEL.read_bytes())
    read: list[Path] = []
    whole = ModelFile.sha256

    def reading(self: ModelFile) -> str:
        read.append(self.parts[0])
        return whole(self)

    monkeypatch.setattr(ModelFile, "sha256", reading)
    first = hash_of(look(path), kept)
    assert hash_of(look(path), kept) == first == look(SHIPPED_MODEL).sha256()
    assert read.count(path) == 1
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hash_of(look(path), kept) not in ("", first)
    assert read.count(path) == 2


def test_the_machine_is_said_in_one_line(tmp_path: Path) -> None:
    """Its processors, its cores and its memory. A file that cannot be read leaves its part unknown."""
    cpuinfo, meminfo = tmp_path / "cpuinfo", tmp_path / "meminfo"
    assert "unknown processor" in machine_says(cpuinfo, meminfo) and "unknown memory" in machine_says(cpuinfo, meminfo)
    cpuinfo.write_text("processor : 0\nmodel name\t: Some CPU @ 2GHz\nprocessor : 1\nmodel name\t: Some CPU @ 2GHz\n")
    meminfo.write_text("MemTotal:       16000000 kB\nMemFree: 3 kB\n")
    said = machine_says(cpuinfo, meminfo)
    assert said.startswith("Some CPU @ 2GHz; ") and said.endswith("cores; 16000000 kB")
