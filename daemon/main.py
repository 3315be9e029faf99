"""The command line: npcd serve, doctor, route, policy, kv, migrate, archive, version (npcd demo is found before it
comes here, by npcd/__main__.py).

It imports next to nothing, and what a command needs only when it runs: the parent of `npcd serve` stays small.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from core.errors import ConfigError, StoreFailed
from core.files import check_readable, from_home, named_path
from daemon.commands import archive as archive_command
from daemon.commands import kv as kv_command
from daemon.process.log_lines import STDOUT, never_block, open_standard, say
from daemon.process.supervise import EXIT_USAGE, READ_AGAIN_SIGNAL, Life, supervise

if TYPE_CHECKING:
    from daemon.config import Config

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_NOT_WELL = 1
MODEL_UNREAD = "model: cannot read {path} ({why}); give a GGUF file with --model"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit status. Standard output that cannot be written to is a failure in one line, or in
    none when its reader has gone (`npcd doctor | head -1`).
    """
    open_standard()
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:  # also when argparse has printed its help
            _flush()
    except _NotWritten as error:
        if error.why:
            _complain(f"standard output takes no more: {error.why}")
        return EXIT_NOT_WELL


class _NotWritten(Exception):
    """Standard output did not take what a command has to say; `why` is empty when its reader has gone."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.why = "" if isinstance(error, BrokenPipeError) else error.strerror or str(error)


def _run(arguments: Sequence[str]) -> int:
    args = _parser().parse_args(arguments)
    if args.command == "version":
        _tell(_version())
        return 0
    if args.command == "doctor":
        return _doctor(args)
    if args.command in archive_command.COMMANDS:
        return _print(archive_command.run, args)
    if args.command == "kv":
        return _print(kv_command.run, args)
    if args.command == "route":
        return _print(_explain, args)
    if args.command == "policy":
        return _check_policy(args)
    never_block()
    life: Life | None = None
    signal.signal(READ_AGAIN_SIGNAL, signal.SIG_IGN)  # until the event loop takes it over
    if not args.no_supervise:
        said = supervise(_note)
        if isinstance(said, int):
            return said
        life = said
    try:
        config = _config(args)
        from daemon.process.serve import serve

        return serve(config, life)
    except ConfigError as error:
        _note(str(error))
        return EXIT_USAGE


class _Parser(argparse.ArgumentParser):
    def print_help(self, file: Any = None) -> None:
        """On standard output, as what commands have to say. Raises _NotWritten."""
        _tell(self.format_help().rstrip("\n"))


class _Version(argparse.Action):
    """As `npcd version`."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Prints it, and the command is over."""
        _tell(_version())
        parser.exit()


def _version() -> str:
    from npcd import __version__

    return f"npcd {__version__}"


def _parser() -> argparse.ArgumentParser:
    what = "A mind for the NPCs of a game: a gRPC sidecar daemon."
    parser: argparse.ArgumentParser = _Parser(prog="npcd", description=what)
    parser.add_argument("--version", action=_Version, help="print the version")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the daemon in the foreground")
    doctor = commands.add_parser(
        "doctor", help="check this machine for problems before serve runs, with a fix for each"
    )
    for command in (serve, doctor, _add_route(commands), _add_policy(commands)):
        _add_settings(command)
    serve.add_argument(
        "--no-supervise", action="store_true", help="one process without the parent that restarts it (for containers)"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON, for programs")
    doctor.add_argument(
        "--world", type=named_path, metavar="WORLD.toml", help="check this world's words and language as well"
    )
    kv_command.add_to(commands)
    archive_command.add_to(commands)
    commands.add_parser("demo", help="run a small game against a daemon; see npcd demo --help")
    commands.add_parser("version", help="print the version")
    return parser


def _add_route(commands: Commands) -> argparse.ArgumentParser:
    route = commands.add_parser("route", help="print the tier, engine and limits of each kind of work")
    explain = route.add_subparsers(dest="verb", required=True).add_parser(
        "explain", help="print the table, and where each value was set"
    )
    explain.add_argument("kind", metavar="KIND", nargs="?", help="print only this kind of work, in full")
    about = explain.add_argument_group("an NPC", "with one of these: which engine serves this NPC, and why")
    about.add_argument("--world", metavar="ID", help="its world")
    about.add_argument("--archetype", metavar="ID", help="its archetype")
    about.add_argument("--persona", metavar="ID", help="its persona")
    about.add_argument("--activation", metavar="LEVEL", help="active, warm or ambient (if left out: ambient)")
    about.add_argument("--context", metavar="TOKENS", type=int, help="tokens of its trunk (if left out: 0)")
    explain.add_argument("--json", action="store_true", help="print JSON, for programs")
    return explain


def _add_policy(commands: Commands) -> argparse.ArgumentParser:
    policy = commands.add_parser("policy", help="check a rule policy, which answers for NPCs when the model has not")
    check = policy.add_subparsers(dest="verb", required=True).add_parser(
        "check", help="read a rule policy, print its errors and the table that it compiles to"
    )
    check.add_argument(
        "file", metavar="FILE.toml", type=named_path, nargs="?", help="a rule policy; worlds.policy_file if left out"
    )
    check.add_argument(
        "--world", type=named_path, metavar="WORLD.toml", help="compile it for this world's words, with its own rows"
    )
    check.add_argument("--json", action="store_true", help="print JSON, for programs")
    return check


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=named_path, metavar="FILE", help="TOML file with settings")
    command.add_argument(
        "--listen", action="append", default=[], metavar="ADDRESS", help="host:port or unix:/path; may be repeated"
    )
    command.add_argument("--http", metavar="ADDRESS", help="probes and metrics: host:port or unix:/path; off for none")
    command.add_argument(
        "--data", type=named_path, metavar="FOLDER", help="the data folder: journal, saves, own servers"
    )
    command.add_argument("--redis", metavar="URL", help="recent memory; npcd's own if left out, off for none")
    command.add_argument("--postgres", metavar="URL", help="the archive; npcd's own if left out, off for none")
    command.add_argument(
        "--model", type=named_path, metavar="FILE.gguf", help="any GGUF model; the shipped one if left out"
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="sets",
        help="any setting, as section.key=value (docs/SETTINGS.md)",
    )


