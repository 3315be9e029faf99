"""A load without locust: game servers and players of a plan against a daemon, and all their counts.

It runs on threads, which under locust are greenlets. No code here takes a lock, and shared state is changed in one
statement.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from loadtests.board import Board, Errors
from loadtests.patter import Patter
from loadtests.recording import Recording
from loadtests.report import percentiles_of, report
from loadtests.scene import Plan
from loadtests.servers import Load, Note, RecordedServer, Seen, Server, VillageServer
from loadtests.slots import Slots
from loadtests.sync_client import SyncClient
from npcd_client import NpcdError, TalkEventKind, TalkFinish, new_turn_id
from npcd_client.v1 import dialogue_pb2

TURN_TIMEOUT_S = 20.0
SETTLE_MAX_S = 30.0
FIRST_TEXT, TURN = "first text", "whole turn"


class Talker:
    """A player who talks with one NPC after the other. Lines are due at random moments, drawn beforehand from a seed.
    Each line is sent when it is due, even if an earlier one has no answer yet, and its time counts from that moment.
    """

    def __init__(self, town: Town, number: int) -> None:
        self._town = town
        self._player_id = f"player-{number + 1}"
        self._chance = random.Random(f"{town.plan.seed}/{number}")
        self._patter = Patter(town.plan.scene.player, self._chance)
        self._npc: tuple[Server, str] | None = None
        self._turns: list[threading.Thread] = []  # of the present conversation
        self._partings: list[threading.Thread] = []

    def run(self, over: Callable[[], bool]) -> None:
        """Says lines until the end, then waits for the last answers."""
        every_s = self._town.plan.line_every_s
        due_s = time.monotonic() + self._chance.uniform(0, every_s)
        while not over():
            left_s = due_s - time.monotonic()
            if left_s > 0:
                time.sleep(min(left_s, 0.25))
                continue
            self._say(due_s)
            due_s += self._chance.expovariate(1 / every_s)
        self._part()
        for parting in self._partings:
            parting.join()

    def _say(self, due_s: float) -> None:
        if self._npc is None:
            self._npc = self._town.take_npc(self._chance)
            self._patter.begin()
            server, npc_id = self._npc
            server.meet(npc_id, self._player_id)
        server, npc_id = self._npc
        line, event = self._patter.next()
        server.tell(npc_id, event)
        turn = threading.Thread(target=self._turn, args=(server.world_id, npc_id, line, due_s))
        turn.start()
        self._turns.append(turn)
        if self._patter.over:
            self._part()

    def _turn(self, world_id: str, npc_id: str, line: str, due_s: float) -> None:
        town, seen = self._town, self._town.seen
        seen.lateness.add((time.monotonic() - due_s) * 1000)
        request = dialogue_pb2.TalkRequest(
            world_id=world_id,
            npc_id=npc_id,
            player_id=self._player_id,
            turn_id=new_turn_id(),
            text=line,
            max_tokens=town.plan.max_tokens,
            player_name=town.plan.scene.player.name,
        )
        first = True
        try:
            for event in town.client.talk(request, TURN_TIMEOUT_S):
                if first and event.kind in (TalkEventKind.TEXT, TalkEventKind.REPLACE):
                    first = False
                    took_ms = (time.monotonic() - due_s) * 1000
                    seen.first_text.add(took_ms)
                    town.note(FIRST_TEXT, took_ms, "")
                if event.finish is TalkFinish.FAILED:
                    raise NpcdError("the turn failed after text had been sent", "FAILED")
        except NpcdError as error:
            town.errors.add(f"Talk {error.code}: {error}")
            town.note(TURN, (time.monotonic() - due_s) * 1000, f"{error.code} {error}")
            return
        took_ms = (time.monotonic() - due_s) * 1000
        seen.turn.add(took_ms)
        seen.turns += 1
        town.note(TURN, took_ms, "")

    def _part(self) -> None:
        """Leaves the NPC. When its last answer has come, the conversation ends and other players may speak to it."""
        if self._npc is None:
            return
        npc, self._npc = self._npc, None
        turns, self._turns = self._turns, []
        parting = threading.Thread(target=self._end, args=(npc, turns))
        parting.start()
        self._partings = [*(thread for thread in self._partings if thread.is_alive()), parting]

    def _end(self, npc: tuple[Server, str], turns: list[threading.Thread]) -> None:
        for turn in turns:
            turn.join()
        server, npc_id = npc
        server.part(npc_id)
        try:
            self._town.client.end_session(server.world_id, npc_id, self._player_id)
        except NpcdError as error:
            self._town.errors.add(f"EndSession {error.code}: {error}")
        self._town.give_npc_back(npc)


class Town:
    """All servers and players of a plan; one with a crowd needs its recordings. Raises NpcdError when the daemon
    refuses the worlds.
    """

    def __init__(self, plan: Plan, client: SyncClient, note: Note, recordings: Sequence[Recording] = ()) -> None:
        self.plan = plan
        self.client = client
        self.note = note
        self.errors = Errors()
        self.seen = Seen()
        self._status_at_start = client.status()
        load = Load(plan, client, note, self.errors, self.seen)
        self.servers: list[Server]
        if plan.crowd:
            self.servers = [RecordedServer(load, number, recording) for number, recording in enumerate(recordings)]
        else:
            self.servers = [VillageServer(load, number) for number in range(plan.servers)]
        self._free = [(server, npc_id) for server in self.servers for npc_id in server.npc_ids]
        self.ready_s = self._settle()
        self._began = time.monotonic(), time.process_time()

    def _settle(self) -> float:
        """Waits until npcd has the NPCs in place, as a game does while a level loads. Returns the seconds."""
        began_s = time.monotonic()
        while time.monotonic() - began_s < SETTLE_MAX_S:
            bronze = next((tier for tier in self.client.status().tiers if tier.tier == "bronze"), None)
            if bronze is None or not (bronze.waiting or bronze.running):
                break
            time.sleep(0.1)
        return time.monotonic() - began_s

    def take_npc(self, chance: random.Random) -> tuple[Server, str]:
        """An NPC that no player talks with. Without one it is an NPC in conversation, which answers in order."""
        if not self._free:
            server = chance.choice(self.servers)
            return server, chance.choice(server.npc_ids)
        return self._free.pop(chance.randrange(len(self._free)))

    def give_npc_back(self, npc: tuple[Server, str]) -> None:
        """Other players may talk with the NPC again."""
        if npc not in self._free:
            self._free.append(npc)

    def results(self) -> dict[str, Any]:
        """The results of the run, for JSON: first the figures that a budget names, then everything in detail."""
        plan, seen = self.plan, self.seen
        load_cores = (time.process_time() - self._began[1]) / (time.monotonic() - self._began[0])
        board = Board(plan.servers * plan.npcs, Slots(0), self.errors)
        for server in self.servers:
            board.include(server.board)
        board.turns = seen.turns
        board.status_at_start = self._status_at_start
        try:
            board.status = self.client.status()
        except NpcdError as error:
            self.errors.add(f"Admin.Status {error.code}: {error}")
        made = report(board, plan.seconds, plan.seed, plan.fps, plan.rate_hz)
        made["silver_ttft_client_ms"] = percentiles_of(seen.first_text)
        return {
            "scene": plan.name,
            "intent_latency_p95_ms": made["intent_latency_ms"]["p95"],
            "intent_age_p95_ms": made["intent_age_ms"]["p95"],
            "gold_token_p95_ms": round(made["gold_token_ms"]["p95"], 3),
            "silver_ttft_p95_ms": made["silver_ttft_client_ms"]["p95"],
            "model_share": made["intents_model_share"],
            "errors": self.errors.count,
            "reaction_p95_ms": percentiles_of(seen.reaction)["p95"],
            "turns": seen.turns,
            "active_npcs": board.active.percentiles(p05=0.05, p50=0.5, p95=0.95),
            "ready_s": round(self.ready_s, 1),
            "load_cores": round(load_cores, 3),
            "lines_late_p95_ms": percentiles_of(seen.lateness)["p95"],
            "both_sides_p50_ms": self._both_sides("p50", made),
            "both_sides_p95_ms": self._both_sides("p95", made),
            "turn_ms": percentiles_of(seen.turn),
            "reaction_ms": percentiles_of(seen.reaction),
            "reactions": seen.reaction.count,
            "servers": plan.servers,
            "conversations": plan.conversations,
            "line_every_s": plan.line_every_s,
            **made,
        }

    def _both_sides(self, share: str, made: dict[str, Any]) -> dict[str, dict[str, float]]:
        """The values that both the load and npcd measured."""
        return {
            "silver_ttft": {
                "load": percentiles_of(self.seen.first_text)[share],
                "npcd": round(made["silver_ttft_ms"][share], 3),
            },
            "reaction": {
                "load": percentiles_of(self.seen.reaction)[share],
                "npcd": percentiles_of(self.seen.reaction_npcd)[share],
            },
        }
