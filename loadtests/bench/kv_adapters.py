"""Adapters: switching to one in memory, loading and swapping them, and the cost of a stack of seven in a step.

The adapters are random numbers, of rank 8 on every matrix of the layers. Sides take turns, and a step right after a
switch is not counted where steps are compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from core.choice import Tokens
from core.clock import MS, US, now_ns
from core.words import NpcKey, Tier, TrunkKey
from core.work import Ended, Work
from engines.base import GREEDY_PICK, Slice, StepPlan, tokens_of
from engines.gguf_file import read_gguf
from engines.llama import LlamaEngine, LlamaSettings, send_native_log_to
from engines.lora import JOIN, Adapter, Adapters, AdapterSettings, Pairs, write_adapter
from loadtests.bench.figures import Figures
from scheduler.meter import percentile
from scheduler.placing import KvSettings
from scheduler.scheduler import Scheduler, SchedulerSettings
from tiers.promises import Promises

STACK = 7
RANK = 8
LOADED_MAX = STACK + 2
TRUNK_LEN = 400
BATCHES = (1, 16, 32)
ROUNDS = 60
STEPS = 4  # steps with one adapter in a row
TEXT = "Mayor Greta rules the village, and strangers are watched. "


async def run(figures: Figures, model: Path, quick: bool) -> None:
    """Runs all parts, on an engine of its own."""
    rounds = ROUNDS // 6 if quick else ROUNDS
    send_native_log_to(None)
    figures.note(f"-- {STACK} adapters of rank {RANK}; {rounds} rounds of each")
    with tempfile.TemporaryDirectory(prefix="npcd-bench-") as folder:
        names = [f"a{n}" for n in range(LOADED_MAX + 1)]
        for seed, name in enumerate(names):
            with (Path(folder) / f"{name}.gguf").open("wb") as file:
                write_adapter(file, _random(model, seed), _architecture(model), 2.0 * RANK)
        settings = AdapterSettings(folder, loaded_max=LOADED_MAX, rank_max=64, activated=tuple(names))
        adapters = Adapters(settings, model)
        began_ns = now_ns()
        seven = adapters.find(JOIN.join(names[:STACK]))
        figures.add("adapter.compose_7_ms", (now_ns() - began_ns) / MS)
        engine = LlamaEngine(LlamaSettings(model, flash_attention="off"), adapters)
        try:
            trunk = tokens_of((engine.vocab.encode(TEXT) * 50)[:TRUNK_LEN])
            _stand(engine, trunk)
            resident = [adapters.find(name) for name in names[:4]]
            _activated(figures, engine, resident, rounds)
            _compared(figures, engine, resident[0], seven, rounds)
            _swapped(figures, engine, [adapters.find(name) for name in names], rounds // 4)
            _shared(figures, engine, trunk, resident[:2])
        finally:
            engine.close()


def _stand(engine: LlamaEngine, trunk: Tokens) -> None:
    """Puts the trunk into as many sequences as the largest batch has."""
    engine.step(StepPlan([Slice(0, 0, trunk, GREEDY_PICK)]))
    for seq in range(1, max(BATCHES)):
        engine.copy(0, seq)


def _step_ns(engine: LlamaEngine, adapter: Adapter | None, batch: int = 1) -> int:
    """Makes one token in each of so many sequences and trims it again. Returns the step's time."""
    plan = StepPlan(
        [Slice(seq, TRUNK_LEN, tokens_of([5]), GREEDY_PICK) for seq in range(batch)],
        "" if adapter is None else adapter.sha,
    )
    began_ns = now_ns()
    engine.step(plan)
    took_ns = now_ns() - began_ns
    for seq in range(batch):
        engine.trim(seq, TRUNK_LEN)
    return took_ns


def _activated(figures: Figures, engine: LlamaEngine, resident: Sequence[Adapter], rounds: int) -> None:
    """Every switch is to another adapter, all of them in memory; its first decode is part of the time."""
    for adapter in (*resident, *resident):
        _step_ns(engine, adapter)
    taken = [_step_ns(engine, adapter) for _ in range(rounds * 4) for adapter in resident]
    figures.add("adapter.activate_p95_ms", percentile(taken, 0.95) / MS)
    figures.add("adapter.activate_p50_ms", percentile(taken, 0.5) / MS)


