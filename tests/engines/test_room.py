"""KV and buffers that do not fit are refused at the start, with a size that fits; the sizes are llama.cpp's own."""

import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import ConfigError
from engines.llama import LlamaEngine, LlamaSettings, Needs, load_vocab, model, planned
from engines.llama.measuring import read_plan
from engines.room import GIB, check_room, memory_free
from tests.engines.shapes import Shape, byte_level, qwen2_like, write


def test_free_memory_is_the_lower_of_the_machines_and_the_containers(tmp_path: Path) -> None:
    """A container's limit counts where there is one. A file without a number does not count."""
    meminfo, group = tmp_path / "meminfo", tmp_path / "group"
    assert memory_free(meminfo, group) == 0
    meminfo.write_text("MemTotal:  9 kB\nMemAvailable:    2048 kB\n")
    assert memory_free(meminfo, group) == 2 << 20
    group.mkdir()
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("100\n")
    assert memory_free(meminfo, group) == 2 << 20
    (group / "memory.max").write_text("1100\n")
    assert memory_free(meminfo, group) == 1000
    (group / "memory.max").write_text("50\n")
    assert memory_free(meminfo, group) == 0
    assert memory_free() > 0


def test_the_error_for_too_much_kv_gives_a_size_that_fits() -> None:
    """The error for Qwen2.5-7B on 8 GiB has the numbers, and the settings to change."""
    check_room(40, 2048, 56 << 10, 8 * GIB)
    with pytest.raises(
        ConfigError, match=r"192 sequences of 2048 tokens take 21\.0 GiB .*8\.0 GiB are free; at most 73 sequences"
    ):
        check_room(192, 2048, 56 << 10, 8 * GIB)


def test_a_token_is_measured_on_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers with two heads of 16 for keys and as many for values, in f16, are 256 bytes a token. Beside them come
    the logits of five sequences and the buffers of the computation."""
    path = qwen2_like(tmp_path / "m.gguf")
    asked: list[tuple[int, int, int, int, int]] = []
    monkeypatch.setattr(model, "memory_free", lambda: 1000)
    monkeypatch.setattr(model, "check_room", lambda *numbers: asked.append(numbers))
    LlamaEngine(LlamaSettings(path, sequences=4, context_len=256)).close()
    [(sequences, context_len, token_bytes, free, buffers)] = asked
    assert (sequences, context_len, free) == (5, 256, 1000)
    assert abs(token_bytes - 256) <= 8  # llama.cpp says sizes in hundredths of a MiB
    tokens = load_vocab(path).size
    assert 4 * tokens * (5 + 512) <= buffers <= 4 * tokens * (5 + 512) + (2 << 20)


def test_buffers_count_beside_kv() -> None:
    """KV alone would fit: with the logits of a vocabulary of 256,000 tokens it does not, and the error says so."""
    check_room(40, 2048, 56 << 10, 5 * GIB)
    with pytest.raises(
        ConfigError, match=r"4\.4 GiB of KV .*, and 0\.8 GiB for logits and computing, 5\.0 GiB .*at most 38"
    ):
        check_room(40, 2048, 56 << 10, 5 * GIB, 800 << 20)


READ = """
import sys
from pathlib import Path
from engines.base import GREEDY_PICK, Slice, StepPlan
from engines.llama import LlamaEngine, LlamaSettings
import numpy as np

def kib(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

settings = LlamaSettings(Path(sys.argv[1]), sequences=128, context_len=256, batch_len=512, weights="file",
    flash_attention="off", threads=1)
before = kib("RssAnon")
engine = LlamaEngine(settings)
for seq in range(0, 128, 32):  # each a whole micro-batch, and the logits of all that ask
    engine.step(StepPlan([Slice(seq + i, 0, np.full(16, 5, np.int32), GREEDY_PICK) for i in range(32)]))
engine.step(StepPlan([Slice(i, 16, np.full(1, 5, np.int32), GREEDY_PICK) for i in range(128)]))
print((kib("RssAnon") - before) / 1024)
"""


@pytest.mark.parametrize("tokens", [49_152, 256_000])
def test_what_llama_cpp_plans_is_what_the_process_takes(tmp_path: Path, tokens: int) -> None:
    """After steps of every kind the kernel counts no more memory for the process than was planned. A vocabulary of
    256,000 tokens shows.
    """
    vocab = byte_level("gpt-2", ["<|endoftext|>"], "<|endoftext|>", size=tokens)
    path = write(tmp_path / "m.gguf", Shape("llama", hidden=32, kv_heads=1, head_len=8, inner=64), vocab, "")
    settings = LlamaSettings(path, sequences=128, context_len=256, batch_len=512, weights="file", flash_attention="off")
    plan = planned(path, settings, 129)
    assert plan is not None
    mib = 1 << 20  # of which llama.cpp says hundredths
    assert abs(plan.output - 4 * tokens * 129) < mib // 100
    assert 4 * tokens * 512 <= plan.compute["CPU"] + mib // 100 <= 4 * tokens * 512 * 1.5
    assert abs(plan.kv - 2 * 2 * 8 * 2 * 256 * 129) < mib // 100
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    taken_mib, planned_mib = float(done.stdout), (plan.kv + plan.buffers) / mib
    # Beside the buffers a process takes the vocabulary (texts, ranks, our own table of it) and the libraries' own.
    beside_mib = 25 + tokens * 0.0006
    # llama.cpp plans a micro-batch whose every token asks for logits. A step of npcd asks for fewer.
    assert 0.35 * planned_mib <= taken_mib <= planned_mib + beside_mib, (taken_mib, planned_mib)


def test_a_log_that_says_nothing_plans_nothing() -> None:
    """A later llama.cpp may word it otherwise: then nothing is claimed."""
    assert read_plan(["llama_context: something else = 3 MiB"]) is None
    lines = [
        "print_info: file size   = 1.50 GiB (4.5 BPW)", "llama_context:  CUDA_Host  output buffer size =    48.00 MiB",
        "llama_kv_cache: size =  100.00 MiB (  2048 cells", "llama_kv_cache: size =   20.00 MiB (  2048 cells",
        "sched_reserve:      CUDA0 compute buffer size =    99.50 MiB",
        "sched_reserve:  CUDA_Host compute buffer size =    4.00 MiB",
    ]  # fmt: skip
    mib = 1 << 20
    assert read_plan(lines) == Needs(
        1536 * mib, 120 * mib, {"CUDA0": 99 * mib + mib // 2, "CUDA_Host": 4 * mib}, 48 * mib
    )