def _config(args: argparse.Namespace, origins: dict[str, str] | None = None) -> Config:
    """The settings of a command line; into `origins` goes who gave which (config.load). Raises ConfigError."""
    import dataclasses

    # Looked at before libraries are imported, which takes a second.
    if args.config is not None:
        check_readable(from_home(args.config, "--config"), "--config {path}: {why}")
    if args.model is not None:
        check_readable(from_home(args.model, "--model"), MODEL_UNREAD)
    from daemon import config as configuration

    config = configuration.load(args.config, args.sets, origins=origins)
    serve, engine = config.serve, config.engine
    if args.listen:
        serve = dataclasses.replace(serve, listen=tuple(args.listen))
    if args.http is not None:
        serve = dataclasses.replace(serve, http=args.http)
    if args.model is not None:
        engine = dataclasses.replace(engine, model=from_home(args.model, "--model"))
    data = from_home(args.data, "--data") if args.data is not None else None
    given = {"folder": data, "redis": args.redis, "postgres": args.postgres}
    memory = dataclasses.replace(config.memory, **{k: v for k, v in given.items() if v is not None})
    config = dataclasses.replace(config, serve=serve, engine=engine, memory=memory)
    config = configuration.with_off(config)
    configuration.check(config)
    return config


def _doctor(args: argparse.Namespace) -> int:
    from daemon.commands import doctor
    from daemon.process import diagnosis

    checks = doctor.examine(lambda: _config(args), args.world)
    _tell(diagnosis.as_json(checks) if args.json else diagnosis.as_text(checks))
    return 0 if diagnosis.well(checks) else EXIT_USAGE if diagnosis.no_use(checks) else EXIT_NOT_WELL


def _explain(args: argparse.Namespace) -> Iterator[str]:
    from daemon.commands.route import explain, serve
    from tiers.conditions import Facts

    origins: dict[str, str] = {}
    given = {name: getattr(args, name) for name in Facts._fields if getattr(args, name) is not None}
    if given:
        return serve(_config(args), args.kind, Facts(**given), args.json)
    return explain(_config(args, origins), origins, args.kind, args.json)


def _check_policy(args: argparse.Namespace) -> int:
    from daemon.commands import policy as policy_command

    try:
        checked = policy_command.check(args.file, args.world, _config(args).worlds.policy_file)
    except ConfigError as error:
        _complain(str(error))
        return EXIT_USAGE
    _tell(policy_command.as_json(checked) if args.json else "\n".join(policy_command.as_text(checked)))
    return EXIT_NOT_WELL if checked.wrong else 0


def _print(run: Callable[[argparse.Namespace], Iterator[str]], args: argparse.Namespace) -> int:
    try:
        for line in run(args):
            _tell(line)
    except (ConfigError, StoreFailed) as error:
        _complain(str(error))
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_NOT_WELL
    return 0


def _note(text: str) -> None:
    """A line of `npcd serve` on standard error: at once, or not at all."""
    say(f"npcd: {text}")


def _complain(text: str) -> None:
    """A line of a command on standard error; nothing where standard error takes none."""
    with contextlib.suppress(OSError):
        print(f"npcd: {text}", file=sys.stderr, flush=True)


def _tell(text: str) -> None:
    """Prints what a command has to say. Raises _NotWritten."""
    try:
        print(text)
    except UnicodeEncodeError:  # a terminal with an alphabet of its own
        _tell(text.encode("ascii", "backslashreplace").decode("ascii"))
    except OSError as error:
        _give_up(error)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        _give_up(error)


def _give_up(error: OSError) -> NoReturn:
    """Raises _NotWritten; drops the output that Python still holds, so that it does not try again."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, STDOUT)
        os.close(nowhere)
    raise _NotWritten(error) from error
