"""The Python client runs with every protobuf from 5.29 to 7 and every grpcio that its requirements allow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tools import proto, runtimes

ROOT = Path(__file__).resolve().parent.parent.parent
CLIENT_TESTS = [f"tests/clients/test_{name}.py" for name in ("client", "live", "frames", "table", "policy")]

# The tests import both copies, since an older runtime may meet the generated code of either one.
EVERY_MESSAGE = """
import importlib, pkgutil, sys
from google.protobuf import message_factory
import google.protobuf, grpc
for package in ("npcd.v1", "npcd_client.v1"):
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, package + "."):
        made = importlib.import_module(module.name)
        for name in getattr(made, "DESCRIPTOR", None) and made.DESCRIPTOR.message_types_by_name or ():
            message = getattr(made, name)()
            assert type(message).FromString(message.SerializeToString()) == message
print(google.protobuf.__version__, grpc.__version__)
"""


def installed(name: str) -> Path:
    """The folder of a runtime, or a skip that says how to install it."""
    folder = runtimes.place(name)
    if folder is None:
        pytest.skip(f"{name} is not installed: make extras")
    return folder


def environment(*folders: Path) -> dict[str, str]:
    """This environment with folders in front of the packages of .venv."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(str(folder) for folder in folders)}


def versions(needs: list[str] | tuple[str, ...]) -> list[str]:
    return [need.partition("==")[2] for need in needs]


@pytest.mark.parametrize("name", runtimes.RUNTIMES)
def test_generated_code_imports_and_carries_messages(name: str) -> None:
    """npcd.v1 and npcd_client.v1 import with this runtime, and every message is serialised and parsed."""
    env = environment(installed(name), ROOT, ROOT / "clients" / "python")
    done = subprocess.run([sys.executable, "-c", EVERY_MESSAGE], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == versions([*runtimes.RUNTIMES[name]])


@pytest.mark.parametrize("name", runtimes.RUNTIMES)
def test_the_client_passes_its_tests(name: str) -> None:
    """Worlds, streams, turns and errors of the client work with this runtime as with the newest one."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CLIENT_TESTS]
    env = environment(installed(name)) | {"PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]


def test_generated_messages_are_what_the_oldest_generator_writes(tmp_path: Path) -> None:
    """The message files say that they come from protobuf 5.29, and equal what its protoc writes byte for byte."""
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"--python_out={tmp_path}"]
    command += sorted(str(path) for path in (ROOT / "proto").rglob("*.proto"))
    subprocess.run(command, env=environment(installed(runtimes.GENERATOR)), check=True)
    made = sorted((tmp_path / "npcd" / "v1").glob("*_pb2.py"))
    assert made
    for path in made:
        assert path.read_text() == (ROOT / "npcd" / "v1" / path.name).read_text(), path.name


def test_requirements_state_what_generated_code_asks_for() -> None:
    """The client's requirements begin at the versions that the generated files check when they are imported."""
    project = tomllib.loads((ROOT / "clients" / "python" / "pyproject.toml").read_text())["project"]
    protobuf, grpcio = (f"{major}.{minor}" for major, minor, _ in (proto.PROTOBUF_OLDEST, proto.GRPC_OLDEST))
    assert project["dependencies"] == [f"grpcio>={grpcio}", f"protobuf>={protobuf},<8"]


@pytest.mark.parametrize("folder", proto.COPIES)
def test_generated_code_asks_for_no_newer_runtime(folder: str) -> None:
    """No generated file of either copy refuses the oldest protobuf or grpcio that the client allows."""
    asked = [
        (path.name, tuple(int(number) for number in re.findall(r"^    (\d+),$", path.read_text(), re.MULTILINE)))
        for path in (ROOT / folder).glob("*_pb2.py")
    ]
    assert asked and all(numbers == proto.PROTOBUF_OLDEST for _, numbers in asked), asked
    for path in (ROOT / folder).glob("*_pb2_grpc.py"):
        (version,) = re.findall(r"^GRPC_GENERATED_VERSION = '(.*)'$", path.read_text(), re.MULTILINE)
        assert tuple(int(number) for number in version.split(".")) == proto.GRPC_OLDEST, path.name
