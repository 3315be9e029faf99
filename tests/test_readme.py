"""The README tells the truth: its example is the program that ships, its links and commands exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_examples_are_the_programs_that_ship() -> None:
    """The Python blocks stand word for word in clients/python/examples, which tests run."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for block, name in zip(blocks, ("ten_lines", "remembering"), strict=True):
        assert block in (ROOT / f"clients/python/examples/{name}.py").read_text()


def test_a_command_of_npcd_exists() -> None:
    """Each `npcd x` that the README runs, with its flags."""
    from daemon.main import _parser

    for line in re.findall(r"^ +\.venv/bin/npcd (.*)$", README, re.MULTILINE):
        words = line.partition("#")[0].split()
        if words[0] != "demo":
            _parser().parse_args(words)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_a_link_leads_somewhere(target: str) -> None:
    """Each link to a file or folder of this project names one that is there."""
    assert (ROOT / target).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z]+)", README))))
def test_a_make_target_exists(target: str) -> None:
    """Each `make x` that the README names is a target."""
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
