"""The parent restarts a child that dies, within bounds, passes signals on, and ends its child with itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.process.supervise import EXIT_ENGINE_DEAD, EXIT_USAGE, Deaths, Patience, how_it_ended
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[3]
QUICK = "Patience(first_s=0.001, deaths_max=3)"
# The last part is the child's work; `life` is its Life.
PROGRAM = """
import os, signal, sys, time
from daemon.process.supervise import STOP_SIGNAL, Patience, supervise
life = supervise(lambda line: print(line, file=sys.stderr, flush=True), {patience})
if isinstance(life, int):
    sys.exit(life)
{child}
"""
# Runs until one signal, and prints their number.
LIVES_ON = """
heard = []
for number in (signal.SIGTERM, signal.SIGINT, STOP_SIGNAL):
    signal.signal(number, lambda number, _: heard.append(number))
print("ready", os.getpid(), flush=True)
while not heard:
    time.sleep(0.01)
"""


def start(child: str, patience: str = QUICK) -> subprocess.Popen[str]:
    """A supervised program, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(patience=patience, child=child)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status and output, once every writer has ended: the child has ended, too."""
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def ready(process: subprocess.Popen[str]) -> int:
    """Waits for the child and returns its process id."""
    assert process.stdout is not None
    word, pid = process.stdout.readline().split()
    assert word == "ready"
    return int(pid)


def test_the_pause_doubles_up_to_a_bound_and_a_stable_life_forgives() -> None:
    """The pauses are 0.25, 0.5, 1, 2, 2; then the deaths are too many."""
    deaths = Deaths(Patience(most_s=2.0))
    assert [deaths.pause_s(-6, 1.0) for _ in range(6)] == [0.25, 0.5, 1.0, 2.0, 2.0, None]
    deaths = Deaths(Patience())
    for _ in range(20):
        assert deaths.pause_s(EXIT_ENGINE_DEAD, 61.0) == 0.25
    assert deaths.pause_s(-9, 1.0) == 0.5


@pytest.mark.parametrize("code", [0, EXIT_USAGE])
def test_an_end_that_was_meant_is_the_end(code: int) -> None:
    """A drain is meant, and so is a wrong setting, which would be wrong again."""
    assert Deaths(Patience()).pause_s(code, 1.0) is None
    process = start(f"sys.exit({code})")
    assert ended(process) == (code, "", "")


def test_an_end_is_told_in_words() -> None:
    """The words are for the log."""
    assert how_it_ended(-signal.SIGABRT) == "was killed by SIGABRT"
    assert how_it_ended(EXIT_ENGINE_DEAD) == "ended because its engine died (exit status 70)"
    assert how_it_ended(1) == "ended with exit status 1"


def test_a_child_that_aborts_is_started_again_and_knows_why() -> None:
    """After two deaths the child ends well, and so does the parent."""
    code, out, err = ended(start("print(life, flush=True)\nif life.number < 3: os.abort()"))
    assert code == 0
    lives = out.splitlines()
    assert len(lives) == 3 and lives[0] == "Life(number=1, last_end='')"
    assert "number=3" in lives[2] and re.search(r"was killed by SIGABRT after \d+\.\d", lives[2])
    assert err.count("starting it again") == 2


def test_a_child_that_dies_too_often_is_given_up() -> None:
    """The parent ends with the child's status."""
    code, _, err = ended(start("os.abort()"))
    assert code == 128 + signal.SIGABRT
    assert "3 times in a row is too often" in err
    code, _, _ = ended(start("sys.exit(70)"))
    assert code == EXIT_ENGINE_DEAD


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_parent_passes_on_what_it_is_asked_and_ends_as_its_child(number: int) -> None:
    """After a signal the child is not restarted, whatever its status."""
    process = start(LIVES_ON + "sys.exit(5)")
    ready(process)
    process.send_signal(number)
    assert ended(process) == (5, "", "")


def test_a_signal_to_both_at_once_is_one_wish() -> None:
    """Ctrl-C and systemd signal every process. The child hears SIGTERM once, and the signal of its parent once."""
    process = start(LIVES_ON + "while len(heard) < 2: time.sleep(0.01)\nprint(sorted(map(int, heard)))")
    ready(process)
    os.killpg(process.pid, signal.SIGTERM)
    assert ended(process) == (0, f"[{int(signal.SIGUSR1)}, {int(signal.SIGTERM)}]\n", "")


# It ignores SIGHUP as it was started to. On request it prints how many it got.
HEARS = """
count = 0
def heard(number, _):
    global count
    count += 1
    os.write(1, b"heard %d\\n" % count)
def hear(number, _):
    signal.signal(signal.SIGHUP, heard)
    os.write(1, b"hears 0\\n")
signal.signal(signal.SIGUSR2, hear)
signal.signal(STOP_SIGNAL, lambda *_: sys.exit(0))
print("ready", os.getpid(), flush=True)
while True:
    signal.pause()
"""


def test_a_hang_up_reaches_the_child_and_ends_nobody() -> None:
    """The parent passes each SIGHUP on. A child without a handler of its own yet is not killed by it."""
    process = start(HEARS)
    child = ready(process)
    assert process.stdout is not None
    for pid in (process.pid, child):
        os.kill(pid, signal.SIGHUP)
    os.kill(child, signal.SIGUSR2)
    while process.stdout.readline() != "hears 0\n":
        pass  # the parent's first one came late
    for _ in range(2):
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline().startswith("heard ")
    process.terminate()
    assert ended(process)[0] == 0


def test_a_second_signal_forces() -> None:
    """A child that does not end is killed."""
    process = start(LIVES_ON + "print('heard', 0, flush=True)\ntime.sleep(600)")
    ready(process)
    process.terminate()
    assert process.stdout is not None and process.stdout.readline() == "heard 0\n"
    process.terminate()
    assert ended(process)[0] == 1


def test_asked_while_nobody_serves_it_ends() -> None:
    """That holds in the pause between two lives, and before the child has its handlers."""
    process = start("os.abort()", "Patience(first_s=600)")
    assert process.stderr is not None
    assert "starting it again in 10 s" in process.stderr.readline()
    process.terminate()
    assert ended(process)[0] == 0
    process = start("print('ready', os.getpid(), flush=True)\ntime.sleep(600)")
    ready(process)
    process.terminate()
    assert ended(process)[0] == 0


def test_the_child_dies_with_its_parent() -> None:
    """That holds when the parent is killed: no process that holds the pipe is left."""
    process = start("print('ready', os.getpid(), flush=True)\ntime.sleep(600)")
    ready(process)
    process.kill()
    assert ended(process)[0] == -signal.SIGKILL


def test_the_parent_imports_next_to_nothing() -> None:
    """It outlives its child because it has little that can fail, and it needs little memory."""
    code = (
        "import sys; import daemon.main; heavy = {'asyncio', 'grpc', 'numpy', 'llama_cpp', 'structlog', 'ctypes'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
