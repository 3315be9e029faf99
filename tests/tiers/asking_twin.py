"""Asking as a simple, slow twin: flags in place of phases, and a search through all NPCs for every moment.

From the same inputs as tiers.asking.Asking it gives the same acts, as plain tuples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from core.clock import MS, S
from core.words import Activation
from tests.tiers.test_share import SlowShare
from tiers.cadence import CadenceSettings, due_ns
from tiers.game_time import GameTime
from tiers.judging import AskingSettings

ACTIVE, AMBIENT = Activation.ACTIVE, Activation.AMBIENT
Act = tuple[Any, ...]


@dataclass(eq=False)
class Npc:
    """The twin's knowledge of one NPC. None is "not at all"."""

    name: int
    number: int
    game: GameTime
    serial: int
    level: Activation = AMBIENT
    was_decided: bool = False
    urgent: bool = False
    state: str | None = None
    seen_ns: int = 0
    changed_ns: int = 0
    known: bool = False
    look_ns: int = 0
    sweep_ns: int | None = None  # it has a glimpse
    looking: bool = False
    answer: str | None = None
    by_rule: bool = False
    stood_ns: int = 0
    due_ns: int | None = None
    due_game_ns: int = 0
    line_ns: int | None = None
    called_ns: int | None = None
    put_off: bool = False
    moved: bool = False  # its game goes on or has another pace, and its due moment was not moved yet
    asked_ns: int | None = None
    asking: list[tuple[int, str, int]] = field(default_factory=list)  # (number, state, due) under way
    first: int = 0
    loading_ns: int | None = None
    crowd: bool = False
    watch_ns: int | None = None
    since_ns: int = 0

    @property
    def stands(self) -> bool:
        return self.state is not None and self.answer == self.state and not self.by_rule

    @property
    def idle(self) -> bool:
        return self.due_ns is None and self.line_ns is None and self.called_ns is None and not self.put_off


