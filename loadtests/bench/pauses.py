"""The longest stops of the event loop: each call's longest stretch, and Python's own pauses.

Calls are measured on a daemon with 10,000 NPCs (loadtests/bench/pauses_calls.py). All other parts run in one process on
the shipped model: a daemon with 1,000 NPCs, whose engine some parts keep busy with Bronze work. They measure the event
loop's lag: how late a callback runs that was requested for now.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import numpy as np

from core.clock import MS, now_ns
from core.words import NpcKey, Tier, TrunkKey
from core.work import Ended, Work
from daemon.build import Daemon, build
from daemon.config import Config
from daemon.model import Model
from daemon.process.cores import keep_apart, put_together
from daemon.rpc.status import Lifecycle
from engines.llama import LlamaEngine, LlamaSettings, send_native_log_to
from loadtests.bench import pauses_calls
from loadtests.bench.figures import Figures
from loadtests.bench.options import Options
from npcd.v1 import intents_pb2, npcs_pb2
from scheduler.meter import percentile
from tiers.routing import LLAMA

PARTS = ("calls", "gc", "slices", "switch", "cores", "threads")
NPCS = 1000
ROUNDS = 5
STOP_S = 5.0


async def run(found: Figures, options: Options) -> None:
    """Measures the selected parts."""
    send_native_log_to(None)
    rounds = 2 if options.quick else ROUNDS
    if options.wants("calls"):
        await pauses_calls.measure(found, options)
    if options.wants("gc"):
        await _with_daemon(options, 1, lambda daemon: _collections(found, daemon, rounds))
    if options.wants("slices"):
        await _with_daemon(options, 1, lambda daemon: _slices(found, daemon, rounds))
    if options.wants("switch"):
        await _with_daemon(options, 1, lambda daemon: _switch(found, daemon, rounds))
    if options.wants("cores"):
        await _with_daemon(options, 1, lambda daemon: _cores(found, daemon, rounds))
    if options.wants("threads"):
        for threads in (1, 2):
            await _with_daemon(options, threads, lambda daemon, n=threads: _threads(found, daemon, n, rounds))  # type: ignore[misc]


async def _with_daemon(options: Options, threads: int, part: Callable[[Daemon], object]) -> None:
    """Runs one part on a daemon of its own with 1,000 registered NPCs."""
    engine = LlamaEngine(LlamaSettings(options.model, threads=threads, context_len=1024))
    config = Config()
    config = replace(config, calls=replace(config.calls, slice_ms=1.0))

    async def drain(_: float) -> None:
        raise AssertionError("nobody drains a benchmark")

    def died(error: BaseException) -> None:
        raise SystemExit(f"the engine thread died: {error}")

    daemon = build(config, {LLAMA: Model(engine, "", "")}, Lifecycle(), drain)
    daemon.door.start(died)
    await daemon.calls.define_world("", _world())
    specs = [npcs_pb2.NpcSpec(npc_id=f"n{i}", archetype_id="villager", persona_id="p") for i in range(NPCS)]
    await daemon.calls.register("", npcs_pb2.RegisterRequest(world_id="w", npcs=specs))
    await daemon.door.all_ended()
    try:
        made = part(daemon)
        if asyncio.iscoroutine(made):
            await made
    finally:
        daemon.door.stop(STOP_S, "the benchmark is over")
        engine.close()


async def _collections(found: Figures, daemon: Daemon, rounds: int) -> None:
    """A full collection without and after gc.freeze()."""
    for seen in range(3):
        await daemon.calls.observe("", _frame(daemon, NPCS, seen))
    await daemon.door.all_ended()

    def full_ms() -> float:
        began_ns = now_ns()
        gc.collect()
        return (now_ns() - began_ns) / MS

    gc.collect()
    found.add("pauses.gc_full_ms", median(full_ms() for _ in range(rounds)))
    gc.freeze()
    found.add("pauses.gc_frozen_ms", median(full_ms() for _ in range(rounds)))
    gc.unfreeze()


async def _slices(found: Figures, daemon: Daemon, rounds: int) -> None:
    """A frame of 1,000 observations, in slices of 1 ms and in one piece: the longest stop of the loop."""
    calls = daemon.calls
    whole = replace(calls._settings, slice_ms=10_000.0)
    sliced = calls._settings
    blocks: dict[str, list[float]] = {"sliced": [], "whole": []}
    for turn in range(2 * rounds):
        name = ("sliced", "whole")[turn % 2]
        calls._settings = sliced if name == "sliced" else whole
        frame = _frame(daemon, NPCS, 100 + turn)
        async with _Lateness() as lateness:
            await asyncio.sleep(0.05)
            await calls.observe("", frame)
            await asyncio.sleep(0.05)
        blocks[name].append(max(lateness.late_ns) / MS)
        await daemon.door.all_ended()
    calls._settings = sliced
    found.add("pauses.frame_1000_sliced_ms", median(blocks["sliced"]))
    found.add("pauses.frame_1000_whole_ms", median(blocks["whole"]))


async def _switch(found: Figures, daemon: Daemon, rounds: int) -> None:
    """The loop's lag under a saturated engine, with Python's default switch interval and a tenth of it."""
    default_s = sys.getswitchinterval()
    late: dict[float, list[float]] = {default_s: [], default_s / 10: []}
    stop = _saturate(daemon)
    try:
        for turn in range(2 * rounds):
            interval_s = list(late)[turn % 2]
            sys.setswitchinterval(interval_s)
            async with _Lateness() as lateness:
                await asyncio.sleep(1.0)
            late[interval_s].append(percentile(lateness.late_ns, 0.99) / MS)
    finally:
        sys.setswitchinterval(default_s)
        stop()
    await daemon.door.all_ended()
    found.add("pauses.switch_5ms_lag_p99_ms", median(late[default_s]))
    found.add("pauses.switch_half_ms_lag_p99_ms", median(late[default_s / 10]))


async def _cores(found: Figures, daemon: Daemon, rounds: int) -> None:
    """The same lag with all threads on all cores, and with a core for the engine alone."""
    cores = os.sched_getaffinity(0)
    late: dict[bool, list[float]] = {False: [], True: []}
    stop = _saturate(daemon)
    try:
        for turn in range(2 * rounds):
            apart = bool(turn % 2)
            if apart and not keep_apart(daemon.step_backend.thread_id, 1):
                found.note("   one core only: nothing to keep apart")
                return
            async with _Lateness() as lateness:
                await asyncio.sleep(1.0)
            late[apart].append(percentile(lateness.late_ns, 0.99) / MS)
            put_together(cores)
    finally:
        put_together(cores)
        stop()
    await daemon.door.all_ended()
    found.add("pauses.cores_shared_lag_p99_ms", median(late[False]))
    found.add("pauses.cores_own_lag_p99_ms", median(late[True]))


async def _threads(found: Figures, daemon: Daemon, threads: int, rounds: int) -> None:
    """The same lag, and tokens per second, by the number of the engine's threads."""
    stop = _saturate(daemon)
    meter = daemon.step_backend.scheduler.meter.tiers[Tier.BRONZE]
    lags, rates = [], []
    await asyncio.sleep(0.5)
    for _ in range(rounds):
        before, began_ns = meter.output_tokens, now_ns()
        async with _Lateness() as lateness:
            await asyncio.sleep(1.0)
        rates.append((meter.output_tokens - before) / ((now_ns() - began_ns) / 1e9))
        lags.append(percentile(lateness.late_ns, 0.99) / MS)
    stop()
    await daemon.door.all_ended()
    found.add(f"pauses.threads_{threads}_lag_p99_ms", median(lags))
    found.add(f"pauses.threads_{threads}_tokens_per_s", median(rates))


