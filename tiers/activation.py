"""The attention of each NPC: active, warm or ambient, decided anew from the last observations.

The score is an **effective distance** in metres, smaller is better: the distance to the nearest player (none:
infinite), more when the player is out of sight, less with a quest or a bond between them, and 0 for a while after a
conversation.

`Activations.decide` gives places in this order, first those of the active level, then the warm ones among all NPCs
that are left. Up to the cap (`active_max`, `warm_max`):

1. **called**: the game's override names the level.
2. **qualified**: near enough. The NPC's own effective distance has hysteresis, independent of other NPCs: it qualifies
   at `enter_m` and stops beyond `leave_m`. For `stay_s` after a promotion, a promoted NPC counts as qualified.

And up to the floor (`active_min`, `warm_min`) only:

3. **filling up**: the best others, so that the model is also asked about few NPCs, or in a game without players.
   An NPC that fills up goes when enough are qualified (after `stay_s`). It does not qualify by having a place.

Inside each of the three the smallest effective distance is first. An NPC keeps its place unless a newcomer's effective
distance is smaller by `margin_share`. Among equals, NPCs with a place are first, then those that were known first. An
NPC without a place at the active level competes for a warm one, still as called or qualified.

An override has the last word. An override to active goes before all qualified NPCs. With one to warm an NPC is never
active, and with one to ambient it is always ambient, whatever its distance, the floors, a conversation or the minimum
stay would give. Two rules are above it: the caps, and an NPC that was not observed for `stale_s` is ambient.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from core.clock import S
from core.errors import ConfigError
from core.steps import Steps, at_once, every
from core.words import Activation
from tiers.pace import Wanted

Who = TypeVar("Who", bound=Hashable)


@dataclass(frozen=True, slots=True)
class ActivationSettings:
    """The NPCs that the model is asked about: active, warm or ambient, by the distance to the nearest player. The
    effective distance is the distance times factors for sight, quest and relationship.
    """

    enter_m: float = 25.0
    """An NPC becomes active within this effective distance; 0 or more."""
    leave_m: float = 35.0
    """An active NPC stays active within this effective distance; at least `intents.activation.enter_m`."""
    warm_enter_m: float = 60.0
    """An NPC becomes warm within this effective distance; at least `intents.activation.enter_m`."""
    warm_leave_m: float = 80.0
    """A warm NPC stays warm within this effective distance; at least `intents.activation.warm_enter_m` and
    `intents.activation.leave_m`.
    """
    hidden_x: float = 1.5
    """Factor on the distance of a player who is out of sight; 1: sight does not matter. From 1 to 100."""
    quest_x: float = 0.5
    """Factor on the distance of an NPC with an active quest; more than 0, at most 1 (quests do not matter)."""
    bond_share: float = 0.3
    """Share of the distance that the strongest relationship takes away; 0 (relationships do not matter) to less than 1.
    """
    speech_s: float = 60.0
    """An NPC counts as next to a player for this time after a conversation's turn. From 0 to 3600."""
    stay_s: float = 3.0
    """A promoted NPC keeps its level for this time at least. From 0 to 3600."""
    stale_s: float = 10.0
    """An NPC that was not observed for this time becomes ambient. From 1 to 3600."""
    active_min: int = 80
    """While fewer NPCs than this are active, the nearest others become active too, as many as the engine carries;
    `intents.activation.active_max` at most.
    """
    active_max: int = 200
    """NPCs that are active at the same time; 0 or more."""
    warm_min: int = 200
    """While fewer NPCs than this are warm, the nearest others become warm too, as many as the engine carries;
    `intents.activation.warm_max` at most.
    """
    warm_max: int = 400
    """NPCs that are warm at the same time; 0 or more."""
    every_ms: int = 250
    """Levels are decided anew at this interval. From 50 to 5000."""
    margin_share: float = 0.1
    """A newcomer takes another NPC's place only if its distance is shorter by this share; 0 to less than 1."""


