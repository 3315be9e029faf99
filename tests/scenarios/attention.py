"""Interpreters of activation.txt and share.txt."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from core.words import Activation
from tiers.activation import Activations, ActivationSettings, Change
from tiers.share import Share, ShareSettings

S = 1_000_000_000
MS = 1_000_000
LISTED_MAX = 10  # when more NPCs than this change, the answer counts them
LEVELS = {level.name.lower(): level for level in Activation}


def arguments(text: str) -> tuple[list[str], dict[str, str]]:
    """The plain words of a line, and its name=value pairs."""
    words = text.split()
    return [w for w in words if "=" not in w], dict(w.split("=", 1) for w in words if "=" in w)


@dataclass
class Villager:
    """One NPC on the road."""

    at_m: float
    in_sight: bool = True
    observed: bool = True
    override: Activation | None = None
    quest: bool = False
    bond: float = 0.0


class ActivationScenario:
    """A road. NPCs stand and the player walks on it; every 250 ms all NPCs are observed, and attention decides.

    settings active=MIN-MAX warm=MIN-MAX   a new road
    npcs NAME=METRES ...                   their places; crowd N from=METRES every=METRES: c1 to cN
    player at=METRES | gone
    walk NAME to=METRES speed=MPS          an NPC, or the player
    wait S
    wall NAME | no-wall NAME, quest NAME, bond NAME=0..1, spoken NAME
    override NAME=active|warm|ambient|none
    unobserved NAME | observed NAME        "all" is everybody
    levels                                 each NPC's level;  why NAME: the reason
    """

    def __init__(self) -> None:
        self.begin(ActivationSettings())

    def begin(self, settings: ActivationSettings) -> None:
        """An empty road."""
        self.attention: Activations[str] = Activations(settings)
        self.villagers: dict[str, Villager] = {}
        self.player_m = math.inf
        self.now_ns = 0
        self.most_active = self.most_warm = 0

    def run(self, lines: list[str]) -> str:
        """The changes since the last command, or the answer to a question."""
        self.most_active = self.most_warm = 0
        (verb, *words), given = arguments(lines[0])
        if verb == "settings":
            (active_min, active_max), (warm_min, warm_max) = (map(int, given[k].split("-")) for k in ("active", "warm"))
            self.begin(
                ActivationSettings(active_min=active_min, active_max=active_max, warm_min=warm_min, warm_max=warm_max)
            )
            return "set"
        if verb == "levels":
            return self.levels()
        if verb == "why":
            return f"{self.attention.of(words[0]).name.lower()}: {self.attention.reason(words[0])}"
        if verb == "wait":
            return self.changes(self.steps(float(words[0])))
        if verb == "walk":
            return self.changes(self.walk(words[0], float(given["to"]), float(given["speed"])))
        self.arrange(verb, words, given)
        return self.changes(self.steps(0))

    def arrange(self, verb: str, words: list[str], given: dict[str, str]) -> None:
        """Changes the world as the command says."""
        everybody = list(self.villagers)
        names = everybody if words == ["all"] else words
        if verb == "npcs":
            self.villagers |= {name: Villager(float(at)) for name, at in given.items()}
        elif verb == "crowd":
            first, every = float(given["from"]), float(given["every"])
            self.villagers |= {f"c{n + 1}": Villager(first + n * every) for n in range(int(words[0]))}
        elif verb == "player":
            self.player_m = math.inf if words == ["gone"] else float(given["at"])
        elif verb in ("wall", "no-wall"):
            for name in names:
                self.villagers[name].in_sight = verb == "no-wall"
        elif verb in ("observed", "unobserved"):
            for name in names:
                self.villagers[name].observed = verb == "observed"
        elif verb == "spoken":
            for name in names:
                self.attention.spoke(name, self.now_ns)
        elif verb == "override":
            for name, level in given.items():
                self.villagers[name].override = LEVELS.get(level)
        elif verb in ("quest", "bond"):
            for name in [*names, *given]:
                villager = self.villagers[name]
                villager.quest, villager.bond = villager.quest or name in names, float(given.get(name, villager.bond))
                self.attention.knows(name, villager.quest, villager.bond)
        else:
            raise AssertionError(verb)

    def look(self) -> list[Change[str]]:
        """Observes every NPC once and decides."""
        for name, villager in self.villagers.items():
            if villager.observed:
                distance_m = abs(villager.at_m - self.player_m)
                self.attention.saw(name, distance_m, villager.in_sight, villager.override, self.now_ns)
        changes = self.attention.decide(self.now_ns)
        self.most_active = max(self.most_active, self.attention.active)
        self.most_warm = max(self.most_warm, self.attention.warm)
        return changes

    def steps(self, seconds: float) -> list[tuple[int, Change[str]]]:
        """Lets time pass, a quarter of a second at a time."""
        if not seconds:
            return [(self.now_ns, change) for change in self.look()]
        out = []
        for _ in range(round(seconds * 4)):
            self.now_ns += S // 4
            out += [(self.now_ns, change) for change in self.look()]
        return out

    def walk(self, name: str, to_m: float, speed_mps: float) -> list[tuple[int, Change[str]]]:
        """Moves an NPC or the player to a place."""
        out = []
        while (at_m := self.player_m if name == "player" else self.villagers[name].at_m) != to_m:
            way_m = to_m - at_m
            at_m = to_m if abs(way_m) <= speed_mps / 4 else at_m + math.copysign(speed_mps / 4, way_m)
            if name == "player":
                self.player_m = at_m
            else:
                self.villagers[name].at_m = at_m
            out += self.steps(0.25)
        return out

    def changes(self, made: list[tuple[int, Change[str]]]) -> str:
        """The changed NPCs, one a line; many of them are only counted."""
        if len(made) > LISTED_MAX:
            to = [sum(change.now is level for _, change in made) for level in Activation]
            return (
                f"{to[0]} to active, {to[1]} to warm, {to[2]} to ambient; "
                f"at most {self.most_active} active and {self.most_warm} warm"
            )
        lines = [
            f"{at_ns / S:.2f} s {c.who}: {c.before.name.lower()} to {c.now.name.lower()}, {c.reason}"
            for at_ns, c in made
        ]
        return "\n".join(lines) or "nothing changes"

    def levels(self) -> str:
        """Each NPC's level; many of them are only counted."""
        by_level = {
            level: [name for name in self.villagers if self.attention.of(name) is level] for level in Activation
        }
        assert (len(by_level[Activation.ACTIVE]), len(by_level[Activation.WARM])) == (
            self.attention.active,
            self.attention.warm,
        )
        return "\n".join(
            f"{level.name.lower()}: " + (str(len(names)) if len(names) > LISTED_MAX else " ".join(names) or "nobody")
            for level, names in by_level.items()
        )


