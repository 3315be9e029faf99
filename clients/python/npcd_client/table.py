"""The newest intent of every NPC, kept from the frames of one stream. Decides only: frames and times come in."""

from __future__ import annotations

from dataclasses import replace

from npcd_client import wire
from npcd_client.perception import Activation, GameClock, Intent
from npcd_client.v1 import intents_pb2

SENDS_MAX = 128  # send times remembered per NPC: 12 s at 10 Hz, far more than an intent lives


class IntentTable:
    """The client's loop owns it, and alone changes it.

    `rows` and `activations` may be read from any thread: they hold values that never change and are replaced as a whole
    by a snapshot. An NPC without a row in `activations` is ambient.
    """

    def __init__(self, clock: GameClock, sends_max: int = SENDS_MAX) -> None:
        self.rows: dict[str, Intent] = {}
        self.activations: dict[str, Activation] = {}
        self.stale = 0  # intents ignored because a newer version was here
        self._clock = clock
        self._sends_max = sends_max
        self._sends: dict[str, dict[int, int]] = {}  # npc -> tick -> ns, oldest first, of the lease below
        self._newest: dict[str, tuple[int, int]] = {}  # npc -> lease epoch and tick of the last sent observation

    def sent(self, npc_id: str, tick: int, at_ns: int, lease_epoch: int = 0) -> None:
        """Remembers when the game gave an observation that is sent now."""
        before, newest = self._newest.get(npc_id, (lease_epoch, -1))
        if before != lease_epoch or tick <= newest:
            # Another lease: its ticks are other observations than the same ticks of the lease before.
            self._sends.pop(npc_id, None)
        self._newest[npc_id] = (lease_epoch, tick)
        sends = self._sends.setdefault(npc_id, {})
        sends[tick] = at_ns
        if len(sends) > self._sends_max:
            del sends[next(iter(sends))]

    def apply(self, frame: intents_pb2.IntentFrame, now_ns: int) -> list[Intent]:
        """Takes one frame and returns the intents whose version is new. A snapshot replaces the table."""
        known = self.rows
        rows: dict[str, Intent] = {} if frame.snapshot else known
        fresh: list[Intent] = []
        for message in frame.intents:
            held = known.get(message.npc_id)
            # A snapshot begins a stream. It replaces the table even if the daemon lost its count of versions.
            if (
                held
                and not frame.snapshot
                and (frame.daemon_epoch, message.version) < (held.daemon_epoch, held.version)
            ):
                self.stale += 1
                continue
            agreed_ns = self._agreed_ns(message, now_ns - message.age_ms * 1_000_000)
            intent = wire.intent(message, frame.daemon_epoch, agreed_ns, self._clock)
            rows[message.npc_id] = intent
            if held is None or (held.daemon_epoch, held.version) != (intent.daemon_epoch, intent.version):
                fresh.append(intent)
        self.rows = rows
        if frame.snapshot or frame.activations:
            self._attend(frame)
        for confirmed in frame.confirmed:
            self._confirm(confirmed, frame.daemon_epoch, now_ns)
        return fresh

    def _attend(self, frame: intents_pb2.IntentFrame) -> None:
        held = {} if frame.snapshot else self.activations
        for changed in frame.activations:
            activation = wire.activation_of(changed.activation)
            if activation is Activation.AMBIENT:
                held.pop(changed.npc_id, None)
            else:
                held[changed.npc_id] = activation
        self.activations = held

    def _confirm(self, confirmed: intents_pb2.IntentConfirmed, daemon_epoch: int, now_ns: int) -> None:
        held = self.rows.get(confirmed.npc_id)
        if held is None or (held.daemon_epoch, held.version) != (daemon_epoch, confirmed.version):
            self.stale += 1
            return
        if confirmed.lease_epoch:
            if (confirmed.lease_epoch, confirmed.observed_tick) <= (held.lease_epoch, held.observed_tick):
                return
            agreed_ns = self._agreed_ns(confirmed, now_ns - confirmed.age_ms * 1_000_000)
        else:
            # This daemon is older than these fields. When the send time is unknown, the older time is the safe one; a
            # lower tick is newer only if it is one that was sent since.
            agreed_ns = self._agreed_ns(confirmed, held.agreed_ns)
            if confirmed.observed_tick <= held.observed_tick and agreed_ns <= held.agreed_ns:
                return
        self.rows[confirmed.npc_id] = replace(
            held,
            observed_tick=confirmed.observed_tick,
            game_time_ms=confirmed.game_time_ms,
            agreed_ns=agreed_ns,
            lease_epoch=confirmed.lease_epoch,
        )

    def _agreed_ns(self, said: intents_pb2.Intent | intents_pb2.IntentConfirmed, otherwise_ns: int) -> int:
        """When the observation that the intent agrees with was given; forgets older ones. Returns `otherwise_ns` when
        that time is unknown, as for another game server's observation.
        """
        sends = self._sends.get(said.npc_id)
        if not sends:
            return otherwise_ns
        lease_epoch = self._newest[said.npc_id][0]
        if said.lease_epoch and lease_epoch and said.lease_epoch != lease_epoch:
            return otherwise_ns
        while (oldest := next(iter(sends), None)) is not None and oldest < said.observed_tick:
            del sends[oldest]
        return sends.get(said.observed_tick, otherwise_ns)
