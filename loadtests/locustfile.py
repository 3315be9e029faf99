"""The load for locust: its users are game servers and players. `make load` and `make load-ui` start it.

Locust replaces blocking calls by gevent's, and gRPC must know that before it makes its first object. Therefore the load
is a process of its own. Times and failures go to locust's tables, all other figures to the results file.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.experimental.gevent
from locust import User, events, task
from locust.env import Environment
from locust.exception import StopUser

from loadtests.recording import Recording
from loadtests.scene import Plan, load_plan
from loadtests.servers import recordings
from loadtests.sync_client import SyncClient
from loadtests.town import FIRST_TEXT, TURN, Talker, Town
from npcd_client import NpcdError

grpc.experimental.gevent.init_gevent()

_KINDS = {FIRST_TEXT: "Talk", TURN: "Talk"}  # all other calls are on Live


class Run:
    """One run of a load: from locust's start to its stop."""

    def __init__(self, environment: Environment) -> None:
        options = environment.parsed_options
        plan = _plan(environment)
        self.over = False
        self.client = SyncClient(options.target, options.token)
        self.town = Town(plan, self.client, self._note, _recordings)
        self.servers = itertools.cycle(self.town.servers)
        self.players = itertools.count()
        self._fire = environment.events.request.fire

    def _note(self, name: str, took_ms: float, failure: str) -> None:
        self._fire(
            request_type=_KINDS.get(name, "Live"),
            name=name,
            response_time=took_ms,
            response_length=0,
            exception=RuntimeError(failure) if failure else None,
            context={},
        )


# The run that users belong to. Locust gives users nothing but its environment.
_run: Run | None = None
# Recordings are made before a run's clock starts, once for all runs from the web page.
_recordings: list[Recording] = []


def _plan(environment: Environment) -> Plan:
    options = environment.parsed_options
    plan = load_plan(Path(options.scene))
    return replace(plan, seconds=options.seconds) if options.seconds else plan


class GameServer(User):
    """A game server: its NPCs are in one Live stream."""

    fixed_count = 1  # the plan sets it

    @task
    def play(self) -> None:
        """Plays the whole run, once."""
        run = _run
        if run is None:
            raise StopUser
        next(run.servers).run(lambda: run.over)
        raise StopUser


class Player(User):
    """A player in conversation."""

    @task
    def talk(self) -> None:
        """Talks during the whole run, once."""
        run = _run
        if run is None:
            raise StopUser
        Talker(run.town, next(run.players)).run(lambda: run.over)
        raise StopUser


@events.init_command_line_parser.add_listener
def _options(parser: ArgumentParser) -> None:
    own = parser.add_argument_group("npcd")
    own.add_argument("--target", default="127.0.0.1:50061", help="where npcd listens: host:port or unix:///path")
    own.add_argument("--token", default="", help="bearer token")
    own.add_argument("--scene", default=str(Path(__file__).parent / "scenes" / "village.toml"), help="file of the load")
    own.add_argument("--seconds", type=float, default=0.0, help="the run's length in the report; 0: the scene's")
    own.add_argument("--results", default="", help="JSON file for the figures")


@events.init.add_listener
def _prepare(environment: Environment, **_: Any) -> None:
    plan = _plan(environment)
    GameServer.fixed_count = plan.servers
    _recordings[:] = recordings(plan)
    # Recording takes seconds without a look of gevent's at the clock, and these would count as seconds of the run.
    time.sleep(0.01)


@events.test_start.add_listener
def _start(environment: Environment, **_: Any) -> None:
    global _run
    try:
        _run = Run(environment)
    except NpcdError as error:
        _run = None
        print(f"load: {environment.parsed_options.target}: {error}", file=sys.stderr)
        environment.process_exit_code = 1
        environment.runner.quit()


@events.test_stopping.add_listener
def _stopping(environment: Environment, **_: Any) -> None:
    if _run:
        _run.over = True


@events.test_stop.add_listener
def _stop(environment: Environment, **_: Any) -> None:
    run = _run
    if run is None:
        return
    made = run.town.results()
    run.client.close()
    results = environment.parsed_options.results
    if results:
        entries = environment.stats.entries
        for name, share in (("locust_p50_ms", 0.5), ("locust_p95_ms", 0.95)):
            made[name] = {
                f"{kind} {what}": stats.get_response_time_percentile(share) for (what, kind), stats in entries.items()
            }
        made["locust_failures"] = environment.stats.total.num_failures
        Path(results).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
