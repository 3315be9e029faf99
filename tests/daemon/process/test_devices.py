"""doctor's judgement of GPUs and of the time of a step."""

from __future__ import annotations

import pytest

from core.errors import ConfigError
from daemon.config import SHIPPED_MODEL, load
from daemon.process.devices import found, on_paper, step
from daemon.process.diagnosis import Outcome
from daemon.process.preflight import before_start
from engines.llama import LlamaEngine, LlamaSettings, gpu_kinds, gpus
from engines.room import GIB

OK, WARN, FAIL = Outcome.OK, Outcome.WARN, Outcome.FAIL
L4 = ("CUDA0", "NVIDIA L4", 20 * GIB, 22 * GIB)


@pytest.mark.parametrize(
    ("gpus_here", "kinds", "wanted", "needs", "outcome", "says", "fix"),
    [
        ((), (), 0, GIB, OK, "CPU alone", ""),
        ((), (), 9, GIB, FAIL, "built without a GPU, and engine.gpu_layers is 9", "make setup GPU=cuda or GPU=vulkan"),
        ((), ("cuda",), 0, GIB, WARN, "no GPU is found, though llama.cpp was built for cuda", "driver"),
        ((), ("cuda",), -1, GIB, FAIL, "no GPU is found", "engine.gpu_layers 0"),
        ((L4,), ("cuda",), 0, GIB, WARN, "CUDA0 (NVIDIA L4), 20.0 of 22.0 GiB free; not used", "engine.gpu_layers -1"),
        ((L4,), ("cuda",), -1, 8 * GIB, OK, "all 33 layers with their KV need 8.0 GiB: they fit", ""),
        ((L4,), ("cuda",), 99, 40 * GIB, WARN, "about 16 layers fit", "engine.gpu_layers 16"),
        ((L4,), ("cuda",), 12, 40 * GIB, OK, "about 16 fit, 12 are wanted", ""),
        ((L4, L4), ("cuda",), -1, 40 * GIB, OK, "they fit", ""),
    ],
)
def test_devices(
    gpus_here: tuple[tuple[str, str, int, int], ...],
    kinds: tuple[str, ...],
    wanted: int,
    needs: int,
    outcome: Outcome,
    says: str,
    fix: str,
) -> None:
    """A GPU that is wanted and not there fails. One that is there and not used, or too small, is a warning."""
    check = found(gpus_here, kinds, wanted, 33, needs)
    assert check.outcome is outcome and says in check.says and fix in check.fix


def test_the_time_of_a_step_is_an_estimate_and_says_from_what() -> None:
    """It is the weights' bytes by the memory's bandwidth. Above the promise it warns."""
    check = step(3 * GIB, on_paper("NVIDIA L4"), "on paper, NVIDIA L4", 16)
    assert check.outcome is OK and check.says.startswith(
        "about 10.7 ms, an estimate: it reads 3072 MiB of weights at 300"
    )
    assert "on paper, NVIDIA L4" in check.says and "the warm-up measures it" in check.says
    slow = step(3 * GIB, 10.0, "measured here with 1 threads", 16)
    assert slow.outcome is WARN and "Gold is promised 16 ms a token" in slow.says and "routes.intent.engine" in slow.fix
    assert "not estimated" in step(GIB, 0, "the memory bandwidth of X is not known here", 16).says


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA H200", 4800), ("NVIDIA H100 80GB HBM3", 3350), ("NVIDIA H100 PCIe", 2000), ("NVIDIA L40S", 864),
        ("NVIDIA L4", 300), ("NVIDIA GeForce RTX 4090", 1008), ("AMD Radeon RX 7900 XTX (RADV NAVI31)", 960),
        ("llvmpipe (LLVM 15.0.6, 256 bits)", 0),
    ],
)  # fmt: skip
def test_bandwidths_on_paper(name: str, rate: int) -> None:
    """A device is known by the part of its name that says the model."""
    assert on_paper(name) == rate


@pytest.mark.skipif(bool(gpus()), reason="a GPU is here")
def test_without_a_gpu_layers_for_one_are_refused() -> None:
    """llama.cpp would compute them on the CPU and not say so."""
    built = (
        "was built for the CPU alone; build it for your GPU with make setup" if not gpu_kinds() else "finds no such GPU"
    )
    for refused in (
        lambda: LlamaEngine(LlamaSettings(SHIPPED_MODEL, sequences=2, gpu_layers=-1)),
        lambda: before_start(load(None, ["engine.gpu_layers=-1", "memory.keep=false"], {})),
    ):
        with pytest.raises(ConfigError, match=r"^engine\.gpu_layers: -1, but this llama\.cpp ") as caught:
            refused()
        assert built in str(caught.value)