class _Lateness:
    """Requests a callback from the loop again and again, a millisecond apart, and notes how late each one runs."""

    def __init__(self) -> None:
        self.late_ns: list[int] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> _Lateness:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()

    async def _watch(self) -> None:
        while True:
            due_ns = now_ns() + MS
            await asyncio.sleep(0.001)
            self.late_ns.append(max(0, now_ns() - due_ns))


def _saturate(daemon: Daemon) -> Callable[[], None]:
    """Keeps 16 Bronze works running until the returned function is called."""
    running = True

    def again(number: int) -> None:
        if not running:
            return
        key = TrunkKey(NpcKey("", "bench", str(number)), "")
        trunk, tail = np.full(200, 40 + number, np.int32), np.full(8, 50, np.int32)
        now = now_ns()
        work = Work(Tier.BRONZE, key, trunk, tail, 400, due_ns=now, deadline_ns=now)

        def ended(_: Ended) -> None:
            again(number)

        daemon.door.submit(work, ended)

    for number in range(16):
        again(number)

    def stop() -> None:
        nonlocal running
        running = False

    return stop


def _frame(daemon: Daemon, count: int, seen: int) -> intents_pb2.ObservationFrame:
    """A frame in which every NPC's sight has changed."""
    leases = daemon.calls._worlds.world("", "w").npcs
    kinds = ("wolf", "player", "rat", "corpse", "merchant")
    return intents_pb2.ObservationFrame(
        world_id="w",
        observations=[
            intents_pb2.Observation(
                npc_id=f"n{i}",
                lease_epoch=leases[f"n{i}"].lease_epoch,
                tick=seen + 1,
                place="road",
                percepts=[
                    intents_pb2.Percept(
                        entity_id=f"e{j}", kind=kinds[(seen + j) % 5], stance="hostile", distance_m=3.0 * j
                    )
                    for j in range(4)
                ],
            )
            for i in range(count)
        ],
    )


def _world() -> npcs_pb2.DefineWorldRequest:
    return npcs_pb2.DefineWorldRequest(
        world_id="w",
        lore="A village by the old road, between the forest and the swamp.",
        archetypes=[npcs_pb2.Archetype(archetype_id="villager", description="Plain folk.")],
        actions=[npcs_pb2.ActionWord(word=w) for w in ("idle", "flee", "hide", "rest")],
        emotions=["calm", "afraid", "angry"],
        personas=[npcs_pb2.Persona(persona_id="p", name="Mira", text="Bakes bread at the mill.")],
    )
