"""`make load SCENE=village`: a daemon of its own, a load from locust, and a comparison of the figures with a budget.

    python -m loadtests.load village            headless; exits 0 when every row of loadtests/budget.toml was kept
    python -m loadtests.load village --ui       with locust's web UI on this machine, until Ctrl-C

Writes results/<scene>.json and results/<scene>.html. Locust is a child process; this one only starts, waits and reads.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loadtests.budget import BUDGET, broken_rows, load_budget
from loadtests.child import DaemonChild
from loadtests.numbers import SECONDS_MAX, amount, whole
from loadtests.scene import SCENES, Plan, load_plan
from loadtests.sync_client import SyncClient
from npcd_client import NpcdError

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
WEB_HOST = "127.0.0.1"
STOP_S = 30  # users have so long to hear the last answers
SETUP_S = 180  # time to start locust, record a crowd, and register a town
NOBODY_S = 60.0  # until a daemon that was just started listens
EXIT_BROKEN, EXIT_USAGE, EXIT_FAILED, EXIT_INTERRUPTED = 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one load. Returns 0, or 1 when a row of the budget broke, 2 for a wrong call, 3 when the run failed."""
    options = _parser().parse_args(argv)
    path = Path(options.scene) if options.scene.endswith(".toml") else SCENES / f"{options.scene}.toml"
    try:
        plan = load_plan(path)
        rows = {} if options.ui else load_budget(options.budget, plan.name)
    except ValueError as error:
        print(f"load: {error}", file=sys.stderr)
        return EXIT_USAGE
    if importlib.util.find_spec("locust") is None:
        print("load: locust is missing; `make load` installs it, or: pip install 'npcd[load]'", file=sys.stderr)
        return EXIT_USAGE
    options.results.mkdir(parents=True, exist_ok=True)
    if options.connect:
        try:
            _wait_serving(options.connect, options.token, lambda: True)
        except NpcdError as error:
            print(f"load: {options.connect}: {error}", file=sys.stderr)
            return EXIT_FAILED
        return _load(options, plan, path, rows, options.connect)
    child = DaemonChild(options.serve, options.daemon.split())
    try:
        child.start()
        _wait_serving(child.target, "", lambda: child.exit_code is not None)
        code = _load(options, plan, path, rows, child.target)
        if code == EXIT_FAILED or child.exit_code is not None:
            print(f"load: the daemon's last words:\n{child.log_tail()}", file=sys.stderr)
            code = code or EXIT_FAILED
    except NpcdError as error:
        print(f"load: {error}; the daemon's last words:\n{child.log_tail()}", file=sys.stderr)
        code = EXIT_FAILED
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    finally:
        child.stop()
    return code


def _wait_serving(target: str, token: str, gone: Callable[[], bool]) -> None:
    """Waits until the model is warm, so that all seconds of the run are seconds of load. Raises NpcdError."""
    client = SyncClient(target, token)
    try:
        client.wait_serving(NOBODY_S, gone)
    finally:
        client.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.load", description="A load against npcd, with locust.")
    parser.add_argument("scene", help="a name in loadtests/scenes, or a .toml file")
    parser.add_argument("--ui", action="store_true", help="locust's web UI instead of a run that ends by itself")
    parser.add_argument("--web-port", type=whole(1, 65_535), default=8089, help="port of the web UI (default 8089)")
    parser.add_argument("--seconds", type=amount(1, SECONDS_MAX), default=0.0, help="another length than the scene's")
    parser.add_argument("--budget", type=Path, default=BUDGET, help="another budget")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder for what is written")
    parser.add_argument("--connect", metavar="TARGET", default="", help="a running daemon instead of one of its own")
    parser.add_argument("--token", default="", help="bearer token for --connect")
    parser.add_argument(
        "--daemon", metavar="MODULE", default="npcd", help="program to run instead of npcd, with arguments"
    )
    parser.add_argument(
        "--serve", metavar="ARG", action="append", default=[], help="argument for its serve; as --serve=--set"
    )
    return parser


def _load(options: argparse.Namespace, plan: Plan, path: Path, rows: dict[str, dict[str, float]], target: str) -> int:
    seconds = options.seconds or plan.seconds
    figures, page = options.results / f"{plan.name}.json", options.results / f"{plan.name}.html"
    figures.unlink(missing_ok=True)
    users = plan.servers + plan.conversations
    command = [
        *(sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--target", target, "--scene", str(path)),
        *("--token", options.token, "--results", str(figures), "--seconds", str(seconds)),
        *("--users", str(users), "--spawn-rate", str(users), "--stop-timeout", str(STOP_S)),
    ]
    if options.ui:
        command += ["--web-host", WEB_HOST, "--web-port", str(options.web_port)]
        print(f"load: http://{WEB_HOST}:{options.web_port} when locust is up; Ctrl-C ends it", flush=True)
        return subprocess.run(command, check=False).returncode
    command += ["--headless", "--only-summary", "--exit-code-on-error", "0", "--run-time", f"{seconds:g}s"]
    command += ["--html", str(page), "--loglevel", "WARNING"]
    print(f"load: {plan.name}, {plan.servers * plan.npcs} NPCs, {plan.conversations} conversations, {seconds:g} s ...")
    sys.stdout.flush()
    try:
        done = subprocess.run(command, check=False, timeout=seconds + STOP_S + SETUP_S)
    except subprocess.TimeoutExpired:
        print("load: locust did not come to its end", file=sys.stderr)
        return EXIT_FAILED
    if done.returncode or not figures.exists():
        print(f"load: locust ended with {done.returncode} and no results", file=sys.stderr)
        return EXIT_FAILED
    return _judge(json.loads(figures.read_text(encoding="utf-8")), rows, figures, page)


def _judge(made: dict[str, Any], rows: dict[str, dict[str, float]], figures: Path, page: Path) -> int:
    for name, row in rows.items():
        bounds = ", ".join(f"{word} {value:g}" for word, value in row.items())
        print(f"  {name:<24} {made.get(name, '-')!s:>10}   {bounds}")
    for message in made["error_messages"]:
        print(f"    {message}")
    print(f"load: wrote {figures} and {page}")
    broken = broken_rows(made, rows)
    for sentence in broken:
        print(f"broken: {sentence}", file=sys.stderr)
    return EXIT_BROKEN if broken else 0


if __name__ == "__main__":
    sys.exit(main())
