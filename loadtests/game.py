"""The frame loop: the game's side of npcd, at a steady rate, with the cost of npcd's calls metered.

Ownership: this thread owns the village, the player and the books. The client lives on a thread of its own. The only
calls in a frame are tell_time(), observe() and latest(), which take no lock and never wait.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from typing import Protocol

from loadtests.board import LATE_MS, Board
from loadtests.player import Player
from loadtests.slots import SLOTS_MS, state_of
from loadtests.village import Village
from npcd_client import Activation, Intent, IntentSource, Observation, Policy, evaluate

SWITCH_INTERVAL_S = 0.0005
COLLECT_EVERY_S = 1.0
COLLECT_ROOM_NS = 1_500_000
GRACE_S = 1.0

_SOURCES = {IntentSource.MODEL: "model", IntentSource.PREDICTED: "predicted"}


class Stream(Protocol):
    """The part of a stream of observations and intents that the loop needs; no call of it waits."""

    def observe(self, observation: Observation) -> None:
        """Sends an NPC's new observation."""

    def latest(self, npc_id: str) -> Intent | None:
        """The newest intent of an NPC."""

    def activation(self, npc_id: str) -> Activation:
        """The attention that an NPC gets."""

    def tell_time(self, game_time_ms: float) -> None:
        """Reports game time."""


