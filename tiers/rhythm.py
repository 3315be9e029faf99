"""NPCs move between phases here: due moments, the line, and what a game's pauses and pace do to them.

Keeps the invariants of tiers/phase.py between a record's phase and the heap, the line, and the sets of its game.
tiers/asking.py decides which move is made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from core.clock import S
from core.words import Activation
from tiers.cadence import CadenceSettings, due_ns
from tiers.game_time import GameTime
from tiers.moments import Moments
from tiers.phase import Game, Phase, Record
from tiers.share import Share, ShareSettings

Who = TypeVar("Who", bound=Hashable)


class Rhythm(Generic[Who]):
    """Owns the heap of moments, the line, and which games go on after a pause."""

    def __init__(self, cadence: CadenceSettings, share: ShareSettings) -> None:
        self.line: Share[Who] = Share(share)
        self.moments: Moments[Who] = Moments()
        self._slot_ns: list[int] = []
        self.keep_pace(cadence)
        # Games that go on or run at another pace, and their NPCs that have not been moved yet.
        self._resumed: deque[tuple[Game[Who], set[Record[Who]]]] = deque()
        self.npcs = 0

    # -- moves -------------------------------------------------------------------------------------------------

    def become_resting(self, record: Record[Who], now_ns: int) -> None:
        """There is nothing newer to ask: it rests, or goes on waiting for its KV or for an answer."""
        self._leave(record, now_ns)
        record.phase = record.waits_in

    def become_loading(self, record: Record[Who], now_ns: int) -> None:
        """Its KV is on its way. An NPC that is due, or about which a question is under way, is so still."""
        record.load_ns = now_ns
        if record.phase is Phase.RESTING:
            record.phase = Phase.LOADING

    def become_put_off(self, record: Record[Who], now_ns: int) -> None:
        """It is due, but its game is paused."""
        self._leave(record, now_ns)
        record.phase = Phase.PUT_OFF
        record.game.put_off.add(record)
        if not record.questions and not record.load_ns:
            record.watch_ns = 0  # nothing that it sees is late meanwhile

    def become_due(self, record: Record[Who], due_game_ns: int, now_ns: int) -> bool:
        """It is due at that game time; returns whether that is now. If so, no moment is kept."""
        self._leave(record, now_ns)
        record.phase = Phase.DUE
        record.game.due.add(record)
        record.due_game_ns = due_game_ns
        at_ns = record.due_ns = record.game.time.wall(due_game_ns)
        if at_ns <= now_ns:
            return True
        self.moments.add_due(record, self.npcs)
        return False

    def become_in_line(self, record: Record[Who], now_ns: int) -> None:
        """Its due moment has come. That is the later of "observation received" and "cadence due"."""
        since_ns = max(record.due_ns, record.seen_ns)
        self._leave(record, now_ns)
        record.phase, record.due_ns = Phase.IN_LINE, since_ns
        self.line.add(record.who, record.level, record.urgent, since_ns)

    def watch(self, record: Record[Who], at_ns: int, since_ns: int) -> None:
        """It is looked at `at_ns` whether the model, waited for since `since_ns`, is late."""
        record.since_ns = since_ns
        if record.watch_ns != at_ns:
            record.watch_ns = at_ns
            self.moments.add_watch(record, self.npcs)

    def _leave(self, record: Record[Who], now_ns: int) -> None:
        phase = record.phase
        if phase is Phase.DUE:
            record.game.due.discard(record)
        elif phase is Phase.IN_LINE:
            self.line.remove(record.who)
        elif phase is Phase.CALLED:
            self.line.give_back(now_ns)
        elif phase is Phase.PUT_OFF:
            record.game.put_off.discard(record)
        record.due_ns = 0

    # -- when --------------------------------------------------------------------------------------------------

    def keep_pace(self, cadence: CadenceSettings) -> None:
        """NPCs that become due from now on are asked so often. A due moment that is set already stays."""
        # An ambient NPC is asked only when something happens to it, and then no more often than a warm one.
        warm_ns = round(S / cadence.warm_hz)
        self._slot_ns = [cadence.slot_ns_of(level) or warm_ns for level in Activation]

    def slot_ns(self, record: Record[Who]) -> int:
        """How long a slot of the NPC's cadence lasts, in its game's time."""
        return record.game.time.slot_ns(self._slot_ns[record.level])

    def due_game_ns(self, record: Record[Who], received_ns: int, urgent: bool) -> int:
        """When the NPC is due that changed at `received_ns`, in its game's time."""
        at_ns = record.game.time.at(received_ns)
        return due_ns(record.number, self.slot_ns(record), at_ns, record.asked_ns, urgent)

    # -- games -------------------------------------------------------------------------------------------------

    def tell(self, game: Game[Who], scale: float, paused: bool, now_ns: int) -> None:
        """Says how fast a game's time runs from now on. Its NPCs are moved by resume()."""
        if not game.time.tell(scale, paused, now_ns) or paused:
            return
        for records in (game.due, game.put_off):
            if records:
                self._resumed.append((game, records))
        game.due, game.put_off = set(), set()

    def resume(self, now_ns: int, most: int, again: Callable[[Record[Who]], None]) -> int:
        """Moves up to so many NPCs of games whose time runs otherwise now; returns how many. `again` takes those that
        were put off.
        """
        count = 0
        while self._resumed and count < most:
            game, records = self._resumed[0]
            if not records:
                self._resumed.popleft()
                continue
            record = records.pop()
            count += 1
            if record.removed or record.game is not game:
                continue
            if record.phase is Phase.PUT_OFF:
                if game.time.paused:  # again, before its turn came
                    game.put_off.add(record)
                else:
                    again(record)
            elif record.phase is Phase.DUE:
                game.due.add(record)
                if not game.time.paused:
                    self.due_anew(record, now_ns)
        return count

    @property
    def resumes(self) -> bool:
        """True if resume() has something to do."""
        return bool(self._resumed)

    def due_anew(self, record: Record[Who], now_ns: int) -> None:
        """Its game runs at another pace, at which a slot has another length: no moment is further away than a slot."""
        latest_ns = record.game.time.at(now_ns) + self.slot_ns(record)
        if self.become_due(record, min(record.due_game_ns, latest_ns), now_ns):
            self.moments.add_due(record, self.npcs)

    def change_game(self, record: Record[Who], game: Game[Who], now_ns: int) -> bool:
        """Another game server observes it, so its moments are of that one's time. Returns whether it was put off."""
        before = record.game.time
        put_off, due = record.phase is Phase.PUT_OFF, record.phase is Phase.DUE
        if put_off or due:
            (record.game.put_off if put_off else record.game.due).discard(record)
        record.game = game
        shift_ns = game.time.at(now_ns) - before.at(now_ns)
        record.stood_ns += shift_ns
        record.due_game_ns += shift_ns
        if record.asked_ns is not None:
            record.asked_ns += shift_ns
        if due and not game.time.paused:
            self.due_anew(record, now_ns)
        elif due or (put_off and game.time.paused):
            self.become_put_off(record, now_ns)
        return put_off and not game.time.paused


def begin(now_ns: int) -> Game[Who]:
    """A game server begins to observe NPCs."""
    return Game(GameTime(now_ns))
