"""The README and its pages are true: their examples are programs that ship, and their links and commands exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAMES = (
    "README.md", "docs/GUIDE.md", "docs/OPERATING.md", "docs/SETTINGS.md", "docs/ARCHITECTURE.md", "docs/INTERNALS.md",
    "docs/decisions/README.md",
)  # fmt: skip
HOUSE = "core|tiers|prompts|engines|kvcache|scheduler|memory|daemon|models|proto|tools|tests|loadtests|clients"
PAGES = {name: (ROOT / name).read_text() for name in NAMES}
TEXT = "\n".join(PAGES.values())
LINKS = sorted({(page, target) for page, text in PAGES.items() for target in re.findall(r"\]\(([^)#:]+)\)", text)})


def test_the_examples_are_the_programs_that_ship() -> None:
    """The Python blocks stand word for word in clients/python/examples, which other tests run."""
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    for block, name in zip(blocks, ("ten_lines", "remembering"), strict=True):
        assert block in (ROOT / f"clients/python/examples/{name}.py").read_text()


def test_a_command_of_npcd_exists() -> None:
    """The command line accepts each `npcd x` of a page, with its flags."""
    from daemon.main import _parser

    for line in re.findall(r"^ +\.venv/bin/npcd (.*)$", TEXT, re.MULTILINE):
        words = line.partition("#")[0].split()
        if words[0] != "demo":
            _parser().parse_args(words)


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_a_link_leads_somewhere(page: str, target: str) -> None:
    """Each link to a file or folder of this project names one that exists."""
    assert ((ROOT / page).parent / target).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(rf"`((?:{HOUSE})/[\w/.-]*)`", TEXT))))
def test_a_file_that_a_page_names_exists(path: str) -> None:
    """Pages name files and folders from the root of the project."""
    assert (ROOT / path).exists()


def test_the_list_of_decisions_is_whole() -> None:
    """Each decision's page is in the list, by its number, its file and its title."""
    listed = PAGES["docs/decisions/README.md"].casefold()
    for page in sorted((ROOT / "docs/decisions").glob("0*.md")):
        number, _, title = page.read_text().partition("\n")[0].removeprefix("# ").partition(": ")
        assert f"* [{number}]({page.name}): {title}\n".casefold() in listed


# "make" is an English word, too.
NO_TARGETS = {"games"}


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z-]+)", TEXT)) - NO_TARGETS))
def test_a_make_target_exists(target: str) -> None:
    """Each `make x` of a page is a target."""
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
