"""`npcd serve` on the simulated engine, whose steps really take a stated time: `python -m loadtests.bench.simulated
STEP_MS serve ARGUMENTS`.

Its output is nonsense and always takes equally long, so that two measurements of it can be compared.
"""

from __future__ import annotations

import sys
import time

import daemon.engines
from core.words import AUTO
from daemon.config import Config
from daemon.main import main
from daemon.model import Model
from engines.base import Geometry
from engines.sim import SimCost, SimEngine, SimVocab, VirtualClock
from prompts.marks import MARKS
from tiers.routing import LLAMA

# A step takes equally long with any works, so all waiting works go into one; and no deadline is near.
SETS = ("scheduler.planner.gold_step_ms=10000", "scheduler.planner.step_ms=10000", "intents.answer_within_ms=10000")
SEQUENCES, CONTEXT_LEN = 255, 2048


class SpentClock(VirtualClock):
    """A clock that sleeps for the time by which it advances."""

    def advance(self, by_ns: int) -> None:
        """Sleeps."""
        super().advance(by_ns)
        time.sleep(by_ns / 1e9)


def model(config: Config, step_ms: float) -> Model:
    """The simulated engine in the geometry of the configuration, with `step_ms` for each step. Sizes that are `auto`
    are those of the model that ships on a machine with memory enough.
    """
    wanted = config.engine
    sequences = SEQUENCES if wanted.sequences == AUTO else wanted.sequences
    context_len = CONTEXT_LEN if wanted.context_len == AUTO else wanted.context_len
    vocab = SimVocab(list(MARKS.values()))
    geometry = Geometry(sequences, context_len, wanted.batch_len, wanted.micro_len, vocab.size)
    cost = SimCost(step_us=step_ms * 1000, micro_us=0, token_us=0, kilo_context_us=0)
    return Model(SimEngine(geometry, vocab, SpentClock(), cost), f"simulated, {step_ms:g} ms a step", "")


if __name__ == "__main__":
    step, command = float(sys.argv[1]), [*sys.argv[2:], "--no-supervise"]
    for one in SETS:
        command += ["--set", one]
    # The daemon is built as usual, around this model instead of its own.
    daemon.engines.load_models = lambda config, start=None, kept=None: {LLAMA: model(config, step)}
    sys.exit(main(command))
