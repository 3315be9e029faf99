"""The whole daemon as a game meets it: `npcd serve` with its parent, the shipped model, and the Python client.

It dies natively and hangs, and comes back. It is terminated while it speaks, and ends in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import aiohttp
import pytest

from daemon.process.children import eldest, holders
from npcd_client import (
    ActionWord,
    Archetype,
    Client,
    NpcSpec,
    Observation,
    Percept,
    Persona,
    TalkEvent,
    TalkEventKind,
    TalkFinish,
    TooLate,
    Unavailable,
    World,
)
from tests.patience import PATIENCE_S

PROGRAM = Path(__file__).parents[1] / "dying.py"
# All values that the start would measure are given, and sequences are few and short, so that the start takes a second.
SETS = (
    *("engine.threads=1", "engine.flash_attention=off", "engine.weights=file", "engine.sequences=38"),
    *("engine.context_len=512", "caps.lore=120", "caps.words=80", "caps.archetype=60", "caps.persona=60"),
    # A step that is slow on a busy machine is no hang.
    *("serve.log_json=true", "serve.hang_s=3"),
)
VALE = World(
    world_id="vale",
    lore="Ravenmere is a village by the old road. People fear wolves.",
    archetypes=(Archetype("villager", "Plain folk who fear the night."),),
    actions=(ActionWord("idle"), ActionWord("greet", needs_target=True), ActionWord("flee")),
    emotions=("calm", "afraid"),
    personas=(Persona("mira", "Mira", "Mira bakes bread at the mill."),),
)
NPCS = ("a", "b", "c", "d")


class Served:
    """A daemon's process and its address."""

    def __init__(self, folder: Path, *sets: str, http: str = "") -> None:
        self.folder = folder
        self.target = f"unix:{folder}/n.sock"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.http = http or f"127.0.0.1:{free.getsockname()[1]}"
        named = [part for one in (*SETS, *sets) for part in ("--set", one)]
        command = [sys.executable, str(PROGRAM), str(folder), "--listen", self.target, "--http", self.http, *named]
        self.process = self.start(command)

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Starts it, with its log in a file."""
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def log(self) -> str:
        """Its whole log."""
        return (self.folder / "log").read_text("utf-8")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log's lines of one event."""
        lines = (json.loads(line) for line in self.log().splitlines() if line.startswith("{"))
        return [line for line in lines if line["event"] == name]

    def dawdle(self) -> None:
        """From now on every step is slow and every text long."""
        (self.folder / "slow.new").write_text(str(SLOW_STEP_S))
        (self.folder / "slow.new").rename(self.folder / "slow")

    async def says(self, *wanted: str) -> None:
        """Waits until /readyz gives one of these answers."""
        async with asyncio.timeout(PATIENCE_S):
            while await asyncio.to_thread(self.readiness) not in wanted:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)

    def readiness(self) -> str:
        """The answer of /readyz; "refused" when no process listens."""
        try:
            with urlopen(f"http://{self.http}/readyz", timeout=PATIENCE_S) as answer:
                return str(answer.read().decode().strip())
        except HTTPError as error:  # while it starts a second line says how far it is
            return f"{error.code} {error.read().decode().splitlines()[0]}"
        except (URLError, ConnectionError):
            return "refused"


