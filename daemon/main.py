"""The command line: npcd serve, npcd version (npcd demo is found before it comes here, by npcd/__main__.py).

serve owns the event loop. It starts to listen (and says NOT_SERVING), loads the model, serves, and on SIGTERM drains
and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.clock import S, now_ns
from core.errors import ConfigError

if TYPE_CHECKING:
    from daemon.build import Daemon
    from daemon.config import Config
    from daemon.tidy import Tidy

EXIT_USAGE = 2
EXIT_ENGINE_DEAD = 70  # EX_SOFTWARE: start it again


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    if args.command == "version":
        from npcd import __version__

        print(f"npcd {__version__}")
        return 0
    try:
        return _serve_command(args)
    except ConfigError as error:
        print(f"npcd: {error}", file=sys.stderr)
        return EXIT_USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="npcd", description="A mind for the NPCs of a game: a gRPC sidecar daemon.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the daemon in the foreground")
    serve.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings")
    serve.add_argument(
        "--listen", action="append", default=[], metavar="ADDRESS", help="host:port or unix:/path; may be repeated"
    )
    serve.add_argument("--http", metavar="HOST:PORT", help="probes and metrics; empty: none")
    serve.add_argument("--model", type=Path, metavar="FILE.gguf", help="any GGUF model; the shipped one if left out")
    serve.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="any setting, as section.key=value"
    )
    commands.add_parser("demo", help="run a small game against a daemon; see npcd demo --help")
    commands.add_parser("version", help="print the version")
    return parser


def _serve_command(args: argparse.Namespace) -> int:
    import dataclasses

    import uvloop

    from daemon import config as configuration
    from daemon.telemetry import start_logging

    config = configuration.load(args.config, args.sets)
    serve, engine = config.serve, config.engine
    if args.listen:
        serve = dataclasses.replace(serve, listen=tuple(args.listen))
    if args.http is not None:
        serve = dataclasses.replace(serve, http=args.http)
    if args.model is not None:
        engine = dataclasses.replace(engine, model=args.model)
    config = dataclasses.replace(config, serve=serve, engine=engine)
    configuration.check(config)
    start_logging(config.serve.log_level, config.serve.log_json)
    return uvloop.run(_serve(config))


async def _serve(config: Config) -> int:
    import structlog

    from daemon.build import build, load_model
    from daemon.cores import keep_apart
    from daemon.grpc_face import GrpcFace
    from daemon.probes import Probes
    from daemon.status import Phase
    from daemon.telemetry import StatusCollector, watch_lag
    from daemon.tidy import Tidy
    from scheduler.costs import FEATURES

    log = structlog.get_logger("npcd")
    loop = asyncio.get_running_loop()
    phase = Phase()
    over = asyncio.Event()
    grace_s = config.serve.drain_s
    daemon: Daemon | None = None

    def stop(signal_name: str) -> None:
        if over.is_set():
            log.warning("stopping at once", signal=signal_name)
            os._exit(1)
        log.info("stopping", signal=signal_name)
        over.set()

    def on_death(error: BaseException) -> None:
        # On the engine thread. Nothing can be served without it: a parent or an orchestrator starts us again.
        log.critical("the engine thread died", exc_info=error)
        os._exit(EXIT_ENGINE_DEAD)

    async def drain(wanted_s: float) -> None:
        nonlocal grace_s
        grace_s = wanted_s
        over.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, signal.Signals(number).name)

    began_ns = now_ns()
    face = GrpcFace(config.serve)
    collector = StatusCollector(
        lambda: daemon.board.message() if daemon else None,
        lambda: dict(zip(FEATURES, daemon.scheduler.costs.weights_ns, strict=True)) if daemon else {},
    )
    probes = Probes(lambda: phase.name, collector)
    addresses = await face.start()
    http = await probes.start(config.serve.http) if config.serve.http else ""
    try:
        model = await loop.run_in_executor(None, load_model, config)
        daemon = build(config, model, phase, on_death, drain)
        daemon.engine_loop.start()
        if config.serve.own_cores and not keep_apart(daemon.engine_loop.thread_id, model.threads):
            log.warning("serve.own_cores has no effect", why="the engine's threads need all the cores there are")
        face.calls = daemon.calls
        tidy = Tidy(now_ns)
        tidy.start()
        tasks = [
            asyncio.create_task(watch_lag(daemon.lag_ns, now_ns)),
            asyncio.create_task(_keep_house(daemon, tidy)),
        ]
        phase.name = "serving"
        await face.report(serving=True)
        log.info(
            "serving",
            listen=addresses,
            http=http,
            model=model.name,
            engine=model.engine.name,
            ready_after_s=round((now_ns() - began_ns) / S, 2),
        )
        await over.wait()
        phase.name = "draining"
        await face.report(serving=False)
        daemon.door.draining = True
        cut = await _wait_for_works(daemon, grace_s)
        await face.stop(0.5)
        for task in tasks:
            task.cancel()
        stopped = daemon.engine_loop.stop()
        daemon.door.end_all("the daemon has stopped")
        if stopped:
            model.engine.close()
        log.info("stopped", works_cut=cut)
    finally:
        await face.stop(0)
        await probes.stop()
    return 0


async def _wait_for_works(daemon: Daemon, grace_s: float) -> int:
    """Waits until what runs has finished, for `grace_s` at most; how many works had not."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            await daemon.door.all_ended()
    return daemon.door.open


async def _keep_house(daemon: Daemon, tidy: Tidy) -> None:
    """Once a second, for ever: collects garbage when nothing is under way, ends sessions that have been silent too
    long.
    """
    while True:
        await asyncio.sleep(1)
        tidy.look(idle=not daemon.door.open)
        daemon.dialogue.sweep()
