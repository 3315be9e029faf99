"""A step engine behind the port keeps the port's laws, and its snapshot is a value."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from core.words import NpcKey, Tier, TrunkKey
from core.work import Work
from engines.backend import KvUse, Submitted
from engines.base import Geometry, StepPlan, StepResult
from engines.sim import SimEngine, SimVocab, VirtualClock
from prompts.marks import MARKS
from scheduler.placing import KvSettings
from scheduler.scheduler import Scheduler, SchedulerSettings
from scheduler.step_backend import StepBackend
from tests.engines.conformance import LAWS, PROMISES, Gate, Law, OnTrial, Trial, on_trial
from tests.scheduler.simulated import npc, words


class Gated(SimEngine):
    """A simulated engine with a gate before each step."""

    def __init__(self, gate: Gate) -> None:
        vocab = SimVocab(list(MARKS.values()))
        super().__init__(Geometry(12, 100, 512, 128, vocab.size), vocab, VirtualClock())
        self._gate = gate

    def step(self, plan: StepPlan) -> StepResult:
        """Waits for the gate."""
        self._gate.step()
        return super().step(plan)


@dataclass
class StepOnTrial(OnTrial):
    """A step backend on trial."""

    backend: StepBackend


def step_backend() -> StepOnTrial:
    """A step backend with two lanes on a simulated engine."""
    gate = Gate()
    kv = KvSettings(prefixes=2, lanes=2, ram_mib=1)
    scheduler = Scheduler(Gated(gate), PROMISES, SchedulerSettings(kv=kv))
    return StepOnTrial(StepBackend(scheduler), gate, work)


def work(key: TrunkKey, tier: Tier, supersede: object, speaks: bool, due_ns: int) -> Work:
    """A work of a few tokens."""
    said, count = (words(4), 4) if speaks else (words(), 0)
    return Work(tier, key, words(1, 2, 3), said, count, due_ns=due_ns, supersede=supersede)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_it_keeps_every_law_of_the_port(law: Law) -> None:
    """Each law runs on an engine of its own."""
    with on_trial(step_backend()) as trial:
        law(trial)


def test_works_that_cannot_fit_are_bugs_found_before_anything_is_taken_in() -> None:
    """The prompt was cut before. Here a longer one is an assertion, and no work of the group runs."""
    with on_trial(step_backend()) as trial:
        good = trial.work()
        long = replace(good, trunk=np.zeros(90, np.int32), max_tokens=20)
        for bad, said in (
            (long, "exceed the context by 11 tokens"),
            (replace(good, tail=words()), "a tail and output"),
            (replace(good, key=good.key._replace(adapter="a")), "the base model's"),
        ):
            with pytest.raises(AssertionError, match=said):
                trial.backend.submit([Submitted(1, good, 0), Submitted(2, bad, 0)])
        trial.quiet()
        assert not trial.said


def test_a_snapshot_tells_of_sequences_and_of_counters() -> None:
    """It has the used lanes and residents, and RAM as KV moves there. Counters have the names of the metrics."""
    with on_trial(step_backend()) as trial:
        assert trial.backend.snapshot.kv == KvUse(2, 0, 8, 0, 0, 1 << 20, frozenset())
        trial.occupied()
        trial.gate.let_pass(1)
        trial.gate.wait_until_it_stands()
        assert trial.backend.snapshot.kv[:4] == (2, 1, 8, 1)
        trial.gate.open()
        trial.ended(1)
        kv = trial.backend.snapshot.kv
        assert kv[:4] == (2, 0, 8, 1) and not kv.crowded and kv.roomy
        counters = trial.backend.snapshot.counters
        assert counters.keys() == {"trunk_tokens", "moves", "refused", "adapters", "step_cost_ns"}
        assert counters["trunk_tokens"]["computed"] == 3


def test_places_say_where_kv_rests() -> None:
    """That is a sequence, or RAM after sequences were short and it moved out. For unknown NPCs it is nothing."""

    def home(trial: Trial) -> dict[str, str]:
        found: list[tuple[str, str]] = []
        npcs = [NpcKey("", "vale", f"n{i}") for i in range(10)]
        trial.backend.places(npcs, lambda places: found.extend((p.key.npc.npc, p.home) for p in places))
        trial.quiet()
        return dict(found)

    with on_trial(step_backend()) as trial:
        assert home(trial) == {}
        for i in range(7):
            for ticket in trial.submit(trial.work(f"n{i}")):
                trial.ended(ticket)
        trial.backend.moving_out(NpcKey("", "vale", "n0"))
        assert set(home(trial).values()) == {"sequence"}, "there was room"
        for ticket in trial.submit(trial.work("n7")):
            trial.ended(ticket)
        assert trial.backend.snapshot.kv.crowded
        trial.backend.moving_out(NpcKey("", "vale", "n0"))
        assert home(trial)["n0"] == "ram" and home(trial)["n1"] == "sequence"
        assert not trial.backend.snapshot.kv.crowded


def test_kv_in_the_store_comes_back_at_a_hint() -> None:
    """The snapshot names the NPCs with KV in the store, so a hint about another one wakes no thread."""

    class Shelf:
        def __init__(self) -> None:
            self.kept: dict[int, tuple[bytes, bytes]] = {}
            self.fetches: list[int] = []

        def park(self, number: int, header: bytes, payload: bytes) -> bool:
            self.kept[number] = header, payload
            return True

        def fetch(self, number: int) -> None:
            self.fetches.append(number)

        def drop(self, number: int) -> None:
            self.kept.pop(number, None)

    made, shelf = step_backend(), Shelf()
    backend = made.backend
    backend.park_in(shelf)
    homes = backend.scheduler.placer.homes
    homes.ram_bytes_max = 0
    mira, other = NpcKey("", "vale", "mira"), npc(1)
    with on_trial(made) as trial:
        (ticket,) = trial.submit(trial.work())
        trial.ended(ticket)
        backend.obeyed(lambda: backend.scheduler.move_out(mira))
        trial.quiet()
        assert backend.snapshot.kv.away == {mira}
        backend.coming_near(other)
        trial.quiet()
        assert not shelf.fetches
        homes.ram_bytes_max = 1 << 20  # a trunk comes back through RAM
        backend.coming_near(mira)
        trial.quiet()
        (number,) = shelf.fetches
        assert backend.snapshot.kv.away == frozenset(), "it is on its way"
        backend.fetched(number, *shelf.kept.pop(number))
        trial.quiet()
        assert homes.ram_bytes > 0
        assert backend.snapshot.kv.ram_bytes == homes.ram_bytes
