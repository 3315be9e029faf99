"""The game servers of a load, each with a world and a Live stream of its own.

A server runs on a thread, which under locust is a greenlet. No code here takes a lock, and shared state is changed in
one statement.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from loadtests.board import Board, Errors
from loadtests.crowd import record_crowd
from loadtests.game import GRACE_S, Game
from loadtests.histogram import Histogram
from loadtests.reactions import Reactions
from loadtests.recorded_game import RecordedGame
from loadtests.recording import Recording
from loadtests.scene import Plan
from loadtests.slots import Slots
from loadtests.sync_client import BytesLive, SyncClient, SyncLive
from loadtests.village import Village
from npcd_client import Activation, Intent, Observation

# Reports an event: name, milliseconds, and an error (empty: none).
Note = Callable[[str, float, str], None]
INTENT, REACTION = "intent", "reaction to an event"
DRAIN_EVERY_S = 0.005


def milliseconds() -> Histogram:
    """A histogram for the load's own measurements."""
    return Histogram(0.5, 20_000.0)


@dataclass(slots=True)
class Seen:
    """The load's own measurements beside the boards: reactions as both sides see them, and answers to players."""

    reaction: Histogram = field(default_factory=milliseconds)
    reaction_npcd: Histogram = field(default_factory=milliseconds)
    first_text: Histogram = field(default_factory=milliseconds)
    turn: Histogram = field(default_factory=milliseconds)
    lateness: Histogram = field(default_factory=milliseconds)  # of the load's own lines: time sent minus time due
    turns: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """The state that all servers and players of a load share."""

    plan: Plan
    client: SyncClient
    note: Note
    errors: Errors
    seen: Seen


class Server(Protocol):
    """A game server, as the players who talk with its NPCs see it."""

    world_id: str
    npc_ids: list[str]
    board: Board

    def run(self, over: Callable[[], bool]) -> None:
        """Plays frames until the end, then waits a moment for pending answers."""

    def meet(self, npc_id: str, player_id: str) -> None:
        """A player begins to talk with an NPC."""

    def tell(self, npc_id: str, event: str) -> None:
        """The NPC notices a player's line."""

    def part(self, npc_id: str) -> None:
        """The player has left the NPC."""


def paced(board: Board, fps: int, over: Callable[[], bool], play: Callable[[int], None]) -> int:
    """Plays frames by the wall clock until the end. When it is late by more than a frame, it goes on with the present
    one. Returns the number of the next frame.
    """
    start_s, frame = time.monotonic(), 0
    while not over():
        now_s = time.monotonic() - start_s
        due_s = frame / fps
        if now_s < due_s:
            time.sleep(due_s - now_s)
        elif now_s - due_s > 1 / fps:
            present = int(now_s * fps)
            board.frames_skipped += present - frame
            frame = present
        play(frame)
        frame += 1
        board.elapsed_s = time.monotonic() - start_s
    return frame


