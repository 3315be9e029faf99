"""A village full of NPCs around a moving player, played against a daemon: `python -m loadtests.demo`, or `npcd demo`.

Without --connect it starts a daemon of its own and ends it afterwards. It exits 0 when the run ends without errors;
with --check it also needs every promise kept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from loadtests.board import Board
from loadtests.child import DaemonChild
from loadtests.game import Game
from loadtests.numbers import SECONDS_MAX, amount, whole
from loadtests.player import Player
from loadtests.report import as_text, broken_promises, report
from loadtests.scene import Scene, load_scene
from loadtests.screen import Lines, Screen, Table
from loadtests.slots import Slots
from loadtests.village import Village
from npcd_client import FrameClient, LiveProblem, NpcdError, TooLate
from npcd_client.waiting import NOBODY_S, Waiting

STATUS_EVERY_MS = 500
NOBODY_TIMEOUT_S = 5.0  # with --connect: a daemon that is starting listens at once
CHILD_LOOK_EVERY_S = 0.25
NPCS_MAX = 1000  # with more NPCs a frame of the village itself takes a second
INTERRUPTED = 130


def main(argv: list[str]) -> int:
    """Runs the demo and returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C ended it at once before: see npcd/__main__
        scene = _scene(options.scene)
        with _daemon(options) as (target, child):
            return _run(options, scene, target, child)
    except _NoSceneError as error:
        print(f"npcd demo: --scene {error}", file=sys.stderr)
        return 2
    except _NoDaemonError as error:
        print(error, file=sys.stderr)
        return 1
    except NpcdError as error:
        print(f"the daemon refused: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of its output has gone, as in `npcd demo | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:  # the disk below standard output or --json is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"npcd demo: {error.strerror}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends it at once


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="npcd demo", description="A village of NPCs around a moving player.")
    parser.add_argument("--npcs", type=whole(1, NPCS_MAX), default=20, help="number of NPCs (default 20)")
    parser.add_argument("--seconds", type=amount(0.1, SECONDS_MAX), default=20.0, help="seconds to run (default 20)")
    parser.add_argument("--seed", type=whole(-(2**63), 2**63 - 1), default=7, help="seed of random events (default 7)")
    parser.add_argument("--fps", type=whole(1, 1000), default=300, help="frames per second (default 300)")
    parser.add_argument(
        "--rate-hz", type=amount(0.1, 100), default=10.0, help="observations per NPC and second (default 10)"
    )
    parser.add_argument("--connect", metavar="TARGET", default="", help="a running daemon: host:port or unix:///path")
    parser.add_argument("--token", default="", help="bearer token for --connect")
    parser.add_argument("--model", metavar="PATH", default="", help="model for the demo's own daemon")
    parser.add_argument(
        "--talk-model", metavar="PATH", default="", help="a chat model for talk and summaries, beside the other one"
    )
    parser.add_argument("--scene", metavar="FILE", type=Path, default=None, help="another scene than the demo's")
    parser.add_argument("--json", metavar="FILE", type=_new_file, default=None, help="write the report there")
    parser.add_argument("--no-live", action="store_true", help="plain lines instead of the live table")
    parser.add_argument("--check", action="store_true", help="exit non-zero when a promise was broken")
    return parser


def _new_file(text: str) -> Path:
    """The path, after a try to write it: better now than after the run."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder {path.parent} does not exist")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written to")
    return path


class _NoDaemonError(Exception):
    """There is no daemon to play against. The message says why."""


class _NoSceneError(Exception):
    """A file is no scene. The message says why."""


def _scene(path: Path | None) -> Scene:
    """The scene of a file, or the demo's own. Raises _NoSceneError."""
    if path is None:
        return load_scene()
    try:
        return load_scene(path)
    except OSError as error:
        raise _NoSceneError(f"{path}: {error.strerror}") from error
    except KeyError as error:
        raise _NoSceneError(f"{path}: has no {error}; loadtests/scenes/demo.toml shows the form") from error
    except (ValueError, TypeError) as error:
        raise _NoSceneError(f"{error}" if str(path) in str(error) else f"{path}: {error}") from error


@contextlib.contextmanager
def _daemon(options: argparse.Namespace) -> Iterator[tuple[str, DaemonChild | None]]:
    """The daemon to play against: the one at --connect, or a child of our own that is stopped at the end."""
    if options.connect:
        yield options.connect, None
        return
    child = DaemonChild(_models(options))
    try:
        child.start()
        yield child.target, child
    finally:
        child.stop()


def _models(options: argparse.Namespace) -> list[str]:
    """The settings of the demo's own daemon: its model, and a further engine that speaks."""
    arguments = ["--model", options.model] if options.model else []
    if options.talk_model:
        for one in (f"engines.talk.model={options.talk_model}", "routes.reply.engine=talk"):
            arguments += ["--set", one]
    return arguments