class ShareScenario:
    """Decides which of the due NPCs are asked now. Times are in milliseconds.

    settings [tokens=PER_S] [burst=S] [places=N] [warm=SHARE]
    due [now=MS] NAME=active|warm|ambient ... [urgent]     a1..9=active: nine of them
    gone NAME; ended N [now=MS]
    take now=MS [each=TOKENS]
    next now=MS
    """

    def __init__(self) -> None:
        self.share: Share[str] = Share(ShareSettings())

    def run(self, lines: list[str]) -> str:
        """The NPCs to ask, in order, or how many wait."""
        (verb, *words), given = arguments(lines[0])
        now_ns = int(given.pop("now", "0")) * MS
        if verb == "settings":
            self.share = Share(
                replace(
                    ShareSettings(),
                    tokens_per_s=int(given.get("tokens", 0)),
                    burst_s=float(given.get("burst", 1)),
                    under_way_max=int(given.get("places", 48)),
                    warm_share=float(given.get("warm", 0.2)),
                )
            )
            return "set"
        if verb == "take":
            return " ".join(self.share.take(now_ns, int(given.get("each", 25)))) or "nobody"
        if verb == "next":
            at_ns = self.share.next_ns(now_ns)
            return "when a place is free, or somebody is due" if at_ns is None else f"at {at_ns / MS:.0f}"
        if verb == "due":
            for name, level in given.items():
                for who in self.names(name):
                    self.share.add(who, LEVELS[level], "urgent" in words, now_ns)
        elif verb == "gone":
            for who in words:
                self.share.remove(who)
        else:
            assert verb == "ended", verb
            for _ in range(int(words[0])):
                self.share.ended(now_ns)
        return f"{len(self.share)} wait, {self.share.under_way} under way"

    @staticmethod
    def names(name: str) -> list[str]:
        """The names of a range: a1..3 is a1, a2 and a3."""
        first, dots, last = name.partition("..")
        if not dots:
            return [name]
        letters = first.rstrip("0123456789")
        return [f"{letters}{n}" for n in range(int(first.removeprefix(letters)), int(last) + 1)]