# Enough for the few slow steps of the short turns, and far too little for those of the long one.
DRAIN_S = 7.0
SLOW_STEP_S = 0.25
LONG_TURN_S = 192 * SLOW_STEP_S


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A daemon that ends with the test."""
    one = Served(tmp_path, f"serve.drain_s={DRAIN_S}")
    yield one
    one.process.kill()
    one.process.wait()


@asynccontextmanager
async def playing(one: Served) -> AsyncIterator[Client]:
    """A game with its NPCs in place."""
    async with Client(one.target, timeout_s=PATIENCE_S) as npcd:
        try:
            await npcd.wait_ready(PATIENCE_S)
        except TooLate as error:
            raise AssertionError(one.log()) from error
        await npcd.define_world(VALE)
        await npcd.register([NpcSpec(npc, "villager", "mira") for npc in NPCS])
        yield npcd


async def test_the_probes_of_a_daemon_may_be_on_a_unix_socket(tmp_path: Path) -> None:
    """/readyz answers there for the daemon's own user, and replaces a socket that a killed daemon left. No warning says
    that other machines reach it. The socket goes with the daemon.
    """
    path = tmp_path / "probes.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    one = Served(tmp_path, "memory.keep=false", http=f"unix:{path}")
    try:
        async with playing(one):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
            session.get("http://npcd/readyz") as answer,
        ):
            assert (answer.status, await answer.text()) == (200, "serving\n")
        one.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(one.process.wait, PATIENCE_S) == 0
    finally:
        one.process.kill()
        one.process.wait()
    assert [line["http"] for line in one.events("serving")] == [f"unix:{path}"]
    assert not one.events("probes and metrics are reachable from elsewhere")
    assert not path.exists()


async def test_a_daemon_that_dies_natively_or_hangs_is_back_and_the_game_goes_on(served: Served) -> None:
    """llama.cpp aborts in the middle of a step, and another step never returns. Each time the parent restarts the
    daemon, /readyz is not ready meanwhile, and the client brings world and NPCs back without the game.
    """
    async with playing(served) as npcd, npcd.live() as live:
        tick = 0

        async def intents_of(epoch_before: int) -> None:
            """Goes on observing, as a game does, until every NPC has an intent of a daemon with another epoch."""
            nonlocal tick
            while live.daemon_epoch == epoch_before or not all(
                (intent := live.latest(npc)) and intent.observed_tick > seen for npc in NPCS
            ):
                tick += 1
                for npc in NPCS:
                    live.observe(Observation(npc, tick, percepts=(Percept(f"w{tick % 2}", "wolf", "hostile", 3),)))
                await asyncio.sleep(0.02)

        seen = 0
        async with asyncio.timeout(PATIENCE_S):
            await intents_of(0)
        for word, why in (("abort", "SIGABRT"), ("hang", "exit status 70")):
            seen, epoch = tick, live.daemon_epoch
            problems = live.counters.problems
            (served.folder / word).touch()
            heard: set[str] = set()

            async def look(heard: set[str] = heard) -> None:
                while True:
                    heard.add(await asyncio.to_thread(served.readiness))
                    await asyncio.sleep(0.02)

            looking = asyncio.create_task(look())
            async with asyncio.timeout(PATIENCE_S):
                await intents_of(epoch)
            looking.cancel()
            assert {"refused", "serving"} <= heard <= {"refused", "503 starting", "serving"}
            said = list(live.problems)[-(live.counters.problems - problems) :]
            # INTERNAL is grpc's own status for a connection that breaks during a write.
            assert {p.code for p in said} <= {"UNAVAILABLE", "INTERNAL", "NOT_FOUND", "UNKNOWN_NPC"}, said
            assert "UNAVAILABLE" in {p.code for p in said}, "the game was told that nobody serves"
            assert why in served.events("started again")[-1]["why"]
        assert [event["life"] for event in served.events("started again")] == [2, 3]
        assert "Fatal Python error: Aborted" in served.log(), "where Python was when the library aborted"
        assert (await turn(npcd, "a", 5))[1] in (TalkFinish.STOP, TalkFinish.LENGTH)
    served.process.terminate()
    assert served.process.wait(PATIENCE_S) == 0, served.log()


async def turn(npcd: Client, npc: str, tokens: int) -> tuple[str, TalkFinish | str]:
    """An NPC's text, and how the turn ended: its finish, or the code of the error."""
    said = ""
    last: TalkEvent | None = None
    try:
        async for last in npcd.talk(npc, f"p-{npc}", "Tell me about the wolves.", max_tokens=tokens, seed=3):
            said += last.text
    except Unavailable as error:
        return said, error.code
    assert last is not None and last.kind is TalkEventKind.END
    return said, last.finish


async def speaking(npcd: Client, turns: int) -> None:
    """Waits until so many turns are under way."""
    async with asyncio.timeout(PATIENCE_S):
        while (await npcd.status()).turns_open < turns:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)


async def test_asked_to_end_it_finishes_what_it_says(served: Served) -> None:
    """SIGTERM comes with four turns and a Live stream under way. From then on the daemon is not ready, refuses new
    calls, and turns finish or end with UNAVAILABLE. After serve.drain_s (five seconds by default), long before the
    longest turn would end, the process ends with 0.
    """
    async with playing(served) as npcd, npcd.live() as live:
        live.observe(Observation("d", 1, percepts=(Percept("w", "wolf", "hostile", 3),)))
        await live.wait_connected(PATIENCE_S)
        served.dawdle()
        turns = [asyncio.create_task(turn(npcd, npc, tokens)) for npc, tokens in zip(NPCS, (2, 3, 4, 192), strict=True)]
        await speaking(npcd, 4)
        began_s = time.monotonic()
        served.process.terminate()
        await served.says("503 draining")
        with pytest.raises(TooLate, match="is not serving yet"):
            await npcd.wait_ready(0.05)
        assert not turns[3].done(), "it is not ready while it still speaks"
        with pytest.raises(Unavailable):
            async for _ in npcd.talk("a", "latecomer", "Good evening."):
                pass
        ends = await asyncio.gather(*turns)
        assert await asyncio.to_thread(served.process.wait, PATIENCE_S) == 0, served.log()
        assert time.monotonic() - began_s < LONG_TURN_S
        finished = [said for said, end in ends if isinstance(end, TalkFinish)]
        assert len(finished) == 3 and all(finished), ends
        assert ends[3][1] == "UNAVAILABLE"
        assert "UNAVAILABLE" in {problem.code for problem in live.problems}
        assert served.events("stopped")[0]["works_cut"] >= 1