def _wait_ready(npcd: FrameClient, target: str, child: DaemonChild | None) -> None:
    """Waits until the daemon serves, as long as its start moves, and prints each stage. Stops when its own child
    dies.
    """
    print(f"waiting for npcd at {target} (grpc.health.v1: the model must be warm) ...", flush=True)
    waiting = Waiting(time.monotonic(), NOBODY_S if child else NOBODY_TIMEOUT_S)
    reason = stage = ""
    while not (why := waiting.gives_up(time.monotonic())):
        if child and child.exit_code is not None:
            raise _NoDaemonError(f"the daemon ended with exit code {child.exit_code}:\n{child.log_tail()}")
        try:
            npcd.wait(npcd.npcd.wait_ready(0.5))
            return
        except TooLate as error:
            reason = str(error)
        try:
            status = npcd.wait(npcd.npcd.status())
        except NpcdError:
            if "is not serving yet" in reason:
                waiting.hears(None, time.monotonic())
            continue
        waiting.hears(status, time.monotonic())
        if status.starting.stage != stage:
            stage = status.starting.stage
            print(f"  {waiting.stage}", flush=True)
    raise _NoDaemonError(
        f"no daemon serves at {target}: {why}; {reason}\n"
        + (child.log_tail() if child else "start one with `npcd serve`, or leave --connect out")
    )


def _run(options: argparse.Namespace, scene: Scene, target: str, child: DaemonChild | None) -> int:
    village = Village(scene, options.npcs, options.seed)
    residents = scene.residents(options.npcs)
    board = Board(options.npcs, Slots(options.npcs))
    with FrameClient.start(target, token=options.token) as npcd:
        _wait_ready(npcd, target, child)
        npcd.wait(npcd.npcd.define_world(scene.world))
        # An earlier run may have left its NPCs behind. Their intents belong to ticks that this run has not reached yet.
        npcd.wait(npcd.npcd.remove([resident.npc_id for resident in residents]))
        registered = npcd.wait(npcd.npcd.register([resident.spec for resident in residents]))
        live = npcd.open_live(on_problem=lambda problem: board.errors.add(_problem_text(problem)))
        board.status = board.status_at_start = npcd.wait(npcd.npcd.status())
        watching = npcd.soon(_watch_status(npcd, board))

        def heard(name: str, line: str, answer: str) -> None:
            board.turns += 1
            board.said.append((name, line, answer))

        player = Player(scene.player, village, npcd, options.seed, heard, board.errors.add)
        screen: Screen = Lines(board) if options.no_live or not sys.stdout.isatty() else Table(board, residents)
        look = _Look(child, screen, board)
        game = Game(village, live, registered.policy, player, board, options.fps, options.rate_hz)
        screen.start()
        try:
            game.run(options.seconds, look.after_frame)
        finally:
            screen.stop()
        player.leave()
        board.first_text_ms = player.first_text_ms
        _last_status(npcd, board, watching)
    if child and (code := child.stop()) and not look.died:
        board.errors.add(f"daemon: exit code {code} after SIGTERM")

    made = report(board, options.seconds, options.seed, options.fps, options.rate_hz)
    print(as_text(made), flush=True)
    if look.died and child:
        print(f"the daemon died during the run:\n{look.last_words}", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    slow = "" if look.died else _not_kept_up(made, options)
    if slow:
        print(f"not kept up: {slow}", file=sys.stderr)
    broken = broken_promises(made) if options.check else []
    for sentence in broken:
        print(f"broken promise: {sentence}", file=sys.stderr)
    return 1 if look.died or made["errors"] or broken or slow else 0


def _not_kept_up(made: dict[str, Any], options: argparse.Namespace) -> str:
    """Why the run was no game, in a sentence, or empty. A run is no game when it had fewer frames than observations of
    an NPC are due (or nine tenths of all frames), or less than a fifth of them.
    """
    played, due = made["frames"], round(options.seconds * options.fps)
    if played >= min(0.9 * due, max(options.rate_hz * options.seconds, due / 5)):
        return ""
    return (
        f"{played} of {due} frames were played; this machine does not carry {options.npcs} NPCs at {options.fps} "
        "frames a second, so try fewer --npcs or a lower --fps"
    )


class _Look:
    """The checks after each frame: it repaints the screen, and now and then checks that our own daemon lives."""

    def __init__(self, child: DaemonChild | None, screen: Screen, board: Board) -> None:
        self.died = False
        self.last_words = ""
        self._child = child
        self._screen = screen
        self._board = board
        self._next_look_s = 0.0

    def after_frame(self, now_s: float) -> bool:
        """Returns True when the daemon has gone."""
        self._screen.tick(now_s)
        if self._child and now_s >= self._next_look_s:
            self._next_look_s = now_s + CHILD_LOOK_EVERY_S
            if self._child.exit_code is not None:
                self.died = True
                self.last_words = self._child.log_tail()
                self._board.errors.add(f"daemon: died with exit code {self._child.exit_code}")
        return self.died


async def _watch_status(npcd: FrameClient, board: Board) -> None:
    try:
        async for status in npcd.npcd.watch_status(STATUS_EVERY_MS):
            board.status = status
    except NpcdError as error:
        board.errors.add(f"Admin.Watch: {error.code} {error}")


def _last_status(npcd: FrameClient, board: Board, watching: Future[None]) -> None:
    watching.cancel()
    try:
        board.status = npcd.wait(npcd.npcd.status())
    except NpcdError as error:
        board.errors.add(f"Admin.Status: {error.code} {error}")


def _problem_text(problem: LiveProblem) -> str:
    return f"Live {problem.code}: {problem.npc_id} {problem.field} {problem.message}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