@dataclass
class Twin:
    """All NPCs."""

    s: AskingSettings
    npcs: dict[int, Npc] = field(default_factory=dict)
    asked: dict[int, tuple[Npc, str, int, int | None]] = field(default_factory=dict)
    moments: list[tuple[int, int, Npc, bool]] = field(default_factory=list)
    acts: list[Act] = field(default_factory=list)
    number: int = 1
    serial: int = 0
    late: int = 0
    stalled: bool = False

    def __post_init__(self) -> None:
        self.share = SlowShare(self.s.share)
        self.cadence = self.s.cadence

    # -- small things

    def keep_pace(self, questions_per_s: int, places: int, cadence: CadenceSettings, now_ns: int) -> None:
        self.cadence = cadence
        self.share.keep_pace(questions_per_s, places, now_ns)

    def slot(self, n: Npc) -> int:
        return n.game.slot_ns(self.cadence.slot_ns_of(n.level) or round(S / self.cadence.warm_hz))

    def when(self, n: Npc, received_ns: int, urgent: bool) -> int:
        return due_ns(n.number, self.slot(n), n.game.at(received_ns), n.asked_ns, urgent)

    def look_every(self, n: Npc) -> int:
        active = sum(other.level is ACTIVE for other in self.npcs.values())
        every = [min(active * S // self.s.looks_per_s, 250 * MS), self.s.warm_look_ms * MS, self.s.ambient_look_ms * MS]
        return every[n.level]

    def nothing_newer(self, n: Npc) -> None:
        self.share.due.pop(n.name, None)
        if n.called_ns is not None:
            self.share.give_back(1)
        n.due_ns = n.line_ns = n.called_ns = None
        n.put_off = False

    def put_off(self, n: Npc) -> None:
        self.nothing_newer(n)
        n.put_off = True
        if not n.asking and n.loading_ns is None:
            n.watch_ns = None

    def rest(self, n: Npc) -> None:
        self.nothing_newer(n)
        if n.answer == n.state:
            n.watch_ns = None

    def watch(self, n: Npc, at_ns: int, since_ns: int) -> None:
        n.since_ns = since_ns
        if n.watch_ns != at_ns:
            n.watch_ns = at_ns
            self.set_at(at_ns, n, True)

    def set_at(self, at_ns: int, n: Npc, watch: bool) -> None:
        self.moments.append((at_ns, n.serial, n, watch))

    def await_answer(self, n: Npc, since_ns: int, now_ns: int) -> None:
        if n.answer != n.state and n.watch_ns is None:
            self.watch(n, max(now_ns, since_ns + self.s.stall_ms * MS), since_ns)

    def stand(self, n: Npc, state: str, by_rule: bool, now_ns: int) -> None:
        n.answer, n.by_rule, n.stood_ns = state, by_rule, n.game.at(now_ns)
        if state == n.state and n.line_ns is None:
            n.watch_ns = None

    def rule(self, n: Npc, due_ns: int, now_ns: int) -> None:
        assert n.state is not None
        self.acts.append(("rule", n.name, due_ns))
        self.stand(n, n.state, True, now_ns)

    def look(self, n: Npc) -> None:
        if not n.looking:
            n.looking = True
            self.acts.append(("look", n.name))

    # -- seeing

    def observed(self, name: int, number: int, game: GameTime, may_wait: bool, now_ns: int) -> bool:
        if name not in self.npcs:
            self.serial += 1
            self.npcs[name] = Npc(name, number, game, self.serial)
        n = self.npcs[name]
        if n.game is not game:
            self.other_game(n, game, now_ns)
        if not may_wait or now_ns >= n.look_ns:
            return True
        if n.sweep_ns is None:
            n.sweep_ns = -(-(n.look_ns + 150 * MS) // (100 * MS)) * 100 * MS
        if n.idle and n.loading_ns is None and n.level is not AMBIENT:
            self.due_from(n, now_ns, False, now_ns)
        return False

    def other_game(self, n: Npc, game: GameTime, now_ns: int) -> None:
        shift_ns = game.at(now_ns) - n.game.at(now_ns)
        n.game, n.moved = game, False
        n.stood_ns += shift_ns
        n.due_game_ns += shift_ns
        n.asked_ns = None if n.asked_ns is None else n.asked_ns + shift_ns
        if game.paused and (n.due_ns is not None or n.put_off):
            self.put_off(n)
        elif n.due_ns is not None:
            self.move(n, now_ns)
        elif n.put_off:
            self.again(n, now_ns)

    def saw(self, name: int, state: str, startled: bool, known: bool, at_ns: int, now_ns: int) -> None:
        n = self.npcs[name]
        n.sweep_ns = None
        n.urgent |= startled
        n.seen_ns, n.known, n.look_ns = at_ns, known and self.s.change_driven, at_ns + self.look_every(n)
        n.changed_ns = at_ns if state != n.state else n.changed_ns
        n.state = state
        if n.called_ns is None:
            self.judge(n, now_ns)
        self.go_on(n, now_ns)

    def spoiled(self, name: int, now_ns: int) -> None:
        n = self.npcs[name]
        n.sweep_ns = None
        self.go_on(n, now_ns)
        if n.state is not None and n.idle and n.answer != n.state:
            self.want(n, now_ns)

    def go_on(self, n: Npc, now_ns: int) -> None:
        if not n.looking:
            return
        n.looking = False
        if n.called_ns is not None:
            self.turn(n, now_ns)
        elif n.due_ns is not None and n.due_ns <= now_ns:
            self.line_up(n, now_ns)
        if n.watch_ns is not None and n.watch_ns <= now_ns:
            self.check(n, now_ns)

    def judge(self, n: Npc, now_ns: int) -> None:
        if n.answer == n.state:
            self.acts.append(("confirm", n.name))
            if not n.by_rule or (n.level is AMBIENT and not n.urgent):
                n.urgent = False
                self.rest(n)
                if self.s.change_driven or n.level is AMBIENT:
                    return
        elif n.known and n.game.at(n.seen_ns) - n.stood_ns >= self.slot(n) // (4 if n.urgent else 2):
            self.acts.append(("recall", n.name, n.seen_ns))
            return
        self.want(n, now_ns)

    def want(self, n: Npc, now_ns: int, since_ns: int = 0) -> None:
        same = [due_ns for _, state, due_ns in n.asking if state == n.state]
        if same:
            self.rest(n)
            self.await_answer(n, since_ns or same[-1], now_ns)
        else:
            self.set_due(n, now_ns)

    def set_due(self, n: Npc, now_ns: int, at_once: bool = False) -> None:
        if n.line_ns is not None:
            if n.urgent:
                self.share.add(n.name, n.level, True, n.line_ns)
        elif not n.urgent and (n.loading_ns is not None or not n.was_decided):
            if n.loading_ns is not None:
                self.await_answer(n, n.seen_ns, now_ns)
        elif not n.urgent and n.level is AMBIENT:
            if n.answer != n.state:
                self.rule(n, n.seen_ns, now_ns)
        else:
            self.due_from(n, now_ns if at_once else n.seen_ns, n.urgent or at_once, now_ns)

    def due_from(self, n: Npc, received_ns: int, urgent: bool, now_ns: int) -> None:
        if n.game.paused:
            self.put_off(n)
            return
        at_ns = self.when(n, received_ns, urgent)
        if n.due_ns is not None and n.due_game_ns <= at_ns:
            return
        self.nothing_newer(n)
        n.due_game_ns = at_ns
        if self.set_moment(n, now_ns):
            self.line_up(n, now_ns)

    def set_moment(self, n: Npc, now_ns: int, always: bool = False) -> bool:
        n.due_ns = n.game.wall(n.due_game_ns)
        if always or n.due_ns > now_ns:
            self.set_at(n.due_ns, n, False)
        return n.due_ns <= now_ns

    def move(self, n: Npc, now_ns: int) -> None:
        n.due_game_ns = min(n.due_game_ns, n.game.at(now_ns) + self.slot(n))
        self.set_moment(n, now_ns, always=True)

    def line_up(self, n: Npc, now_ns: int) -> None:
        if n.game.paused:
            self.put_off(n)
        elif n.sweep_ns is not None:
            self.look(n)
        elif n.stands and self.s.change_driven:
            self.acts.append(("confirm", n.name))
            self.rest(n)
        else:
            assert n.due_ns is not None
            n.line_ns, n.due_ns = max(n.due_ns, n.seen_ns), None
            self.share.add(n.name, n.level, n.urgent, n.line_ns)
            self.watch(n, n.line_ns + self.s.stall_ms * MS, n.line_ns)

    # -- attention

    def attended(self, name: int, level: Activation, among: int, now_ns: int) -> None:
        n = self.npcs.get(name)
        if n is None or n.state is None:
            return
        before, n.level, n.was_decided = n.level, level, True
        if level is AMBIENT and not n.urgent:
            self.rest(n)
            if n.sweep_ns is not None:
                self.look(n)
            elif n.asking:
                self.await_answer(n, n.asking[-1][2], now_ns)
            elif n.answer != n.state:
                self.rule(n, n.seen_ns, now_ns)
            return
        if n.line_ns is not None:
            self.share.add(name, level, n.urgent, n.line_ns)
        if level < before:
            n.look_ns = 0
            if n.sweep_ns is not None:
                self.look(n)
            if before is AMBIENT:
                if n.loading_ns is None:
                    n.crowd, n.loading_ns = among > 16, now_ns
                    self.acts.append(("load", name))
                    if n.watch_ns is None:
                        self.watch(n, now_ns + self.s.stall_ms * MS, now_ns)
            elif n.sweep_ns is not None or not n.stands:
                self.set_due(n, now_ns, at_once=True)

    def decided(self, name: int, now_ns: int) -> None:
        n = self.npcs[name]
        n.was_decided = True
        if n.state is not None and n.idle and n.answer != n.state and (n.loading_ns is None or n.asking):
            self.judge(n, now_ns)

    def loaded(self, name: int, there: bool, now_ns: int) -> None:
        n = self.npcs.get(name)
        if n is None or n.loading_ns is None:
            return
        n.loading_ns = None
        if not n.idle or n.asking:
            return
        self.rest(n)
        if there and n.stands:
            return
        if there and n.level is not AMBIENT and n.crowd and not n.urgent:
            if n.answer != n.state:
                self.rule(n, now_ns, now_ns)
            n.asked_ns = n.asked_ns or 0
            self.due_from(n, now_ns, False, now_ns)
        else:
            self.set_due(n, now_ns, at_once=True)

    # -- answers

    def turn(self, n: Npc, now_ns: int) -> None:
        if n.game.paused:
            self.put_off(n)
        elif n.sweep_ns is not None:
            self.look(n)
        elif n.stands and self.s.change_driven:
            n.urgent = False
            self.acts.append(("confirm", n.name))
            self.rest(n)
        elif n.known:
            self.acts.append(("recall", n.name, n.called_ns))
        elif any(state == n.state for _, state, _ in n.asking):
            self.want(n, now_ns)
        else:
            assert n.state is not None and n.called_ns is not None
            n.asking.append((self.number, n.state, n.called_ns))
            self.asked[self.number] = (n, n.state, n.called_ns, n.asked_ns)
            self.acts.append(("ask", n.name, self.number, n.called_ns))
            self.number += 1
            n.called_ns, n.urgent, n.asked_ns = None, False, n.game.at(now_ns)

    def over(self, number: int, given_back: bool = False) -> tuple[Npc, str, int]:
        if given_back:
            self.share.give_back(1)
        else:
            self.share.under_way -= 1
        n, state, due_ns, _ = self.asked.pop(number)
        n.asking = [one for one in n.asking if one[0] != number]
        return n, state, due_ns

    def rests(self, n: Npc) -> bool:
        return n.idle

    def answered(self, number: int, now_ns: int) -> None:
        n, state, _ = self.over(number)
        gone = self.npcs.get(n.name) is not n
        if gone or number < n.first or (n.stands and state != n.state):
            self.acts.append(("keep", number))
            if not gone and number < n.first and self.rests(n):
                self.want(n, now_ns)
            return
        self.acts.append(("stand", n.name, number, state == n.state))
        self.stand(n, state, False, now_ns)
        if state == n.state:
            if self.s.change_driven and n.sweep_ns is None:
                self.rest(n)
        elif self.rests(n):
            self.want(n, now_ns, since_ns=now_ns)

    def dropped(self, number: int, now_ns: int) -> None:
        n, _, _ = self.over(number)
        if self.npcs.get(n.name) is n and self.rests(n) and n.answer != n.state:
            self.want(n, now_ns)

    def failed(self, number: int, now_ns: int) -> None:
        n, _, due_ns = self.over(number)
        if self.npcs.get(n.name) is not n:
            return
        if number >= n.first:
            if n.answer != n.state:
                self.rule(n, due_ns, now_ns)
            elif self.rests(n):
                self.rest(n)
        elif self.rests(n):
            self.want(n, now_ns)

    def refused(self, numbers: list[int], now_ns: int) -> None:
        for number in numbers:
            before = self.asked[number][3]
            n, _, due_ns = self.over(number, True)
            n.asked_ns = before
            if n.answer != n.state:
                self.rule(n, due_ns, now_ns)

    def knows(self, name: int, state: str) -> None:
        n = self.npcs[name]
        if n.state == state and self.s.change_driven:
            n.known = True
            if not n.stands and not n.asking and n.called_ns is None:
                self.acts.append(("recall", name, n.line_ns or n.due_ns or n.seen_ns))

    def recalled(self, name: int, now_ns: int) -> None:
        n = self.npcs[name]
        assert n.state is not None
        n.urgent = False
        self.stand(n, n.state, False, now_ns)
        self.rest(n)

    def forgot(self, name: int, now_ns: int) -> None:
        n = self.npcs[name]
        n.known = False
        (self.turn if n.called_ns is not None else self.want)(n, now_ns)

    # -- NPCs, games and time

    def reregistered(self, name: int, number: int, new_lease: bool, other: bool, now_ns: int) -> None:
        n = self.npcs[name]
        n.number, n.first, n.known = number, self.number, False
        if new_lease and n.sweep_ns is not None:
            self.spoiled(name, now_ns)
        if other and n.answer is not None:
            n.answer = "?"

    def removed(self, name: int) -> None:
        n = self.npcs.pop(name)
        self.nothing_newer(n)
        n.watch_ns = n.sweep_ns = None
        self.acts = [act for act in self.acts if act != ("look", name)]
        self.acts += [("cancel", number) for number, _, _ in n.asking]

    def tell(self, game: GameTime, scale: float, paused: bool, now_ns: int) -> None:
        if game.tell(scale, paused, now_ns) and not paused:
            for n in self.npcs.values():
                n.moved |= n.game is game and (n.due_ns is not None or n.put_off)

    def again(self, n: Npc, now_ns: int) -> None:
        self.rest(n)
        if not n.stands:
            self.set_due(n, now_ns)

    def check(self, n: Npc, now_ns: int) -> None:
        if n.line_ns is not None and n.game.paused:
            n.watch_ns = None
            self.put_off(n)
            return
        within_ns = n.since_ns + self.s.answer_within_ms * MS
        if now_ns < within_ns and not self.stalled:
            self.watch(n, min(within_ns, now_ns + 10 * MS), n.since_ns)
            return
        if n.sweep_ns is not None:
            self.look(n)
            return
        n.watch_ns = None
        self.late += bool(n.asking) and not self.stalled and n.loading_ns is None
        if n.answer != n.state:
            self.rule(n, max(n.since_ns, n.changed_ns), now_ns)
        if n.line_ns is not None or n.loading_ns is not None or (self.stalled and n.asking):
            again_ms = self.s.stall_ms if self.stalled else self.s.answer_within_ms
            self.watch(n, now_ns + again_ms * MS, n.since_ns)

    def tick(self, now_ns: int, stalled: bool) -> None:
        """A tick with time for all acts."""
        self.stalled = stalled
        for n in list(self.npcs.values()):
            if n.moved:
                n.moved = False
                if n.put_off and not n.game.paused:
                    self.again(n, now_ns)
                elif n.due_ns is not None and not n.game.paused:
                    self.move(n, now_ns)
        for n in self.npcs.values():
            if n.sweep_ns is not None and n.sweep_ns <= now_ns and not n.looking:
                self.look(n)
        while ripe := [moment for moment in self.moments if moment[0] <= now_ns]:
            first = min(ripe, key=lambda moment: (moment[0], moment[1], moment[3]))
            self.moments.remove(first)
            at_ns, _, n, watch = first
            if watch and n.watch_ns == at_ns:
                self.check(n, now_ns)
            elif not watch and n.due_ns == at_ns:
                early = n.due_game_ns > n.game.at(now_ns) and not n.game.paused
                if not early or self.set_moment(n, now_ns):
                    self.line_up(n, now_ns)
        for name in self.share.take(now_ns, 1):
            n = self.npcs[name]
            n.called_ns, n.line_ns = n.line_ns, None
            self.turn(n, now_ns)