async def test_a_second_signal_forces(served: Served) -> None:
    """All turns are cut off."""
    async with playing(served) as npcd:
        served.dawdle()
        cut = asyncio.create_task(turn(npcd, "a", 192))
        await speaking(npcd, 1)
        served.process.terminate()
        await served.says("503 draining")
        served.process.terminate()
        assert await asyncio.to_thread(served.process.wait, PATIENCE_S) == 1
        assert (await cut)[1] == "UNAVAILABLE"
        assert not served.events("stopped"), "it did not wait for what runs"


async def test_asked_to_end_while_it_loads_it_ends(served: Served) -> None:
    """It does not wait for a model that will not be used."""
    await served.says("503 starting", "serving")
    served.process.terminate()
    assert await asyncio.to_thread(served.process.wait, PATIENCE_S) == 0, served.log()


class Silent(Served):
    """A daemon with memory and its own Redis, whose standard error takes no bytes."""

    def __init__(self, folder: Path, how: str) -> None:
        self.how = how
        self._opened: list[int] = []
        super().__init__(folder)

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Starts with such a standard error."""
        command = [*command, "--data", str(self.folder / "data"), "--postgres", "off"]
        environment = {**os.environ, "NPCD_MEMORY__KEEP": "true"}
        if self.how == "closed":
            shell = ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh"]
            return subprocess.Popen([*shell, *command], stdin=subprocess.DEVNULL, env=environment)
        if self.how == "full disk":
            writing = os.open("/dev/full", os.O_WRONLY)
        else:
            reading, writing = os.pipe()
            os.set_blocking(writing, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(writing, b"x" * 4096)
            os.set_blocking(writing, True)
            self._opened.append(reading)
            if self.how == "reader gone":
                os.close(self._opened.pop())
        self._opened.append(writing)
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=writing, env=environment)

    def redis(self) -> int:
        """The process of its own Redis; 0 while there is none."""
        try:
            return next(iter(eldest(holders(self.folder / "data" / "redis" / "lock"))), 0)
        except FileNotFoundError:
            return 0

    def lines_lost(self) -> float:
        """The count of lost lines in /metrics."""
        with urlopen(f"http://{self.http}/metrics", timeout=PATIENCE_S) as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line.split()[-1] for line in lines if line.startswith("npcd_log_lines_lost_total ")))

    def over(self) -> None:
        """True when no process of it is left."""
        self.process.kill()
        self.process.wait()
        for fd in self._opened:
            os.close(fd)


async def epoch_of(npcd: Client) -> int:
    """The epoch of the serving daemon; 0 while none serves."""
    try:
        return (await npcd.status()).daemon_epoch
    except (Unavailable, TooLate):
        return 0


@pytest.mark.parametrize("how", ["nobody reads", "reader gone", "full disk", "closed"])
async def test_with_a_standard_error_that_takes_nothing_everything_goes_on(tmp_path: Path, how: str) -> None:
    """The daemon serves, restarts its own Redis after a kill, is restarted itself after a death, and ends as soon as it
    is terminated. Lost lines are counted in /metrics.
    """
    one = Silent(tmp_path, how)
    try:
        async with playing(one) as npcd:
            first = one.redis()
            os.kill(first, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE_S):
                while one.redis() in (0, first):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.02)
            assert (await turn(npcd, "a", 4))[0]
            if how in ("reader gone", "full disk"):
                assert one.lines_lost() > 0
            epoch = (await npcd.status()).daemon_epoch
            (tmp_path / "abort").touch()
            await turn(npcd, "a", 4)
            async with asyncio.timeout(PATIENCE_S):
                while await epoch_of(npcd) in (0, epoch):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.02)
        one.process.terminate()
        assert await asyncio.to_thread(one.process.wait, PATIENCE_S) == 0
    finally:
        one.over()
