"""A random world for tiers/asking.py: NPCs that see, games that pause, an engine that answers or does not.

It does the acts of each Ready, as daemon/minds/intents.py does, gives the same inputs to the slow twin, and checks the
laws after every input.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from core.clock import MS, S
from core.words import Activation
from tests.tiers.asking_twin import Act, Twin
from tiers.asking import Asking
from tiers.cadence import CadenceSettings
from tiers.game_time import GameTime
from tiers.glimpses import NEXT_WITHIN_NS, SWEEP_NS
from tiers.judging import AskingSettings
from tiers.moments import SPARE
from tiers.phase import OUTDATED, Game, Phase, Record
from tiers.ready import Ready
from tiers.share import ShareSettings

ACTIVE, WARM, AMBIENT = Activation
STATES = "abcd"
TURNS_MAX = 12  # at most so many Readies follow from one input


@dataclass(eq=False)
class Seer:
    """The world's own knowledge of an NPC, to check Asking's."""

    name: int
    game: int
    state: str = ""  # its newest observation, looked at or not
    at_ns: int = 0
    glimpse_ns: int = 0  # since when an observation waits to be looked at
    unanswered_ns: int | None = None  # since when the observation that was looked at has no answer
    answers: set[str] = field(default_factory=set)
    loading: bool = False


class World:
    """One world, in which everything follows from the seed. With `twin` False ticks have little room, and there is no
    slow twin.

    With `pauses` False few NPCs may be asked at a time, and no game pauses; with pauses there is a place for every NPC.
    """

    def __init__(self, seed: int, pauses: bool, twin: bool = True, change_driven: bool = True) -> None:
        self.rng = random.Random(seed)
        places = 1_000 if pauses else self.rng.choice((1, 2, 4))
        self.settings = replace(
            AskingSettings(change_driven=change_driven),
            share=ShareSettings(under_way_max=places, reserve_share=0.0 if pauses else 0.5),
            looks_per_s=self.rng.choice((5, 1_000)),
        )
        self.pauses = pauses
        self.slot_max_ns = round(S / self.settings.cadence.warm_hz)  # since the beginning: due moments stay
        self.asking: Asking[int] = Asking(self.settings, 1)
        self.twin = Twin(self.settings) if twin else None
        self.now_ns = 10 * S
        self.games = [Game[int](GameTime(self.now_ns)) for _ in range(2)]
        self.times = [GameTime(self.now_ns) for _ in range(2)]
        self.seers: dict[int, Seer] = {}
        self.next_name = 0
        self.stalled = False
        self.wake_ns: int | None = None
        # Questions under way: number -> (NPC, state).
        self.under_way: dict[int, tuple[int, str]] = {}
        self.twins: dict[int, int] = {}  # the twin's number of a question
        self.loading: list[int] = []
        self.counts: dict[str, int] = {}

    # -- one input ---------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Gives one random input."""
        rng = self.rng
        acts: list[tuple[int, Callable[[], None]]] = [
            (40, self.observe), (30, self.wait), (6, self.attend), (10, self.end), (4, self.finish_load),
            (2, self.know), (1, self.remove), (2, self.register), (3, self.stall), (2, self.take_over),
            (2, self.pace),
        ]  # fmt: skip
        if self.pauses:
            acts.append((4, self.tell))
        rng.choices([act for _, act in acts], [weight for weight, _ in acts])[0]()
        self.check()

    def settle(self) -> None:
        """Lets every game go on and every question be answered, then removes all NPCs and lets time pass."""
        self.stalled = False
        self.set_pace(1_000, 1_000, self.settings.cadence)
        for number in range(2):
            self.set_time(number, 1.0, False)
        for name in self.seers:
            if self.asking.record(name) is not None:
                self.decide(name)
        for _ in range(100):
            while self.under_way:
                self.answer(next(iter(self.under_way)), "answered")
            while self.loading:
                self.finish_load()
            self.pass_time(100 * MS)
            self.check()
        for name in list(self.seers):
            assert self.seers[name].unanswered_ns is None, f"{name} has no answer: {self.asking.record(name)}"
            self.remove(name)
        while self.under_way:
            self.answer(next(iter(self.under_way)), "dropped")
        self.pass_time(3600 * S)
        assert self.asking.held() == (0, 0, 0, 0, 0), self.asking.held()
        assert self.asking.line.under_way == 0
        assert not any(game.due or game.put_off for game in self.games)

    def someone(self) -> Seer | None:
        return self.rng.choice(list(self.seers.values())) if self.seers else None

    def observe(self) -> None:
        """Observes one NPC, new or known; now and then it sees the same again, or an event."""
        seer = self.someone()
        if seer is None or (len(self.seers) < 8 and self.rng.random() < 0.05):
            seer = self.seers[self.next_name] = Seer(self.next_name, self.next_name % 2)
            self.next_name += 1
        same = seer.state and self.rng.random() < 0.5
        state = seer.state if same else self.rng.choice(STATES)
        startled = state != seer.state and self.rng.random() < 0.1
        game = self.games[seer.game]
        seer.state, seer.at_ns = state, self.now_ns
        look = self.asking.observed(seer.name, seer.name, game, not startled, self.now_ns)
        if self.twin is not None:
            other = self.twin.observed(seer.name, seer.name, self.times[seer.game], not startled, self.now_ns)
            assert look == other, (seer.name, look, other)
        if look:
            self.see(seer, startled)
        elif not seer.glimpse_ns:
            seer.glimpse_ns = self.now_ns
        if not look and self.rng.random() < 0.2:
            return  # the frame is not over, so no act is due yet
        if self.rng.random() < 0.8:
            self.tick()
        else:
            self.drain()

    def see(self, seer: Seer, startled: bool) -> None:
        """Looks at the newest observation."""
        record = self.asking.record(seer.name)
        changes = record is None or record.state != seer.state
        seer.glimpse_ns = 0
        known = seer.state in seer.answers
        agrees = self.asking.saw(seer.name, seer.state, startled, known, seer.at_ns, self.now_ns)
        if self.twin is not None:
            before = len(self.twin.acts)
            self.twin.saw(seer.name, seer.state, startled, known, seer.at_ns, self.now_ns)
            confirm = ("confirm", seer.name)
            assert agrees == (confirm in self.twin.acts[before : before + 1]), f"{seer.name}: confirmed, or not"
            if agrees:
                self.twin.acts.remove(confirm)
        record = self.record(seer.name)
        assert not agrees or record.answer == seer.state, f"{seer.name} has no intent that agrees"
        if record.answer == seer.state:
            seer.unanswered_ns = None
        elif changes or seer.unanswered_ns is None:
            seer.unanswered_ns = self.now_ns

    def attend(self) -> None:
        """Decides about an NPC's attention: its first decision, or another level."""
        seer = self.someone()
        record = self.asking.record(seer.name) if seer is not None else None
        if seer is None or record is None or record.state is None:
            return
        self.bound_begins_anew(seer)
        if not record.decided and self.rng.random() < 0.5:
            self.decide(seer.name)
        else:
            level = self.rng.choice([level for level in Activation if level is not record.level])
            self.both("attended", seer.name, level, self.rng.choice((1, 17)), self.now_ns)
        self.tick()

    def decide(self, name: int) -> None:
        """Decides about an NPC for the first time, and keeps its level."""
        self.both("decided", name, self.now_ns)
        self.tick()

    def end(self) -> None:
        """Ends a question."""
        if not self.under_way or self.stalled:
            return
        number = self.rng.choice(list(self.under_way))
        self.answer(number, self.rng.choice(["answered"] * 6 + ["failed", "dropped"]))

    def answer(self, number: int, way: str) -> None:
        """Ends a question in this way."""
        name, state = self.under_way.pop(number)
        record = self.asking.record(name)
        if way == "answered" and record is not None and number >= record.valid_from and name in self.seers:
            self.seers[name].answers.add(state)
        getattr(self.asking, way)(number, self.now_ns)
        if self.twin is not None:
            other = self.twins[number]
            getattr(self.twin, way)(other, self.now_ns)
        self.drain()
        self.tick()

    def finish_load(self) -> None:
        """KV is in place, perhaps that of a removed NPC."""
        if self.loading:
            name = self.loading.pop(self.rng.randrange(len(self.loading)))
            if name in self.seers:
                self.seers[name].loading = False
                self.bound_begins_anew(self.seers[name])
            self.asking.loaded(name, self.now_ns)
            if self.twin is not None:
                self.twin.loaded(name, True, self.now_ns)
            self.tick()

    def know(self) -> None:
        """The answer to a state was predicted."""
        seer = self.someone()
        if seer is not None and self.asking.record(seer.name) is not None:
            state = self.rng.choice(STATES)
            seer.answers.add(state)
            self.both("knows", seer.name, state)
            self.drain()

    def remove(self, name: int | None = None) -> None:
        """Removes an NPC."""
        seer = self.someone() if name is None else self.seers[name]
        if seer is None:
            return
        del self.seers[seer.name]
        self.asking.removed(seer.name, self.now_ns)
        if self.twin is not None:
            self.twin.removed(seer.name)
        self.drain()

    def register(self) -> None:
        """Registers an NPC anew, or defines its world anew."""
        seer = self.someone()
        if seer is None:
            return
        new_lease = self.rng.random() < 0.5
        if new_lease:
            seer.glimpse_ns = 0
        seer.answers.clear()
        self.both("reregistered", seer.name, seer.name, new_lease, not new_lease, self.now_ns)
        if self.record(seer.name).answer == OUTDATED:
            seer.unanswered_ns = None
        self.drain()

    def take_over(self) -> None:
        """From now on another game server observes an NPC."""
        seer = self.someone()
        if seer is not None and self.rng.random() < 0.3:
            seer.game = 1 - seer.game
            self.bound_begins_anew(seer)

    def pace(self) -> None:
        """The engine carries more or less than before."""
        active_hz = self.rng.choice((2.0, 2.0, 1.3, 0.5))
        cadence = CadenceSettings(active_hz, min(active_hz, self.rng.choice((0.5, 0.2))))
        per_s, places = self.rng.choice((1, 4, 1_000)), self.rng.choice((1, 2, 1_000))
        self.set_pace(1_000 if self.pauses else per_s, 1_000 if self.pauses else places, cadence)

    def set_pace(self, questions_per_s: int, places: int, cadence: CadenceSettings) -> None:
        self.asking.keep_pace(questions_per_s, places, cadence, self.now_ns)
        if self.twin is not None:
            self.twin.keep_pace(questions_per_s, places, cadence, self.now_ns)
        self.slot_max_ns = max(self.slot_max_ns, round(S / cadence.warm_hz))

    def stall(self) -> None:
        """The engine stalls, or goes on."""
        self.stalled = not self.stalled and self.rng.random() < 0.5

    def tell(self) -> None:
        """A game pauses, goes on, or runs at another pace."""
        self.set_time(self.rng.randrange(2), self.rng.choice((1.0, 1.0, 0.5, 4.0)), self.rng.random() < 0.4)
        if self.rng.random() < 0.7:
            self.tick()

    def set_time(self, number: int, scale: float, paused: bool) -> None:
        self.asking.tell(self.games[number], scale, paused, self.now_ns)
        if self.twin is not None:
            self.twin.tell(self.times[number], scale, paused, self.now_ns)
        for seer in self.seers.values():
            if seer.game == number:
                self.bound_begins_anew(seer)

    def wait(self) -> None:
        """Lets time pass."""
        self.pass_time(self.rng.choice((0, 1, 5, 20, 50, 200, 700)) * MS + self.rng.randrange(1000))

    def pass_time(self, length_ns: int) -> None:
        """Lets time pass, with a tick at every wanted moment."""
        end_ns = self.now_ns + length_ns
        self.tick()
        while self.wake_ns is not None and self.wake_ns <= end_ns:
            self.now_ns = max(self.now_ns, self.wake_ns)
            self.tick()
            self.check()
        self.now_ns = end_ns
        self.tick()

    def bound_begins_anew(self, seer: Seer) -> None:
        if seer.unanswered_ns is not None:
            seer.unanswered_ns = self.now_ns

    # -- doing what is wanted ----------------------------------------------------------------------------------

    def tick(self) -> None:
        """Ticks until no act is left."""
        for _ in range(TURNS_MAX * (1 if self.twin is not None else 40)):
            room = 10_000 if self.twin is not None else self.rng.choice((1, 2, 5))
            self.asking.tick(self.now_ns, room, self.stalled)
            if self.twin is not None:
                self.twin.tick(self.now_ns, self.stalled)
            ready = self.asking.ready(self.now_ns)
            assert ready is not None, "the first Ready after a tick has the time to wake"
            self.wake_ns = ready.wake_ns
            self.do(ready)
            self.drain()
            if not any(ready[:9]) and (self.wake_ns is None or self.wake_ns > self.now_ns):
                return
        raise AssertionError(f"it does not come to rest: {ready}")

    def drain(self) -> None:
        """Does all acts that follow from the inputs since the last tick."""
        for _ in range(TURNS_MAX):
            ready = self.asking.ready(self.now_ns)
            if ready is None:
                assert self.twin is None or not self.twin.acts, self.twin.acts
                return
            if ready.wake_ns is not None:
                self.wake_ns = ready.wake_ns if self.wake_ns is None else min(self.wake_ns, ready.wake_ns)
            self.do(ready)
        raise AssertionError("it wants without end")

    def do(self, ready: Ready[int]) -> None:
        """Does all acts, and checks that the twin wants the same."""
        self.compare(ready)
        for name in ready.confirm:
            assert self.record(name).answer == self.record(name).state, f"{name} has no intent that agrees"
        for stand in ready.stand:
            self.count("stand")
            self.note_answer(stand.who)
        for rule in ready.rule:
            self.count("rule")
            self.note_answer(rule.who)
        for recall in ready.recall:
            self.recall(recall.who)
        for name in ready.load:
            self.load(name)
        refused: list[int] = []
        for ask in ready.ask:
            state = self.record(ask.who).state
            assert state is not None
            valid_from = self.record(ask.who).valid_from
            asked = [s for n, (who, s) in self.under_way.items() if who == ask.who and n >= valid_from]
            assert state not in asked, f"{ask.who} is asked twice for {state}"
            assert not (self.settings.change_driven and self.record(ask.who).stands), f"{ask.who} has its answer"
            self.count("ask")
            self.under_way[ask.number] = (ask.who, state)
        if ready.ask and self.rng.random() < 0.1:
            refused = [ask.number for ask in ready.ask]
            for number in refused:
                del self.under_way[number]
            self.asking.refused(refused, self.now_ns)
            if self.twin is not None:
                self.twin.refused([self.twins[number] for number in refused], self.now_ns)
        for name in ready.look:
            self.look(name)

    def recall(self, name: int) -> None:
        seer = self.seers[name]
        self.count("recall")
        if seer.state in seer.answers and self.record(name).state == seer.state and self.rng.random() < 0.8:
            self.both("recalled", name, self.now_ns)
            self.note_answer(name)
        else:
            seer.answers.discard(self.record(name).state or "")
            self.both("forgot", name, self.now_ns)

    def load(self, name: int) -> None:
        seer = self.seers[name]
        assert not seer.loading, f"{name} is loaded twice at once"
        self.count("load")
        if self.rng.random() < 0.1:
            self.asking.not_loaded(name, self.now_ns)
            if self.twin is not None:
                self.twin.loaded(name, False, self.now_ns)
        else:
            seer.loading = True
            self.loading.append(name)

    def look(self, name: int) -> None:
        seer = self.seers.get(name)
        assert seer is not None, f"{name} is gone"
        if not seer.glimpse_ns:
            return  # a newer observation was looked at meanwhile
        self.count("look")
        if self.rng.random() < 0.05:
            seer.glimpse_ns, seer.state = 0, self.record(name).state or ""
            self.both("spoiled", name, self.now_ns)
        else:
            self.see(seer, False)

    def note_answer(self, name: int) -> None:
        seer = self.seers.get(name)
        if seer is not None and self.record(name).answer == self.record(name).state:
            seer.unanswered_ns = None

    def both(self, what: str, name: int, *more: object) -> None:
        """Gives the same input to both."""
        getattr(self.asking, what)(name, *more)
        if self.twin is not None:
            getattr(self.twin, what)(name, *more)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def record(self, name: int) -> Record[int]:
        record = self.asking.record(name)
        assert record is not None, f"{name} is not there"
        return record

    # -- laws --------------------------------------------------------------------------------------------------

    def compare(self, ready: Ready[int]) -> None:
        """The twin wants the same acts."""
        if self.twin is None:
            return
        wanted, self.twin.acts = self.twin.acts, []
        numbers = {act[1]: act[2] for act in wanted if act[0] == "ask"}
        for ask in ready.ask:
            assert ask.who in numbers, (ask, wanted)
            self.twins[ask.number] = numbers[ask.who]
        ours: list[Act] = [("confirm", name) for name in ready.confirm]
        ours += [("stand", s.who, self.twins[s.number], s.agrees) for s in ready.stand]
        ours += [("keep", self.twins[number]) for number in ready.keep]
        ours += [("rule", r.who, r.due_ns) for r in ready.rule]
        ours += [("recall", r.who, r.due_ns) for r in ready.recall]
        ours += [("load", name) for name in ready.load]
        ours += [("cancel", self.twins[number]) for number in ready.cancel]
        ours += [("ask", a.who, self.twins[a.number], a.due_ns) for a in ready.ask]
        ours += [("look", name) for name in ready.look]
        assert sorted(ours) == sorted(wanted), f"wanted {sorted(ours)}, the dumb version {sorted(wanted)}"

    def check(self) -> None:
        """The laws hold."""
        asking, now_ns = self.asking, self.now_ns
        held = asking.held()
        records = [record for name in self.seers if (record := asking.record(name)) is not None]
        assert held.npcs == len(records)
        assert held.moments <= 4 * len(records) + SPARE
        assert held.glimpses == sum(bool(record.glimpse_ns) for record in records)
        assert held.under_way == len(self.under_way)
        line = list(asking.line)
        assert sorted(line) == sorted(record.who for record in records if record.phase is Phase.IN_LINE)
        assert len(line) == len(set(line)), "an NPC is in line twice"
        called = sum(record.phase is Phase.CALLED for record in records)
        assert not called, "no turn is left when all acts are done"
        assert asking.line.under_way == len(self.under_way)
        for record in records:
            self.check_one(record)
        for seer in self.seers.values():
            self.check_bounds(seer, now_ns)

    def check_one(self, record: Record[int]) -> None:
        phase, game = record.phase, record.game
        assert (phase is Phase.DUE and bool(record.due_ns)) or phase is not Phase.DUE, record
        assert record not in game.due or phase is Phase.DUE, record
        assert record not in game.put_off or phase is Phase.PUT_OFF, record
        assert (phase is Phase.ASKED) <= bool(record.questions), record
        assert (phase is Phase.LOADING) <= bool(record.load_ns), record
        assert (phase is Phase.RESTING) <= (not record.questions and not record.load_ns), record
        assert record.level is not AMBIENT or record.urgent or phase not in (Phase.DUE, Phase.IN_LINE), record
        assert {question.number for question in record.questions} <= set(self.under_way), record
        assert len({question.state for question in record.questions}) == len(record.questions), record
        on_its_way = phase in (Phase.DUE, Phase.PUT_OFF) or record.watch_ns or not record.decided
        assert record.answer in (record.state, OUTDATED) or on_its_way, f"nothing will end in an answer: {record}"

    def check_bounds(self, seer: Seer, now_ns: int) -> None:
        """Each observation is looked at, and each that was looked at has an answer, within its bound."""
        record = self.record(seer.name) if self.asking.record(seer.name) is not None else None
        if record is None or record.game.time.paused or not (record.decided or record.urgent):
            self.bound_begins_anew(seer)
            return
        look_ns = max(self.settings.warm_look_ms, self.settings.ambient_look_ms) * MS
        if seer.glimpse_ns:
            assert now_ns - seer.glimpse_ns <= look_ns + NEXT_WITHIN_NS + SWEEP_NS + self.slack_ns, (
                f"not looked at {record}"
            )
        if seer.unanswered_ns is None:
            return
        slot_ns = round(self.slot_max_ns * 3 / 2 / min(1.0, record.game.time.scale))
        bound_ns = slot_ns + self.settings.answer_within_ms * MS + 2 * MS + self.slack_ns
        assert now_ns - seer.unanswered_ns <= bound_ns, (
            f"no answer for {(now_ns - seer.unanswered_ns) // MS} ms: {record}"
        )

    @property
    def slack_ns(self) -> int:
        """How much later than wanted a tick may come."""
        return 0
