"""How long to wait for a daemon that starts: as long as its start moves. Decides only; time comes in."""

from __future__ import annotations

from npcd_client.v1 import admin_pb2

STUCK_S = 60.0  # a start that has not moved for so long is stuck
NOBODY_S = 30.0  # a daemon listens a few seconds after it was started
UNTOLD_S = 180.0  # for a daemon that does not say how far it is: its contract is older


class Waiting:
    """Keeps the news of one daemon since somebody began to wait for it."""

    def __init__(self, now_s: float, nobody_s: float = NOBODY_S) -> None:
        self._nobody_s = nobody_s
        self._began_s = self._heard_s = self._moved_s = now_s
        self._starting: admin_pb2.Starting | None = None

    def hears(self, status: admin_pb2.StatusResponse | None, now_s: float) -> None:
        """Something answers there; `status` is what it says of itself, if it does."""
        self._heard_s = now_s
        told = status.starting if status is not None and status.HasField("starting") else None
        if told is not None and (self._starting is None or _place(told) != _place(self._starting)):
            self._moved_s = now_s
        self._starting = told

    @property
    def stage(self) -> str:
        """How far the start is, in words; empty when the daemon does not say."""
        s = self._starting
        if s is None:
            return ""
        of = f" of engine '{s.engine}'" if s.engine else ""
        return f"{s.stage}{of}, {s.share:.0%} done, about {max(1, round(s.left_ms / 1000))} s left"

    def gives_up(self, now_s: float) -> str:
        """The reason to wait no longer; empty while there is none."""
        if now_s - self._heard_s > self._nobody_s:
            return f"nothing answered there for {self._nobody_s:g} s"
        if self._starting is None:
            if now_s - max(self._began_s, self._moved_s) > UNTOLD_S:
                return f"it does not serve after {UNTOLD_S:g} s, and does not say how far it is"
            return ""
        still_s = max(now_s - self._moved_s, self._starting.still_ms / 1000)
        if still_s > STUCK_S:
            return f"its start has been stuck for {still_s:.0f} s: {self.stage}"
        return ""


def _place(s: admin_pb2.Starting) -> tuple[str, str, float]:
    return s.stage, s.engine, s.share
