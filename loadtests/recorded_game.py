"""A game server that plays a recording: frames of observations as bytes, and the books of their answers.

Decides only: times and frames come in. The owner of a stream asks for the bytes of each frame, hands in the frames that
come back, and has everything sampled once per frame.
"""

from __future__ import annotations

from collections.abc import Mapping

from loadtests.board import Board
from loadtests.recording import Recording, event_bytes, frame_bytes, percept_bytes
from loadtests.slots import SLOTS_MS
from npcd_client import Activation, GameClock, Intent, IntentSource
from npcd_client.table import IntentTable
from npcd_client.v1 import intents_pb2

EVENT_LASTS_MS = 1_500
TALKS_AT_M = 1.5  # distance of a talking player from the NPC
SOURCES = {IntentSource.MODEL: "model", IntentSource.PREDICTED: "predicted"}


class RecordedGame:
    """One world's stream. Frames are numbered from 0, `fps` per second. An NPC is observed in every `fps / rate_hz`-th
    frame, which must be a whole number.

    `tick` is the last tick that an earlier stream of these NPCs used.
    """

    def __init__(
        self, recording: Recording, world_id: str, leases: Mapping[str, int], board: Board, fps: int, tick: int = 0
    ) -> None:
        self.table = IntentTable(GameClock())
        self.board = board
        self.tick = tick
        self._recording = recording
        self._world_id = world_id
        self._ids = [resident.npc_id for resident in recording.residents]
        self._numbers = {npc_id: number for number, npc_id in enumerate(self._ids)}
        self._leases = [intents_pb2.Observation(lease_epoch=leases[i]).SerializeToString() for i in self._ids]
        self._fps = fps
        self._every = round(fps / recording.rate_hz)
        self.first_tick = tick  # the tick of the recording's round 0
        self._seen: list[Intent | None] = [None] * len(self._ids)
        self._players: dict[int, bytes] = {}  # the talking player of an NPC, as a percept
        self._events: dict[int, tuple[str, float]] = {}  # the event of the last line to an NPC, and its end

    # -- what happens beside the recording -------------------------------------------------------------------------

    def meet(self, npc_id: str, player_id: str) -> None:
        """From now on a player stands before an NPC."""
        self._players[self._numbers[npc_id]] = percept_bytes(player_id, "player", "friendly", TALKS_AT_M, True)

    def part(self, npc_id: str) -> None:
        """The player has left the NPC."""
        self._players.pop(self._numbers[npc_id], None)

    def tell(self, npc_id: str, event: str, now_ms: float) -> None:
        """An NPC notices that a player says something to it."""
        self._events[self._numbers[npc_id]] = (event, now_ms + EVENT_LASTS_MS)

    # -- out and in ------------------------------------------------------------------------------------------------

    def hello(self) -> bytes:
        """The first frame: it names the world and has no observation."""
        return intents_pb2.ObservationFrame(world_id=self._world_id).SerializeToString()

    def frame(self, number: int, now_ns: int) -> bytes:
        """The observations of a frame."""
        round_, part = divmod(number, self._every)
        sights = self._recording.sights[round_ % len(self._recording.sights)]
        now_ms = number * 1000 / self._fps
        self.tick = tick = self.first_tick + round_ + 1
        behind = intents_pb2.Observation(tick=tick).SerializeToString()
        sent, observed, activations = self.table.sent, self.board.slots.observed, self.table.activations
        ids, leases, players, events = self._ids, self._leases, self._players, self._events
        observations = []
        for n in range(part, len(ids), self._every):
            sight, npc_id = sights[n], ids[n]
            body, state = sight.body, sight.state
            if n in players or n in events:
                body, state = self._addressed(n, body, state, now_ms)
            observations.append(body + leases[n] + behind)
            sent(npc_id, tick, now_ns)
            observed(n, tick, state, now_ms, SLOTS_MS[activations.get(npc_id, Activation.AMBIENT)])
        self.board.observations += len(observations)
        head = intents_pb2.ObservationFrame(world_id=self._world_id, frame=number + 1, game_time_ms=int(now_ms))
        return frame_bytes(head, observations)

    def take(self, frame: intents_pb2.IntentFrame, now_ns: int) -> list[Intent]:
        """Takes a frame of intents and returns the new ones."""
        return self.table.apply(frame, now_ns)

    def sample(self, number: int, now_ns: int) -> None:
        """Once per frame: notes the answered NPCs, and the age of active NPCs' intents."""
        board, rows, active = self.board, self.table.rows, 0
        self.answered(number * 1000 / self._fps)
        for npc_id, activation in self.table.activations.items():
            if activation is Activation.ACTIVE:
                active += 1
                intent = rows.get(npc_id)
                if intent is None:
                    board.unanswered_samples += 1
                else:
                    board.intent_age.add((now_ns - intent.agreed_ns) * 1e-6)
        board.active.add(active)
        board.frames += 1

    def answered(self, now_ms: float) -> None:
        """Settles due slots with the intents that are in the table now."""
        board, rows, seen = self.board, self.table.rows, self._seen
        for n, npc_id in enumerate(self._ids):
            intent, held = rows.get(npc_id), seen[n]
            if intent is None or intent is held:
                continue
            seen[n] = intent
            board.slots.answered(n, intent, now_ms)
            if held is None or intent.version != held.version or intent.daemon_epoch != held.daemon_epoch:
                source = SOURCES.get(intent.source, "policy")
                board.versions[source] += 1
                board.barks += bool(intent.bark)
                # A bark that is added to an intent makes a new version without a latency of its own.
                if source == "model" and intent.latency_ms:
                    board.intent_latency.add(intent.latency_ms)

    def _addressed(self, n: int, body: bytes, state: str, now_ms: float) -> tuple[bytes, str]:
        player = self._players.get(n, b"")
        word, until_ms = self._events.get(n, ("", 0.0))
        if now_ms >= until_ms:
            self._events.pop(n, None)
            word = ""
        body += player + (event_bytes(word) if word else b"")
        return body, f"{state}|{word}|{'with a player' if player else ''}"
