"""Settings that are "auto" are measured; chosen ones are kept."""

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from core.clock import MS, S
from core.errors import ConfigError
from daemon.config import SHIPPED_MODEL
from engines.base import GREEDY_PICK, Geometry, Slice, StepPlan, tokens_of
from engines.llama import LlamaEngine, LlamaSettings
from engines.machine import cores_here
from engines.sim import SimCost, SimEngine, SimVocab, VirtualClock
from engines.tune import ALIKE_X, Ended, candidates, tune
from prompts.marks import MARKS


def test_only_what_is_open_is_tried() -> None:
    """There are two attention settings times two weight types, and on two cores one thread. Given values stay."""
    auto = LlamaSettings(SHIPPED_MODEL)
    assert len(candidates(auto, cores=2)) == 4 * len({c.threads for c in candidates(auto, cores=2)})
    fixed = replace(auto, threads=3, flash_attention="off", weights="file")
    assert candidates(fixed, cores=16) == [fixed]
    assert {c.flash_attention for c in candidates(replace(auto, flash_attention="on"), 2)} == {"on"}


def test_tuning_returns_the_fastest_candidate() -> None:
    """Of the candidates that ran all shapes the chosen one has the smallest round, or is about as fast; no setting is
    left "auto"."""
    auto = LlamaSettings(SHIPPED_MODEL)
    machine = Machine(0.1, 30.0, times={("off", "file"): 1.3, ("on", "file"): 1.2, ("on", "f16"): 1.1})
    for tuned in (tune(auto, time.monotonic_ns), tune(auto, machine.now, opened=machine.open)):
        chosen = tuned.settings
        (of_chosen,) = (
            t for t in tuned.tried if (t.threads, t.flash_attention, t.weights)
            == (chosen.threads, chosen.flash_attention, chosen.weights)
        )  # fmt: skip
        alike = 1.0 if tuned.ended is Ended.CLEAR else ALIKE_X
        if tuned.ended is not Ended.TIME:
            assert all(of_chosen.round_ms <= alike * t.round_ms for t in tuned.tried if t.shapes == of_chosen.shapes)
        assert "auto" not in (chosen.flash_attention, chosen.weights) and chosen.threads > 0
        assert (chosen.sequences, chosen.context_len) == (auto.sequences, auto.context_len)
    assert (chosen.flash_attention, chosen.weights) == ("off", "f16")


class Weighed(SimEngine):
    """A simulated engine that holds its weights in some way."""

    def __init__(self, geometry: Geometry, vocab: SimVocab, clock: VirtualClock, cost: SimCost, weights: str) -> None:
        super().__init__(geometry, vocab, clock, cost)
        self.weights = weights


class Machine:
    """Engines with stated times on a clock of their own: `token_ms` for each token, `open_ms` for each opening, three
    times that for f16."""

    def __init__(
        self,
        token_ms: float,
        open_ms: float,
        busy_from_s: float = 1e9,
        times: dict[tuple[str, str], float] | None = None,
    ) -> None:
        self.clock = VirtualClock()
        self.opened: list[LlamaSettings] = []
        self.engines: list[Weighed] = []
        self._cost = SimCost(step_us=token_ms * 250, micro_us=0.0, token_us=token_ms * 1000)
        self._times = times or {}  # as long as the others, by attention and weights
        self._open_ms, self._busy_from_ns = open_ms, busy_from_s * S

    def now(self) -> int:
        """The time. Everything takes ten times as long once other processes keep the machine busy."""
        ns = self.clock()
        return ns if ns <= self._busy_from_ns else round(self._busy_from_ns + 10 * (ns - self._busy_from_ns))

    def open(self, settings: LlamaSettings) -> Weighed:
        """An engine of this machine."""
        self.opened.append(settings)
        self.clock.advance(round(self._open_ms * MS) * (3 if settings.weights == "f16" else 1))
        vocab = SimVocab(list(MARKS.values()))
        geometry = Geometry(settings.sequences, settings.context_len, 2048, 512, vocab.size)
        x = self._times.get((settings.flash_attention, settings.weights), 1.0)
        cost = replace(self._cost, step_us=self._cost.step_us * x, token_us=self._cost.token_us * x)
        self.engines.append(Weighed(geometry, vocab, self.clock, cost, settings.weights))
        return self.engines[-1]


