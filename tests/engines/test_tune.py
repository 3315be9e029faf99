"""Settings that are "auto" are measured; chosen ones are kept."""

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
from engines.tune import candidates, tune
from prompts.marks import MARKS


def test_only_what_is_open_is_tried() -> None:
    """There are two attention settings times two weight types, and on two cores one thread. Given values stay."""
    auto = LlamaSettings(SHIPPED_MODEL)
    assert len(candidates(auto, cores=2)) == 4 * len({c.threads for c in candidates(auto, cores=2)})
    fixed = replace(auto, threads=3, flash_attention="off", weights="file")
    assert candidates(fixed, cores=16) == [fixed]
    assert {c.flash_attention for c in candidates(replace(auto, flash_attention="on"), 2)} == {"on"}


def test_tuning_returns_the_fastest_candidate() -> None:
    """The chosen candidate has the smallest round, and no setting is left "auto"."""
    chosen, tried = tune(LlamaSettings(SHIPPED_MODEL), time.monotonic_ns)
    best = min(tried, key=lambda t: t.round_ms)
    best_is = (best.threads, best.flash_attention, best.weights)
    assert (chosen.threads, chosen.flash_attention, chosen.weights) == best_is
    assert "auto" not in (chosen.flash_attention, chosen.weights) and chosen.threads > 0
    assert (chosen.sequences, chosen.context_len) == (255, 2048)


class Weighed(SimEngine):
    """A simulated engine that holds its weights in some way."""

    def __init__(self, geometry: Geometry, vocab: SimVocab, clock: VirtualClock, cost: SimCost, weights: str) -> None:
        super().__init__(geometry, vocab, clock, cost)
        self.weights = weights


class Machine:
    """Engines with stated times on a clock of their own: `token_ms` for each token, `open_ms` for each opening, three
    times that for f16."""

    def __init__(self, token_ms: float, open_ms: float, busy_from_s: float = 1e9) -> None:
        self.clock = VirtualClock()
        self.opened: list[LlamaSettings] = []
        self._cost = SimCost(step_us=token_ms * 250, micro_us=0.0, token_us=token_ms * 1000)
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
        return Weighed(geometry, vocab, self.clock, self._cost, settings.weights)


@pytest.mark.parametrize("open_ms", [30.0, 600.0, 3000.0])
@pytest.mark.parametrize("token_ms", [0.05, 0.35, 2.0, 6.0, 15.0, 60.0, 250.0, 900.0])
def test_tuning_ends_within_ten_seconds_however_slow_the_model_is(token_ms: float, open_ms: float) -> None:
    """The time of one candidate decides how many are tried and how much is measured; otherwise the first choices
    stay."""
    machine = Machine(token_ms, open_ms)
    auto = LlamaSettings(SHIPPED_MODEL)
    chosen, tried = tune(auto, machine.now, opened=machine.open)
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
    chosen, tried = tune(LlamaSettings(SHIPPED_MODEL), machine.now, opened=machine.open)
    assert {t.weights for t in tried} == {"file", "f16"}
    compared = {t.flash_attention for t in tried} == {"on", "off"}
    assert compared is (token_ms < 1)
    assert compared or chosen.flash_attention == "off"
    assert not compared or machine.opened[-1].context_len > 256


def test_a_fast_model_is_measured_in_full() -> None:
    """Every candidate runs, on the longest trunk."""
    machine = Machine(0.05, 30.0)
    _, tried = tune(LlamaSettings(SHIPPED_MODEL), machine.now, opened=machine.open)
    assert len(tried) == len(candidates(LlamaSettings(SHIPPED_MODEL), cores_here().usable))
    assert {s.sequences for s in machine.opened[1:]} == {16}


@pytest.mark.parametrize("busy_from_s", [0.2, 1.0, 2.0, 4.0])
def test_a_machine_that_becomes_busy_meanwhile_is_not_measured_for_long(busy_from_s: float) -> None:
    """Nothing more is begun when the time is over, so only one native call may exceed it."""
    machine = Machine(2.0, 200.0, busy_from_s)
    chosen, _ = tune(LlamaSettings(SHIPPED_MODEL), machine.now, opened=machine.open)
    assert chosen.threads > 0
    assert machine.now() <= 10 * S + 10 * (600 + 2 * 1000) * MS


def test_a_missing_model_is_not_tuned(tmp_path: Path) -> None:
    """Loading it raises the reason, and so does an invalid value."""
    path = tmp_path / "none.gguf"
    assert tune(LlamaSettings(path), time.monotonic_ns)[1] == []
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
def test_without_room_for_a_copy_the_weights_stay_as_they_are(
    folder: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a temporary folder of 1 MiB, or none at all (a read-only file system), it serves, and gives the reason for
    not using f16."""
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk if folder == "full" else small_disk / "missing"))
    chosen, tried = tune(LlamaSettings(SHIPPED_MODEL), time.monotonic_ns)
    assert chosen.weights == "file" and {t.weights for t in tried} == {"file"}
    engine = LlamaEngine(LlamaSettings(SHIPPED_MODEL, sequences=2, context_len=256, weights="f16"))
    assert engine.settings.weights == "file"
    assert "copy with f16" in engine.weights_why and "set TMPDIR to a folder with room" in engine.weights_why
    tokens = tokens_of(engine.vocab.encode("The village"))
    assert engine.step(StepPlan([Slice(0, 0, tokens, GREEDY_PICK)])).picked
    engine.close()
    assert not list(small_disk.iterdir()), "nothing is left of the try"
