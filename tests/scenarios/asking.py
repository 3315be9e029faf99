"""The interpreter of asking.txt."""

from __future__ import annotations

from dataclasses import replace

from core.clock import MS
from core.words import Activation
from tests.scenarios.attention import LEVELS, arguments
from tiers.asking import Asking
from tiers.game_time import GameTime
from tiers.judging import AskingSettings
from tiers.phase import Game
from tiers.ready import Ready
from tiers.share import ShareSettings


class AskingScenario:
    """NPCs that see, and an engine that answers on command. Times are milliseconds since the beginning.

    settings [within=MS] [stall=MS] [places=N] [change_driven=no]   a new world
    npc NAME... LEVEL                 they were observed, decided about, and see "nothing" by the model's answer
    newcomer NAME                     it was never observed
    see NAME SIGHT [event]            an observation that is looked at at once
    glance NAME SIGHT [event]         one of a stream's observations, which may wait
    spoil NAME                        the observation that waits cannot be read
    attend NAME LEVEL [among=N] | decide NAME
    loaded NAME | full                from now on nothing can be loaded
    answer NAME | fail NAME | drop NAME     the oldest question about it comes to its end
    refuse                            from now on nothing can be asked; accept
    remember NAME SIGHT               the NPC has an answer to a sight in its memory
    pause | play [pace=X] | stall | go on
    register NAME lease|other | remove NAME
    wait MS                           ticks come when they are wanted
    phase NAME | held
    """

    def __init__(self) -> None:
        self.begin(AskingSettings())

    def begin(self, settings: AskingSettings) -> None:
        """An empty world."""
        self.asking: Asking[str] = Asking(settings, 1)
        self.now_ns = 1_000_000 * MS  # any moment but 0
        self.begin_ns = self.now_ns
        self.game: Game[str] = Game(GameTime(self.now_ns))
        self.sights: dict[str, tuple[str, int, bool]] = {}  # the newest sight, its time, and True when it was looked at
        self.memory: dict[str, set[str]] = {}
        self.under_way: dict[int, tuple[str, str]] = {}
        self.numbers: dict[str, int] = {}
        self.full = self.refuses = self.stalled = False
        self.wake_ns: int | None = None
        self.said: list[str] = []

    def run(self, lines: list[str]) -> str:
        """The acts since the last command, or the answer to a question."""
        (verb, *words), given = arguments(lines[0])
        self.said = []
        if verb == "settings":
            share = ShareSettings(under_way_max=int(given.get("places", 48)), reserve_share=0.0)
            self.begin(
                replace(
                    AskingSettings(share=share, change_driven=given.get("change_driven") != "no"),
                    answer_within_ms=int(given.get("within", 100)),
                    stall_ms=int(given.get("stall", 20)),
                )
            )
            return "set"
        if verb == "phase":
            return self.phase(words[0])
        if verb == "held":
            return ", ".join(f"{n} {name}" for name, n in self.asking.held()._asdict().items())
        getattr(self, verb)(*words, **given)
        self.tick()
        return "\n".join(self.said) or "nothing"

    # -- commands

    def npc(self, *words: str) -> None:
        """Adds NPCs that have the model's answer."""
        *names, level = words
        for name in names:
            self.see(name, "nothing")
            self.drain()
            self.asking.decided(name, self.now_ns)
            self.drain()
            record = self.asking.record(name)
            assert record is not None
            self.asking.attended(name, LEVELS[level], 1, self.now_ns)
            self.drain()
            if LEVELS[level] is not Activation.AMBIENT:
                self.loaded(name)
                self.tick()
                self.answer(name)
                self.tick()
        self.said = []

    def see(self, name: str, sight: str, event: str = "") -> None:
        """An observation that is looked at at once."""
        self.asking.observed(name, self.numbers.setdefault(name, len(self.numbers)), self.game, False, self.now_ns)
        self.look_at(name, sight, bool(event), self.now_ns)

    newcomer = see

    def glance(self, name: str, sight: str, event: str = "") -> None:
        """An observation that is looked at when that is worth it."""
        self.sights[name] = (sight, self.now_ns, False)
        if self.asking.observed(name, self.numbers[name], self.game, not event, self.now_ns):
            self.look_at(name, sight, bool(event), self.now_ns)

    def look_at(self, name: str, sight: str, event: bool, at_ns: int) -> None:
        self.sights[name] = (sight, at_ns, True)
        if self.asking.saw(name, sight, event, sight in self.memory.get(name, ()), at_ns, self.now_ns):
            self.tell(f"confirm {name}")

    def spoil(self, name: str) -> None:
        """The waiting observation cannot be read."""
        self.sights[name] = ("", self.now_ns, False)

    def attend(self, name: str, level: str, among: str = "1") -> None:
        """Attention gives the NPC another level."""
        self.asking.attended(name, LEVELS[level], int(among), self.now_ns)

    def decide(self, name: str) -> None:
        """Attention decides for the first time, and changes nothing."""
        self.asking.decided(name, self.now_ns)

    def loaded(self, name: str) -> None:
        """Its KV is in place."""
        self.asking.loaded(name, self.now_ns)

    def answer(self, name: str) -> None:
        """The model answers."""
        self.asking.answered(self.oldest(name), self.now_ns)

    def fail(self, name: str) -> None:
        """The question fails."""
        self.asking.failed(self.oldest(name), self.now_ns)

    def drop(self, name: str) -> None:
        """The question is superseded."""
        self.asking.dropped(self.oldest(name), self.now_ns)

    def oldest(self, name: str) -> int:
        number = min(number for number, (who, _) in self.under_way.items() if who == name)
        self.about = self.under_way.pop(number)[1]
        return number

    def remember(self, name: str, sight: str) -> None:
        """From now on the NPC has an answer to that sight."""
        self.memory.setdefault(name, set()).add(sight)
        self.asking.knows(name, sight)

    def pause(self) -> None:
        """The game is paused."""
        self.asking.tell(self.game, 1.0, True, self.now_ns)

    def play(self, pace: str = "1") -> None:
        """The game goes on."""
        self.asking.tell(self.game, float(pace), False, self.now_ns)

    def engine(self, how: str) -> None:
        """stands | runs | is-full | refuses | takes"""
        self.stalled = how == "stands"
        self.full, self.refuses = how == "is-full", how == "refuses"

    def register(self, name: str, how: str) -> None:
        """Registers the NPC anew."""
        self.asking.reregistered(name, self.numbers[name], how == "lease", how == "other", self.now_ns)
        self.memory.pop(name, None)

    def remove(self, name: str) -> None:
        """Removes the NPC."""
        self.asking.removed(name, self.now_ns)

    def wait(self, ms: str) -> None:
        """Lets time pass."""
        end_ns = self.now_ns + int(float(ms) * MS)
        self.tick()
        while self.wake_ns is not None and self.wake_ns <= end_ns:
            self.now_ns = max(self.now_ns, self.wake_ns)
            self.tick()
        self.now_ns = end_ns

    # -- doing what is wanted

    def phase(self, name: str) -> str:
        record = self.asking.record(name)
        if record is None:
            return "gone"
        due = f" at {(record.due_ns - self.begin_ns) // MS}" if record.due_ns else ""
        answer = "no answer" if record.answer is None else f"{'rules' if record.by_rule else 'model'}: {record.answer}"
        return f"{record.phase.value}{due}, sees {record.state}, {answer}"

    def tick(self) -> None:
        while True:
            self.asking.tick(self.now_ns, 100, self.stalled)
            ready = self.asking.ready(self.now_ns)
            assert ready is not None
            self.wake_ns = ready.wake_ns
            self.do(ready)
            self.drain()
            if ready.nothing:
                return

    def drain(self) -> None:
        while (ready := self.asking.ready(self.now_ns)) is not None:
            self.do(ready)

    def tell(self, what: str) -> None:
        self.said.append(f"{(self.now_ns - self.begin_ns) // MS} {what}")

    def do(self, ready: Ready[str]) -> None:
        for name in ready.confirm:
            self.tell(f"confirm {name}")
        for stand in ready.stand:
            self.tell(f"stand {stand.who}: {self.about}{'' if stand.agrees else ', which it saw before'}")
        for _ in ready.keep:
            self.tell(f"keep the intent, not the answer to {self.about}")
        for rule in ready.rule:
            sight = self.sights[rule.who][0]
            self.tell(f"rule {rule.who}: {sight}, due at {(rule.due_ns - self.begin_ns) // MS}")
        for recall in ready.recall:
            sight = self.sights[recall.who][0]
            if sight in self.memory.get(recall.who, ()):
                self.tell(f"recall {recall.who}: {sight}")
                self.asking.recalled(recall.who, self.now_ns)
            else:
                self.asking.forgot(recall.who, self.now_ns)
        for name in ready.load:
            self.tell(f"load {name}")
            if self.full:
                self.asking.not_loaded(name, self.now_ns)
        for number in ready.cancel:
            self.tell(f"cancel the question about {self.under_way[number][1]}")
        for ask in ready.ask:
            self.under_way[ask.number] = (ask.who, self.sights[ask.who][0])
            self.tell(f"ask {ask.who}: {self.sights[ask.who][0]}, due at {(ask.due_ns - self.begin_ns) // MS}")
        if ready.ask and self.refuses:
            for ask in ready.ask:
                del self.under_way[ask.number]
            self.asking.refused([ask.number for ask in ready.ask], self.now_ns)
        for name in ready.look:
            sight, at_ns, looked = self.sights[name]
            if not looked and sight:
                self.tell(f"look at {name}: {sight}")
                self.look_at(name, sight, False, at_ns)
            elif not looked:
                self.asking.spoiled(name, self.now_ns)