@pytest.mark.parametrize("open_ms", [30.0, 600.0, 3000.0])
@pytest.mark.parametrize("token_ms", [0.05, 0.35, 2.0, 6.0, 15.0, 60.0, 250.0, 900.0])
def test_tuning_ends_within_ten_seconds_however_slow_the_model_is(token_ms: float, open_ms: float) -> None:
    """The time of one candidate decides how many are tried and how much is measured; otherwise the first choices
    stay."""
    machine = Machine(token_ms, open_ms)
    auto = LlamaSettings(SHIPPED_MODEL)
    tuned = tune(auto, machine.now, opened=machine.open)
    chosen, tried = tuned.settings, tuned.tried
    assert machine.now() <= 10 * S
    assert "auto" not in (chosen.flash_attention, chosen.weights) and chosen.threads > 0
    if token_ms <= 6.0 and open_ms <= 600.0:
        assert len(tried) >= 2
    if not tried:
        assert chosen == candidates(auto, cores_here().usable)[0]


@pytest.mark.parametrize("token_ms", [0.05, 0.35, 2.0, 6.0, 15.0])
def test_attention_is_compared_on_long_trunks_alone(token_ms: float) -> None:
    """On short trunks it looks better than it is: there the first choice stays, and weights are compared."""
    machine = Machine(token_ms, 100.0)
    tuned = tune(LlamaSettings(SHIPPED_MODEL), machine.now, opened=machine.open)
    chosen, tried = tuned.settings, tuned.tried
    assert {t.weights for t in tried} == {"file", "f16"}
    compared = {t.flash_attention for t in tried} == {"on", "off"}
    assert compared is (token_ms < 1)
    assert compared or chosen.flash_attention == "off"
    assert not compared or machine.opened[-1].context_len > 256


def test_a_fast_model_is_measured_in_full() -> None:
    """Every candidate runs, on the longest trunk."""
    machine = Machine(0.05, 30.0)
    tried = tune(LlamaSettings(SHIPPED_MODEL), machine.now, opened=machine.open).tried
    assert len(tried) == len(candidates(LlamaSettings(SHIPPED_MODEL), cores_here().usable))
    assert {s.sequences for s in machine.opened[1:]} == {16}


def test_a_candidate_that_is_far_behind_is_dropped_after_one_shape() -> None:
    """Weights that take 1.6 times as long run the first shape and no other one; the rest goes on."""
    machine = Machine(0.1, 30.0, times={(a, "f16"): 1.6 for a in ("off", "on")} | {("on", "file"): 0.9})
    tuned = tune(LlamaSettings(SHIPPED_MODEL), machine.now, opened=machine.open)
    assert (tuned.settings.flash_attention, tuned.settings.weights) == ("on", "file")
    steps = {(e.weights, e.steps) for e in machine.engines[1:]}
    assert {steps for weights, steps in steps if weights == "f16"} == {1 + 7}, "the trunk, and sixteen single tokens"
    assert min(steps for weights, steps in steps if weights == "file") > 1 + 7
    assert len(tuned.tried) == len(candidates(LlamaSettings(SHIPPED_MODEL), cores_here().usable))


def test_tuning_stops_when_the_choice_is_clear() -> None:
    """Where one candidate is always faster, half of the rounds are enough; where none is, all are run and the first
    choice stands."""
    took = {}
    for x in (0.8, 1.0):
        machine = Machine(0.1, 30.0, times={("off", "f16"): x})
        tuned = tune(LlamaSettings(SHIPPED_MODEL), machine.now, opened=machine.open)
        took[x] = (machine.now(), tuned.ended, tuned.settings.weights)
    assert took[0.8][1:] == (Ended.CLEAR, "f16") and took[1.0][1:] == (Ended.MEASURED, "file")
    assert took[0.8][0] < 0.75 * took[1.0][0]


@pytest.mark.parametrize(("token_ms", "tried"), [(16.0, 2), (32.0, 2), (100.0, 0), (200.0, 0)])
def test_a_model_with_a_tenth_of_a_second_a_token_keeps_to_the_budget(token_ms: float, tried: int) -> None:
    """Of a slow model only the weights are compared, on single tokens and a short piece; of one so slow that the
    conversion to f16 alone would take the whole budget, nothing is."""
    machine = Machine(token_ms, 300.0, times={("off", "f16"): 0.5})
    tuned = tune(LlamaSettings(SHIPPED_MODEL), machine.now, opened=machine.open)
    assert len(tuned.tried) == tried and tuned.settings.weights == ("f16" if tried else "file")
    assert machine.now() <= 8 * S


