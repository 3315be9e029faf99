"""`npcd serve` with an engine that dies or slows down when a test says so: python tests/daemon/dying.py FOLDER
ARGUMENTS.

A file in FOLDER controls its next step: "abort" (as llama.cpp does after an internal error), "hang", or "slow": while
that file is there, each step takes that many seconds longer, and no text ends by itself.
"""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import daemon.main
import daemon.process.supervise
from daemon.process.supervise import Life

FOLDER = Path(sys.argv[1])


def _put_in() -> None:
    """Replaces the engine in the serving process only; the parent is the one that ships."""
    import daemon.model
    from engines.base import StepPlan, StepResult
    from engines.llama import LlamaEngine

    class Dying(LlamaEngine):
        def step(self, plan: StepPlan) -> StepResult:
            if _said("abort"):
                ctypes.CDLL(None).abort()
            if _said("hang"):
                time.sleep(600)
            if not (FOLDER / "slow").exists():
                return super().step(plan)
            time.sleep(float((FOLDER / "slow").read_text()))
            result = super().step(plan)
            goes_on = self.vocab.encode(" and")[-1]
            result.picked = [goes_on if token in self.vocab.eog_ids else token for token in result.picked]
            return result

    vars(daemon.model)["LlamaEngine"] = Dying


def _said(word: str) -> bool:
    """True once when the file is there."""
    try:
        (FOLDER / word).unlink()
    except FileNotFoundError:
        return False
    return True


if __name__ == "__main__":
    supervised = daemon.process.supervise.supervise

    def supervise(*arguments: object) -> Life | int:
        """Supervises as usual; the serving process gets the other engine."""
        life = supervised(*arguments)  # type: ignore[arg-type]
        if isinstance(life, Life):
            _put_in()
        return life

    vars(daemon.main)["supervise"] = supervise
    sys.exit(daemon.main.main(["serve", *sys.argv[2:]]))