def _compared(figures: Figures, engine: LlamaEngine, one: Adapter, seven: Adapter, rounds: int) -> None:
    """Steps of the base model, of one adapter and of a stack of seven, in turns."""
    ratios = []
    for batch in BATCHES:
        sides: dict[str, Callable[[], int]] = {
            "base": lambda batch=batch: _step_ns(engine, None, batch),  # type: ignore[misc]
            "one": lambda batch=batch: _step_ns(engine, one, batch),  # type: ignore[misc]
            "seven": lambda batch=batch: _step_ns(engine, seven, batch),  # type: ignore[misc]
        }
        taken: dict[str, list[int]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, step in sides.items():
                step()  # this step has the switch
                taken[name] += [step() for _ in range(STEPS)]
        base, single, stack = (median(taken[name]) for name in sides)
        figures.note(
            f"   {batch} sequences, a step: base {base / US:,.0f} us, one {single / US:,.0f} us, seven "
            f"{stack / US:,.0f} us"
        )
        figures.add(f"adapter.step_x_{batch}", single / base)
        ratios.append(stack / single)
    figures.add("adapter.stack_of_7_x", max(ratios))


def _swapped(figures: Figures, engine: LlamaEngine, many: Sequence[Adapter], rounds: int) -> None:
    """One more adapter than fits in memory, in turns: every step drops one, loads one and decodes."""
    assert len(many) == LOADED_MAX + 1, "in this order each of them was dropped for the one before"
    for adapter in many:
        _step_ns(engine, adapter)
    loads = engine.adapter_counts()["loaded"]
    taken = [_step_ns(engine, adapter) for _ in range(rounds) for adapter in many]
    assert engine.adapter_counts()["loaded"] - loads == len(taken), "every step had to load"
    figures.add("adapter.swap_p95_ms", percentile(taken, 0.95) / MS)
    figures.add("adapter.swap_p50_ms", percentile(taken, 0.5) / MS)


def _shared(figures: Figures, engine: LlamaEngine, trunk: Tokens, two: Sequence[Adapter]) -> None:
    """An NPC speaks with one activated adapter, then with another one. Returns the trunk tokens that the second one
    computes."""
    for seq in range(engine.geometry.sequences):
        engine.trim(seq, 0)
    scheduler = Scheduler(engine, Promises(), SchedulerSettings(kv=KvSettings(prefixes=2, lanes=4)))
    tail = tokens_of([5, 6, 7])
    computed = 0
    for ticket, adapter in enumerate(two):
        key = TrunkKey(NpcKey("", "bench", "mira"), "player", adapter.trunk_sha)
        scheduler.submit(ticket, Work(Tier.SILVER, key, trunk, tail, 8, adapter=adapter.sha), now_ns())
        while not scheduler.idle:
            planned = scheduler.plan(now_ns())
            if planned.step is not None:
                began_ns = now_ns()
                result = engine.step(planned.step)
                scheduler.apply(planned, result, now_ns() - began_ns, now_ns())
            for _, what in scheduler.take_deliveries():
                if isinstance(what, Ended):
                    computed = what.timings.prefilled_tokens - len(tail)
    figures.add("adapter.second_on_trunk_tokens", computed)


def _random(model: Path, seed: int) -> Pairs:
    rng = np.random.default_rng(seed)
    pairs: Pairs = {}
    for name, at in read_gguf(model).tensors.items():
        if name.startswith("blk.") and len(at.shape) == 2:
            a = rng.normal(size=(RANK, at.shape[1])).astype(np.float32)
            pairs[name] = a, (0.01 * rng.normal(size=(at.shape[0], RANK))).astype(np.float32)
    return pairs


def _architecture(model: Path) -> str:
    return str(read_gguf(model).values["general.architecture"])