class VillageServer:
    """The scene's village, whose NPCs follow their intents."""

    def __init__(self, load: Load, number: int) -> None:
        plan = load.plan
        self.world_id = f"{plan.scene.world.world_id}-{number + 1}"
        self.board = Board(plan.npcs, Slots(plan.npcs), load.errors)
        self._village = Village(plan.scene, plan.npcs, plan.seed + number)
        self.npc_ids = [body.resident.npc_id for body in self._village.bodies]
        specs = [body.resident.spec for body in self._village.bodies]
        self._leases, self._policy = load.client.settle_in(replace(plan.scene.world, world_id=self.world_id), specs)
        self._load = load
        self._reactions = Reactions()
        self._live: SyncLive | None = None

    def run(self, over: Callable[[], bool]) -> None:
        """Plays the village."""
        plan, board = self._load.plan, self.board
        client, confirmed = self._load.client, self._reactions.confirmed
        live = SyncLive(client, self.world_id, self._leases, self._take, confirmed, board.errors.add)
        self._live = live
        game = Game(self._village, self, self._policy, None, board, plan.fps, plan.rate_hz)
        try:
            game.settle(paced(board, plan.fps, over, game.play))
        finally:
            live.close()

    def meet(self, npc_id: str, player_id: str) -> None:
        """The village has one player, who is seen as he walks."""

    def tell(self, npc_id: str, event: str) -> None:
        """The NPC notices the line as an event."""
        self._village.tell(npc_id, event)

    def part(self, npc_id: str) -> None:
        """As in meet()."""

    # -- as the game's stream ----------------------------------------------------------------------------------

    def observe(self, observation: Observation) -> None:
        """Sends an observation, and notes its events."""
        assert self._live is not None
        self._reactions.observed(observation, time.monotonic_ns())
        self._live.observe(observation)

    def latest(self, npc_id: str) -> Intent | None:
        """The newest intent of an NPC."""
        assert self._live is not None
        return self._live.latest(npc_id)

    def activation(self, npc_id: str) -> Activation:
        """The attention that an NPC gets."""
        assert self._live is not None
        return self._live.activation(npc_id)

    def tell_time(self, game_time_ms: float) -> None:
        """Reports game time."""
        assert self._live is not None
        self._live.tell_time(game_time_ms)

    def _take(self, intent: Intent, at_ns: int) -> None:
        load = self._load
        if intent.latency_ms:
            load.note(INTENT, intent.latency_ms, "")
        reaction = self._reactions.answered(intent, at_ns)
        if reaction is not None:
            here_ms, there_ms = reaction
            load.seen.reaction.add(here_ms)
            load.seen.reaction_npcd.add(there_ms)
            load.note(REACTION, here_ms, "")


def recordings(plan: Plan) -> list[Recording]:
    """The recordings of a plan, one per server; none when villages are played. Takes seconds of CPU time."""
    if plan.crowd is None:
        return []
    residents = plan.scene.residents(plan.npcs)
    return [
        record_crowd(plan.scene, residents, plan.crowd, plan.seconds, plan.rate_hz, plan.seed + number)
        for number in range(plan.servers)
    ]


class RecordedServer:
    """NPCs that were recorded before the run: their sights do not depend on answers."""

    def __init__(self, load: Load, number: int, recording: Recording) -> None:
        plan = load.plan
        self.world_id = f"{plan.scene.world.world_id}-{number + 1}"
        self.board = Board(plan.npcs, Slots(plan.npcs), load.errors)
        self.npc_ids = [resident.npc_id for resident in recording.residents]
        specs = [resident.spec for resident in recording.residents]
        leases, _ = load.client.settle_in(replace(plan.scene.world, world_id=self.world_id), specs)
        self._game = RecordedGame(recording, self.world_id, leases, self.board, plan.fps)
        self._load = load

    def run(self, over: Callable[[], bool]) -> None:
        """Plays the recording, and starts it again when the run is longer."""
        board, game = self.board, self._game
        live = BytesLive(self._load.client, game.hello(), board.errors.add)

        def play(number: int) -> None:
            self._take(live)
            now_ns = time.monotonic_ns()
            live.send(game.frame(number, now_ns))
            game.sample(number, now_ns)

        try:
            fps = self._load.plan.fps
            end_s = frame_s = paced(board, fps, over, play) / fps
            while board.slots.open and frame_s < end_s + GRACE_S:
                time.sleep(DRAIN_EVERY_S)
                frame_s += DRAIN_EVERY_S
                self._take(live)
                game.answered(frame_s * 1000)
            board.slots.close()
        finally:
            live.close()

    def meet(self, npc_id: str, player_id: str) -> None:
        """From now on the NPC sees the player."""
        self._game.meet(npc_id, player_id)

    def tell(self, npc_id: str, event: str) -> None:
        """The NPC notices the line for a while."""
        self._game.tell(npc_id, event, self.board.elapsed_s * 1000)

    def part(self, npc_id: str) -> None:
        """The NPC no longer sees the player."""
        self._game.part(npc_id)

    def _take(self, live: BytesLive) -> None:
        while live.heard:
            for intent in self._game.take(*live.heard.popleft()):
                if intent.latency_ms:
                    self._load.note(INTENT, intent.latency_ms, "")
