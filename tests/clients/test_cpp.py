"""The C++ smoke client, built on Debian's grpc++, against a daemon with the shipped model."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.child import DaemonChild

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = "g++ make pkg-config protobuf-compiler protobuf-compiler-grpc libgrpc++-dev libprotobuf-dev"
BUILD_TIMEOUT_S, RUN_TIMEOUT_S = 500, 240


def _can_build() -> bool:
    if not all(map(shutil.which, ("make", "c++", "pkg-config", "protoc", "grpc_cpp_plugin"))):
        return False
    return subprocess.run(["pkg-config", "--exists", "grpc++", "protobuf"], check=False).returncode == 0


CAN_BUILD = _can_build()
pytestmark = pytest.mark.skipif(
    not CAN_BUILD, reason=f"the C++ client was not built: no grpc++ here, apt-get install -y {PACKAGES}"
)


@pytest.fixture(scope="module")
def smoke() -> Path:
    """The path of the built client."""
    return built()


def built() -> Path:
    """Builds the client unless it is up to date, and returns its path. A compiler warning is an error."""
    command = ["make", "-C", str(ROOT / "clients/cpp"), f"PYTHON={sys.executable}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return ROOT / "build/cpp/smoke"


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonChild]:
    """A daemon that only these tests use."""
    child = DaemonChild()
    child.start()
    yield child
    assert child.stop() == 0


def _run(smoke: Path, target: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(smoke), target], capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)


@pytest.mark.parametrize("time", ["first", "second"])
def test_it_plays_against_a_daemon(smoke: Path, daemon: DaemonChild, time: str) -> None:
    """The client defines, registers, observes, reads intents and talks. Its second run takes over what the first run
    left."""
    done = _run(smoke, daemon.target)
    assert done.returncode == 0, f"{done.stderr}\n{daemon.log_tail()}"
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        *("serving", "defined", "registered", "intent", "intent", "got", "talked", "refused", "all is well"),
    ]
    assert lines[1] == "defined: cpp-inn version 1"
    assert all(line.split()[2] in ("idle", "greet", "flee") for line in lines[3:5])


def test_it_fails_where_something_else_serves(smoke: Path, daemon_target: str) -> None:
    """The fake daemon does not keep the whole contract, and the smoke client names the first call that fails."""
    done = _run(smoke, daemon_target)
    assert done.returncode == 1
    assert done.stderr.startswith("smoke: ")