def check_activation(settings: ActivationSettings, section: str = "intents.activation") -> None:
    """Checks bounds. Raises ConfigError naming the setting, which is in `section`."""

    def check(right: bool, name: str, must: str) -> None:
        if not right:
            raise ConfigError(f"{section}.{name}: {getattr(settings, name):g}, must be {must}")

    s = settings
    check(0 <= s.enter_m < math.inf, "enter_m", "0 or more metres")
    for leave, enter in (
        ("leave_m", "enter_m"),
        ("warm_enter_m", "enter_m"),
        ("warm_leave_m", "warm_enter_m"),
        ("warm_leave_m", "leave_m"),
    ):
        least = getattr(s, enter)
        check(least <= getattr(s, leave) < math.inf, leave, f"at least {section}.{enter} ({least:g})")
    check(1 <= s.hidden_x <= 100, "hidden_x", "1 (sight does not matter) to 100")
    check(0 < s.quest_x <= 1, "quest_x", "more than 0, at most 1 (quests do not matter)")
    check(0 <= s.bond_share < 1, "bond_share", "0 (relationships do not matter) to less than 1")
    check(0 <= s.margin_share < 1, "margin_share", "0 to less than 1")
    for name in ("speech_s", "stay_s"):
        check(0 <= getattr(s, name) <= 3600, name, "0 to 3600 seconds")
    check(1 <= s.stale_s <= 3600, "stale_s", "1 to 3600 seconds")
    for level in ("active", "warm"):
        most = getattr(s, f"{level}_max")
        check(most >= 0, f"{level}_max", "0 or more")
        check(0 <= getattr(s, f"{level}_min") <= most, f"{level}_min", f"0 to {section}.{level}_max ({most})")
    check(50 <= s.every_ms <= 5000, "every_ms", "50 to 5000 milliseconds")


class Change(NamedTuple, Generic[Who]):
    """A change of one NPC's level, with a reason for people."""

    who: Who
    before: Activation
    now: Activation
    reason: str


class _Why(Enum):
    """The reason for an NPC's level."""

    DISTANCE = 0
    SPEECH = 1
    STAY = 2
    FLOOR = 3
    OVERRIDE = 4
    CAP = 5
    UNOBSERVED = 6


_NEVER_NS = -(1 << 62)
AT_ONCE = 64  # NPCs looked at in one step: below 0.1 ms
# Looked up once: deciding goes over all NPCs four times a second.
_ACTIVE, _WARM, _AMBIENT = Activation.ACTIVE, Activation.WARM, Activation.AMBIENT
_DISTANCE, _SPEECH, _STAY, _FLOOR, _OVERRIDE, _CAP = (
    _Why.DISTANCE, _Why.SPEECH, _Why.STAY, _Why.FLOOR, _Why.OVERRIDE, _Why.CAP,
)  # fmt: skip


@dataclass(slots=True, eq=False)
class _Interest(Generic[Who]):
    """One NPC as it is known. `near` is the level that its effective distance alone gives it, with hysteresis."""

    who: Who
    number: int
    distance_m: float = math.inf
    in_sight: bool = True
    override: Activation | None = None
    seen_ns: int = _NEVER_NS
    spoke_ns: int = _NEVER_NS
    quest: bool = False
    closer_x: float = 1.0  # of quest and relationship together
    watched: bool = False  # Invariant: watched, or ambient
    gone: bool = False
    effective_m: float = math.inf
    near: Activation = _AMBIENT
    level: Activation = _AMBIENT
    promoted_ns: int = _NEVER_NS
    why: _Why = _Why.UNOBSERVED


# NPCs with a place; the called and the qualified without one; and the others that are left.
_Placed = tuple[list[_Interest[Who]], list[_Interest[Who]], list[_Interest[Who]], tuple[list[_Interest[Who]], ...]]