class Game:
    """One game server. `run` paces it by itself. A caller with a pace of its own calls `play` for each frame and
    `settle` after the last. Without a player no conversation happens.
    """

    def __init__(
        self,
        village: Village,
        live: Stream,
        policy: Policy,
        player: Player | None,
        board: Board,
        fps: int,
        rate_hz: float,
    ) -> None:
        self._village = village
        self._live = live
        self._policy = policy
        self._player = player
        self._board = board
        self._fps = fps
        self._rate_hz = rate_hz
        count = len(village.bodies)
        self._ids = [body.resident.npc_id for body in village.bodies]
        self._rows: list[Intent | None] = [None] * count
        self._seen: list[Intent | None] = [None] * count
        self._ticks = [0] * count
        self._newest: list[Observation | None] = [None] * count
        self._sent = 0  # observations that were due by the staggered cadence so far
        board.doing = [""] * count

    def run(self, seconds: float, on_slack: Callable[[float], bool]) -> None:
        """Runs frames for this long, paced by the wall clock, then waits a moment for pending answers.

        `on_slack(now_s)` is called after each frame and must be quick. If it returns True, the run ends early.
        """
        total = round(seconds * self._fps)
        frame_ns = 1_000_000_000 / self._fps
        switch_interval_s = sys.getswitchinterval()
        # The client's thread shares the interpreter. With the usual 5 ms a frame could wait longer than it lasts.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        # Objects of this moment live to the end. A full collection would walk them in the middle of a frame, so they
        # are frozen.
        # The little garbage of frames is collected in the pause after one, where there is time.
        gc.collect()
        gc.freeze()
        gc.disable()
        collected_ns = start_ns = time.monotonic_ns()
        frame = 0
        try:
            while frame < total:
                due_ns = start_ns + int(frame * frame_ns)
                now_ns = time.monotonic_ns()
                if now_ns < due_ns:
                    time.sleep((due_ns - now_ns) * 1e-9)
                elif now_ns - due_ns > frame_ns:
                    # When the loop is late by more than a frame it goes on with the present one, and does not make up
                    # for missed frames.
                    present = min(total - 1, int((now_ns - start_ns) / frame_ns))
                    self._board.frames_skipped += present - frame
                    frame = present
                self.play(frame)
                frame += 1
                self._board.elapsed_s = (time.monotonic_ns() - start_ns) * 1e-9
                if on_slack(self._board.elapsed_s):
                    break
                now_ns = time.monotonic_ns()
                room_ns = start_ns + int(frame * frame_ns) - now_ns
                if now_ns - collected_ns > COLLECT_EVERY_S * 1e9 and room_ns > COLLECT_ROOM_NS:
                    gc.collect(0)
                    collected_ns = now_ns
        finally:
            gc.enable()
            gc.unfreeze()
            sys.setswitchinterval(switch_interval_s)
        self.settle(frame)

    # -- one frame -------------------------------------------------------------------------------------------------

    def play(self, frame: int) -> None:
        """One frame: the world moves, NPCs are observed, intents are taken over, and everything is counted."""
        board = self._board
        now_ms = frame * 1000 / self._fps
        self._village.step(now_ms)
        if self._player:
            self._player.play(now_ms / 1000)
        observations = self._due_observations(frame)

        live, rows = self._live, self._rows
        observe, latest = live.observe, live.latest
        cpu_ns = time.thread_time_ns()
        wall_ns = time.perf_counter_ns()
        if observations:
            live.tell_time(now_ms)
            for _, observation in observations:
                observe(observation)
        for number, npc_id in enumerate(self._ids):
            rows[number] = latest(npc_id)
        wall_ms = (time.perf_counter_ns() - wall_ns) * 1e-6
        cpu_ms = (time.thread_time_ns() - cpu_ns) * 1e-6

        board.frames += 1
        board.frames_late += cpu_ms > LATE_MS
        board.calls_wall.add(wall_ms)
        board.calls_cpu.add(cpu_ms)
        board.observations += len(observations)
        for number, observation in observations:
            self._newest[number] = observation
            slot_ms = SLOTS_MS[live.activation(observation.npc_id)]
            board.slots.observed(number, observation.tick, state_of(observation), now_ms, slot_ms)
            board.slots.expire(number, now_ms)
        self._take_intents(now_ms)
        for number, observation in observations:
            self._fall_back(number, observation, now_ms)

    def _due_observations(self, frame: int) -> list[tuple[int, Observation]]:
        """This frame's share of the observations, spread evenly over all frames. After skipped frames no NPC is
        observed twice."""
        wanted = int((frame + 1) * len(self._ids) * self._rate_hz / self._fps)
        first = max(self._sent, wanted - len(self._ids))
        made = []
        for turn in range(first, wanted):
            number = turn % len(self._ids)
            self._ticks[number] += 1
            made.append((number, self._village.observe(number, self._ticks[number])))
        self._sent = wanted
        return made

    def _take_intents(self, now_ms: float) -> None:
        """Finds new intents, acts on them, and samples every active NPC's intent age."""
        board, activation, ids, active = self._board, self._live.activation, self._ids, 0
        now_ns = time.monotonic_ns()
        for number, intent in enumerate(self._rows):
            attended = activation(ids[number]) is Activation.ACTIVE
            active += attended
            if intent is None:
                board.unanswered_samples += attended
                continue
            if attended:
                board.intent_age.add((now_ns - intent.agreed_ns) * 1e-6)
            held = self._seen[number]
            if intent is held:
                continue
            self._seen[number] = intent
            board.slots.answered(number, intent, now_ms)
            if held is None or (intent.daemon_epoch, intent.version) != (held.daemon_epoch, held.version):
                self._act(number, intent)
        board.active.add(active)

    def _act(self, number: int, intent: Intent) -> None:
        board = self._board
        source = _SOURCES.get(intent.source, "policy")
        board.versions[source] += 1
        board.barks += bool(intent.bark)
        # A bark that is added to an intent makes a new version without a latency of its own.
        if source == "model" and intent.latency_ms:
            board.intent_latency.add(intent.latency_ms)
        self._village.intend(number, intent.action, intent.target_entity_id, intent.emotion)
        board.doing[number] = f"{source:<9} {intent.action} {intent.target_entity_id}".rstrip()
        if intent.bark:
            board.doing[number] += f'  "{intent.bark}"'

    def _fall_back(self, number: int, observation: Observation, now_ms: float) -> None:
        """Without an intent that still holds, the game evaluates the rule policy here."""
        intent = self._rows[number]
        if intent is not None and not 0 < intent.ttl_ms < now_ms - intent.game_time_ms:
            return
        archetype_id = self._village.bodies[number].resident.archetype_id
        answer = evaluate(self._policy, observation, archetype_id)
        if answer:
            self._board.fallbacks += 1
            self._village.intend(number, answer.action, answer.target_entity_id, answer.emotion)
            self._board.doing[number] = f"{'(rules)':<9} {answer.action} {answer.target_entity_id}".rstrip()

    # -- afterwards ------------------------------------------------------------------------------------------------

    def settle(self, frame: int) -> None:
        """Gives slots and the player's last line up to a second to be answered, without further observations."""
        started_ns = time.monotonic_ns()
        slots = self._board.slots
        while (waited_ns := time.monotonic_ns() - started_ns) < GRACE_S * 1e9:
            now_ms = frame * 1000 / self._fps + waited_ns * 1e-6
            for number, npc_id in enumerate(self._ids):
                intent = self._live.latest(npc_id)
                if intent is not None and intent is not self._seen[number]:
                    self._seen[number] = intent
                    slots.answered(number, intent, now_ms)
            if self._player:
                self._player.finish()
            if not slots.open and not (self._player and self._player.speaking):
                break
            time.sleep(0.005)
        slots.close()
