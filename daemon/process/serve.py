"""The process that serves: listens (and says NOT_SERVING), loads the model, serves, and when asked to end drains and
ends.

Owns the event loop. Asked once (SIGTERM, SIGINT, or the parent's signal) it lets what runs finish for a while; asked
twice it ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import sys
from functools import partial
from typing import Any

import structlog
import uvloop

from core.clock import S, now_ns
from daemon.build import Daemon, build
from daemon.config import Config, is_local
from daemon.engines import load_models
from daemon.process.cores import give_way, keep_apart
from daemon.process.datafolder import DataFolder
from daemon.process.keeping import Keeping, open_keeping, revive
from daemon.process.log_lines import STDERR, LogLines
from daemon.process.preflight import before_start
from daemon.process.probes import Probes
from daemon.process.start_watch import expect, keep, process_age_s, start_of, watch_start
from daemon.process.supervise import EXIT_ENGINE_DEAD, EXIT_FORCED, STOP_SIGNAL, Life
from daemon.process.telemetry import StatusCollector, start_logging, watch_lag
from daemon.process.tidy import LOOK_S, Tidy
from daemon.process.watchdog import watch
from daemon.rpc.grpc_face import GrpcFace
from daemon.rpc.status import Lifecycle
from daemon.starting import STORES, WORLDS
from engines.kept import Kept

# Parts of serve.drain_s: for last events, streams and the engine's last step; and for our own servers to end.
ENDING_S = 1.0
LAST_EVENTS_S = 0.5
ENGINE_END_S = 0.5
SERVERS_END_S = 1.0

log = structlog.get_logger("npcd")


def serve(config: Config, life: Life | None) -> int:
    """Serves until asked to end; the exit status. `life` is None for a process without a parent that restarts it.

    Raises ConfigError.
    """
    stderr, lines = sys.stderr, start_logging(config.serve.log_level, config.serve.log_json)
    try:
        faulthandler.enable(STDERR)  # a native crash says where Python was
        if life is not None and life.number > 1:
            log.warning("started again", life=life.number, why=life.last_end)
        before_start(config)
        with contextlib.ExitStack() as afterwards:
            return uvloop.run(_serve(config, life is not None, afterwards, lines))
    finally:
        sys.stderr = stderr
        lines.end()


async def _serve(config: Config, supervised: bool, afterwards: contextlib.ExitStack, lines: LogLines) -> int:
    loop = asyncio.get_running_loop()
    lifecycle = Lifecycle()
    over = asyncio.Event()
    ending_s = ENDING_S + (SERVERS_END_S if config.memory.keep else 0.0)
    grace_s = max(config.serve.drain_s - ending_s, 0.0)
    daemon: Daemon | None = None
    keeping: Keeping | None = None

    def stop(signal_name: str) -> None:
        if over.is_set():
            log.warning("stopping at once", signal=signal_name)
            lines.drain()
            os._exit(EXIT_FORCED)
        log.info("stopping", signal=signal_name)
        over.set()

    def on_death(error: BaseException) -> None:
        # On the engine thread. Nothing can be served without it: a parent or an orchestrator starts us again.
        log.critical("the engine thread died", exc_info=error)
        lines.drain()
        os._exit(EXIT_ENGINE_DEAD)

    def on_hang(name: str, still_s: float) -> None:
        log.critical("the engine hangs", engine=name, seconds=round(still_s, 1))
        lines.drain()
        faulthandler.dump_traceback(STDERR)
        os._exit(EXIT_ENGINE_DEAD)

    async def drain(wanted_s: float) -> None:
        nonlocal grace_s
        grace_s = wanted_s
        over.set()

    before_s = process_age_s()
    start = start_of(config)
    face = GrpcFace(config.serve, start)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, signal.Signals(number).name)
    loop.add_signal_handler(signal.SIGHUP, face.read_again)
    if supervised:
        loop.add_signal_handler(STOP_SIGNAL, over.set)  # the same wish may have come to us as well: see supervise

    began_ns = now_ns()
    collector = StatusCollector(
        lambda: daemon.board.message() if daemon else None,
        lambda: daemon.board.counters() if daemon else {},
        lambda: lines.lost,
        lambda: daemon.board.histograms() if daemon else {},
    )
    probes = Probes(lambda: lifecycle.phase, collector, lambda: daemon.board.degraded() if daemon else [], start)
    if config.serve.http and not is_local(config.serve.http):
        log.warning("probes and metrics are reachable from elsewhere", http=config.serve.http, why="serve.http says so")
    opening: asyncio.Task[Keeping] | None = None
    watching: asyncio.Task[None] | None = None
    addresses = await face.start()
    try:
        http = await probes.start(config.serve.http) if config.serve.http else ""
        # Locked before anything is started: another daemon on it is found out at once.
        folder = await asyncio.to_thread(DataFolder, config.memory.folder) if config.memory.keep else None
        kept = Kept(folder.path / "start" if folder is not None else None)
        expect(start, kept)
        watching = asyncio.create_task(watch_start(start))
        loading = loop.run_in_executor(None, load_models, config, start, kept)
        opening = asyncio.create_task(open_keeping(config, now_ns, folder=folder)) if folder is not None else None
        asked = asyncio.create_task(over.wait())
        either: list[asyncio.Future[Any]] = [loading, asked]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            log.info("stopped", why="before the model was loaded")
            await face.stop(0)
            lines.drain()
            os._exit(0)  # a native load cannot be interrupted
        models = loading.result()
        start.begin(STORES, "", now_ns())
        keeping = await opening if opening is not None else None
        if keeping is None:
            daemon = build(config, models, lifecycle, drain, ill=lambda: face.credentials.trouble)
        else:
            memory, saves, stores_ill = keeping.memory, keeping.folder.saves, keeping.ill

            def ill() -> list[str]:
                return stores_ill() + face.credentials.trouble

            key = keeping.folder.pseudonym_key
            daemon = build(config, models, lifecycle, drain, now_ns, memory, saves, ill, keeping.parked, key)
        daemon.door.start(on_death)
        for engine in daemon.engines.values():
            if engine.gives_way:
                give_way(engine.backend.thread_id)
        tidy = Tidy(now_ns)
        tidy.start()
        start.begin(WORLDS, "", now_ns())
        if keeping is not None:
            await revive(keeping, daemon)
        first = next(iter(daemon.engines.values()))
        if config.serve.own_cores and not keep_apart(first.backend.thread_id, first.model.threads):
            log.warning("serve.own_cores has no effect", why="the engine's threads need all the cores there are")
        face.calls = daemon.calls
        tasks = [
            asyncio.create_task(watch_lag(daemon.lag, now_ns)),
            asyncio.create_task(_keep_tidy(daemon, tidy)),
            asyncio.create_task(_keep_house(daemon)),
        ]
        for engine in daemon.engines.values() if config.serve.hang_s else ():
            hangs = partial(on_hang, engine.name)
            tasks.append(asyncio.create_task(watch(engine.health, config.serve.hang_s, hangs, now_ns)))
        start.end(now_ns())
        watching.cancel()
        await asyncio.to_thread(keep, start, kept)
        if not over.is_set():
            lifecycle.phase = "serving"
            await face.report(serving=True)
            log.info(
                "serving",
                listen=addresses,
                http=http,
                model=first.model.name,
                engine=first.model.engine.name,
                **({"engines": {e.name: e.model.name for e in daemon.engines.values()}} if len(models) > 1 else {}),
                ready_after_s=round((now_ns() - began_ns) / S, 2),
                stages_s={"starting Python": round(before_s, 2), **start.took_s},
            )
        await over.wait()
        lifecycle.phase = "draining"
        daemon.door.draining = True
        await face.report(serving=False)
        cut = await _wait_for_works(daemon, grace_s)
        await face.stop(LAST_EVENTS_S)
        for task in tasks:
            task.cancel()
        stopped = daemon.door.stop(ENGINE_END_S, "the daemon has stopped")
        if stopped:
            # Calls that were cut off still leave, with what was said in tokens: not while the event loop runs.
            for model in models.values():
                afterwards.callback(model.close)
        log.info("stopped", works_cut=cut)
    finally:
        if watching is not None:
            watching.cancel()
        await face.stop(0)
        await probes.stop()
        if keeping is None and opening is not None:
            (opened,) = await asyncio.gather(opening, return_exceptions=True)
            keeping = opened if isinstance(opened, Keeping) else None
        if keeping is not None:
            await keeping.stop(SERVERS_END_S)
    return 0


async def _wait_for_works(daemon: Daemon, grace_s: float) -> int:
    """Waits until running works have finished, for `grace_s` at most. Returns the number that had not."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            await daemon.door.all_ended()
    return daemon.door.open


async def _keep_tidy(daemon: Daemon, tidy: Tidy) -> None:
    """For ever: sets old objects aside, and collects garbage when nothing is under way."""
    while True:
        await asyncio.sleep(LOOK_S)
        tidy.look(idle=not daemon.door.open)


async def _keep_house(daemon: Daemon) -> None:
    """Once a second, for ever: ends sessions that have been silent too long, makes room."""
    while True:
        await asyncio.sleep(1)
        slices = daemon.calls.slicer()
        await slices.run(daemon.dialogue.sweeping())
        await slices.run(daemon.memory.looking_after())
        daemon.upkeep.look_after(daemon.clock())