def test_a_budget_that_is_over_is_said_to_be() -> None:
    """The reason is one of its own, and so is that of a budget of 0, which tries nothing."""
    auto = LlamaSettings(SHIPPED_MODEL)
    slow = Machine(900.0, 30.0)
    assert tune(auto, slow.now, opened=slow.open).ended is Ended.TIME
    busy = Machine(2.0, 200.0, busy_from_s=2.0)
    assert tune(auto, busy.now, opened=busy.open).ended is Ended.TIME
    assert tune(replace(auto, tune_s=0.0), slow.now, opened=slow.open).ended is Ended.OFF


def test_a_share_of_the_budget_is_told() -> None:
    """It grows, and is 1 at most."""
    shares: list[float] = []
    machine = Machine(2.0, 200.0)
    tune(LlamaSettings(SHIPPED_MODEL), machine.now, opened=machine.open, moved=shares.append)
    assert shares and shares == sorted(shares) and 0 < shares[-1] <= 1


@pytest.mark.parametrize("busy_from_s", [0.2, 1.0, 2.0, 4.0])
def test_a_machine_that_becomes_busy_meanwhile_is_not_measured_for_long(busy_from_s: float) -> None:
    """Nothing more is begun when the time is over, so only one native call may exceed it."""
    machine = Machine(2.0, 200.0, busy_from_s)
    chosen = tune(LlamaSettings(SHIPPED_MODEL), machine.now, opened=machine.open).settings
    assert chosen.threads > 0
    assert machine.now() <= 10 * S + 10 * (600 + 2 * 1000) * MS


def test_a_missing_model_is_not_tuned(tmp_path: Path) -> None:
    """Loading it raises the reason, and so does an invalid value."""
    path = tmp_path / "none.gguf"
    assert tune(LlamaSettings(path), time.monotonic_ns).tried == ()
    with pytest.raises(ConfigError, match=r"none\.gguf"):
        LlamaEngine(LlamaSettings(path, weights="f16"))
    with pytest.raises(ConfigError, match="must be auto, off, on"):
        LlamaEngine(LlamaSettings(SHIPPED_MODEL, flash_attention="maybe"))


def test_weights_converted_to_f16_say_the_same() -> None:
    """The likeliest token after a prompt is the same, and no copy is left on the disk."""
    picked = []
    for weights in ("file", "f16"):
        engine = LlamaEngine(LlamaSettings(SHIPPED_MODEL, sequences=2, context_len=256, weights=weights))
        tokens = tokens_of(engine.vocab.encode("The village lies by the old road, and"))
        picked.append(engine.step(StepPlan([Slice(0, 0, tokens, GREEDY_PICK)])).picked)
        engine.close()
    assert picked[0] == picked[1]


@pytest.mark.parametrize("folder", ["full", "missing"])
def test_without_a_temporary_folder_with_room_the_copy_is_in_memory(
    folder: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a temporary folder of 1 MiB, or none at all (a read-only file system), f16 is tried as elsewhere, and says
    the same. Nothing is left of it."""
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk if folder == "full" else small_disk / "missing"))
    tuned = tune(LlamaSettings(SHIPPED_MODEL), time.monotonic_ns)
    assert {t.weights for t in tuned.tried} == {"file", "f16"}
    before = len(os.listdir("/proc/self/fd"))
    engine = LlamaEngine(LlamaSettings(SHIPPED_MODEL, sequences=2, context_len=256, weights="f16"))
    assert engine.settings.weights == "f16" and not engine.weights_why
    assert engine.step(StepPlan([Slice(0, 0, tokens_of(engine.vocab.encode("The village")), GREEDY_PICK)])).picked
    engine.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize("folder", ["full", "missing"])
def test_without_room_for_a_copy_the_weights_stay_as_they_are(
    folder: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the memory has no room for the copy either, it serves, and gives the reason for not using f16."""
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk if folder == "full" else small_disk / "missing"))
    monkeypatch.setattr("engines.llama.loading.memory_free", lambda: 8 << 20)
    tuned = tune(LlamaSettings(SHIPPED_MODEL), time.monotonic_ns)
    assert tuned.settings.weights == "file" and {t.weights for t in tuned.tried} <= {"file"}
    engine = LlamaEngine(LlamaSettings(SHIPPED_MODEL, sequences=2, context_len=256, weights="f16"))
    assert engine.settings.weights == "file"
    assert "copy with f16" in engine.weights_why and "of 8 MiB that are free" in engine.weights_why
    assert "set TMPDIR to a folder with room" in engine.weights_why
    assert engine.step(StepPlan([Slice(0, 0, tokens_of(engine.vocab.encode("The village")), GREEDY_PICK)])).picked
    engine.close()
    assert not list(small_disk.iterdir()), "nothing is left of the try"