class Activations(Generic[Who]):
    """Gives each NPC its level. `active` and `warm` say how many there are; `promotions` and `demotions` only grow."""

    def __init__(self, settings: ActivationSettings = ActivationSettings()) -> None:
        self.settings = settings
        # The caps as they are now: tiers/pace.py knows how much the engine carries, and lowers them.
        self.active_max = settings.active_max
        self.warm_max = settings.warm_max
        self.wanted = Wanted()  # how many would have each level if the engine carried all, as of the last decision
        self.active = 0
        self.warm = 0
        self.promotions = 0
        self.demotions = 0
        self._known: dict[Who, _Interest[Who]] = {}
        self._watched: dict[Who, _Interest[Who]] = {}
        self._next_number = 0
        self._decided_ns = 0
        self._stale_ns = round(settings.stale_s * S)
        self._speech_ns = round(settings.speech_s * S)
        self._stay_ns = round(settings.stay_s * S)

    @property
    def known(self) -> Collection[Who]:
        """All that were seen and not removed."""
        return self._known.keys()

    def saw(self, who: Who, distance_m: float, in_sight: bool, override: Activation | None, now_ns: int) -> None:
        """An observation: the nearest player's distance (infinite: none), and the level that the game wants, if any."""
        interest = self._known.get(who) or self._get_to_know(who)
        interest.distance_m = distance_m
        interest.in_sight = in_sight
        interest.override = override
        interest.seen_ns = now_ns
        if not interest.watched:
            interest.watched = True
            self._watched[who] = interest

    def knows(self, who: Who, quest: bool, relationship: float) -> None:
        """Its bond with the nearest player: an active quest, and a relationship of 0 to 1."""
        interest = self._known.get(who) or self._get_to_know(who)
        interest.quest = quest
        bond = min(max(relationship, 0.0), 1.0)
        interest.closer_x = (self.settings.quest_x if quest else 1.0) * (1.0 - self.settings.bond_share * bond)

    def spoke(self, who: Who, now_ns: int) -> None:
        """A turn of dialogue began or ended."""
        (self._known.get(who) or self._get_to_know(who)).spoke_ns = now_ns

    def remove(self, who: Who) -> None:
        """It is no longer there. Nobody is told of this change."""
        interest = self._known.pop(who, None)
        if interest is not None:
            interest.gone = True
            self._watched.pop(who, None)
            self.active -= interest.level is _ACTIVE
            self.warm -= interest.level is _WARM

    def of(self, who: Who) -> Activation:
        """Its level as of the last decision."""
        interest = self._known.get(who)
        return _AMBIENT if interest is None else interest.level

    def reason(self, who: Who) -> str:
        """The reason for its level, for people: "player at 12.0 m", "spoke 20 s ago", "cap of 200"."""
        interest = self._known.get(who)
        return "never observed" if interest is None or interest.seen_ns == _NEVER_NS else self._words(interest)

    def decide(self, now_ns: int) -> list[Change[Who]]:
        """Decides all levels anew. Returns the changes: demotions first, to make room, then promotions, the best first.

        Takes time with the number of NPCs observed within `stale_s`, however many are known.
        """
        return at_once(self.deciding(now_ns))

    def deciding(self, now_ns: int) -> Steps[list[Change[Who]]]:
        """The same in steps. Observations between them count for NPCs that were not looked at yet. NPCs that were
        removed meanwhile are not among the changes.
        """
        s = self.settings
        enter_m, leave_m, warm_enter_m, warm_leave_m = s.enter_m, s.leave_m, s.warm_enter_m, s.warm_leave_m
        fresh_ns, speech_ns, stay_ns = now_ns - self._stale_ns, now_ns - self._speech_ns, now_ns - self._stay_ns
        hidden_x = s.hidden_x
        called: list[_Interest[Who]] = []
        called_warm: list[_Interest[Who]] = []
        near: list[_Interest[Who]] = []  # qualified for active
        near_warm: list[_Interest[Who]] = []
        others: list[_Interest[Who]] = []
        out: list[_Interest[Who]] = []  # ambient, whatever places there are
        stale: list[_Interest[Who]] = []
        for interest, pause in every(AT_ONCE, list(self._watched.values())):
            if pause:
                yield
            if interest.seen_ns <= fresh_ns:
                stale.append(interest)
                continue
            interest.why = _DISTANCE
            if interest.spoke_ns > speech_ns:
                effective_m = 0.0
                interest.why = _SPEECH
            else:
                effective_m = interest.distance_m * interest.closer_x
                if not interest.in_sight:
                    effective_m *= hidden_x
            interest.effective_m = effective_m

            if effective_m <= enter_m or (interest.near is _ACTIVE and effective_m <= leave_m):
                level = _ACTIVE
            elif effective_m <= warm_enter_m or (interest.near is not _AMBIENT and effective_m <= warm_leave_m):
                level = _WARM
            else:
                level = _AMBIENT
            interest.near = level

            if interest.override is not None:
                interest.why = _OVERRIDE
                (called if interest.override is _ACTIVE else called_warm if interest.override is _WARM else out).append(
                    interest
                )
                continue
            if interest.level < level and interest.promoted_ns > stay_ns:
                level = interest.level
                interest.why = _STAY
            (near if level is _ACTIVE else near_warm if level is _WARM else others).append(interest)

        self.wanted = self._wants(
            len(called) + len(near), len(near_warm) + len(others), len(near_warm), len(called_warm)
        )
        active, called, near, (near_warm, others) = yield from self._placing(_ACTIVE, called, near, (near_warm, others))
        warm, called_warm, near_warm, (others,) = yield from self._placing(
            _WARM, called + called_warm, near + near_warm, (others,)
        )
        ambient = [*others, *called_warm, *near_warm, *out]
        for interest, pause in every(AT_ONCE, stale):
            if pause:
                yield
            if interest.seen_ns <= fresh_ns and interest.watched:  # or it was seen since, and is decided next time
                self._lose_sight_of(interest)
                ambient.append(interest)
        changes = yield from self._changing(active, warm, ambient, now_ns)
        self._decided_ns = now_ns
        self.active = sum(1 for interest in active if not interest.gone)
        self.warm = sum(1 for interest in warm if not interest.gone)
        made = []
        for (interest, before), pause in every(AT_ONCE, changes):
            if pause:
                yield
            if not interest.gone:
                made.append(Change(interest.who, before, interest.level, self._words(interest)))
        return made

    def _wants(self, qualified: int, other: int, qualified_warm: int, called_warm: int) -> Wanted:
        """How many NPCs would be active and warm under the caps of the settings."""
        s = self.settings
        active = min(s.active_max, max(qualified, min(s.active_min, qualified + other)))
        left = qualified + other + called_warm - active
        qualified_left = max(0, qualified + qualified_warm + called_warm - active)
        return Wanted(active, min(s.warm_max, max(qualified_left, min(s.warm_min, left))))

    def _placing(
        self,
        level: Activation,
        called: list[_Interest[Who]],
        qualified: list[_Interest[Who]],
        others: tuple[list[_Interest[Who]], ...],
    ) -> Steps[_Placed[Who]]:
        """The NPCs that get the level's places, and the called, the qualified and the others that do not."""
        s = self.settings
        most = self.active_max if level is _ACTIVE else self.warm_max
        least = min(s.active_min if level is _ACTIVE else s.warm_min, most)
        free = most - len(called) - len(qualified)
        if free < 0:
            placed, too_many = yield from self._best(level, called, most)
            room = most - len(placed)
            placed_near, too_many_near = yield from self._best(level, qualified, room)
            for interest, pause in every(AT_ONCE, too_many + too_many_near):
                if pause:
                    yield
                interest.why = _CAP
            return placed + placed_near, too_many, too_many_near, others
        missing = least - (most - free)
        if missing <= 0:
            return called + qualified, [], [], others
        filling, _ = yield from self._best(level, [i for group in others for i in group], missing)
        for interest in filling:
            interest.why = _FLOOR
        filled = set(filling)
        rest = []
        for group in others:
            rest.append([i for i in group if i not in filled])
            yield
        return called + qualified + filling, [], [], tuple(rest)

    def _best(
        self, level: Activation, among: list[_Interest[Who]], count: int
    ) -> Steps[tuple[list[_Interest[Who]], list[_Interest[Who]]]]:
        """Those `count` that have the first right to places of this level, and the others; each in no order.

        Smaller distances are first, then who has such a place, then who came to be known first.
        """
        if len(among) <= count or not count:
            return (among, []) if count else ([], among)
        there_x = 1.0 - self.settings.margin_share
        distances, newcomers, numbers = [], [], []
        for interest, pause in every(AT_ONCE, among):
            if pause:
                yield
            has_place = interest.level <= level
            distances.append(interest.effective_m * there_x if has_place else interest.effective_m)
            newcomers.append(not has_place)
            numbers.append(interest.number)
        yield
        order = np.lexsort((numbers, newcomers, distances)).tolist()  # the last key is the first to count
        yield
        best = [among[i] for i in order[:count]]
        yield
        return best, [among[i] for i in order[count:]]

    def _changing(
        self,
        active: list[_Interest[Who]],
        warm: list[_Interest[Who]],
        ambient: list[_Interest[Who]],
        now_ns: int,
    ) -> Steps[list[tuple[_Interest[Who], Activation]]]:
        """Sets all levels as decided. Returns the NPCs that changed and their levels before, in order."""
        up: list[tuple[_Interest[Who], Activation]] = []
        down: list[tuple[_Interest[Who], Activation]] = []
        for level, members in ((_ACTIVE, active), (_WARM, warm), (_AMBIENT, ambient)):
            for interest, pause in every(AT_ONCE, members):
                if pause:
                    yield
                before = interest.level
                if before is not level:
                    interest.level = level
                    if level < before:
                        interest.promoted_ns = now_ns
                        up.append((interest, before))
                    else:
                        down.append((interest, before))
        self.promotions += len(up)
        self.demotions += len(down)
        up.sort(key=lambda change: (change[0].level, change[0].effective_m, change[0].number))
        down.sort(key=lambda change: (-change[0].level, -change[0].effective_m, change[0].number))
        return down + up

    def _get_to_know(self, who: Who) -> _Interest[Who]:
        interest = self._known[who] = _Interest(who, self._next_number)
        self._next_number += 1
        return interest

    def _lose_sight_of(self, interest: _Interest[Who]) -> None:
        """Drops its observation; its bond with players stays."""
        interest.near = _AMBIENT
        interest.effective_m = math.inf
        interest.why = _Why.UNOBSERVED
        interest.watched = False
        del self._watched[interest.who]

    def _words(self, interest: _Interest[Who]) -> str:
        s, why = self.settings, interest.why
        if why is _Why.UNOBSERVED:
            # Seen, and no decision since, is unobserved as of the last one.
            return "not decided yet" if interest.watched else f"not observed for {s.stale_s:g} s"
        if why is _OVERRIDE:
            return "override"
        if why is _SPEECH:
            return f"spoke {max(0, self._decided_ns - interest.spoke_ns) / S:.0f} s ago"
        if why is _CAP:
            most, own = (self.active_max, s.active_max) if interest.level is _WARM else (self.warm_max, s.warm_max)
            return f"cap of {most}" + ("" if most == own else f" (of {own}: the engine carries no more)")
        if why is _FLOOR:
            if interest.level is _ACTIVE:
                return f"one of the {min(s.active_min, self.active_max)} nearest"
            return f"one of the next {min(s.warm_min, self.warm_max)}"
        if interest.distance_m == math.inf:
            said = "no player near"
        else:
            said = f"player at {interest.distance_m:.1f} m"
            said += "" if interest.in_sight else " out of sight"
            said += ", quest" if interest.quest else ""
            if f"{interest.effective_m:.1f}" != f"{interest.distance_m:.1f}":
                said += f", counts as {interest.effective_m:.1f} m"
        return f"{said}, stays {s.stay_s:g} s at least" if why is _STAY else said
