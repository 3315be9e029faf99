"""`npcd serve` with an engine that dies or dawdles when a test says so: python tests/daemon/dying.py FOLDER ARGUMENTS.

A file in FOLDER tells its next step what to do: "abort" (as llama.cpp does when something is wrong in it), "hang", or
"slow", while it is there.
"""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import daemon.main
import daemon.supervise
from daemon.supervise import Life

FOLDER = Path(sys.argv[1])
SLOW_S = 0.25


def _put_in() -> None:
    """In the serving process only: the parent is the one that ships."""
    import daemon.build
    from engines.base import StepPlan, StepResult
    from engines.llama import LlamaEngine

    class Dying(LlamaEngine):
        def step(self, plan: StepPlan) -> StepResult:
            if _said("abort"):
                ctypes.CDLL(None).abort()
            if _said("hang"):
                time.sleep(600)
            if (FOLDER / "slow").exists():
                time.sleep(SLOW_S)
            return super().step(plan)

    vars(daemon.build)["LlamaEngine"] = Dying


def _said(word: str) -> bool:
    """Whether the file is there; once."""
    try:
        (FOLDER / word).unlink()
    except FileNotFoundError:
        return False
    return True


if __name__ == "__main__":
    supervised = daemon.supervise.supervise

    def supervise(*arguments: object) -> Life | int:
        """As ever; who comes out of it to serve gets the other engine."""
        life = supervised(*arguments)  # type: ignore[arg-type]
        if isinstance(life, Life):
            _put_in()
        return life

    vars(daemon.main)["supervise"] = supervise
    sys.exit(daemon.main.main(["serve", *sys.argv[2:]]))
