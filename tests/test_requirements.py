"""pyproject.toml has the versions that npcd works with, requirements.txt the tested ones, and the two agree."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECTS = ("pyproject.toml", "clients/python/pyproject.toml")
# Files in which pip installs packages for npcd, and the exempt lines.
INSTALLS = ("tools/setup.sh", "Makefile", "Dockerfile")
EXEMPT = ("build/pins/",)  # `make pins` looks for newer versions


def requirements() -> Iterator[tuple[str, Requirement]]:
    """(file, requirement) of everything that an installation, an extra or a build needs, without npcd's own extras."""
    for name in PROJECTS:
        project = tomllib.loads((ROOT / name).read_text("utf-8"))
        asked = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
        for extra in project["project"].get("optional-dependencies", {}).values():
            asked += extra
        for line in asked:
            requirement = Requirement(line)
            if requirement.name != "npcd":
                yield name, requirement


def pins() -> dict[str, str]:
    """The version of each line of requirements.txt, by the library's canonical name."""
    lines = [line for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines() if line and line[0] != "#"]
    found: dict[str, str] = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert len(found) == len(lines), "a library is pinned twice"
    return found


def faults(requirement: Requirement, pinned: Mapping[str, str]) -> Iterator[str]:
    """Each disagreement between a requirement of pyproject.toml and the pins, in one line."""
    signs = {condition.operator for condition in requirement.specifier}
    if not signs <= {">=", "<"}:
        yield f"{requirement}: a range has >= and perhaps <; exact versions belong into requirements.txt"
    elif ">=" not in signs:
        yield f"{requirement}: the oldest version is missing"
    version = pinned.get(canonicalize_name(requirement.name))
    if version is None:
        yield f"{requirement}: requirements.txt has no version of it"
    elif not requirement.specifier.contains(version):
        yield f"{requirement}: requirements.txt has {version}"


def test_every_dependency_is_a_range_that_its_pin_fulfils() -> None:
    """Each dependency has an oldest version and a pin, and no pin is outside its range."""
    pinned = pins()
    found = [f"{name}: {fault}" for name, requirement in requirements() for fault in faults(requirement, pinned)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("numpy==2.4.6", "exact versions belong"),
        ("numpy!=2.3", "exact versions belong"),
        ("numpy<3", "the oldest version is missing"),
        ("numpy>=2.5", "requirements.txt has 2.4.6"),
        ("numpy>=2,<2.4", "requirements.txt has 2.4.6"),
        ("scipy>=1", "requirements.txt has no version of it"),
    ],
)
def test_a_fault_is_found(line: str, says: str) -> None:
    """Each kind of disagreement between a requirement and its pin is named."""
    (fault,) = faults(Requirement(line), {"numpy": "2.4.6"})
    assert says in fault


@pytest.mark.parametrize("name", INSTALLS)
def test_installations_of_ours_take_the_pins(name: str) -> None:
    """Every `pip install` of setup, make and the image is held to requirements.txt."""
    text = (ROOT / name).read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if re.search(r"\bpip install\b", line) and not line.startswith("#")]
    assert lines
    loose = [line for line in lines if "-c requirements.txt" not in line and not any(e in line for e in EXEMPT)]
    assert not loose
