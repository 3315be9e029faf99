"""On the same day the engine reads the same tokens: the code that builds prompts may change, the prompts may not."""

from difflib import unified_diff
from pathlib import Path

import pytest

from tests.daemon.day import EXPECTED, lived, models

KINDS = ("native", "chat", "plain")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_day_asks_the_engine_what_it_asked_before(kind: str, tmp_path: Path) -> None:
    """Every work of a scripted day has the trunk, the tail and the bounds in tests/daemon/day.txt. After an intended
    change of prompts, `python -m tests.daemon.day` writes that file.
    """
    parts = dict(part.split("\n", 1) for part in EXPECTED.read_text("utf-8").split("== ")[1:])
    assert parts.keys() == set(KINDS)
    expected, lines = parts[kind].splitlines(), (await lived(models(tmp_path)[kind])).text().splitlines()
    changed = list(unified_diff(expected, lines, "day.txt", "now", n=1, lineterm=""))
    assert not changed, "the engine reads something else:\n" + "\n".join(changed)
