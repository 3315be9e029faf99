"""A standard error that takes no bytes costs log lines, which are counted. It delays no thread and kills no process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from daemon.process.log_lines import LogLines, say
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[3]
NPCD = [sys.executable, "-m", "npcd"]


def full_pipe() -> tuple[int, int]:
    """A full pipe."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    return reading, writing


def test_a_pipe_that_nobody_reads_costs_lines_and_a_line_tells_of_them_when_somebody_reads() -> None:
    """The writer goes on at once. Lines that did not fit into the queue are counted and reported once."""
    reading, writing = full_pipe()
    told, news = threading.Event(), []

    def on_flow(lost: int) -> None:
        news.append(lost)
        told.set()

    lines = LogLines(on_flow, writing, lines_max=10)
    for number in range(200):
        lines.write(f"line {number}\n")
    assert lines.lost == 190
    assert not say("now or never", writing)
    with os.fdopen(reading, "rb") as reader:
        seen = b""
        while b"line 9\n" not in seen:
            seen += reader.read1(65536)
        assert told.wait(PATIENCE_S)
        lines.write("after\n")
        while b"after\n" not in seen:
            seen += reader.read1(65536)
        lines.end()
    assert sum(news) == 190 == lines.lost
    assert b"line 10\n" not in seen
    os.close(writing)


@pytest.mark.parametrize("how", ["no reader", "closed", "full disk"])
def test_lines_that_cannot_be_written_are_counted(how: str) -> None:
    """That holds for a pipe whose reader has gone, a closed descriptor, and a device without room."""
    if how == "full disk":
        fd = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, fd = os.pipe()
        os.close(reading)
    lines = LogLines(lambda lost: None, fd)
    if how == "closed":
        os.close(fd)
    for _ in range(5):
        lines.write("half a line, ")
        lines.write("and the rest\n")
    lines.end()
    assert lines.lost == 5
    assert not say("nor this", fd)


def test_the_end_does_not_wait_for_a_reader_that_does_not_read() -> None:
    """Unread lines end with the process."""
    code = (
        "import os, sys; from daemon.process.log_lines import LogLines, never_block; never_block()\n"
        "lines = LogLines(lambda lost: None); [lines.write('x' * 1000 + '\\n') for _ in range(500)]\n"
        "os.write(1, b'handed over'); lines.end(0.1)"
    )
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=writing)
    assert process.wait(PATIENCE_S) == 0
    assert process.communicate()[0] == b"handed over"
    os.close(writing)
    os.close(reading)


def test_native_code_does_not_wait_for_a_reader_and_others_of_the_pipe_are_left_as_they_were() -> None:
    """never_block() gives the process a description of its own of the pipe."""
    reading, writing = full_pipe()
    code = (
        "import ctypes; from daemon.process.log_lines import never_block; never_block(); "
        "ctypes.CDLL(None).perror(b'native')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=writing, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0
    assert os.get_blocking(writing)
    os.close(reading)
    os.close(writing)


def test_a_closed_standard_error_is_not_the_next_file_that_is_opened() -> None:
    """Otherwise native code would write its errors into the journal."""
    code = (
        "from daemon.process.log_lines import open_standard; open_standard(); print(open('/etc/hostname').fileno() > 2)"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" 2>&- 0<&-', sys.executable, code],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "True\n"


def test_a_line_has_a_bound_and_any_text_can_be_written() -> None:
    """Names of files may contain lone surrogates."""
    reading, writing = os.pipe()
    lines = LogLines(lambda lost: None, writing)
    lines.write("\udce4 " + "y" * 100_000 + "\nnext\n")
    with os.fdopen(reading, "rb") as reader:
        first, second = reader.readline(), reader.readline()
    assert first.startswith(b"\\udce4 yyy") and len(first) <= 16 << 10 and first.endswith(b" ...\n")
    assert second == b"next\n"
    lines.end()
    os.close(writing)


@pytest.mark.parametrize("arguments", [["version"], ["doctor"], ["--help"], ["route", "explain"]])
def test_a_command_whose_output_has_no_room_says_so_in_one_line(arguments: list[str]) -> None:
    """The exit status is 1, without a traceback."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*NPCD, *arguments], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "npcd: standard output takes no more: No space left on device\n")


@pytest.mark.parametrize("arguments", [["version"], ["route", "explain"]])
def test_a_command_whose_reader_has_gone_ends_without_a_word(arguments: list[str]) -> None:
    """That is so in `npcd route explain | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*NPCD, *arguments], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_command_with_closed_descriptors_ends_well(closed: str) -> None:
    """It has nowhere to write, and no other fault."""
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -m npcd version {closed}', sys.executable], cwd=ROOT, check=False
    )
    assert done.returncode == 0
