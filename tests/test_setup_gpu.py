"""`make setup GPU=...` says what is missing before it compiles, and never leaves a build for the CPU in its place."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_setup import ROOT

HEADERS = ("cuda_runtime.h", "cublas_v2.h")
NEW, OLD = "#define VK_HEADER_VERSION 272\nVkLayerSettingEXT", "#define VK_HEADER_VERSION 239\n"
# setup's own words, and those of make, need these.
TOOLS = (
    "bash cat dirname readlink grep sed mkdir touch rm tail cut id make sh printf sleep kill env python3 g++ c++ cp ls"
).split()


class Machine:
    """A folder with what setup reads, and a PATH and a system of our own making."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.system = folder / "npcd", folder / "bin", folder / "system"
        for name in ("tools/setup.sh", "requirements.txt", "pyproject.toml", "Makefile"):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.folder / name)
        self.bin.mkdir()
        (self.system / "usr/include").mkdir(parents=True)
        for name in TOOLS:
            found = shutil.which(name)
            if found is not None:
                (self.bin / name).symlink_to(found)

    def program(self, name: str, status: int = 0) -> None:
        """A program that prints nothing and ends with this status, as a stub without its toolkit does with 127."""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\nexit {status}\n")
        path.chmod(0o755)

    def file(self, name: str, text: str = "") -> None:
        """A file of the system."""
        path = self.system / "usr" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def venv(self, kind: str, *backends: str) -> Path:
        """A .venv that says that it was built for `kind`, whose python imports and installs nothing. Returns the log of
        what it was asked to do."""
        folder, asked = self.folder / ".venv", self.folder / "asked"
        (folder / "bin").mkdir(parents=True)
        (folder / ".gpu").write_text(f"{kind}\n")
        lib = folder / "llama_cpp" / "lib"
        lib.mkdir(parents=True)
        for backend in backends:
            (lib / f"libggml-{backend}.so").touch()
        python = folder / "bin" / "python"
        python.write_text(
            f'#!/bin/sh\necho "$CMAKE_ARGS | $*" >> {asked}\n'
            f'case "$*" in *find_spec*) echo {folder / "llama_cpp"};; esac\nexit 0\n'
        )
        python.chmod(0o755)
        return asked

    def make(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """make setup with these words."""
        env = {
            "PATH": str(self.bin),
            "SYSTEM_ROOT": str(self.system),
            "CUDA_ROOT": str(self.system / "cuda"),
            **environment,
        }
        return subprocess.run(
            ["make", "setup", *words], cwd=self.folder, env=env | {"HOME": os.environ.get("HOME", "/")},
            capture_output=True, text=True, check=False,
        )  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with a compiler and no toolkit of any GPU."""
    return Machine(tmp_path)


def with_cuda(machine: Machine) -> Machine:
    """The same with CUDA's toolkit, as Debian installs it."""
    machine.program("nvcc")
    for header in HEADERS:
        machine.file(f"include/{header}")
    return machine


def with_vulkan(machine: Machine, headers: str = NEW) -> Machine:
    """The same with what a build for Vulkan needs."""
    machine.program("glslc")
    machine.file("include/vulkan/vulkan_core.h", headers)
    machine.file("share/cmake/SPIRV-Headers/SPIRV-HeadersConfig.cmake")
    return machine


@pytest.mark.parametrize("kind", ["metal", "CUDA", "rocm"])
def test_a_kind_that_is_not_known_is_refused(machine: Machine, kind: str) -> None:
    """Nothing is made."""
    done = machine.make(f"GPU={kind}")
    assert done.returncode != 0 and f"GPU={kind} is not known; it must be cuda, vulkan or cpu" in done.stderr
    assert not (machine.folder / ".venv").exists()


def test_cuda_says_what_is_missing(machine: Machine) -> None:
    """There is no compiler, or a name without one behind it, or one without the libraries' headers."""
    machine.program("apt-get")
    assert "needs CUDA's compiler (an nvcc that runs)" in machine.make("GPU=cuda").stderr
    machine.program("nvcc", 127)
    done = machine.make("GPU=cuda")
    assert done.returncode != 0 and "an nvcc that runs" in done.stderr
    assert "apt-get install -y nvidia-cuda-toolkit" in done.stderr and "nothing was built" in done.stderr
    machine.program("nvcc")
    done = machine.make("GPU=cuda")
    assert all(f"needs CUDA's header {header}. Run:" in done.stderr for header in HEADERS)
    assert not (machine.folder / ".venv").exists()


def test_vulkan_says_all_that_is_missing(machine: Machine) -> None:
    """Each part is named with Debian's package. Headers that are too old are told from none."""
    machine.program("apt-get")
    done = machine.make("GPU=vulkan")
    assert done.returncode != 0 and not (machine.folder / ".venv").exists()
    for part, package in (
        ("glslc", "glslc"), ("the Vulkan headers", "libvulkan-dev"), ("the SPIR-V headers", "spirv-headers"),
    ):  # fmt: skip
        assert any(part in line and f"apt-get install -y {package}" in line for line in done.stderr.splitlines())
    done = with_vulkan(machine, OLD).make("GPU=vulkan")
    assert done.returncode != 0
    assert "1.3.272 or newer" in done.stderr and "has 1.3.239, as Debian 12 does" in done.stderr
    assert "the SPIR-V headers" not in done.stderr


@pytest.mark.parametrize("kind", ["cuda", "vulkan"])
def test_another_kind_is_built_anew(machine: Machine, kind: str) -> None:
    """With the flag of its kind, from source and not from pip's cache. The same kind is kept, also when no kind is
    named, and going back to the CPU builds again.
    """
    (with_cuda if kind == "cuda" else with_vulkan)(machine)
    asked = machine.venv("cpu", kind)
    done = machine.make(f"GPU={kind}")
    assert done.returncode == 0, done.stderr
    assert f"building llama.cpp for {kind}" in done.stdout
    (build,) = (line for line in asked.read_text().splitlines() if "--no-binary llama-cpp-python" in line)
    assert f"-DGGML_{kind.upper()}=on |" in build and "--no-cache-dir" in build and "--force-reinstall" in build
    assert (machine.folder / ".venv/.gpu").read_text() == f"{kind}\n"
    for words in ((), (f"GPU={kind}",)):
        asked.write_text("")
        (machine.folder / ".venv/.ready").unlink()
        assert machine.make(*words).returncode == 0
        installs = [line for line in asked.read_text().splitlines() if "pip install" in line]
        assert len(installs) == 1 and installs[0].startswith(f" -DGGML_{kind.upper()}=on |")
    asked.write_text("")
    assert "building llama.cpp without a GPU" in machine.make("GPU=cpu").stdout
    assert (machine.folder / ".venv/.gpu").read_text() == "cpu\n"


def test_a_build_that_came_out_without_the_gpu_fails(machine: Machine) -> None:
    """cmake may go on without a backend: setup says so, and the environment does not count as ready."""
    with_cuda(machine).venv("cpu")
    done = machine.make("GPU=cuda")
    assert done.returncode != 0 and "llama.cpp was built without cuda" in done.stderr
    assert not (machine.folder / ".venv/.ready").exists() and not (machine.folder / ".venv/.gpu").exists()
