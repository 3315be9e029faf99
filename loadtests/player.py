"""The player of a scene chooses an NPC to speak to, and a line. It owns one conversation at a time. The conversation's
events come into a queue on the client's thread, and everything else happens in the frame loop.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from random import Random
from typing import Any

from loadtests.patter import Patter
from loadtests.scene import PlayerScript
from loadtests.village import PLAYER_ID, Body, Village
from npcd_client import FrameClient, NpcdError, Said, SoonTalk, TalkEvent, TalkEventKind, TalkFinish

TURN_TIMEOUT_S = 15.0


class Player:
    """Talks with one NPC after another. `on_line(npc_name, line, answer)` hears each finished exchange."""

    def __init__(
        self,
        script: PlayerScript,
        village: Village,
        npcd: FrameClient,
        seed: int,
        on_line: Callable[[str, str, str], None],
        on_error: Callable[[str], None],
    ) -> None:
        self.turns = 0
        self.first_text_ms: list[float] = []
        self._script = script
        self._village = village
        self._npcd = npcd
        self._patter = Patter(script, Random(seed + 2))
        self._on_line = on_line
        self._on_error = on_error
        self._partner: Body | None = None
        self._met: deque[str] = deque(maxlen=max(1, min(8, len(village.bodies) - 1)))
        self._next_line_s = 0.5
        self._turn: SoonTalk | None = None
        self._line = ""
        self._said = Said()
        self._asked_ns = 0
        self._answered = False
        self._arrived: deque[tuple[TalkEvent | NpcdError, int]] = deque()

    @property
    def speaking(self) -> bool:
        """True while an answer is under way."""
        return self._turn is not None

    def play(self, now_s: float) -> None:
        """Reads the events since the last frame and speaks when it is time. Never waits."""
        while self._arrived:
            self._take(*self._arrived.popleft())
        if self._turn is None and now_s >= self._next_line_s:
            self._speak(now_s)

    def finish(self) -> None:
        """Reads the events since the last frame and starts nothing."""
        while self._arrived:
            self._take(*self._arrived.popleft())

    def leave(self) -> None:
        """Cancels an answer that is still under way and ends the conversation."""
        if self._turn:
            self._turn.cancel()
            self._turn = None
        if self._partner:
            self._end_session()

    # -- pieces ----------------------------------------------------------------------------------------------------

    def _speak(self, now_s: float) -> None:
        if self._patter.over:
            if self._partner:
                self._end_session()
            self._partner = self._choose()
            self._patter.begin()
        assert self._partner is not None
        self._line, event = self._patter.next()
        npc_id = self._partner.resident.npc_id
        self._village.tell(npc_id, event)
        self._said, self._answered = Said(), False
        self._next_line_s = now_s + self._script.line_every_s
        arrived = self._arrived
        self._asked_ns = time.monotonic_ns()
        self._turn = self._npcd.talk_soon(
            npc_id,
            PLAYER_ID,
            self._line,
            lambda event: arrived.append((event, time.monotonic_ns())),
            lambda error: arrived.append((error, time.monotonic_ns())),
            player_name=self._script.name,
            timeout_s=TURN_TIMEOUT_S,
        )

    def _take(self, event: TalkEvent | NpcdError, at_ns: int) -> None:
        if isinstance(event, NpcdError):
            self._on_error(f"Talk: {event.code} {event}")
            self._turn = None
            return
        if event.kind in (TalkEventKind.TEXT, TalkEventKind.REPLACE) and not self._answered:
            self._answered = True
            self.first_text_ms.append((at_ns - self._asked_ns) * 1e-6)
        text = self._said.add(event)
        if event.kind is TalkEventKind.END:
            self._turn = None
            if event.finish is TalkFinish.FAILED:
                self._on_error("Talk: the turn failed after text had been sent")
                return
            self.turns += 1
            name = self._partner.resident.name if self._partner else "?"
            self._on_line(name, self._line, " ".join(text.split()))

    def _choose(self) -> Body:
        """The nearest NPC in reach that was not spoken to lately; without one, the nearest at all."""
        x_m, y_m = self._village.player_m
        near = sorted(self._village.bodies, key=lambda body: (math.hypot(body.x - x_m, body.y - y_m), body.number))
        fresh = [body for body in near if body.resident.npc_id not in self._met]
        reach = [b for b in fresh if math.hypot(b.x - x_m, b.y - y_m) <= self._script.talk_within_m]
        chosen = (reach or fresh or near)[0]
        self._met.append(chosen.resident.npc_id)
        return chosen

    def _end_session(self) -> None:
        assert self._partner is not None
        future = self._npcd.soon(self._npcd.npcd.end_session(self._partner.resident.npc_id, PLAYER_ID))
        future.add_done_callback(self._session_ended)
        self._partner = None

    def _session_ended(self, future: Future[Any]) -> None:
        # On the client's thread: the two threads share the deque alone.
        error = None if future.cancelled() else future.exception()
        if isinstance(error, NpcdError):
            self._on_error(f"EndSession: {error.code} {error}")
