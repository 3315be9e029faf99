"""The README tells the truth: its example is the program that ships, its links and commands exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_is_the_program_that_ships() -> None:
    """The Python block stands word for word in clients/python/examples/ten_lines.py."""
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert block in (ROOT / "clients/python/examples/ten_lines.py").read_text()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_a_link_leads_somewhere(target: str) -> None:
    """Each link to a file or folder of this project names one that is there."""
    assert (ROOT / target).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z]+)", README))))
def test_a_make_target_exists(target: str) -> None:
    """Each `make x` that the README names is a target."""
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
