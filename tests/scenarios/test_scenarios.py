"""Behaviour as text: every *.txt here is a list of commands, each with the answer that it must give.

    command with arguments, over one or more lines
    ----
    the answer

Blocks are separated by empty lines; lines that begin with # are comments. The file's name selects the interpreter.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

from core.words import NpcKey, Tier, TrunkKey
from core.work import Work
from scheduler.costs import Costs, CostSettings
from scheduler.filling import Candidate
from scheduler.placing import KvSettings
from scheduler.planner import PlannerSettings, compose
from scheduler.queues import Queue
from scheduler.window import Window, WindowSettings
from tests.scenarios.asking import AskingScenario
from tests.scenarios.attention import ActivationScenario, ShareScenario, arguments
from tests.scenarios.guards import GuardsScenario
from tests.scenarios.pace import PaceScenario
from tests.scenarios.prediction import PredictionScenario
from tests.scheduler.simulated import Sim, words
from tiers.shedding import Load, Queued, Sheddable, Shedding, ShedSettings

HERE = Path(__file__).parent
MS = 1_000_000
NEVER = 10**15


def blocks(path: Path) -> Iterator[tuple[list[str], str]]:
    """(command lines, expected answer) of each block."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    for block in "\n".join(lines).split("\n\n"):
        command, dashes, answer = block.strip("\n").partition("\n----")
        if dashes:
            yield command.splitlines(), answer.strip("\n")


class WindowScenario:
    """close now=MS oldest=MS waiting=N busy=yes|no due=MS|- ; counts"""

    def __init__(self) -> None:
        self.window = Window(WindowSettings(window_ms=10, full=64))

    def run(self, lines: list[str]) -> str:
        """The rule that closed the window, or the next time to look."""
        (verb, *_), given = arguments(lines[0])
        if verb == "counts":
            return " ".join(f"{rule.value}={count}" for rule, count in self.window.closed.items())
        due = None if given["due"] == "-" else int(given["due"]) * MS
        rule, wake_ns = self.window.close(
            int(given["now"]) * MS, int(given["waiting"]), int(given["oldest"]) * MS, given["busy"] == "yes", due
        )
        return rule.value if rule else f"again at {wake_ns // MS}"


class QueuesScenario:
    """add ID deadline=MS [as=NAME]; take ID; cancel ID; order"""

    def __init__(self) -> None:
        self.queue = Queue(3)
        self.now_ns = 0

    def run(self, lines: list[str]) -> str:
        """The result for one work, or the works in the queue's order."""
        (verb, *ids), given = arguments(lines[0])
        self.now_ns += MS
        if verb == "add":
            key = TrunkKey(NpcKey("", "w", ids[0]), "")
            nothing = np.empty(0, np.int32)
            deadline_ns = int(given["deadline"]) * MS
            work = Work(Tier.GOLD, key, nothing, nothing, 1, deadline_ns=deadline_ns, supersede=given.get("as"))
            taken, old = self.queue.add(int(ids[0]), work, self.now_ns)
            return ("waits" if taken else "refused") + (f", {old.ticket_id} is superseded" if old else "")
        if verb == "order":
            return " ".join(str(w.ticket_id) for w in self.queue.in_order()) or "nobody"
        if verb == "take":
            self.queue.take(next(w for w in self.queue if w.ticket_id == int(ids[0])))
            return "runs"
        assert verb == "cancel", verb
        return "gone" if self.queue.cancel(int(ids[0])) else "does not wait here"


class PlannerScenario:
    """costs us: step=, micro=, token= ; step now=MS [gold_waits=yes] [before=ADAPTER] [talked=enough] [passed_over=yes]
    and a line per work: NAME TIER decode|prefill seq=N [wanted=N] [deadline=MS] [overdue=MS] [starved=MS] [last=MS]
    [adapter=NAME]
    """

    def __init__(self) -> None:
        self.costs = Costs(CostSettings(prior_ns=(0.0, 0.0, 100_000.0, 0.0, 0.0)))

    def run(self, lines: list[str]) -> str:
        """The number of tokens for each sequence."""
        (verb, *_), given = arguments(lines[0])
        if verb == "costs":
            prior = (float(given["step"]) * 1e3, float(given["micro"]) * 1e3, float(given["token"]) * 1e3, 0.0, 0.0)
            self.costs = Costs(CostSettings(prior_ns=prior))
            return "set"
        assert verb == "step", verb
        names, candidates = [], []
        for number, line in enumerate(lines[1:]):
            (name, tier, phase), more = arguments(line)
            names.append(name)
            candidates.append(
                Candidate(
                    number=number,
                    tier=Tier[tier.upper()],
                    decode=phase == "decode",
                    seq=int(more["seq"]),
                    pos=100,
                    wanted=int(more.get("wanted", 1)),
                    deadline_ns=int(more.get("deadline", 100 + number)) * MS,
                    overdue_ns=int(more.get("overdue", NEVER)) * MS,
                    last_step_ns=int(more.get("last", 0)) * MS,
                    starved_ns=int(more.get("starved", NEVER)) * MS,
                    adapter=more.get("adapter", ""),
                    prefill=0 if phase == "decode" else int(more.get("wanted", 1)),
                )
            )
        gold_waits = given.get("gold_waits") == "yes"
        now_ns = int(given["now"]) * MS
        before, enough = given.get("before", ""), given.get("talked") == "enough"
        over = given.get("passed_over") == "yes"
        made = compose(candidates, self.costs, PlannerSettings(), now_ns, gold_waits, 2048, before, 0, enough, over)
        out = [f"budget {made.budget_ns // MS} ms" + (f", adapter {made.adapter}" if made.adapter else "")]
        return "\n".join(out + [f"{names[s.number]} {s.tokens}" for s in made.portions])


