"""The command line: npcd serve, npcd version (npcd demo is found before it comes here, by npcd/__main__.py).

It imports next to nothing, and what a command needs only when it runs: the parent of `npcd serve` stays small.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import ConfigError
from daemon.supervise import EXIT_USAGE, Life, supervise

if TYPE_CHECKING:
    from daemon.config import Config


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    if args.command == "version":
        from npcd import __version__

        print(f"npcd {__version__}")
        return 0
    life: Life | None = None
    if not args.no_supervise:
        said = supervise(lambda line: print(f"npcd: {line}", file=sys.stderr, flush=True))
        if isinstance(said, int):
            return said
        life = said
    try:
        config = _config(args)
        from daemon.serve import serve

        return serve(config, life)
    except ConfigError as error:
        print(f"npcd: {error}", file=sys.stderr)
        return EXIT_USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="npcd", description="A mind for the NPCs of a game: a gRPC sidecar daemon.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the daemon in the foreground")
    _add_settings(serve)
    serve.add_argument(
        "--no-supervise", action="store_true", help="one process: nobody starts it again when it dies (in containers)"
    )
    commands.add_parser("demo", help="run a small game against a daemon; see npcd demo --help")
    commands.add_parser("version", help="print the version")
    return parser


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings")
    command.add_argument(
        "--listen", action="append", default=[], metavar="ADDRESS", help="host:port or unix:/path; may be repeated"
    )
    command.add_argument("--http", metavar="HOST:PORT", help="probes and metrics; empty: none")
    command.add_argument("--model", type=Path, metavar="FILE.gguf", help="any GGUF model; the shipped one if left out")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="any setting, as section.key=value"
    )


def _config(args: argparse.Namespace) -> Config:
    """The settings of a command line. Raises ConfigError."""
    import dataclasses

    from daemon import config as configuration

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
    return config
