"""The counts of a run so far. The frame loop writes them, the screen reads them, and the report is made of them at the
end."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass, field

from loadtests.histogram import Histogram
from loadtests.slots import Slots
from npcd_client.v1 import admin_pb2

LATE_MS = 0.2  # CPU time of the thread that npcd's calls may use in one frame
MESSAGES_MAX = 20


class Errors:
    """All errors by kind, and the first few in full. Any thread may add one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.by_kind: Counter[str] = Counter()
        self.messages: list[str] = []

    def add(self, message: str) -> None:
        """Counts one error. Its kind is the text before the first colon."""
        with self._lock:
            self.by_kind[message.split(":", 1)[0]] += 1
            if len(self.messages) < MESSAGES_MAX:
                self.messages.append(message)

    @property
    def count(self) -> int:
        """The number of errors so far."""
        return sum(self.by_kind.values())


@dataclass(slots=True)
class Board:
    """A run in numbers. Times are in milliseconds."""

    npcs: int
    slots: Slots
    errors: Errors = field(default_factory=Errors)
    frames: int = 0
    frames_skipped: int = 0  # the loop came too late for these and skipped them
    frames_late: int = 0
    observations: int = 0
    elapsed_s: float = 0.0
    calls_wall: Histogram = field(default_factory=lambda: Histogram(0.001, 5.0))
    calls_cpu: Histogram = field(default_factory=lambda: Histogram(0.001, 5.0))
    intent_latency: Histogram = field(default_factory=lambda: Histogram(1.0, 5_000.0))
    intent_age: Histogram = field(default_factory=lambda: Histogram(1.0, 5_000.0))
    active: Histogram = field(default_factory=lambda: Histogram(1.0, 2_000.0))  # active NPCs, once per frame
    versions: Counter[str] = field(default_factory=Counter)  # new intent versions seen, by source
    fallbacks: int = 0  # the game evaluated the policy itself, because no unexpired intent was there
    unanswered_samples: int = 0  # (frame, NPC) without any intent yet, which has no age
    barks: int = 0
    turns: int = 0
    first_text_ms: list[float] = field(default_factory=list)
    said: deque[tuple[str, str, str]] = field(default_factory=lambda: deque(maxlen=6))  # name, line, answer
    doing: list[str] = field(default_factory=list)  # per NPC, for the screen
    status_at_start: admin_pb2.StatusResponse | None = None
    status: admin_pb2.StatusResponse | None = None

    def include(self, other: Board) -> None:
        """Adds another game server's counts. Fields for the screen stay as they are."""
        self.slots.include(other.slots)
        for name in ("calls_wall", "calls_cpu", "intent_latency", "intent_age", "active"):
            getattr(self, name).include(getattr(other, name))
        for name in ("frames", "frames_skipped", "frames_late", "observations", "fallbacks", "unanswered_samples"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.barks += other.barks
        self.versions.update(other.versions)

    def tier(self, name: str) -> admin_pb2.TierLoad:
        """The newest load of a tier, or zeros when no report has arrived."""
        for tier in self.status.tiers if self.status else ():
            if tier.tier == name:
                return tier
        return admin_pb2.TierLoad(tier=name)

    def since_start(self, field_name: str) -> int:
        """The growth of a counter of the daemon during this run."""
        if self.status is None or self.status_at_start is None:
            return 0
        return int(getattr(self.status, field_name)) - int(getattr(self.status_at_start, field_name))