class WayScenario:
    """engine sequences=N lanes=N ; submit NAME TIER on=TRUNK [trunk=N] [tokens=N] [keep=yes] [late=S] ; steps N ;
    until NAME speaks|ends: who has a place, who was put back and who waits
    """

    def __init__(self) -> None:
        self.sim = Sim()
        self.names: dict[str, int] = {}

    def run(self, lines: list[str]) -> str:
        """Each work that has not ended, in the order in which they came."""
        (verb, *rest), given = arguments(lines[0])
        if verb == "engine":
            kv = KvSettings(prefixes=1, lanes=int(given["lanes"]), ram_mib=1)
            self.sim = Sim(sequences=int(given["sequences"]), context_len=2048, kv=kv)
            self.names = {}
            return "made"
        if verb == "submit":
            self.names[rest[0]] = self.sim.submit(self._work(Tier[rest[1].upper()], given))
        elif verb == "steps":
            for _ in range(int(rest[0])):
                self.sim.step()
        else:
            ticket = self.names[rest[0]]
            told: Callable[[], bool] = {
                "speaks": lambda: bool(self.sim.chunks[ticket]),
                "ends": lambda: ticket in self.sim.ended,
            }[rest[1]]
            self.sim.run(until=told)
        return self._told()

    def _work(self, tier: Tier, given: dict[str, str]) -> Work:
        tokens, late_ns = int(given.get("tokens", 5)), int(given.get("late", 0)) * 1000 * MS
        due_ns = self.sim.clock() - late_ns
        deadline_ns = self.sim.promises.deadline_ns(tier, due_ns)
        key = TrunkKey(NpcKey("", "w", given["on"]), "")
        trunk, tail = words(*range(int(given.get("trunk", 900)))), words(1, 2) if tokens else words()
        keep = given.get("keep") == "yes"
        return Work(tier, key, trunk, tail, tokens, due_ns=due_ns, deadline_ns=deadline_ns, keep=keep)

    def _told(self) -> str:
        scheduler = self.sim.scheduler
        back = {r.ticket_id for r in scheduler.retrying}
        said = []
        for name, ticket in self.names.items():
            if ticket in scheduler.running:
                runner = scheduler.running[ticket]
                hurries = f", as {runner.tier.name.lower()}" if runner.hurried else ""
                said.append(f"{name}: {runner.place.part.value}{hurries}")
            elif ticket not in self.sim.ended:
                said.append(f"{name}: {'was put back' if ticket in back else 'waits'}")
        return "\n".join(said) or "nobody is left"


class SheddingScenario:
    """look now=MS [gold=N:MS] [silver=N:MS] [bronze=N:MS] [retry=MS] [put_off=N] [still=MS] [step=MS] [draining=yes]"""

    def __init__(self) -> None:
        self.shedding = Shedding(ShedSettings())

    def run(self, lines: list[str]) -> str:
        """The work that is put off or refused after this look."""
        _, given = arguments(lines[0])
        retry_ms = int(given.get("retry", 0))

        def queued(name: str, waiting_max: int) -> Queued:
            waiting, _, oldest = given.get(name, "0:0").partition(":")
            return Queued(int(waiting), waiting_max, float(oldest), retry_ms)

        load = Load(
            queued("gold", 2048), queued("silver", 64), queued("bronze", 1024),
            put_off=int(given.get("put_off", 0)), still_ms=float(given.get("still", 0)),
            step_ms=float(given.get("step", 0)), draining=given.get("draining") == "yes",
        )  # fmt: skip
        self.shedding.look(load, int(given["now"]) * MS)
        gone = [s.work for s in self.shedding.shed]
        assert self.shedding.allows_predictions == (Sheddable.PREDICTIONS not in gone)
        assert self.shedding.allows_barks == (Sheddable.BARKS not in gone)
        said = [
            f"{s.work.value}: {s.reason}" + (f", again in {s.retry_ms} ms" if s.retry_ms else "")
            for s in self.shedding.shed
        ]
        return "\n".join(said) or "all is well"


class Scenario(Protocol):
    """One file's state, which its commands change."""

    def run(self, lines: list[str]) -> str:
        """The answer to one command."""


SCENARIOS: dict[str, Callable[[], Scenario]] = {
    "window": WindowScenario,
    "queues": QueuesScenario,
    "planner": PlannerScenario,
    "way": WayScenario,
    "shedding": SheddingScenario,
    "activation": ActivationScenario,
    "share": ShareScenario,
    "asking": AskingScenario,
    "prediction": PredictionScenario,
    "pace": PaceScenario,
    "guards": GuardsScenario,
}


@pytest.mark.parametrize("path", sorted(HERE.glob("*.txt")), ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    """Every command of the file gives the answer that is written below it."""
    scenario = SCENARIOS[path.stem]()
    wrong = []
    for number, (command, wanted) in enumerate(blocks(path), 1):
        answer = scenario.run(command)
        if answer != wanted:
            diff = difflib.unified_diff(wanted.splitlines(), answer.splitlines(), "expected", "answered", lineterm="")
            wrong.append("\n".join([f"block {number}: {' / '.join(command)}", *diff]))
    assert not wrong, "\n\n".join(wrong)


def test_every_part_has_its_scenarios_and_each_file_has_some() -> None:
    """Each interpreter has a file, and each file has at least one command."""
    assert {path.stem for path in HERE.glob("*.txt")} == set(SCENARIOS)
    assert all(len(list(blocks(path))) >= 8 for path in HERE.glob("*.txt"))
